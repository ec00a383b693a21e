//! The head of a node's response: bytes → status, fields, and how the body is framed (RFC 9112 §6.3), strictly.
//!
//! A node's framing mistakes would become ours towards the client, and the next response on the same connection would be
//! somebody else's. So whatever is ambiguous is an error, and fields that concern one connection only end here.

use std::mem::MaybeUninit;
use std::time::Duration;

use bytes::BytesMut;
use http::StatusCode;
use httparse::{ParserConfig, Status};

use crate::exchange::Response;
use crate::exchange::decode::{Framing, Malformed, decimal, end_of_head};
use crate::exchange::fields::{FieldId, FieldSet, Fields, Span};

/// The largest head that is read, in bytes.
pub const HEAD_MOST: usize = 64 << 10;
/// The most fields that are read.
const FIELDS_MOST: usize = 128;

/// Of no meaning beyond the node's connection (RFC 9110 §7.6.1).
const HOP_BY_HOP: FieldSet = FieldSet::of(&[
    FieldId::Connection,
    FieldId::KeepAlive,
    FieldId::ProxyConnection,
    FieldId::ProxyAuthenticate,
    FieldId::Te,
    FieldId::TransferEncoding,
    FieldId::Upgrade,
    FieldId::Http2Settings,
]);

/// A response's head.
#[derive(Debug)]
pub struct Head {
    /// The status.
    pub status: StatusCode,
    /// The node's words for it, as a stretch of the fields' buffer.
    pub reason: Option<Span>,
    /// The fields, without those that concern the connection only.
    pub fields: Fields,
    /// The length that was said.
    pub length: Option<u64>,
    /// How the body ends.
    pub framing: Framing,
    /// Whether the node will take another request on this connection.
    pub reusable: bool,
    /// For how long, if it says so.
    pub keep_for: Option<Duration>,
}

/// What was asked, as far as the answer's meaning depends on it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asked<'a> {
    /// Whether by HEAD.
    pub head: bool,
    /// The protocol that was offered instead of HTTP.
    pub upgrade: Option<&'a str>,
}

/// What was found at the beginning of the bytes.
#[derive(Debug)]
pub enum Found {
    /// An interim response; the final one is yet to come.
    Interim(Response<()>),
    /// The response; with status 101, what follows is no HTTP.
    Final(Head),
}

