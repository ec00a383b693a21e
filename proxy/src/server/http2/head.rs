//! The heads of HTTP/2 (RFC 9113 §8.2, §8.3) as the other rooms know heads, and back.
//!
//! The library has refused what is malformed: unknown or repeated pseudo-fields, upper-case names, fields that concern a
//! connection, `te` other than `trailers`, lengths that differ. Everything else is decided where HTTP/1.1 is decided, so a
//! head is written down as HTTP/1.1 would have it.

use std::cell::RefCell;
use std::rc::Rc;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, COOKIE, DATE, HOST, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Method, StatusCode, Version};

use super::tunnel;
use crate::config::Limits;
use crate::exchange::fields::{FieldId, FieldSet, Fields, Span};
use crate::exchange::{Fault, Head, Response};
use crate::server::outgoing::Dates;

/// A name's place in the head, and its value's.
type Line = (Span, Span);

/// Of a connection, and so of no meaning in HTTP/2; or written anew.
const OURS: FieldSet = FieldSet::of(&[
    FieldId::Connection,
    FieldId::ContentLength,
    FieldId::TransferEncoding,
    FieldId::KeepAlive,
    FieldId::ProxyConnection,
    FieldId::Upgrade,
    FieldId::Http2Settings,
]);

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

const fn refusal(status: StatusCode, why: &'static str) -> Fault {
    Fault::Request { status, why }
}

const fn bad(why: &'static str) -> Fault {
    refusal(StatusCode::BAD_REQUEST, why)
}

/// Writes request heads down; keeps its memory from one to the next.
#[derive(Debug, Default)]
pub(super) struct Reader {
    lines: RefCell<Vec<Line>>,
}

impl Reader {
    /// The head, and the rule that it breaks, if there is one. A head that breaks a rule is good for the log only.
    pub(super) fn request(&self, parts: &Parts, limits: &Limits) -> (Rc<Head>, Option<Fault>) {
        let mut lines = self.lines.borrow_mut();
        lines.clear();
        let mut writing = Writing {
            raw: Vec::with_capacity(512),
            lines: &mut lines,
        };
        let upgrade = tunnel::wanted(parts);
        // What a node is asked for, the stack is asked for.
        let method = upgrade.map_or(&parts.method, |_| &Method::GET);
        let target = writing.start(method, parts.uri.path_and_query());
        let fault = check(parts).and_then(|()| writing.fields(parts));
        let fault = fault.and_then(|()| {
            let too_large = writing.raw.len() > limits.max_header_bytes
                || writing.lines.len() > limits.max_headers;
            let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
            too_large
                .then_some(())
                .map_or(Ok(()), |()| Err(refusal(status, "the head is too large")))
        });
        let Writing { mut raw, lines } = writing;
        raw.extend_from_slice(b"\r\n");
        let mut fields = Fields::new(raw.into(), lines.len());
        if fault.is_ok() {
            for (name, value) in lines.iter() {
                fields.push(*name, *value);
            }
        }
        let mut head = Head::new(method.clone(), target, Version::HTTP_2, fields);
        head.upgrade = upgrade.map(Into::into);
        (Rc::new(head), fault.err())
    }
}

/// What the library leaves to us.
fn check(parts: &Parts) -> Result<(), Fault> {
    let known = |scheme: &str| scheme == "http" || scheme == "https";
    if parts.uri.scheme_str().is_some_and(|scheme| !known(scheme)) {
        return Err(bad("a :scheme other than http and https"));
    }
    let mut hosts = parts.headers.get_all(HOST).iter();
    let (host, second) = (hosts.next(), hosts.next());
    if second.is_some() {
        return Err(bad("more than one Host"));
    }
    if tunnel::wanted(parts).is_some() && tunnel::has_body(parts) {
        return Err(bad("Content-Length in a request for another protocol"));
    }
    match (parts.uri.authority(), host) {
        (Some(authority), Some(host))
            if !host
                .as_bytes()
                .eq_ignore_ascii_case(authority.as_str().as_bytes()) =>
        {
            Err(bad(":authority and Host differ"))
        }
        _ => Ok(()),
    }
}

struct Writing<'l> {
    raw: Vec<u8>,
    lines: &'l mut Vec<Line>,
}

