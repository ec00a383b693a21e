//! The protocol by which gRPC servers say whether they are healthy, as bytes: `grpc.health.v1.Health/Check`
//! (GRPC Health Checking Protocol), in the frames of gRPC over HTTP/2.
//!
//! Only `SERVING` passes. A server that does not implement the protocol, or does not know the service, fails, as with
//! Kubernetes and Envoy: whoever writes `grpc` into the configuration wants to be told about a wrong name.

use bytes::Bytes;

/// What is asked for.
pub(super) const PATH: &str = "/grpc.health.v1.Health/Check";
/// The type of both messages.
pub(super) const CONTENT_TYPE: &str = "application/grpc";
/// The most that an answer may hold, in bytes. It needs seven.
pub(super) const ANSWER_MOST: usize = 4 << 10;
/// `HealthCheckRequest.service` (field 1, text).
const SERVICE: u8 = 0x0a;
/// `ServingStatus` in `HealthCheckResponse`.
const SERVING: u64 = 1;
/// gRPC's status of a method that is not there.
const UNIMPLEMENTED: &[u8] = b"12";
/// gRPC's status of a service that is not known.
const NOT_FOUND: &[u8] = b"5";

/// The question about `service`, framed; an empty name asks about the server as a whole.
#[must_use]
pub(super) fn question(service: &str) -> Bytes {
    let mut message = Vec::with_capacity(service.len() + 3);
    if !service.is_empty() {
        message.push(SERVICE);
        put_varint(&mut message, service.len() as u64);
        message.extend_from_slice(service.as_bytes());
    }
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    // Not compressed.
    let mut framed = vec![0];
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(&message);
    framed.into()
}

/// What came back.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Reply<'r> {
    /// The status of HTTP.
    pub(super) http: u16,
    /// `content-type`, empty if there is none.
    pub(super) kind: &'r [u8],
    /// `grpc-status` of the trailers, or of the head if there is nothing else.
    pub(super) status: Option<&'r [u8]>,
    /// `grpc-message`, for a person.
    pub(super) message: &'r [u8],
    /// The frames.
    pub(super) body: &'r [u8],
}

/// Whether it says that the service is healthy.
///
/// # Errors
/// Why not.
pub(super) fn judge(reply: &Reply<'_>) -> Result<(), String> {
    if reply.http != 200 {
        return Err(format!("answered {}", reply.http));
    }
    if !reply.kind.starts_with(CONTENT_TYPE.as_bytes()) {
        return Err(format!(
            "answered with {:?}, which is not gRPC",
            shown(reply.kind)
        ));
    }
    match reply.status {
        Some(b"0") => (),
        Some(UNIMPLEMENTED) => {
            return Err("does not implement grpc.health.v1.Health (grpc-status 12)".to_owned());
        }
        Some(NOT_FOUND) => {
            return Err("does not know the service of health.grpc (grpc-status 5)".to_owned());
        }
        Some(status) => {
            let (status, message) = (shown(status), shown(reply.message));
            return Err(format!("answered grpc-status {status}: {message:?}"));
        }
        None => return Err("answered without a grpc-status".to_owned()),
    }
    match serving(reply.body) {
        Some(SERVING) => Ok(()),
        Some(0) => Err("answered UNKNOWN".to_owned()),
        Some(2) => Err("answered NOT_SERVING".to_owned()),
        Some(3) => Err("answered SERVICE_UNKNOWN".to_owned()),
        Some(other) => Err(format!("answered with the unknown status {other}")),
        None => Err("answered with something else than one HealthCheckResponse".to_owned()),
    }
}

/// The beginning of a foreign text.
fn shown(text: &[u8]) -> String {
    const MOST: usize = 100;
    String::from_utf8_lossy(&text[..text.len().min(MOST)]).into_owned()
}

