//! The trace that a request belongs to (W3C Trace Context). It is passed on, and never begun here: what begins one decides
//! whether it is recorded, and that is the application's business.

use crate::exchange::fields::{FieldId, FieldSet, Fields};

/// Everything about traces.
const ALL: FieldSet = FieldSet::of(&[FieldId::Traceparent, FieldId::Tracestate]);

/// Leaves a trace that can be followed; takes away one that cannot, so that the application begins its own (§3.2.1, §4.3).
pub fn check(fields: &mut Fields) {
    if !fields.present().meets(ALL) {
        return;
    }
    let mut count = 0;
    let valid = fields
        .all(FieldId::Traceparent)
        .inspect(|_| count += 1)
        .all(is_valid);
    if !valid || count != 1 {
        fields.remove(ALL);
    }
}

/// `version "-" trace-id "-" parent-id "-" flags`, in lower case; more may follow in versions after 00 (§3.2.2).
#[must_use]
pub fn is_valid(value: &[u8]) -> bool {
    let hex = |part: &[u8]| {
        let mut digits = part.iter();
        digits.all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let zero = |part: &[u8]| part.iter().all(|byte| *byte == b'0');
    let Some((known, rest)) = value.split_first_chunk::<55>() else {
        return false;
    };
    let dashes = [known[2], known[35], known[52]] == [b'-'; 3];
    let (version, trace, parent) = (&known[..2], &known[3..35], &known[36..52]);
    let end = match rest.first() {
        None => true,
        Some(first) => version != b"00" && *first == b'-',
    };
    dashes
        && end
        && hex(version)
        && version != b"ff"
        && hex(trace)
        && !zero(trace)
        && hex(parent)
        && !zero(parent)
        && hex(&known[53..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::Head;

    const VALID: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_traceparent_is_valid_as_the_standard_says() {
        assert!(is_valid(VALID.as_bytes()));
        let later = VALID.replacen("00", "cc", 1);
        assert!(is_valid(later.as_bytes()) && is_valid(format!("{later}-what-ever").as_bytes()));
        for (from, to) in [
            ("00-0a", "ff-0a"),
            ("00-0a", "0-0a"),
            (
                "0af7651916cd43dd8448eb211c80319c",
                "00000000000000000000000000000000",
            ),
            ("b7ad6b7169203331", "0000000000000000"),
            ("0af7", "0AF7"),
            ("0af7", "0xf7"),
            ("-01", "-0g"),
            ("-01", "-1"),
            ("-01", "-01-"),
            ("-01", "-011"),
            ("-b7", "_b7"),
        ] {
            let text = VALID.replacen(from, to, 1);
            assert!(!is_valid(text.as_bytes()), "{text}");
        }
        assert!(!is_valid(format!("{later}x").as_bytes()));
    }

    #[test]
    fn a_state_without_a_valid_parent_is_taken_away_with_it() {
        for (lines, kept) in [
            (format!("traceparent: {VALID}\r\ntracestate: a=b\r\n"), 2),
            (format!("traceparent: {VALID}\r\n"), 1),
            ("tracestate: a=b\r\n".to_owned(), 0),
            ("traceparent: 00-x\r\ntracestate: a=b\r\n".to_owned(), 0),
            (
                format!("traceparent: {VALID}\r\ntraceparent: {VALID}\r\ntracestate: a=b\r\n"),
                0,
            ),
        ] {
            let mut head = Head::for_test("GET", "/", &lines);
            check(&mut head.fields);
            assert_eq!(head.fields.iter().count(), kept, "{lines}");
        }
    }
}
