//! The PROXY protocol, versions 1 and 2 (HAProxy's `doc/proxy-protocol.txt`): bytes → for whom a connection was made.
//!
//! It stands before everything else on a connection, so whoever may write it can be any client. It is read strictly: what
//! could be understood in two ways is malformed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The longest header of version 1, its line end included, in bytes (§2.1).
const LINE_MOST: usize = 107;
/// What every header of version 2 begins with.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// The part of version 2 that is always there, in bytes.
const FIXED: usize = 16;
/// The most that may follow it, in bytes: addresses need 216 at most, the rest is for remarks of load balancers (a client's
/// certificate, say, which we skip).
const REST_MOST: usize = 4 << 10;
/// The remark that holds a checksum of the whole header (§2.2.5).
const CHECKSUM: u8 = 0x03;

/// No header is longer, in bytes.
pub const LONGEST: usize = FIXED + REST_MOST;

/// What a header says of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Introduction {
    /// Nothing: it is what it seems to be (a health check, say, or a client without an address).
    Itself,
    /// It was made for somebody else.
    Client {
        /// Who that is.
        from: SocketAddr,
        /// Where it connected to.
        to: SocketAddr,
    },
}

/// Why bytes are not a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

/// Reads the header that `bytes` begin with, and its length; `None` when it is not whole yet.
///
/// # Errors
/// No header begins like that, or it breaks a rule.
pub fn parse(bytes: &[u8]) -> Result<Option<(Introduction, usize)>, Malformed> {
    let begins_like = |what: &[u8]| {
        let common = what.len().min(bytes.len());
        what[..common] == bytes[..common]
    };
    if begins_like(b"PROXY ") {
        line(bytes)
    } else if begins_like(SIGNATURE) {
        binary(bytes)
    } else {
        Err(Malformed("the connection does not begin with it"))
    }
}

/// Version 1: `PROXY TCP4 192.0.2.1 192.0.2.2 56324 443` and CRLF.
fn line(bytes: &[u8]) -> Result<Option<(Introduction, usize)>, Malformed> {
    let within = &bytes[..bytes.len().min(LINE_MOST)];
    let Some(end) = within.iter().position(|byte| *byte == b'\n') else {
        return if within.len() == LINE_MOST {
            Err(Malformed("its line is longer than 107 bytes"))
        } else {
            Ok(None)
        };
    };
    let Some(text) = within[..end].strip_suffix(b"\r") else {
        return Err(Malformed("its line ends without CR"));
    };
    let text = std::str::from_utf8(text).map_err(|_| Malformed("its line is not ASCII"))?;
    let mut words = text.split(' ').skip(1);
    let said = match words.next() {
        // Whatever else stands there has no meaning.
        Some("UNKNOWN") => Introduction::Itself,
        Some("TCP4") => between(words, |word| {
            Some(IpAddr::V4(word.parse::<Ipv4Addr>().ok()?))
        })?,
        Some("TCP6") => between(words, |word| {
            Some(IpAddr::V6(word.parse::<Ipv6Addr>().ok()?))
        })?,
        _ => return Err(Malformed("its protocol is not TCP4, TCP6 or UNKNOWN")),
    };
    Ok(Some((said, end + 1)))
}

fn between<'w>(
    mut words: impl Iterator<Item = &'w str>,
    address: impl Fn(&str) -> Option<IpAddr>,
) -> Result<Introduction, Malformed> {
    let mut word = || words.next().unwrap_or_default();
    let (from, to) = (address(word()), address(word()));
    let (from_port, to_port) = (port(word()), port(word()));
    if words.next().is_some() {
        return Err(Malformed("its line has too many words"));
    }
    match (from, to, from_port, to_port) {
        (Some(from), Some(to), Some(from_port), Some(to_port)) => Ok(Introduction::Client {
            from: SocketAddr::new(from, from_port),
            to: SocketAddr::new(to, to_port),
        }),
        (None, ..) | (_, None, ..) => Err(Malformed("an address in it is none")),
        (Some(_), Some(_), None, _) | (Some(_), Some(_), _, None) => {
            Err(Malformed("a port in it is none"))
        }
    }
}

fn port(word: &str) -> Option<u16> {
    let plain = word.bytes().all(|byte| byte.is_ascii_digit());
    let padded = word.len() > 1 && word.starts_with('0');
    word.parse().ok().filter(|_| plain && !padded)
}

