//! The head of a client's request: bytes → method, target, fields, and how the body is framed (RFC 9112 §6.3), strictly.
//!
//! What can be read in two ways is refused here, before anybody acts on one of them.

use std::mem::MaybeUninit;
use std::rc::Rc;

use bytes::{Buf, BytesMut};
use http::{Method, StatusCode, Version};
use httparse::{EMPTY_HEADER, Error, ParserConfig, Status};

use crate::config::Limits;
use crate::exchange::decode::{Framing, decimal, end_of_head};
use crate::exchange::fields::{FieldId, Fields, Span};
use crate::exchange::{Fault, Head};

/// Up to this many fields are parsed without memory of their own.
const FIELDS_INLINE: usize = 100;
/// The longest target, in bytes; more than any browser sends.
const TARGET_MOST: usize = 64 << 10;
/// Empty lines before a request are skipped (RFC 9112 §2.2), but not many.
const SKIPPED_MOST: usize = 16;

/// A request's head, and what it says about the connection.
#[derive(Debug)]
pub struct Parsed {
    /// The head.
    pub head: Rc<Head>,
    /// How the body ends.
    pub framing: Framing,
    /// Whether the client wants to go on after this request.
    pub persistent: bool,
    /// Whether it waits for a word before it sends the body.
    pub expects: bool,
}

/// A head that breaks a rule, if it could be read at all.
#[derive(Debug)]
pub struct Refused {
    /// The head, if it could be read.
    pub head: Option<Rc<Head>>,
    /// The rule that it breaks.
    pub fault: Fault,
}

const fn refusal(status: StatusCode, why: &'static str) -> Fault {
    Fault::Request { status, why }
}

const fn bad(why: &'static str) -> Fault {
    refusal(StatusCode::BAD_REQUEST, why)
}