/// Takes a head from the front of `bytes`; `None` when it is not whole yet. `seen` is how many of the bytes the last call
/// had, so that they are not looked at again.
///
/// # Errors
/// What is wrong with it. The connection is of no use any more.
pub fn response(
    bytes: &mut BytesMut,
    seen: usize,
    asked: Asked<'_>,
) -> Result<Option<Found>, Malformed> {
    let Some(end) = end_of_head(bytes, seen) else {
        return too_large(bytes.len() >= HEAD_MOST).map(|()| None);
    };
    too_large(end > HEAD_MOST)?;
    let head = bytes.split_to(end).freeze();
    let mut slots = [const { MaybeUninit::<httparse::Header<'_>>::uninit() }; FIELDS_MOST];
    let mut response = httparse::Response::new(&mut []);
    let parsed = ParserConfig::default()
        .parse_response_with_uninit_headers(&mut response, &head, &mut slots)
        .map_err(malformed)?;
    if parsed != Status::Complete(end) {
        return Err(Malformed("empty line before the end of the head"));
    }
    let code = response.code.unwrap_or_default();
    let status = StatusCode::from_u16(code).map_err(|_| Malformed("status out of range"))?;
    let mut fields = Fields::new(head.clone(), response.headers.len());
    for field in response.headers.iter() {
        let value = Span::within(&head, field.value);
        fields.push(Span::within(&head, field.name.as_bytes()), value);
    }
    let is_old = response.version == Some(0);
    let reading = Reading { fields, is_old };
    let reason = response
        .reason
        .map(|reason| Span::within(&head, reason.as_bytes()));
    let switches = status == StatusCode::SWITCHING_PROTOCOLS;
    if status.is_informational() && !switches {
        return Ok(Some(Found::Interim(reading.interim(status, reason))));
    }
    let mut found = if switches {
        reading.switch(asked.upgrade)?
    } else {
        reading.finish(status, asked.head)?
    };
    found.reason = reason;
    Ok(Some(Found::Final(found)))
}

const fn too_large(is: bool) -> Result<(), Malformed> {
    if is {
        return Err(Malformed("head too large"));
    }
    Ok(())
}

const fn malformed(error: httparse::Error) -> Malformed {
    Malformed(match error {
        httparse::Error::HeaderName => "invalid field name",
        httparse::Error::HeaderValue => "invalid field value",
        httparse::Error::NewLine => "invalid line end",
        httparse::Error::Status => "invalid status",
        httparse::Error::Token => "invalid token",
        httparse::Error::TooManyHeaders => "too many fields",
        httparse::Error::Version => "invalid version",
    })
}

/// The fields as they came.
struct Reading {
    fields: Fields,
    is_old: bool,
}

impl Reading {
    fn finish(mut self, status: StatusCode, to_head: bool) -> Result<Head, Malformed> {
        let length = self.length()?;
        let chunked = self.is_chunked()?;
        let keep_for = self
            .fields
            .get(FieldId::KeepAlive)
            .and_then(keep_alive_timeout);
        // Both at once is how responses are smuggled: the length does not count, and this was the last exchange.
        let doubtful = chunked && length.is_some();
        let bodiless =
            to_head || status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED;
        // A node that sends the body all the same would have it read as the answer to the next request.
        let promised = bodiless && (chunked || length.is_some_and(|length| length > 0));
        let reusable = self.is_persistent() && !doubtful && !promised;
        let framing = match length {
            _ if bodiless => Framing::None,
            _ if chunked => Framing::Chunked,
            Some(length) => Framing::Length(length),
            None => Framing::Close,
        };
        self.fields.remove(HOP_BY_HOP);
        Ok(Head {
            status,
            reason: None,
            fields: self.fields,
            length: length.filter(|_| !chunked && status != StatusCode::NO_CONTENT),
            reusable: reusable && framing != Framing::Close,
            framing,
            keep_for,
        })
    }

    /// What is said before the answer: whatever it says of framing means nothing.
    fn interim(mut self, status: StatusCode, reason: Option<Span>) -> Response<()> {
        self.is_persistent();
        self.fields.remove(HOP_BY_HOP);
        self.fields.remove(FieldSet::of(&[FieldId::ContentLength]));
        Response {
            reason,
            fields: self.fields,
            ..Response::new(status, ())
        }
    }

    /// A 101: the protocol that was asked for, and nothing that could be a body (RFC 9110 §7.8, §8.6).
    fn switch(mut self, asked: Option<&str>) -> Result<Head, Malformed> {
        let asked = asked.ok_or(Malformed("switches to a protocol that nobody asked for"))?;
        let name = self.fields.get(FieldId::Upgrade).unwrap_or_default();
        let is_only = self.fields.all(FieldId::Upgrade).count() == 1;
        if !is_only || !name.eq_ignore_ascii_case(asked.as_bytes()) {
            return Err(Malformed("switches to another protocol than was asked for"));
        }
        if self.is_old || !self.says_upgrade() {
            return Err(Malformed("switches protocols without Connection: upgrade"));
        }
        if self.is_chunked()? || self.length()?.is_some_and(|length| length > 0) {
            return Err(Malformed("switches protocols with a body"));
        }
        self.is_persistent();
        self.fields.remove(HOP_BY_HOP);
        self.fields.remove(FieldSet::of(&[FieldId::ContentLength]));
        Ok(Head {
            status: StatusCode::SWITCHING_PROTOCOLS,
            reason: None,
            fields: self.fields,
            length: None,
            framing: Framing::None,
            reusable: false,
            keep_for: None,
        })
    }

    fn says_upgrade(&self) -> bool {
        let lines = self.fields.all(FieldId::Connection);
        let mut options = lines.flat_map(|value| value.split(|byte| *byte == b','));
        options.any(|option| option.trim_ascii().eq_ignore_ascii_case(b"upgrade"))
    }

    /// One length, perhaps said several times (RFC 9112 §6.3, rule 5).
    fn length(&self) -> Result<Option<u64>, Malformed> {
        let mut known = None;
        for value in self.fields.all(FieldId::ContentLength) {
            for part in value.split(|byte| *byte == b',') {
                let length = decimal(part.trim_ascii());
                let length = length.ok_or(Malformed("invalid Content-Length"))?;
                if known.is_some_and(|known| known != length) {
                    return Err(Malformed("differing Content-Length fields"));
                }
                known = Some(length);
            }
        }
        Ok(known)
    }

    fn is_chunked(&self) -> Result<bool, Malformed> {
        let mut codings = self.fields.all(FieldId::TransferEncoding);
        let Some(coding) = codings.next() else {
            return Ok(false);
        };
        if self.is_old {
            return Err(Malformed("Transfer-Encoding in HTTP/1.0"));
        }
        if codings.next().is_some() || !coding.eq_ignore_ascii_case(b"chunked") {
            return Err(Malformed("Transfer-Encoding other than chunked"));
        }
        Ok(true)
    }

    /// Whether the connection goes on after this response; removes the fields that its `Connection` lines name.
    fn is_persistent(&mut self) -> bool {
        if !self.fields.has(FieldId::Connection) {
            return !self.is_old;
        }
        let (mut close, mut keep_alive) = (false, false);
        let mut nominated = Vec::new();
        for value in self.fields.all(FieldId::Connection) {
            for option in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                if option.eq_ignore_ascii_case(b"close") {
                    close = true;
                } else if option.eq_ignore_ascii_case(b"keep-alive") {
                    keep_alive = true;
                } else if !option.is_empty() {
                    nominated.push(option.to_vec());
                }
            }
        }
        for name in &nominated {
            self.fields.remove_named(name);
        }
        !close && (keep_alive || !self.is_old)
    }
}

/// `Keep-Alive: timeout=5, max=100` → 5 s.
fn keep_alive_timeout(value: &[u8]) -> Option<Duration> {
    value
        .split(|byte| *byte == b',')
        .find_map(|part| {
            let (name, seconds) = part.trim_ascii().split_at_checked(8)?;
            name.eq_ignore_ascii_case(b"timeout=")
                .then(|| decimal(seconds))
                .flatten()
        })
        .map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Option<Found>, Malformed> {
        response(&mut BytesMut::from(text), 0, Asked::default())
    }

    fn head(text: &str) -> Head {
        match parse(text) {
            Ok(Some(Found::Final(head))) => head,
            other @ (Ok(_) | Err(_)) => panic!("{text:?}: {other:?}"),
        }
    }

    fn refusal(text: &str) -> &'static str {
        match parse(text) {
            Err(Malformed(why)) => why,
            Ok(other) => panic!("{text:?}: {other:?}"),
        }
    }

    #[test]
    fn framing_follows_the_rfc() {
        for (fields, framing, reusable) in [
            ("Content-Length: 5\r\n", Framing::Length(5), true),
            (
                "Content-Length: 5, 5\r\nContent-Length: 5\r\n",
                Framing::Length(5),
                true,
            ),
            ("Transfer-Encoding: Chunked\r\n", Framing::Chunked, true),
            (
                "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
                Framing::Chunked,
                false,
            ),
            (
                "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
                Framing::Chunked,
                false,
            ),
            ("", Framing::Close, false),
            (
                "Content-Length: 5\r\nConnection: x, CLOSE\r\n",
                Framing::Length(5),
                false,
            ),
        ] {
            let head = head(&format!("HTTP/1.1 200 OK\r\n{fields}\r\n"));
            assert_eq!(
                (head.framing, head.reusable),
                (framing, reusable),
                "{fields}"
            );
            let length = if let Framing::Length(length) = framing {
                Some(length)
            } else {
                None
            };
            assert_eq!(head.length, length, "{fields}");
            assert!(!head.fields.has(FieldId::TransferEncoding));
        }
    }

    #[test]
    fn ambiguous_framing_is_refused() {
        for fields in [
            "Transfer-Encoding: gzip\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: chunked, chunked\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: identity\r\n",
            "Transfer-Encoding: \x0bchunked\r\n",
            "Content-Length: 5\r\nContent-Length: 6\r\n",
            "Content-Length: 5, 6\r\n",
            "Content-Length: +5\r\n",
            "Content-Length: 0x5\r\n",
            "Content-Length: \r\n",
            "Content-Length: 5,\r\n",
            "Content-Length: 99999999999999999999\r\n",
            "Content-Length : 5\r\n",
            "X: a\r\n b\r\n",
            " X: a\r\n",
            "X: a\0b\r\n",
        ] {
            refusal(&format!("HTTP/1.1 200 OK\r\n{fields}\r\n"));
        }
        refusal("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        refusal("HTTP/2.0 200 OK\r\n\r\n");
        refusal("HTTP/1.1 099 No\r\n\r\n");
        refusal("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n");
    }

    #[test]
    fn some_responses_have_no_body_whatever_they_say() {
        let text = "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n";
        let none = head(text);
        assert_eq!((none.framing, none.reusable), (Framing::None, false));
        assert_eq!(none.length, None);
        for fields in [
            "",
            "Content-Length: 0\r\n",
            "Transfer-Encoding: chunked\r\n",
        ] {
            let none = head(&format!("HTTP/1.1 204 No Content\r\n{fields}\r\n"));
            let promised = fields.starts_with("Transfer");
            assert_eq!((none.framing, none.reusable), (Framing::None, !promised));
        }
        let cached = head("HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n");
        assert_eq!(cached.framing, Framing::None);
        assert_eq!(cached.length, Some(5));
        let mut bytes = BytesMut::from("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n");
        let asked = Asked {
            head: true,
            ..Asked::default()
        };
        let found = response(&mut bytes, 0, asked);
        let Ok(Some(Found::Final(to_head))) = found else {
            panic!("{found:?}");
        };
        assert_eq!(
            (to_head.framing, to_head.reusable, to_head.length),
            (Framing::None, false, Some(5)),
            "a node that sends the body all the same would have it read as the next answer"
        );
    }

    #[test]
    fn http_1_0_is_kept_open_only_if_it_says_so() {
        let once = head("HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\n");
        assert!(!once.reusable);
        let more = head("HTTP/1.0 200 OK\r\nContent-Length: 1\r\nConnection: keep-alive\r\n\r\n");
        assert!(more.reusable);
    }

    #[test]
    fn connection_fields_of_all_lines_end_here() {
        let head = head(
            "HTTP/1.1 200 OK\r\nConnection: X-One\r\nX-One: 1\r\nConnection: x-two, keep-alive\r\nX-Two: 2\r\nKeep-Alive: max=5, Timeout=7\r\nProxy-Connection: a\r\nUpgrade: h2c\r\nTrailer: x\r\nX-Three: 3\r\nContent-Length: 0\r\n\r\n",
        );
        let names: Vec<_> = head.fields.iter().map(|(_, name, _)| name).collect();
        assert_eq!(names, [&b"Trailer"[..], b"X-Three", b"Content-Length"]);
        assert_eq!(head.keep_for, Some(Duration::from_secs(7)));
    }

    #[test]
    fn only_the_protocol_that_was_asked_for_is_switched_to() {
        let asked = Asked {
            upgrade: Some("websocket"),
            ..Asked::default()
        };
        let read = |fields: &str| {
            let text = format!("HTTP/1.1 101 Switching Protocols\r\n{fields}\r\nframes");
            let mut bytes = BytesMut::from(&*text);
            let found = response(&mut bytes, 0, asked);
            (found, bytes)
        };
        let (found, left) = read(
            "Connection: Upgrade, X-Hop\r\nX-Hop: 1\r\nUpgrade: WebSocket\r\nSec-WebSocket-Accept: x\r\nContent-Length: 0\r\n",
        );
        let Ok(Some(Found::Final(head))) = found else {
            panic!("{found:?}");
        };
        assert_eq!((head.status.as_u16(), head.reusable), (101, false));
        let names: Vec<_> = head.fields.iter().map(|(_, name, _)| name).collect();
        assert_eq!(
            (names, &left[..]),
            (vec![&b"Sec-WebSocket-Accept"[..]], &b"frames"[..])
        );
        for fields in [
            "",
            "Upgrade: websocket\r\n",
            "Connection: upgrade\r\n",
            "Connection: upgrade\r\nUpgrade: h2c\r\n",
            "Connection: upgrade\r\nUpgrade: websocket, h2c\r\n",
            "Connection: upgrade\r\nUpgrade: websocket\r\nUpgrade: websocket\r\n",
            "Connection: close\r\nUpgrade: websocket\r\n",
            "Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 5\r\n",
            "Connection: upgrade\r\nUpgrade: websocket\r\nTransfer-Encoding: chunked\r\n",
        ] {
            let (found, _) = read(fields);
            assert!(found.is_err(), "{fields}: {found:?}");
        }
    }

    #[test]
    fn interim_responses_are_told_apart_and_what_follows_stays() {
        let mut bytes = BytesMut::from("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\nbody");
        let found = response(&mut bytes, 0, Asked::default());
        let Ok(Some(Found::Interim(interim))) = found else {
            panic!("{found:?}");
        };
        assert_eq!(interim.status, StatusCode::CONTINUE);
        assert!(matches!(
            response(&mut bytes, 0, Asked::default()),
            Ok(Some(Found::Final(_)))
        ));
        assert_eq!(bytes, "body");
    }

    #[test]
    fn a_head_in_pieces_is_waited_for_and_one_without_end_is_not() {
        let text = "HTTP/1.1 200 OK\r\nX: y\r\n\r\n";
        for cut in 0..text.len() {
            let mut bytes = BytesMut::from(&text[..cut]);
            let found = response(&mut bytes, 0, Asked::default());
            assert!(matches!(found, Ok(None)), "{cut}");
            bytes.extend_from_slice(&text.as_bytes()[cut..]);
            assert!(
                matches!(response(&mut bytes, cut, Asked::default()), Ok(Some(_))),
                "{cut}"
            );
        }
        let endless = format!("HTTP/1.1 200 OK\r\nX: {}", "y".repeat(HEAD_MOST));
        assert_eq!(refusal(&endless), "head too large");
        let many = format!(
            "HTTP/1.1 200 OK\r\n{}\r\n",
            "X: y\r\n".repeat(FIELDS_MOST + 1)
        );
        assert_eq!(refusal(&many), "too many fields");
    }
}
