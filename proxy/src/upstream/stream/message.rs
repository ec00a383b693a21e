//! Heads as HTTP/2 has them: from ours, and back.

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HeaderName, HeaderValue};
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderMap, Method, Request, StatusCode, Uri, Version};

use crate::exchange::decode::decimal;
use crate::exchange::fields::{FieldId, FieldSet, Fields, Span};
use crate::exchange::{Fault, Head, Trail, Upload};
use crate::upstream::client::encode::way_here;

/// What HTTP/2 says in other ways, or not at all (RFC 9113 §8.2.2); nobody waits for `100 Continue` here.
const LEFT_OUT: FieldSet = FieldSet::of(&[
    FieldId::Host,
    FieldId::ContentLength,
    FieldId::TransferEncoding,
    FieldId::Connection,
    FieldId::KeepAlive,
    FieldId::ProxyConnection,
    FieldId::Upgrade,
    FieldId::Http2Settings,
    FieldId::Expect,
    FieldId::Te,
]);
/// The most fields of a response.
const FIELDS_MOST: usize = 128;

/// What a node is called when a request does not say, and how it is reached.
#[derive(Clone, Debug)]
pub(crate) struct Authority {
    /// Host and port.
    pub(crate) name: String,
    /// `http` or `https`.
    pub(crate) scheme: Scheme,
}

/// A request's head.
///
/// # Errors
/// It holds something that HTTP/2 has no form for.
pub(super) fn request(
    head: &Head,
    upload: &Upload,
    trail: &Trail,
    authority: &Authority,
) -> Result<Request<()>, Fault> {
    let bad = |why| Fault::Request {
        status: StatusCode::BAD_REQUEST,
        why,
    };
    let target = PathAndQuery::try_from(head.target());
    let target = target.map_err(|_| bad("the target cannot be passed on in HTTP/2"))?;
    let host = match head.host() {
        b"" => authority.name.as_bytes(),
        host => host,
    };
    let uri = Uri::builder()
        .scheme(authority.scheme.clone())
        .authority(host)
        .path_and_query(target)
        .build()
        .map_err(|_| bad("the host cannot be passed on in HTTP/2"))?;
    let mut request = Request::new(());
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = uri;
    *request.version_mut() = Version::HTTP_2;
    let fields = request.headers_mut();
    let mut lines = Vec::with_capacity(head.fields.raw().len() + 256);
    head.fields.write(&mut lines, LEFT_OUT);
    if trail.adds_lines() {
        way_here(&mut lines, head, trail);
    }
    for line in lines.split(|byte| *byte == b'\n') {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else {
            continue;
        };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        put(fields, name, value).map_err(bad)?;
    }
    if head.takes_trailers {
        put(fields, b"te", b"trailers").map_err(bad)?;
    }
    if let Some(length) = upload.length()
        && (length > 0 || expects_length(&head.method))
    {
        fields.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    Ok(request)
}

fn expects_length(method: &Method) -> bool {
    matches!(*method, Method::POST | Method::PUT | Method::PATCH)
}

fn put(fields: &mut HeaderMap, name: &[u8], value: &[u8]) -> Result<(), &'static str> {
    let name = HeaderName::from_bytes(name).map_err(|_| "a field's name is not valid in HTTP/2")?;
    let value = HeaderValue::from_bytes(value).map_err(|_| "a field's value is not valid")?;
    let added = fields.try_append(name, value);
    added.map(drop).map_err(|_| "too many fields")
}

/// A response's head.
pub(super) struct Found {
    /// The fields.
    pub(super) fields: Fields,
    /// The length that was said.
    pub(super) length: Option<u64>,
    /// Whether there is no body whatever is said.
    pub(super) bodiless: bool,
}

/// Takes over the head of a response; `to_head` is whether the request was a HEAD.
///
/// # Errors
/// What is wrong with it.
pub(super) fn response(
    parts: &http::response::Parts,
    to_head: bool,
) -> Result<Found, &'static str> {
    if parts.headers.len() > FIELDS_MOST {
        return Err("too many fields");
    }
    let mut known = None;
    for value in parts.headers.get_all(CONTENT_LENGTH) {
        let length = decimal(value.as_bytes()).ok_or("invalid Content-Length")?;
        if known.is_some_and(|known| known != length) {
            return Err("differing Content-Length fields");
        }
        known = Some(length);
    }
    let status = parts.status;
    let bodiless =
        to_head || status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED;
    Ok(Found {
        fields: lines(&parts.headers),
        length: known.filter(|_| status != StatusCode::NO_CONTENT),
        bodiless,
    })
}

/// Fields as lines of one buffer.
fn lines(headers: &HeaderMap) -> Fields {
    let mut raw = Vec::with_capacity(headers.len() * 48);
    let mut spans = Vec::with_capacity(headers.len());
    let at = |raw: &Vec<u8>| u32::try_from(raw.len()).unwrap_or(u32::MAX);
    for (name, value) in headers {
        let from = at(&raw);
        raw.extend_from_slice(name.as_str().as_bytes());
        let name = Span { from, to: at(&raw) };
        raw.extend_from_slice(b": ");
        let from = at(&raw);
        raw.extend_from_slice(value.as_bytes());
        let value = Span { from, to: at(&raw) };
        raw.extend_from_slice(b"\r\n");
        spans.push((name, value));
    }
    let mut fields = Fields::new(Bytes::from(raw), spans.len());
    for (name, value) in spans {
        fields.push(name, value);
    }
    fields
}