/// Version 2: a signature, a byte of version and command, one of family, a length, addresses, remarks.
fn binary(bytes: &[u8]) -> Result<Option<(Introduction, usize)>, Malformed> {
    let Some((fixed, rest)) = bytes.split_first_chunk::<FIXED>() else {
        return Ok(None);
    };
    let [.., command, family, high, low] = *fixed;
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length > REST_MOST {
        return Err(Malformed("it is longer than 4 KiB"));
    }
    let is_local = match command {
        0x20 => true,
        0x21 => false,
        _ => return Err(Malformed("its version or its command is unknown")),
    };
    if family >> 4 > 3 || family & 15 > 2 {
        return Err(Malformed("its family or its protocol is unknown"));
    }
    let Some(rest) = rest.get(..length) else {
        return Ok(None);
    };
    let whole = &bytes[..FIXED + length];
    let short = Malformed("its addresses are cut short");
    let (said, remarks) = match family {
        _ if is_local => (Introduction::Itself, &[][..]),
        0x11 => {
            let (addresses, remarks) = rest.split_first_chunk::<12>().ok_or(short)?;
            (four(addresses), remarks)
        }
        0x21 => {
            let (addresses, remarks) = rest.split_first_chunk::<36>().ok_or(short)?;
            (six(addresses), remarks)
        }
        // Paths of sockets, datagrams, or nothing: no address that a client of TCP could have.
        _ => (Introduction::Itself, &[][..]),
    };
    check_remarks(whole, remarks)?;
    Ok(Some((said, whole.len())))
}

fn four(addresses: &[u8; 12]) -> Introduction {
    let [a, b, c, d, e, f, g, h, ports @ ..] = *addresses;
    let ip = |bytes: [u8; 4]| IpAddr::V4(Ipv4Addr::from(bytes));
    client(ip([a, b, c, d]), ip([e, f, g, h]), ports)
}

fn six(addresses: &[u8; 36]) -> Introduction {
    let ip = |at: usize| {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&addresses[at..at + 16]);
        IpAddr::V6(Ipv6Addr::from(bytes))
    };
    let [.., a, b, c, d] = *addresses;
    client(ip(0), ip(16), [a, b, c, d])
}

const fn client(from: IpAddr, to: IpAddr, [a, b, c, d]: [u8; 4]) -> Introduction {
    Introduction::Client {
        from: SocketAddr::new(from, u16::from_be_bytes([a, b])),
        to: SocketAddr::new(to, u16::from_be_bytes([c, d])),
    }
}

/// Remarks mean nothing to us, but they must fill what is left exactly, and a checksum among them must be right.
fn check_remarks(whole: &[u8], mut left: &[u8]) -> Result<(), Malformed> {
    let cut = Malformed("a remark in it is cut short");
    while !left.is_empty() {
        let ([kind, high, low], rest) = left.split_first_chunk().ok_or(cut)?;
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let (value, rest) = rest.split_at_checked(length).ok_or(cut)?;
        if *kind == CHECKSUM {
            let said: [u8; 4] = value
                .try_into()
                .map_err(|_| Malformed("its checksum is not one"))?;
            let at = whole.len() - rest.len() - said.len();
            let zeroed = [&whole[..at], &[0; 4], &whole[at + said.len()..]];
            if crc32c(zeroed.into_iter().flatten()) != u32::from_be_bytes(said) {
                return Err(Malformed("its checksum is wrong"));
            }
        }
        left = rest;
    }
    Ok(())
}

