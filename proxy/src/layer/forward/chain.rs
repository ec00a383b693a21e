//! What proxies say of those before them: `X-Forwarded-For`, and `Forwarded` (RFC 7239), read and written.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4};

/// More steps than this are no chain of proxies.
const STEPS_MOST: usize = 100;

/// One step on a request's way: who made it, and what was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Step<'s> {
    /// Whose address it is; `None` if the proxy does not say, or says it in words of its own.
    pub from: Option<IpAddr>,
    /// The scheme that was spoken; empty if it is not said.
    pub proto: &'s [u8],
    /// The host that was asked for; empty if it is not said.
    pub host: &'s [u8],
}

/// An address as proxies write it: with or without a port, IPv6 in brackets or not.
#[must_use]
pub fn address(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?;
    if let Some(inside) = text.strip_prefix('[') {
        let (inside, port) = inside.split_once(']')?;
        let is_port = |port: &str| port.parse::<u16>().is_ok();
        let port = port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
        return port
            .then(|| inside.parse::<Ipv6Addr>().ok())
            .flatten()
            .map(IpAddr::V6);
    }
    let plain = text.parse().ok();
    plain.or_else(|| Some(IpAddr::V4(*text.parse::<SocketAddrV4>().ok()?.ip())))
}

/// The steps of all lines of `Forwarded`, the first proxy's first; `None` if they are not as they should be.
#[must_use]
pub fn steps<'s>(lines: impl Iterator<Item = &'s [u8]>) -> Option<Vec<Step<'s>>> {
    let mut steps = Vec::new();
    for line in lines {
        let mut left = line;
        loop {
            let (step, rest) = step(left)?;
            steps.extend(step);
            if steps.len() > STEPS_MOST {
                return None;
            }
            match rest.split_first() {
                Some((_, rest)) => left = rest,
                None => break,
            }
        }
    }
    Some(steps)
}

/// Pairs up to a comma or the end; `None` as a step if there are none.
fn step(text: &[u8]) -> Option<(Option<Step<'_>>, &[u8])> {
    let mut step = None;
    let mut left = text.trim_ascii_start();
    loop {
        match left.first() {
            None | Some(b',') => return Some((step, left)),
            Some(b';') => left = left[1..].trim_ascii_start(),
            Some(_) => {
                let (name, value, rest) = pair(left)?;
                let step = step.get_or_insert_with(Step::default);
                match name {
                    name if name.eq_ignore_ascii_case(b"for") => step.from = node(value),
                    name if name.eq_ignore_ascii_case(b"proto") => step.proto = value,
                    name if name.eq_ignore_ascii_case(b"host") => step.host = value,
                    // Which interface it came to (`by`), and whatever else there may be.
                    _ => (),
                }
                left = rest.trim_ascii_start();
                if !matches!(left.first(), None | Some(b',' | b';')) {
                    return None;
                }
            }
        }
    }
}

/// `token "=" ( token / quoted-string )`. A quoted string with a backslash in it is none of ours: no address, scheme or host
/// has one.
fn pair(text: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (name, rest) = token(text)?;
    let rest = rest.strip_prefix(b"=")?;
    let (value, rest) = match rest.strip_prefix(b"\"") {
        Some(quoted) => {
            let end = quoted
                .iter()
                .position(|byte| matches!(byte, b'"' | b'\\'))?;
            let value = &quoted[..end];
            (value, quoted[end..].strip_prefix(b"\"")?)
        }
        None => token(rest)?,
    };
    Some((name, value, rest))
}

fn token(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    let end = text.iter().position(|byte| !is_token(byte));
    let (token, rest) = text.split_at(end.unwrap_or(text.len()));
    (!token.is_empty()).then_some((token, rest))
}

/// A node's address; a name of the proxy's own, or `unknown`, is none (RFC 7239 §6).
fn node(value: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(value).ok()?;
    if text.starts_with('[') {
        return address(value);
    }
    // Its port may be a name, too (`_…`).
    let host = text.split_once(':').map_or(text, |(host, _)| host);
    host.parse::<Ipv4Addr>().ok().map(IpAddr::V4)
}