/// Takes a head from the front of `bytes`; `None` when it is not whole yet. `seen` is how many of the bytes the last call
/// had.
///
/// # Errors
/// The rule that it breaks. What follows on the connection cannot be trusted.
pub fn request(
    bytes: &mut BytesMut,
    seen: usize,
    limits: &Limits,
) -> Result<Option<Parsed>, Refused> {
    let unread = |fault| Refused { head: None, fault };
    skip_empty_lines(bytes).map_err(unread)?;
    let Some(end) = end_of_head(bytes, seen) else {
        return match bytes.len() >= limits.max_header_bytes {
            true => Err(unread(too_large(bytes))),
            false => Ok(None),
        };
    };
    if end > limits.max_header_bytes {
        return Err(unread(too_large(&bytes[..end])));
    }
    let raw = bytes.split_to(end).freeze();
    let mut inline = [const { MaybeUninit::<httparse::Header<'_>>::uninit() }; FIELDS_INLINE];
    let mut many = Vec::new();
    let mut request = httparse::Request::new(&mut []);
    let config = ParserConfig::default();
    let parsed = if limits.max_headers <= FIELDS_INLINE {
        let slots = &mut inline[..limits.max_headers];
        config.parse_request_with_uninit_headers(&mut request, &raw, slots)
    } else {
        many.resize(limits.max_headers, EMPTY_HEADER);
        request = httparse::Request::new(&mut many);
        config.parse_request(&mut request, &raw)
    };
    match parsed {
        Ok(Status::Complete(length)) if length == end => (),
        Ok(_) => return Err(unread(bad("empty line before the end of the head"))),
        Err(error) => return Err(unread(malformed(error))),
    }
    let target = request.path.unwrap_or_default();
    if target.len() > TARGET_MOST {
        return Err(unread(refusal(
            StatusCode::URI_TOO_LONG,
            "the target is too long",
        )));
    }
    let method = Method::from_bytes(request.method.unwrap_or_default().as_bytes());
    let method = method.map_err(|_| unread(bad("invalid method")))?;
    let version = match request.version {
        Some(0) => Version::HTTP_10,
        _ => Version::HTTP_11,
    };
    let mut fields = Fields::new(raw.clone(), request.headers.len());
    for field in request.headers.iter() {
        let value = Span::within(&raw, field.value);
        fields.push(Span::within(&raw, field.name.as_bytes()), value);
    }
    let target = Span::within(&raw, target.as_bytes());
    finish(Rc::new(Head::new(method, target, version, fields))).map(Some)
}

fn finish(head: Rc<Head>) -> Result<Parsed, Refused> {
    let fields = &head.fields;
    let framing = match framing(fields, head.version) {
        Ok(framing) => framing,
        Err(fault) => {
            let head = Some(head);
            return Err(Refused { head, fault });
        }
    };
    let expects = framing != Framing::None
        && head.version == Version::HTTP_11
        && fields
            .all(FieldId::Expect)
            .any(|value| value.eq_ignore_ascii_case(b"100-continue"));
    Ok(Parsed {
        persistent: is_persistent(fields, head.version),
        framing,
        expects,
        head,
    })
}

/// How the body ends. Both framings at once are how requests are smuggled, so they are refused (RFC 9112 §6.1 allows it).
fn framing(fields: &Fields, version: Version) -> Result<Framing, Fault> {
    let chunked = is_chunked(fields, version)?;
    let mut length = None;
    for value in fields.all(FieldId::ContentLength) {
        let said = decimal(value).ok_or(bad("invalid Content-Length"))?;
        if length.is_some_and(|known| known != said) {
            return Err(bad("differing Content-Length fields"));
        }
        length = Some(said);
    }
    match (chunked, length) {
        (true, Some(_)) => Err(bad("both Content-Length and Transfer-Encoding")),
        (true, None) => Ok(Framing::Chunked),
        (false, None | Some(0)) => Ok(Framing::None),
        (false, Some(length)) => Ok(Framing::Length(length)),
    }
}

/// Exactly `chunked`, once: whatever else is said would have to be decoded by somebody.
fn is_chunked(fields: &Fields, version: Version) -> Result<bool, Fault> {
    if !fields.has(FieldId::TransferEncoding) {
        return Ok(false);
    }
    if version == Version::HTTP_10 {
        return Err(bad("Transfer-Encoding in HTTP/1.0"));
    }
    let mut chunked = 0;
    for value in fields.all(FieldId::TransferEncoding) {
        for coding in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            if !coding.eq_ignore_ascii_case(b"chunked") {
                let why = "a transfer coding other than chunked is not supported";
                return Err(refusal(StatusCode::NOT_IMPLEMENTED, why));
            }
            chunked += 1;
        }
    }
    if chunked == 1 {
        Ok(true)
    } else {
        Err(bad("chunked more than once"))
    }
}

fn is_persistent(fields: &Fields, version: Version) -> bool {
    let says = |wanted: &[u8]| {
        fields
            .all(FieldId::Connection)
            .flat_map(|value| value.split(|byte| *byte == b','))
            .any(|option| option.trim_ascii().eq_ignore_ascii_case(wanted))
    };
    if !fields.has(FieldId::Connection) {
        return version == Version::HTTP_11;
    }
    !says(b"close") && (version == Version::HTTP_11 || says(b"keep-alive"))
}

fn skip_empty_lines(bytes: &mut BytesMut) -> Result<(), Fault> {
    let empty = |bytes: &[u8]| match bytes {
        [b'\r', b'\n', ..] => 2,
        [b'\n', ..] => 1,
        _ => 0,
    };
    let mut skipped = 0;
    loop {
        match empty(bytes) {
            0 => return Ok(()),
            length => {
                bytes.advance(length);
                skipped += length;
            }
        }
        if skipped > SKIPPED_MOST {
            return Err(bad("empty lines instead of a request"));
        }
    }
}

fn too_large(bytes: &[u8]) -> Fault {
    if bytes.iter().take(TARGET_MOST).any(|byte| *byte == b'\n') {
        let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        refusal(status, "the head is too large")
    } else {
        refusal(StatusCode::URI_TOO_LONG, "the target is too long")
    }
}

const fn malformed(error: Error) -> Fault {
    bad(match error {
        Error::HeaderName => "invalid field name",
        Error::HeaderValue => "invalid field value",
        Error::NewLine => "invalid line end",
        Error::Status => "invalid status",
        Error::Token => "invalid method or target",
        Error::TooManyHeaders => {
            let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
            return refusal(status, "too many fields");
        }
        Error::Version => "invalid or unsupported version",
    })
}