/// CRC-32C (RFC 3720 §B.4), bit by bit: a header is short, and few have one.
fn crc32c<'b>(bytes: impl Iterator<Item = &'b u8>) -> u32 {
    !bytes.fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            (sum >> 1) ^ (0x82f6_3b78 & 0_u32.wrapping_sub(sum & 1))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(from: &str, to: &str) -> Introduction {
        Introduction::Client {
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
        }
    }

    fn said(bytes: &[u8]) -> Introduction {
        let mut longer = bytes.to_vec();
        longer.extend_from_slice(b"GET /");
        let (said, length) = parse(&longer).unwrap().unwrap();
        assert_eq!(length, bytes.len());
        for end in 0..bytes.len() {
            assert_eq!(parse(&bytes[..end]), Ok(None), "its first {end} bytes");
        }
        said
    }

    fn fault(bytes: &[u8]) -> &'static str {
        match parse(bytes) {
            Err(Malformed(why)) => why,
            other => panic!("{other:?}: {:?}", String::from_utf8_lossy(bytes)),
        }
    }

    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend([command, family]);
        bytes.extend(u16::try_from(rest.len()).unwrap().to_be_bytes());
        bytes.extend_from_slice(rest);
        bytes
    }

    const FOUR: [u8; 12] = [192, 0, 2, 1, 10, 0, 0, 9, 0xdc, 4, 1, 0xbb];

    #[test]
    fn a_line_names_the_client_and_where_it_connected_to() {
        assert_eq!(
            said(b"PROXY TCP4 192.0.2.1 10.0.0.9 56324 443\r\n"),
            client("192.0.2.1:56324", "10.0.0.9:443")
        );
        assert_eq!(
            said(b"PROXY TCP6 2001:db8::1 ::1 1 0\r\n"),
            client("[2001:db8::1]:1", "[::1]:0")
        );
        assert_eq!(said(b"PROXY UNKNOWN\r\n"), Introduction::Itself);
        let longest = "PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n";
        assert_eq!(longest.len(), LINE_MOST);
        assert_eq!(said(longest.as_bytes()), Introduction::Itself);
    }

    #[test]
    fn a_line_that_could_mean_something_else_is_malformed() {
        for (line, why) in [
            ("GET / HTTP/1.1\r\n", "does not begin"),
            ("PROXY\r\n", "does not begin"),
            ("PROXY TCP4 1.1.1.1 2.2.2.2 1 2\n", "without CR"),
            ("PROXY TCP4 1.1.1.1 2.2.2.2 1 65536\r\n", "a port"),
            ("PROXY TCP4 1.1.1.1 2.2.2.2 01 2\r\n", "a port"),
            ("PROXY TCP4 1.1.1.1 2.2.2.2 +1 2\r\n", "a port"),
            ("PROXY TCP4 1.1.1.1 2.2.2.2 1\r\n", "a port"),
            ("PROXY TCP4 1.1.1.1 2.2.2.2 1 2 3\r\n", "too many"),
            ("PROXY TCP4  1.1.1.1 2.2.2.2 1 2\r\n", "too many"),
            ("PROXY TCP4 ::1 ::1 1 2\r\n", "an address"),
            ("PROXY TCP6 1.1.1.1 2.2.2.2 1 2\r\n", "an address"),
            ("PROXY TCP4 1.1.1.01 2.2.2.2 1 2\r\n", "an address"),
            ("PROXY UDP4 1.1.1.1 2.2.2.2 1 2\r\n", "its protocol"),
            ("PROXY  UNKNOWN\r\n", "its protocol"),
            ("PROXY TCP4 \u{661}.1.1.1 2.2.2.2 1 2\r\n", "an address"),
        ] {
            let said = fault(line.as_bytes());
            assert!(said.contains(why), "{line:?}: {said}");
        }
        let long = format!("PROXY UNKNOWN {}", "x".repeat(LINE_MOST));
        assert!(fault(long.as_bytes()).contains("107"));
    }

    #[test]
    fn a_binary_header_names_the_client_and_its_remarks_are_skipped() {
        let whole = [&FOUR[..], &[0x02, 0, 3, b'a', b'b', b'c', 0x04, 0, 0]].concat();
        let named = client("192.0.2.1:56324", "10.0.0.9:443");
        assert_eq!(said(&v2(0x21, 0x11, &FOUR)), named);
        assert_eq!(said(&v2(0x21, 0x11, &whole)), named);
        let mut six = [0_u8; 36];
        (six[0], six[15], six[31], six[33], six[35]) = (0x20, 1, 2, 3, 4);
        assert_eq!(
            said(&v2(0x21, 0x21, &six)),
            client("[2000::1]:3", "[::2]:4")
        );
    }

    #[test]
    fn a_connection_of_the_proxy_s_own_or_without_an_address_is_what_it_seems() {
        for header in [
            v2(0x20, 0x00, &[]),
            v2(0x20, 0x11, &FOUR),
            v2(0x20, 0x11, b"odd"),
            v2(0x21, 0x00, b"whatever"),
            v2(0x21, 0x12, &FOUR),
            v2(0x21, 0x31, &[0; 216]),
        ] {
            assert_eq!(said(&header), Introduction::Itself);
        }
    }

    #[test]
    fn a_binary_header_that_breaks_a_rule_is_malformed() {
        for (header, why) in [
            (v2(0x11, 0x11, &FOUR), "version"),
            (v2(0x22, 0x11, &FOUR), "command"),
            (v2(0x21, 0x13, &FOUR), "family"),
            (v2(0x21, 0x41, &FOUR), "family"),
            (v2(0x21, 0x11, &FOUR[..11]), "addresses"),
            (v2(0x21, 0x21, &FOUR), "addresses"),
            (v2(0x21, 0x11, &[&FOUR[..], &[1, 0]].concat()), "remark"),
            (v2(0x21, 0x11, &[&FOUR[..], &[1, 0, 1]].concat()), "remark"),
            (v2(0x21, 0x11, &vec![0; REST_MOST + 1]), "4 KiB"),
        ] {
            assert!(fault(&header).contains(why), "{why}: {}", fault(&header));
        }
        let mut other = v2(0x21, 0x11, &FOUR);
        other[11] = b'\r';
        assert!(fault(&other).contains("does not begin"));
    }

    #[test]
    fn a_checksum_must_be_right() {
        assert_eq!(crc32c(b"123456789".iter()), 0xe306_9283);
        let remarks = [4, 0, 1, 0, CHECKSUM, 0, 4, 0, 0, 0, 0, 4, 0, 1, 0];
        let mut header = v2(0x21, 0x11, &[&FOUR[..], &remarks].concat());
        let sum = crc32c(header.iter()).to_be_bytes();
        let at = header.len() - 8;
        header[at..at + 4].copy_from_slice(&sum);
        assert!(matches!(said(&header), Introduction::Client { .. }));
        header[20] ^= 1;
        assert!(fault(&header).contains("checksum is wrong"));
        let short = [&FOUR[..], &[CHECKSUM, 0, 1, 0]].concat();
        assert!(fault(&v2(0x21, 0x11, &short)).contains("not one"));
    }
}
