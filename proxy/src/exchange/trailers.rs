//! Trailer fields (RFC 9110 §6.5): which may travel behind a body, and who wants them.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use super::decode::Malformed;
use super::fields::{FieldId, FieldSet, Fields};

/// More of them than this are not honest.
const TRAILERS_MOST: usize = 64;

/// Fields that frame a message, route it, say who asks, or concern a connection mean something else, or nothing, behind a
/// body; whoever merged them into the head would be misled (RFC 9110 §6.5.1).
const FORBIDDEN: [HeaderName; 30] = [
    header::TRANSFER_ENCODING,
    header::CONTENT_LENGTH,
    header::HOST,
    header::CONNECTION,
    header::UPGRADE,
    header::TE,
    header::TRAILER,
    header::CACHE_CONTROL,
    header::EXPECT,
    header::MAX_FORWARDS,
    header::PRAGMA,
    header::RANGE,
    header::IF_MATCH,
    header::IF_NONE_MATCH,
    header::IF_MODIFIED_SINCE,
    header::IF_UNMODIFIED_SINCE,
    header::IF_RANGE,
    header::AUTHORIZATION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::WWW_AUTHENTICATE,
    header::COOKIE,
    header::SET_COOKIE,
    header::AGE,
    header::DATE,
    header::LOCATION,
    header::RETRY_AFTER,
    header::CONTENT_ENCODING,
    header::CONTENT_TYPE,
    header::CONTENT_RANGE,
];

/// The same, of those that [`FieldId`] knows: what proxies say of a request, and connections of themselves.
const FORBIDDEN_IDS: FieldSet = FieldSet::of(&[
    FieldId::Underscored,
    FieldId::KeepAlive,
    FieldId::ProxyConnection,
    FieldId::Http2Settings,
    FieldId::Via,
    FieldId::Forwarded,
    FieldId::XForwardedFor,
    FieldId::XForwardedProto,
    FieldId::XForwardedHost,
    FieldId::XRequestId,
    FieldId::Claim,
]);

fn is_allowed(name: &HeaderName) -> bool {
    let id = FieldId::of(name.as_str().as_bytes());
    !FORBIDDEN_IDS.has(id) && !FORBIDDEN.contains(name)
}

/// Leaves those that may travel; `None` if there are none.
#[must_use]
pub fn allowed(trailers: HeaderMap) -> Option<HeaderMap> {
    if trailers.keys().all(is_allowed) {
        return Some(trailers).filter(|trailers| !trailers.is_empty());
    }
    let mut left = HeaderMap::new();
    for (name, value) in &trailers {
        if is_allowed(name) {
            left.append(name.clone(), value.clone());
        }
    }
    Some(left).filter(|left| !left.is_empty())
}

/// Takes in a line of HTTP/1.1, without its end, if it may travel.
///
/// # Errors
/// It is no field, which shows that the framing is lost; or there are too many.
pub fn take(line: &[u8], into: &mut Option<Box<HeaderMap>>) -> Result<(), Malformed> {
    let colon = line.iter().position(|byte| *byte == b':');
    let (name, value) = line.split_at(colon.unwrap_or(0));
    if name.is_empty() || name.iter().any(u8::is_ascii_whitespace) {
        return Err(Malformed("invalid trailer"));
    }
    let value = value[1..].trim_ascii();
    let field = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value));
    // One that has no name to speak of is nobody's.
    let (Ok(name), Ok(value)) = field else {
        return Ok(());
    };
    if !is_allowed(&name) {
        return Ok(());
    }
    let trailers = into.get_or_insert_default();
    if trailers.len() >= TRAILERS_MOST {
        return Err(Malformed("too many trailers"));
    }
    trailers.append(name, value);
    Ok(())
}

/// Appends them as lines of HTTP/1.1.
pub fn write(trailers: &HeaderMap, out: &mut Vec<u8>) {
    for (name, value) in trailers {
        out.extend_from_slice(name.as_str().as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
}

/// Whether `TE` says that the sender of these fields takes trailers (RFC 9110 §10.1.4).
#[must_use]
pub fn are_wanted(fields: &Fields) -> bool {
    let says = |value: &[u8]| {
        let mut codings = value.split(|byte| *byte == b',');
        codings.any(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"trailers"))
    };
    fields.all(FieldId::Te).any(says)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::Head;

    #[test]
    fn what_would_mislead_in_a_head_is_left_out() {
        let mut trailers = None;
        for line in [
            "Grpc-Status: 0",
            "Content-Length: 5",
            "set-cookie: a=b",
            "Authorization: x",
            "X-Forwarded-For: 1.1.1.1",
            "X_Odd: 1",
            "Via: 1.1 a",
            "te: trailers",
            "x@y: z",
            "Grpc-Message: a: b ",
        ] {
            take(line.as_bytes(), &mut trailers).unwrap();
        }
        let trailers = *trailers.unwrap();
        let mut out = Vec::new();
        write(&trailers, &mut out);
        assert_eq!(out, b"grpc-status: 0\r\ngrpc-message: a: b\r\n");
        let mut mixed = trailers.clone();
        mixed.append(header::HOST, HeaderValue::from_static("a"));
        assert_eq!(allowed(mixed), Some(trailers));
        let only = HeaderMap::from_iter([(header::HOST, HeaderValue::from_static("a"))]);
        assert_eq!((allowed(only), allowed(HeaderMap::new())), (None, None));
    }

    #[test]
    fn what_is_no_field_or_one_too_many_is_an_error() {
        for line in ["x", ": y", "x : y", " x: y"] {
            assert!(take(line.as_bytes(), &mut None).is_err(), "{line}");
        }
        let mut trailers = None;
        for _ in 0..TRAILERS_MOST {
            take(b"a: b", &mut trailers).unwrap();
        }
        assert!(take(b"a: b", &mut trailers).is_err());
    }

    #[test]
    fn te_may_say_more_than_one_thing() {
        for (lines, wanted) in [
            ("te: trailers\r\n", true),
            ("TE: gzip;q=0.5\r\nTE: deflate, Trailers\r\n", true),
            ("te: trailer\r\n", false),
            ("", false),
        ] {
            let head = Head::for_test("GET", "/", lines);
            assert_eq!(are_wanted(&head.fields), wanted, "{lines}");
        }
    }
}