/// Appends one step's `for`, and what was asked for, as far as it is known.
pub fn write(out: &mut Vec<u8>, step: Step<'_>) {
    use std::io::Write;
    let _ = match step.from {
        Some(IpAddr::V4(ip)) => write!(out, "for={ip}"),
        Some(IpAddr::V6(ip)) => write!(out, "for=\"[{ip}]\""),
        None => write!(out, "for=unknown"),
    };
    if !step.proto.is_empty() && token(step.proto).is_some_and(|(_, rest)| rest.is_empty()) {
        out.extend_from_slice(b";proto=");
        out.extend_from_slice(step.proto);
    }
    if !step.host.is_empty() && !step.host.iter().any(|byte| matches!(byte, b'"' | b'\\')) {
        out.extend_from_slice(b";host=\"");
        out.extend_from_slice(step.host);
        out.push(b'"');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[&'static str]) -> Option<Vec<Step<'static>>> {
        steps(lines.iter().map(|line| line.as_bytes()))
    }

    fn from(address: &str) -> Step<'static> {
        Step {
            from: address.parse().ok(),
            ..Step::default()
        }
    }

    #[test]
    fn addresses_are_read_as_proxies_write_them() {
        for (text, ip) in [
            ("192.0.2.1", "192.0.2.1"),
            ("192.0.2.1:80", "192.0.2.1"),
            ("2001:db8::1", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("[2001:db8::1]:443", "2001:db8::1"),
        ] {
            assert_eq!(address(text.as_bytes()), ip.parse().ok(), "{text}");
        }
        for text in [
            "",
            "unknown",
            "1.2.3",
            "1.2.3.4:",
            "1.2.3.4:x",
            "[::1",
            "[::1]x",
            "[::1]:",
            "[1.2.3.4]",
            "é",
        ] {
            assert_eq!(address(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn the_examples_of_the_rfc_are_understood() {
        let read = |line| read(&[line]).unwrap();
        assert_eq!(read("for=\"_gazonk\""), [Step::default()]);
        assert_eq!(
            read("For=\"[2001:db8:cafe::17]:4711\""),
            [from("2001:db8:cafe::17")]
        );
        assert_eq!(
            read("for=192.0.2.60;proto=http;by=203.0.113.43"),
            [Step {
                proto: b"http",
                ..from("192.0.2.60")
            }]
        );
        assert_eq!(
            read("for=192.0.2.43, for=198.51.100.17;host=\"a:8,0\""),
            [
                from("192.0.2.43"),
                Step {
                    host: b"a:8,0",
                    ..from("198.51.100.17")
                }
            ]
        );
        assert_eq!(read("for=_hidden, for=unknown"), [Step::default(); 2]);
        assert_eq!(read("for=\"192.0.2.43:_x\""), [from("192.0.2.43")]);
        assert_eq!(read(", ,"), []);
    }

    #[test]
    fn lines_that_are_not_as_they_should_be_are_not_believed_at_all() {
        for line in [
            "for",
            "for=",
            "=1.2.3.4",
            "for=1.2.3.4 proto=http",
            "for=\"1.2.3.4",
            "for=\"1.2\\.3.4\"",
            "for=[::1]",
            "for =1.2.3.4",
            "1.2.3.4",
        ] {
            assert_eq!(read(&["for=192.0.2.1", line]), None, "{line}");
        }
        assert_eq!(read(&["for=a,"; STEPS_MOST + 1]), None);
    }

    #[test]
    fn what_is_written_is_read_as_the_same() {
        for (step, text) in [
            (
                Step {
                    proto: b"https",
                    host: b"a:80",
                    ..from("192.0.2.1")
                },
                "for=192.0.2.1;proto=https;host=\"a:80\"",
            ),
            (from("2001:db8::1"), "for=\"[2001:db8::1]\""),
            (Step::default(), "for=unknown"),
        ] {
            let mut out = Vec::new();
            write(&mut out, step);
            assert_eq!(String::from_utf8(out.clone()).unwrap(), text);
            assert_eq!(steps([&out[..]].into_iter()), Some(vec![step]));
        }
        let mut out = Vec::new();
        let sly = Step {
            proto: b"a;b",
            host: b"a\"b",
            from: None,
        };
        write(&mut out, sly);
        assert_eq!(out, b"for=unknown");
    }
}
