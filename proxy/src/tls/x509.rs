//! What the library does not say of a certificate: when it ends, and whose it is (RFC 5280 §4.1).
//!
//! Certificates come here after the library has taken them for valid. All the same nothing is believed: what is not as it
//! should be is no certificate.

use std::fmt::Write;

/// A subject is not longer than this, in bytes of text; it becomes a field of every request.
const SUBJECT_MOST: usize = 1 << 10;

/// Tags of DER (ITU-T X.690) that are met here.
mod tag {
    pub(super) const INTEGER: u8 = 0x02;
    pub(super) const OID: u8 = 0x06;
    pub(super) const UTF8: u8 = 0x0c;
    pub(super) const PRINTABLE: u8 = 0x13;
    pub(super) const IA5: u8 = 0x16;
    pub(super) const UTC_TIME: u8 = 0x17;
    pub(super) const GENERALIZED_TIME: u8 = 0x18;
    pub(super) const SEQUENCE: u8 = 0x30;
    pub(super) const SET: u8 = 0x31;
    pub(super) const VERSION: u8 = 0xa0;
}

/// The names of attributes that RFC 4514 §3 abbreviates, and of two that are common, by the bytes of their identifier.
const NAMES: [(&[u8], &str); 12] = [
    (&[0x55, 4, 3], "CN"),
    (&[0x55, 4, 5], "serialNumber"),
    (&[0x55, 4, 6], "C"),
    (&[0x55, 4, 7], "L"),
    (&[0x55, 4, 8], "ST"),
    (&[0x55, 4, 9], "STREET"),
    (&[0x55, 4, 10], "O"),
    (&[0x55, 4, 11], "OU"),
    (&[0x55, 4, 42], "GN"),
    (
        &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 1],
        "emailAddress",
    ),
    (&[9, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 1], "UID"),
    (&[9, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 25], "DC"),
];

/// What is read of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The last second in which it is valid, since 1970.
    pub not_after: i64,
    /// Whose it is, as RFC 4514 writes it, in ASCII: `CN=Ann,O=Shop`. Empty if it says nothing.
    pub subject: String,
}

/// Reads a certificate in DER; `None` if it is none, or its subject is too long.
#[must_use]
pub fn read(der: &[u8]) -> Option<Facts> {
    let (certificate, behind) = Der(der).only(tag::SEQUENCE)?;
    let (mut body, _) = certificate.only(tag::SEQUENCE)?;
    if body.0.first() == Some(&tag::VERSION) {
        body.next()?;
    }
    body.expect(tag::INTEGER)?;
    body.expect(tag::SEQUENCE)?;
    let _issuer = body.expect(tag::SEQUENCE)?;
    let mut validity = Der(body.expect(tag::SEQUENCE)?);
    let _not_before = validity.next()?;
    let (kind, text) = validity.next()?;
    let subject = body.expect(tag::SEQUENCE)?;
    if !behind.is_empty() {
        return None;
    }
    Some(Facts {
        not_after: time(kind, text)?,
        subject: name(subject)?,
    })
}

/// Elements that follow each other.
#[derive(Clone, Copy)]
struct Der<'d>(&'d [u8]);

impl<'d> Der<'d> {
    /// The next element: its tag and what is in it.
    fn next(&mut self) -> Option<(u8, &'d [u8])> {
        let (&[tag, first], rest) = self.0.split_first_chunk()?;
        // No tag that is met here is longer than a byte.
        if tag & 31 == 31 {
            return None;
        }
        let (length, rest) = if first < 0x80 {
            (usize::from(first), rest)
        } else {
            let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            // No leading zero, nothing that fits a shorter form.
            if bytes.len() > 4 || bytes.first().is_none_or(|first| *first == 0) {
                return None;
            }
            let length = bytes
                .iter()
                .fold(0, |sum, byte| sum << 8 | usize::from(*byte));
            (Some(length).filter(|length| *length >= 0x80)?, rest)
        };
        let (inside, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, inside))
    }

    fn expect(&mut self, wanted: u8) -> Option<&'d [u8]> {
        let (tag, inside) = self.next()?;
        (tag == wanted).then_some(inside)
    }

    /// What is in the first element, and what is behind it.
    fn only(mut self, wanted: u8) -> Option<(Self, &'d [u8])> {
        let inside = self.expect(wanted)?;
        Some((Self(inside), self.0))
    }
}