/// `HealthCheckResponse.status` of the one frame there is; `None` if it is not one, whole and uncompressed.
fn serving(body: &[u8]) -> Option<u64> {
    let (head, mut message) = body.split_at_checked(5)?;
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
    if head[0] != 0 || message.len() != usize::try_from(length).ok()? {
        return None;
    }
    let mut status = 0;
    while !message.is_empty() {
        let tag = varint(&mut message)?;
        let (field, kind) = (tag >> 3, tag & 7);
        match (field, kind) {
            (0, _) => return None,
            (1, 0) => status = varint(&mut message)?,
            (1, _) => return None,
            (_, 0) => drop(varint(&mut message)?),
            (_, 1) => message = message.get(8..)?,
            (_, 2) => {
                let length = usize::try_from(varint(&mut message)?).ok()?;
                message = message.get(length..)?;
            }
            (_, 5) => message = message.get(4..)?,
            _ => return None,
        }
    }
    Some(status)
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

/// Takes a number of up to ten groups of seven bits.
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let group = u64::from(byte & 0x7f);
        if shift == 63 && group > 1 {
            return None;
        }
        value |= group << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const FINE: Reply<'_> = Reply {
        http: 200,
        kind: b"application/grpc+proto",
        status: Some(b"0"),
        message: b"",
        body: &[0, 0, 0, 0, 2, 8, 1],
    };

    #[test]
    fn the_question_names_the_service_or_nothing() {
        assert_eq!(&*question(""), [0, 0, 0, 0, 0]);
        assert_eq!(&*question("a.B"), *b"\0\0\0\0\x05\x0a\x03a.B");
        let long = question(&"x".repeat(200));
        assert_eq!(long[..8], [0, 0, 0, 0, 203, 0x0a, 0xc8, 1]);
        assert_eq!(long.len(), 5 + 203);
    }

    #[test]
    fn only_serving_passes() {
        assert_eq!(judge(&FINE), Ok(()));
        let no = |reply: Reply<'_>| judge(&reply).unwrap_err();
        let body = |body| no(Reply { body, ..FINE });
        assert_eq!(body(&[0, 0, 0, 0, 2, 8, 2]), "answered NOT_SERVING");
        assert_eq!(body(&[0, 0, 0, 0, 2, 8, 3]), "answered SERVICE_UNKNOWN");
        // Nothing said is the first of the list.
        assert_eq!(body(&[0; 5]), "answered UNKNOWN");
        assert_eq!(
            body(&[0, 0, 0, 0, 2, 8, 9]),
            "answered with the unknown status 9"
        );
        let http = no(Reply { http: 503, ..FINE });
        assert_eq!(http, "answered 503");
        let kind = no(Reply {
            kind: b"text/html",
            ..FINE
        });
        assert_eq!(kind, "answered with \"text/html\", which is not gRPC");
        for (status, wanted) in [
            (None, "without a grpc-status"),
            (Some(&b"12"[..]), "does not implement"),
            (Some(b"5"), "does not know the service"),
            (Some(b"14"), "grpc-status 14: \"down\""),
        ] {
            let reply = Reply {
                status,
                message: b"down",
                body: b"",
                ..FINE
            };
            assert!(no(reply).contains(wanted), "{status:?}");
        }
    }

    #[test]
    fn a_response_may_say_more_than_we_know_and_must_be_whole() {
        let framed = |message: &[u8]| {
            let length = u32::try_from(message.len()).unwrap().to_be_bytes();
            [&[0], &length[..], message].concat()
        };
        let more = b"\x12\x02hi\x19\0\0\0\0\0\0\0\0\x25\0\0\0\0\x28\x96\x01\x08\x02\x08\x01";
        assert_eq!(serving(&framed(more)), Some(1));
        let whole = framed(more);
        for end in 0..whole.len() {
            assert_eq!(serving(&whole[..end]), None, "{end}");
        }
        for bad in [
            // Cut within.
            &b"\x08"[..],
            b"\x08\x80",
            b"\x12\x05hi",
            b"\x19\0",
            // A field of number 0, a group, a status as text.
            b"\0\x01",
            b"\x13",
            b"\x0a\x01x",
            // More than 64 bits.
            b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02",
            b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
            b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        ] {
            assert_eq!(serving(&framed(bad)), None, "{bad:?}");
        }
        // Compressed, one too many, two frames.
        assert_eq!(serving(&[1, 0, 0, 0, 2, 8, 1]), None);
        assert_eq!(serving(&[0, 0, 0, 0, 2, 8, 1, 0]), None);
        assert_eq!(serving(&[&whole[..], &whole].concat()), None);
    }
}