impl Writing<'_> {
    /// A line as HTTP/1.1 begins with; returns where the target is in it.
    fn start(&mut self, method: &Method, target: Option<&PathAndQuery>) -> Span {
        self.raw.extend_from_slice(method.as_str().as_bytes());
        self.raw.push(b' ');
        let target = self.put(target.map_or("", PathAndQuery::as_str).as_bytes());
        self.raw.extend_from_slice(b" HTTP/2.0\r\n");
        target
    }

    fn fields(&mut self, parts: &Parts) -> Result<(), Fault> {
        let headers = &parts.headers;
        if let Some(authority) = parts.uri.authority() {
            self.line(b"host", authority.as_str().as_bytes())?;
        }
        let switches = tunnel::wanted(parts).is_some();
        if switches {
            self.line(tunnel::KEY, &tunnel::key())?;
        }
        let mut crumbs = false;
        for (name, value) in headers {
            if switches && name.as_str().as_bytes() == tunnel::KEY {
                continue;
            }
            if name == COOKIE {
                crumbs = true;
            } else if name != HOST || parts.uri.authority().is_none() {
                self.line(name.as_str().as_bytes(), value.as_bytes())?;
            }
        }
        if crumbs {
            self.cookies(headers)?;
        }
        Ok(())
    }

    /// Clients cut cookies into crumbs; HTTP/1.1 wants them on one line (RFC 9113 §8.2.3).
    fn cookies(&mut self, headers: &HeaderMap) -> Result<(), Fault> {
        let name = self.put(b"cookie");
        self.raw.extend_from_slice(b": ");
        let from = self.raw.len();
        for (n, crumb) in headers.get_all(COOKIE).iter().enumerate() {
            if n > 0 {
                self.raw.extend_from_slice(b"; ");
            }
            edges(crumb.as_bytes())?;
            self.raw.extend_from_slice(crumb.as_bytes());
        }
        let value = self.since(from);
        self.raw.extend_from_slice(b"\r\n");
        self.lines.push((name, value));
        Ok(())
    }

    fn line(&mut self, name: &[u8], value: &[u8]) -> Result<(), Fault> {
        edges(value)?;
        let name = self.put(name);
        self.raw.extend_from_slice(b": ");
        let value = self.put(value);
        self.raw.extend_from_slice(b"\r\n");
        self.lines.push((name, value));
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> Span {
        let from = self.raw.len();
        self.raw.extend_from_slice(bytes);
        self.since(from)
    }

    fn since(&self, from: usize) -> Span {
        Span::within(&self.raw, &self.raw[from..])
    }
}

/// Blanks around a value are malformed (RFC 9113 §8.2.1): HTTP/1.1 would take them away.
fn edges(value: &[u8]) -> Result<(), Fault> {
    let is_blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    if is_blank(value.first()) || is_blank(value.last()) {
        return Err(bad("blanks around a field's value"));
    }
    Ok(())
}

/// The head of a response to a client; `length` is what its body will be, or would be.
pub(super) fn response<B>(
    response: Response<B>,
    length: Option<u64>,
    dates: &Dates,
) -> (http::Response<()>, B) {
    let mut head = http::Response::new(());
    *head.status_mut() = response.status;
    let headers = head.headers_mut();
    headers.reserve(response.fields.count() + 3);
    put(response.fields, headers);
    if !headers.contains_key(DATE) {
        headers.insert(DATE, dates.value());
    }
    if let Some(length) = length {
        headers.insert(CONTENT_LENGTH, length.into());
    }
    (head, response.body)
}

/// The head of what is said before a response.
pub(super) fn interim(interim: Response<()>) -> http::Response<()> {
    let mut head = http::Response::new(());
    *head.status_mut() = interim.status;
    put(interim.fields, head.headers_mut());
    head
}

fn put(fields: Fields, headers: &mut HeaderMap) {
    fields.into_lines(OURS, |name, value: Bytes| {
        let name = if name.eq_ignore_ascii_case(REQUEST_ID.as_str().as_bytes()) {
            Ok(REQUEST_ID)
        } else {
            HeaderName::from_bytes(name)
        };
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_maybe_shared(value)) {
            headers.append(name, value);
        }
    });
}