/// Seconds since 1970.
fn time(kind: u8, text: &[u8]) -> Option<i64> {
    let digits = text.strip_suffix(b"Z")?;
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let (year, rest) = match kind {
        // Two digits are 1950 to 2049 (RFC 5280 §4.1.2.5.1).
        tag::UTC_TIME => {
            let (year, rest) = digits.split_at_checked(2)?;
            let year = number(year);
            (if year < 50 { 2000 + year } else { 1900 + year }, rest)
        }
        tag::GENERALIZED_TIME => {
            let (year, rest) = digits.split_at_checked(4)?;
            (number(year), rest)
        }
        _ => return None,
    };
    let rest: &[u8; 10] = rest.try_into().ok()?;
    let part = |at: usize| number(&rest[at..at + 2]);
    let (month, day) = (part(0), part(2));
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    Some(((days(year, month, day) * 24 + part(4)) * 60 + part(6)) * 60 + part(8))
}

fn number(digits: &[u8]) -> i64 {
    let add = |sum, digit: &u8| sum * 10 + i64::from(digit - b'0');
    digits.iter().fold(0, add)
}

/// Days since 1970-01-01 in the Gregorian calendar, by counting years from March.
const fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// A distinguished name as text, the last part first (RFC 4514 §2.1).
fn name(der: &[u8]) -> Option<String> {
    let mut parts = Vec::new();
    let mut left = Der(der);
    while !left.0.is_empty() {
        let mut attributes = Der(left.expect(tag::SET)?);
        let mut part = String::new();
        while !attributes.0.is_empty() {
            if !part.is_empty() {
                part.push('+');
            }
            attribute(&mut part, attributes.expect(tag::SEQUENCE)?)?;
        }
        parts.push(part);
        if parts.iter().map(String::len).sum::<usize>() + parts.len() > SUBJECT_MOST {
            return None;
        }
    }
    parts.reverse();
    Some(parts.join(","))
}

fn attribute(out: &mut String, der: &[u8]) -> Option<()> {
    let mut both = Der(der);
    let kind = both.expect(tag::OID)?;
    let value = both.0;
    let known = NAMES.iter().find(|(bytes, _)| *bytes == kind);
    match known {
        Some((_, name)) => out.push_str(name),
        None => dotted(out, kind)?,
    }
    out.push('=');
    let (tag, text) = both.next()?;
    if !both.0.is_empty() {
        return None;
    }
    let is_text = matches!(tag, tag::UTF8 | tag::PRINTABLE | tag::IA5);
    if known.is_some() && is_text && std::str::from_utf8(text).is_ok() {
        escape(out, text);
    } else {
        out.push('#');
        value.iter().for_each(|byte| hex(out, *byte));
    }
    Some(())
}

/// An object identifier as numbers with dots.
fn dotted(out: &mut String, bytes: &[u8]) -> Option<()> {
    let mut sum: u64 = 0;
    let mut is_first = true;
    let (last, _) = bytes.split_last()?;
    if last & 0x80 != 0 {
        return None;
    }
    for byte in bytes {
        sum = sum.checked_mul(128)?.checked_add(u64::from(byte & 0x7f))?;
        if byte & 0x80 != 0 {
            continue;
        }
        if is_first {
            let head = (sum / 40).min(2);
            let _ = write!(out, "{head}.{}", sum - head * 40);
        } else {
            let _ = write!(out, ".{sum}");
        }
        (sum, is_first) = (0, false);
    }
    Some(())
}

