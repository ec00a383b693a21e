//! The heads of requests and responses.

use std::sync::Arc;

use http::{Method, StatusCode, Version};

use super::Body;
use super::fields::{FieldId, Fields, Span};

/// The head of a request.
#[derive(Clone, Debug)]
pub struct Head {
    /// The method.
    pub method: Method,
    /// The version that the client speaks.
    pub version: Version,
    /// The fields.
    pub fields: Fields,
    /// Whether the client takes trailers; the fields say so, too.
    pub takes_trailers: bool,
    /// The protocols that the client would rather speak, as it said them; once a service was found, the one of them that the
    /// node is offered.
    pub upgrade: Option<Arc<str>>,
    target: Text,
    authority: Option<Text>,
}

/// A stretch of the head, or text of its own.
#[derive(Clone, Debug)]
enum Text {
    Raw(Span),
    Own(Box<[u8]>),
}

impl Text {
    fn of<'t>(&'t self, fields: &'t Fields) -> &'t [u8] {
        match self {
            Self::Raw(span) => span.of(fields.raw()),
            Self::Own(text) => text,
        }
    }
}

impl Head {
    /// A head whose target is a stretch of the fields' buffer.
    #[must_use]
    pub const fn new(method: Method, target: Span, version: Version, fields: Fields) -> Self {
        Self {
            method,
            version,
            fields,
            takes_trailers: false,
            upgrade: None,
            target: Text::Raw(target),
            authority: None,
        }
    }

    /// A head of our own.
    #[must_use]
    pub fn plain(method: Method, target: &str) -> Self {
        Self {
            method,
            version: Version::HTTP_11,
            fields: Fields::default(),
            takes_trailers: false,
            upgrade: None,
            target: Text::Own(target.as_bytes().into()),
            authority: None,
        }
    }

    /// What is asked for: a path and a query, or `*`, once the head was checked.
    #[must_use]
    pub fn target(&self) -> &[u8] {
        self.target.of(&self.fields)
    }

    /// Whom it is for: the target's authority if it had one, or the `Host` field; empty if there is neither.
    #[must_use]
    pub fn host(&self) -> &[u8] {
        match &self.authority {
            Some(authority) => authority.of(&self.fields),
            None => self.fields.get(FieldId::Host).unwrap_or_default(),
        }
    }

    /// The method, if it is certain that the application understands no other: some take it from a field. What that makes
    /// of the request nobody knows here, so it counts as a write that must not be repeated.
    #[must_use]
    pub fn certain_method(&self) -> Option<&Method> {
        (!self.fields.has(FieldId::MethodOverride)).then_some(&self.method)
    }

    /// Whether the host is the target's and not the field's.
    #[must_use]
    pub const fn has_authority(&self) -> bool {
        self.authority.is_some()
    }

    /// Parts an absolute target: from here on `authority` is the host, and the last `rest` bytes are the target.
    pub fn part_target(&mut self, authority: &[u8], rest: usize) {
        let target = self.target();
        let rest = &target[target.len().saturating_sub(rest)..];
        let rest = match rest.first() {
            Some(b'/') => Text::Own(rest.into()),
            _ => Text::Own([b"/", rest].concat().into()),
        };
        self.authority = Some(Text::Own(authority.into()));
        self.target = rest;
    }

    /// About how much memory it takes.
    #[must_use]
    pub fn size(&self) -> usize {
        size_of::<Self>() + self.fields.size()
    }

    /// A head with these lines as fields.
    #[cfg(test)]
    pub(crate) fn for_test(method: &str, target: &str, lines: &str) -> Self {
        let raw = bytes::Bytes::from(format!("{method} {target} HTTP/1.1\r\n{lines}\r\n"));
        let mut fields = Fields::new(raw.clone(), 4);
        for line in raw.split(|byte| *byte == b'\n').skip(1) {
            if let Some(colon) = line.iter().position(|byte| *byte == b':') {
                let name = Span::within(&raw, &line[..colon]);
                fields.push(name, Span::within(&raw, line[colon + 1..].trim_ascii()));
            }
        }
        let target = Span::within(
            &raw,
            &raw[method.len() + 1..method.len() + 1 + target.len()],
        );
        Self::new(method.parse().unwrap(), target, Version::HTTP_11, fields)
    }
}

/// A response on its way out.
#[derive(Debug)]
pub struct Response<B = Body> {
    /// The status.
    pub status: StatusCode,
    /// The node's own words for it, as a stretch of the fields' buffer.
    pub reason: Option<Span>,
    /// The fields. Those that frame the body or concern a connection mean nothing any more.
    pub fields: Fields,
    /// The length that the body would have, of a response that has none (to HEAD, or 304).
    pub declared: Option<u64>,
    /// Whether the client's connection ends after it, because what follows may not be what it seems.
    pub last: bool,
    /// The body.
    pub body: B,
}

impl<B> Response<B> {
    /// A response of our own.
    #[must_use]
    pub fn new(status: StatusCode, body: B) -> Self {
        Self {
            status,
            reason: None,
            fields: Fields::default(),
            declared: None,
            last: false,
            body,
        }
    }

    /// The words for the status.
    #[must_use]
    pub fn reason(&self) -> &[u8] {
        match self.reason {
            Some(reason) => reason.of(self.fields.raw()),
            None => self
                .status
                .canonical_reason()
                .unwrap_or_default()
                .as_bytes(),
        }
    }

    /// The same with another body.
    pub fn map<C>(self, change: impl FnOnce(B) -> C) -> Response<C> {
        Response {
            status: self.status,
            reason: self.reason,
            fields: self.fields,
            declared: self.declared,
            last: self.last,
            body: change(self.body),
        }
    }
}
