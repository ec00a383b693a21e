//! A request's head as bytes. Every framing field is written here and nowhere else.

use http::{Method, Version};

use crate::exchange::encode::decimal;
use crate::exchange::fields::{FieldId, FieldSet};
use crate::exchange::{Head, Trail, Upload};

const FRAMING: FieldSet = FieldSet::of(&[FieldId::ContentLength, FieldId::TransferEncoding]);
const FRAMING_AND_HOST: FieldSet = FRAMING.with(FieldSet::of(&[FieldId::Host]));

/// How the request's body is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Sending {
    /// There is none.
    #[default]
    Nothing,
    /// By its length, which the client's framing guarantees.
    Plain,
    /// In chunks.
    Chunked,
}

/// Appends the head to `out`; says how the body must follow.
pub(super) fn request(out: &mut Vec<u8>, head: &Head, upload: &Upload, trail: &Trail) -> Sending {
    out.reserve(head.fields.raw().len() + 256);
    out.extend_from_slice(head.method.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(head.target());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    if head.has_authority() {
        out.extend_from_slice(b"Host: ");
        out.extend_from_slice(head.host());
        out.extend_from_slice(b"\r\n");
        head.fields.write(out, FRAMING_AND_HOST);
    } else {
        head.fields.write(out, FRAMING);
    }
    if head.takes_trailers {
        // Whoever says `TE` says that it is about this connection (RFC 9110 §10.1.4).
        out.extend_from_slice(b"Connection: TE\r\n");
    }
    if trail.adds_lines() {
        way_here(out, head, trail);
    }
    if let Some(protocol) = &head.upgrade {
        out.extend_from_slice(b"Connection: Upgrade\r\nUpgrade: ");
        out.extend_from_slice(protocol.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    let sending = match upload.length() {
        _ if upload.is_none() => {
            if expects_length(head) {
                out.extend_from_slice(b"Content-Length: 0\r\n");
            }
            Sending::Nothing
        }
        Some(length) => {
            out.extend_from_slice(b"Content-Length: ");
            decimal(out, length);
            out.extend_from_slice(b"\r\n");
            Sending::Plain
        }
        None => {
            out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
            Sending::Chunked
        }
    };
    out.extend_from_slice(b"\r\n");
    sending
}

/// Appends who the client is, what it asked for, and which way it came; see `layer::forward`.
pub(in crate::upstream) fn way_here(out: &mut Vec<u8>, head: &Head, trail: &Trail) {
    out.extend_from_slice(b"X-Forwarded-For: ");
    out.extend_from_slice(trail.peer.shown.as_bytes());
    out.extend_from_slice(b"\r\nForwarded: ");
    out.extend_from_slice(trail.peer.forwarded.as_bytes());
    let host = head.host();
    if !host.is_empty() {
        // No host has a quotation mark in it.
        out.extend_from_slice(b";host=\"");
        out.extend_from_slice(host);
        out.extend_from_slice(b"\"\r\nX-Forwarded-Host: ");
        out.extend_from_slice(host);
    }
    out.extend_from_slice(b"\r\nX-Forwarded-Proto: ");
    out.extend_from_slice(trail.peer.scheme.as_bytes());
    out.extend_from_slice(b"\r\nVia: ");
    out.extend_from_slice(match head.version {
        Version::HTTP_10 => b"1.0",
        Version::HTTP_2 => b"2.0",
        _ => b"1.1",
    });
    out.extend_from_slice(b" hotwarm\r\nX-Request-Id: ");
    out.extend_from_slice(trail.id().map_or(b"-", |id| id.as_bytes()));
    out.extend_from_slice(b"\r\n");
}

/// Whether a node may be puzzled when no length is given: the method usually has a body, or the client gave one.
fn expects_length(head: &Head) -> bool {
    matches!(head.method, Method::POST | Method::PUT | Method::PATCH)
        || head.fields.has(FieldId::ContentLength)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::{Body, Deadlines, Replay, RequestId};
    use std::rc::Rc;

    fn encode(method: Method, fields: &[(&str, &str)], body: Body) -> (String, Sending) {
        let mut head = Head::plain(method, "/a?b");
        for (name, value) in fields {
            head.fields.add(name, value.as_bytes());
        }
        let trail = Rc::new(Trail::for_test());
        let upload = match body {
            Body::Empty => Upload::none(),
            body @ (Body::Full(_) | Body::Stream(_) | Body::Tunnel(_)) => {
                Upload::new(Replay::new(body, 10, &Deadlines::default(), &trail))
            }
        };
        let mut out = Vec::new();
        let sending = request(&mut out, &head, &upload, &trail);
        (String::from_utf8(out).unwrap(), sending)
    }

    #[test]
    fn framing_is_ours() {
        let (text, sending) = encode(
            Method::GET,
            &[("x-y", "z"), ("te", "trailers")],
            Body::Empty,
        );
        assert_eq!(text, "GET /a?b HTTP/1.1\r\nx-y: z\r\nte: trailers\r\n\r\n");
        assert_eq!(sending, Sending::Nothing);
        let (text, sending) = encode(Method::POST, &[], Body::Full("hello".into()));
        assert_eq!(text, "POST /a?b HTTP/1.1\r\nContent-Length: 5\r\n\r\n");
        assert_eq!(sending, Sending::Plain);
        let (text, _) = encode(Method::POST, &[], Body::Empty);
        assert_eq!(text, "POST /a?b HTTP/1.1\r\nContent-Length: 0\r\n\r\n");
    }

    #[test]
    fn the_way_here_is_written_behind_a_head_that_does_not_say_it() {
        let trail = Trail::for_test();
        trail.identify(RequestId::New([b'7'; 32]));
        let mut head = Head::plain(Method::GET, "/");
        let mut out = Vec::new();
        request(&mut out, &head, &Upload::none(), &trail);
        assert_eq!(out, b"GET / HTTP/1.1\r\n\r\n");
        trail.add_lines();
        head.part_target(b"shop", 0);
        out.clear();
        request(&mut out, &head, &Upload::none(), &trail);
        let id = "7".repeat(32);
        let text = format!(
            "GET / HTTP/1.1\r\nHost: shop\r\nX-Forwarded-For: 127.0.0.1\r\nForwarded: for=127.0.0.1;proto=http;host=\"shop\"\r\nX-Forwarded-Host: shop\r\nX-Forwarded-Proto: http\r\nVia: 1.1 hotwarm\r\nX-Request-Id: {id}\r\n\r\n"
        );
        assert_eq!(String::from_utf8(out).unwrap(), text);
    }
}
