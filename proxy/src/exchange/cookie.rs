//! Finding a cookie in a request (RFC 6265 §5.4, read forgivingly: what is not a pair is passed over).

use super::fields::Fields;

/// The value of the first cookie of this name, without the quotes that may be around it.
#[must_use]
pub fn find<'f>(fields: &'f Fields, name: &str) -> Option<&'f [u8]> {
    let is_cookie = |field: &[u8]| field.eq_ignore_ascii_case(b"cookie");
    let lines = fields.iter().filter(|(_, field, _)| is_cookie(field));
    let pairs = lines.flat_map(|(_, _, value)| value.split(|byte| *byte == b';'));
    let mut found = pairs.filter_map(|pair| {
        let (key, value) = pair.split_at(pair.iter().position(|byte| *byte == b'=')?);
        (key.trim_ascii() == name.as_bytes()).then(|| value[1..].trim_ascii())
    });
    let value = found.next()?;
    let inside = value
        .strip_prefix(b"\"")
        .and_then(|rest| rest.strip_suffix(b"\""));
    Some(inside.unwrap_or(value))
}

#[cfg(test)]
mod tests {
    use super::super::Head;
    use super::*;

    #[test]
    fn the_first_cookie_of_a_name_is_found_in_whatever_else_there_is() {
        for (lines, found) in [
            ("cookie: a=1; node=x; node=y\r\n", Some("x")),
            ("Cookie: a=1\r\ncookie: node=\"x\"\r\n", Some("x")),
            ("cookie: ;;=;node; nodes=z; node = x ;\r\n", Some("x")),
            ("cookie: node=a=b\r\n", Some("a=b")),
            ("cookie: node=\r\n", Some("")),
            ("cookie: Node=x\r\nx-cookie: node=x\r\n", None),
            ("", None),
        ] {
            let head = Head::for_test("GET", "/", lines);
            let value = find(&head.fields, "node");
            assert_eq!(value, found.map(str::as_bytes), "{lines}");
        }
    }
}