/// Text so that it can be told from what is around it, and may stand in a field (RFC 4514 §2.4).
fn escape(out: &mut String, text: &[u8]) {
    for (at, byte) in text.iter().enumerate() {
        let at_edge = at == 0 || at + 1 == text.len();
        match byte {
            b'"' | b'+' | b',' | b';' | b'<' | b'>' | b'\\' => {
                out.extend(['\\', char::from(*byte)]);
            }
            b' ' if at_edge => out.push_str("\\ "),
            b'#' if at == 0 => out.push_str("\\#"),
            b' '..=b'~' => out.push(char::from(*byte)),
            _ => {
                out.push('\\');
                hex(out, *byte);
            }
        }
    }
}

fn hex(out: &mut String, byte: u8) {
    let _ = write!(out, "{byte:02x}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, date_time_ymd};

    fn certificate(parts: &[(DnType, &str)], until: (i32, u8, u8)) -> Vec<u8> {
        let mut params = CertificateParams::new(vec!["a.test".to_owned()]).unwrap();
        params.not_before = date_time_ymd(1990, 1, 1);
        params.not_after = date_time_ymd(until.0, until.1, until.2);
        params.distinguished_name = DistinguishedName::new();
        for (kind, text) in parts {
            params.distinguished_name.push(kind.clone(), *text);
        }
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn the_end_is_the_second_that_the_certificate_says() {
        for (year, month, day, seconds) in [
            (2000, 2, 29, 951_782_400),
            (2026, 11, 20, 1_795_132_800),
            (2049, 12, 31, 2_524_521_600),
            (2050, 1, 1, 2_524_608_000),
            (9999, 12, 31, 253_402_214_400),
        ] {
            let der = certificate(&[], (year, month, day));
            assert_eq!(
                read(&der).unwrap().not_after,
                seconds,
                "{year}-{month}-{day}"
            );
        }
        assert_eq!(time(tag::UTC_TIME, b"500101000000Z"), Some(-631_152_000));
        for text in [
            "2601010000Z",
            "260101000000",
            "261301000000Z",
            "26+101000000Z",
            "Z",
        ] {
            assert_eq!(time(tag::UTC_TIME, text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn a_subject_is_written_so_that_nothing_in_it_can_pretend_to_be_something_else() {
        let parts = [
            (DnType::CountryName, "DE"),
            (DnType::OrganizationName, "A, B+C=\"x\"\\;<>"),
            (DnType::OrganizationalUnitName, " # "),
            (DnType::CommonName, "#Zoë\r\nX-Evil: 1"),
            (DnType::CustomDnType(vec![1, 3, 6, 1, 4, 1, 99_999, 1]), "y"),
        ];
        let der = certificate(&parts, (2030, 1, 1));
        let subject = read(&der).unwrap().subject;
        assert_eq!(
            subject,
            "1.3.6.1.4.1.99999.1=#0c0179,CN=\\#Zo\\c3\\ab\\0d\\0aX-Evil: 1,OU=\\ #\\ ,O=A\\, B\\+C=\\\"x\\\"\\\\\\;\\<\\>,C=DE"
        );
        assert_eq!(read(&certificate(&[], (2030, 1, 1))).unwrap().subject, "");
    }

    #[test]
    fn what_is_cut_or_changed_is_never_read_beyond_its_end() {
        let der = certificate(&[(DnType::CommonName, "Ann")], (2030, 1, 1));
        for end in 0..der.len() {
            assert_eq!(read(&der[..end]), None, "its first {end} bytes");
        }
        let mut changed = der.clone();
        for at in 0..der.len() {
            for value in [0, 1, 0x7f, 0x80, 0x84, 0xff] {
                changed[at] = value;
                if let Some(facts) = read(&changed) {
                    let ascii = facts
                        .subject
                        .bytes()
                        .all(|byte| (b' '..=b'~').contains(&byte));
                    assert!(ascii, "{}", facts.subject);
                }
            }
            changed[at] = der[at];
        }
        let long = "x".repeat(SUBJECT_MOST);
        assert_eq!(
            read(&certificate(&[(DnType::CommonName, &long)], (2030, 1, 1))),
            None
        );
    }
}
