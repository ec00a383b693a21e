//! A message's fields as they came: one buffer, and where each of them is in it.
//!
//! A proxy passes most fields on without looking at them, so they are not taken apart into a map of names and values: those
//! that mean something to us are recognised when they are read, and the rest is copied on, as runs of whole lines.

use std::fmt;

use bytes::Bytes;

/// Fields that mean something to a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FieldId {
    /// Any other.
    Other,
    /// Any other with an underscore in its name.
    Underscored,
    /// `Host`
    Host,
    /// `Connection`
    Connection,
    /// `Content-Length`
    ContentLength,
    /// `Transfer-Encoding`
    TransferEncoding,
    /// `TE`
    Te,
    /// `Trailer`
    Trailer,
    /// `Upgrade`
    Upgrade,
    /// `Expect`
    Expect,
    /// `Keep-Alive`
    KeepAlive,
    /// `Proxy-Connection`
    ProxyConnection,
    /// `Proxy-Authenticate`
    ProxyAuthenticate,
    /// `HTTP2-Settings`
    Http2Settings,
    /// `Max-Forwards`
    MaxForwards,
    /// `Via`
    Via,
    /// `Forwarded`
    Forwarded,
    /// `X-Forwarded-For`
    XForwardedFor,
    /// `X-Forwarded-Proto`
    XForwardedProto,
    /// `X-Forwarded-Host`
    XForwardedHost,
    /// `X-Request-Id`
    XRequestId,
    /// What else proxies say about a client, and an application might believe: `X-Real-IP` and any other `X-Forwarded-…`.
    Claim,
    /// `traceparent`
    Traceparent,
    /// `tracestate`
    Tracestate,
    /// What some applications take for the method: `X-HTTP-Method-Override`, `X-HTTP-Method`, `X-Method-Override`.
    MethodOverride,
    /// What says who a client is by its certificate: `Client-Cert`, `Client-Cert-Chain` (RFC 9440), `X-Client-Cert-Subject`.
    Certificate,
    /// `Date`
    Date,
    /// `Referer`
    Referer,
    /// `User-Agent`
    UserAgent,
}

impl FieldId {
    /// Recognises a name, in any case.
    #[must_use]
    pub fn of(name: &[u8]) -> Self {
        let first = name.first().map_or(0, |byte| usize::from(byte & 31));
        // Length and first letter leave at most a few; most names are none of them.
        let mut at = match name.len() {
            length @ 0..=31 => usize::from(BY_LENGTH_AND_LETTER[length << 5 | first]),
            _ => 0,
        };
        while let Some((id, known)) = at.checked_sub(1).and_then(|at| KNOWN.get(at)) {
            if name.eq_ignore_ascii_case(known.as_bytes()) {
                return *id;
            }
            if name.len() != known.len() {
                break;
            }
            at += 1;
        }
        if has_underscore(name) {
            Self::Underscored
        } else if is_forwarded(name) {
            Self::Claim
        } else {
            Self::Other
        }
    }
}

/// The known names in lower case; those of one length and first letter stand together.
const KNOWN: [(FieldId, &str); 32] = [
    (FieldId::Te, "te"),
    (FieldId::Via, "via"),
    (FieldId::Host, "host"),
    (FieldId::Date, "date"),
    (FieldId::Expect, "expect"),
    (FieldId::Referer, "referer"),
    (FieldId::Upgrade, "upgrade"),
    (FieldId::Trailer, "trailer"),
    (FieldId::Forwarded, "forwarded"),
    (FieldId::Claim, "x-real-ip"),
    (FieldId::UserAgent, "user-agent"),
    (FieldId::Connection, "connection"),
    (FieldId::Tracestate, "tracestate"),
    (FieldId::KeepAlive, "keep-alive"),
    (FieldId::Certificate, "client-cert"),
    (FieldId::Traceparent, "traceparent"),
    (FieldId::XRequestId, "x-request-id"),
    (FieldId::MaxForwards, "max-forwards"),
    (FieldId::ContentLength, "content-length"),
    (FieldId::MethodOverride, "x-http-method"),
    (FieldId::Http2Settings, "http2-settings"),
    (FieldId::XForwardedFor, "x-forwarded-for"),
    (FieldId::XForwardedHost, "x-forwarded-host"),
    (FieldId::ProxyConnection, "proxy-connection"),
    (FieldId::TransferEncoding, "transfer-encoding"),
    (FieldId::Certificate, "client-cert-chain"),
    (FieldId::MethodOverride, "x-method-override"),
    (FieldId::XForwardedProto, "x-forwarded-proto"),
    (FieldId::ProxyAuthenticate, "proxy-authenticate"),
    (FieldId::Certificate, "x-client-cert-subject"),
    (FieldId::MethodOverride, "x-http-method-override"),
    (FieldId::Claim, "x-original-forwarded-for"),
];

/// Where in [`KNOWN`] the names of a length and a first letter begin, from 1; 0 is nowhere.
const BY_LENGTH_AND_LETTER: [u8; 1024] = {
    let mut table = [0_u8; 1024];
    let mut at = KNOWN.len();
    let mut number: u8 = 32;
    assert!(KNOWN.len() == number as usize, "the two count together");
    while at > 0 {
        let name = KNOWN[at - 1].1.as_bytes();
        table[name.len() << 5 | (name[0] & 31) as usize] = number;
        at -= 1;
        number -= 1;
    }
    table
};

/// Whether it is an `X-Forwarded-…` that has no meaning of its own here: a scheme, a user, a certificate.
fn is_forwarded(name: &[u8]) -> bool {
    const START: &[u8] = b"x-forwarded-";
    let start = name.split_at_checked(START.len());
    start.is_some_and(|(start, _)| start.eq_ignore_ascii_case(START))
}

/// Looks at eight bytes at a time.
fn has_underscore(name: &[u8]) -> bool {
    const ONES: u64 = u64::MAX / 255;
    let in_word = |word: &[u8; 8]| {
        let found = u64::from_ne_bytes(*word) ^ (ONES * b'_' as u64);
        // A byte that is zero now was an underscore.
        found.wrapping_sub(ONES) & !found & (ONES << 7) != 0
    };
    match (name.as_chunks::<8>().0, name.last_chunk::<8>()) {
        (words, Some(last)) => words.iter().any(in_word) || in_word(last),
        (_, None) => name.contains(&b'_'),
    }
}

/// A set of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FieldSet(u64);

impl FieldSet {
    /// None.
    pub const NONE: Self = Self(0);

    /// These.
    #[must_use]
    pub const fn of(ids: &[FieldId]) -> Self {
        let mut set = 0;
        let mut at = 0;
        while at < ids.len() {
            set |= 1 << ids[at] as u8;
            at += 1;
        }
        Self(set)
    }

    /// Whether it is in the set.
    #[must_use]
    pub const fn has(self, id: FieldId) -> bool {
        self.0 & 1 << id as u8 != 0
    }

    /// Whether the two have one in common.
    #[must_use]
    pub const fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Those of both.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    const fn add(&mut self, id: FieldId) {
        self.0 |= 1 << id as u8;
    }
}

/// A stretch of the buffer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// Its first byte.
    pub from: u32,
    /// The byte after its last.
    pub to: u32,
}

impl Span {
    /// Where `part`, a slice of `whole`, is in it. Nothing, if it is no slice of it.
    #[must_use]
    pub fn within(whole: &[u8], part: &[u8]) -> Self {
        let from = (part.as_ptr() as usize).wrapping_sub(whole.as_ptr() as usize);
        let to = from.wrapping_add(part.len());
        match (u32::try_from(from), u32::try_from(to)) {
            (Ok(from), Ok(to)) if to as usize <= whole.len() => Self { from, to },
            _ => Self::default(),
        }
    }

    /// The bytes.
    #[must_use]
    pub fn of(self, whole: &[u8]) -> &[u8] {
        whole
            .get(self.from as usize..self.to as usize)
            .unwrap_or_default()
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    name: Span,
    value: Span,
    id: FieldId,
    /// Whether the line is `name: value` and CRLF, so that it can be copied as it is.
    plain: bool,
    live: bool,
}

impl Entry {
    /// The end of its line, if it is plain.
    const fn end(&self) -> u32 {
        self.value.to + 2
    }
}

/// The fields of a message.
#[derive(Clone, Default)]
pub struct Fields {
    raw: Bytes,
    entries: Vec<Entry>,
    present: FieldSet,
    more: Vec<u8>,
}

impl fmt::Debug for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = Vec::new();
        self.write(&mut text, FieldSet::NONE);
        f.debug_tuple("Fields")
            .field(&String::from_utf8_lossy(&text))
            .finish()
    }
}

impl Fields {
    /// No fields yet; those to come are in `raw`, a whole head.
    #[must_use]
    pub fn new(raw: Bytes, room: usize) -> Self {
        Self {
            raw,
            entries: Vec::with_capacity(room),
            present: FieldSet::NONE,
            more: Vec::new(),
        }
    }

    /// The whole head.
    #[must_use]
    pub const fn raw(&self) -> &Bytes {
        &self.raw
    }

    /// Takes in the next field; both are stretches of the head.
    pub fn push(&mut self, name: Span, value: Span) -> FieldId {
        let id = FieldId::of(name.of(&self.raw));
        self.present.add(id);
        let (from, to) = (name.to as usize, value.to as usize);
        let plain = self.raw.get(from..value.from as usize) == Some(b": ")
            && self.raw.get(to..to + 2) == Some(b"\r\n");
        self.entries.push(Entry {
            name,
            value,
            id,
            plain,
            live: true,
        });
        id
    }

    /// Which of the known fields there are.
    #[must_use]
    pub const fn present(&self) -> FieldSet {
        self.present
    }

    /// Whether there is such a field.
    #[must_use]
    pub const fn has(&self, id: FieldId) -> bool {
        self.present.has(id)
    }

    /// Every field that came and was not removed: what it is, its name, its value.
    pub fn iter(&self) -> impl Iterator<Item = (FieldId, &[u8], &[u8])> {
        let live = self.entries.iter().filter(|entry| entry.live);
        live.map(|entry| {
            (
                entry.id,
                entry.name.of(&self.raw),
                entry.value.of(&self.raw),
            )
        })
    }

    /// The values of all fields of this kind.
    pub fn all(&self, id: FieldId) -> impl Iterator<Item = &[u8]> {
        let there = if self.present.has(id) {
            self.entries.len()
        } else {
            0
        };
        let of_kind = self.entries[..there]
            .iter()
            .filter(move |entry| entry.live && entry.id == id);
        of_kind.map(|entry| entry.value.of(&self.raw))
    }

    /// The value of the first field of this kind.
    #[must_use]
    pub fn get(&self, id: FieldId) -> Option<&[u8]> {
        self.all(id).next()
    }

    /// Removes all fields of these kinds.
    pub fn remove(&mut self, set: FieldSet) {
        if !self.present.meets(set) {
            return;
        }
        for entry in &mut self.entries {
            entry.live &= !set.has(entry.id);
        }
        self.present = FieldSet(self.present.0 & !set.0);
    }

    /// Removes all fields of this name, in any case.
    pub fn remove_named(&mut self, name: &[u8]) {
        let id = FieldId::of(name);
        for entry in &mut self.entries {
            entry.live &= !entry.name.of(&self.raw).eq_ignore_ascii_case(name);
        }
        let left = self
            .entries
            .iter()
            .any(|entry| entry.live && entry.id == id);
        if !left {
            self.present = FieldSet(self.present.0 & !(1 << id as u8));
        }
    }

    /// Adds a field behind the others. A value that no field may have is left out, with its field.
    pub fn add(&mut self, name: &str, value: &[u8]) {
        // Without leaving early, which is faster for what is nearly always right.
        if value
            .iter()
            .fold(true, |fine, byte| fine & is_value_byte(*byte))
        {
            self.more.reserve(name.len() + value.len() + 4);
            self.more.extend_from_slice(name.as_bytes());
            self.more.extend_from_slice(b": ");
            self.more.extend_from_slice(value);
            self.more.extend_from_slice(b"\r\n");
        }
    }

    /// Appends every field as a line, except those in `skip`.
    pub fn write(&self, out: &mut Vec<u8>, skip: FieldSet) {
        let mut run = Span::default();
        for entry in &self.entries {
            let kept = entry.live && !skip.has(entry.id);
            if kept && entry.plain && entry.name.from == run.to {
                run.to = entry.end();
                continue;
            }
            out.extend_from_slice(run.of(&self.raw));
            run = Span::default();
            if kept && entry.plain {
                run = Span {
                    from: entry.name.from,
                    to: entry.end(),
                };
            } else if kept {
                out.extend_from_slice(entry.name.of(&self.raw));
                out.extend_from_slice(b": ");
                out.extend_from_slice(entry.value.of(&self.raw));
                out.extend_from_slice(b"\r\n");
            }
        }
        out.extend_from_slice(run.of(&self.raw));
        out.extend_from_slice(&self.more);
    }

    /// About how many lines [`Fields::into_lines`] gives.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.entries.len()
    }

    /// Gives every field, except those in `skip`, as its name and its value, which is not copied.
    pub fn into_lines(self, skip: FieldSet, mut take: impl FnMut(&[u8], Bytes)) {
        for entry in &self.entries {
            if entry.live && !skip.has(entry.id) {
                let Span { from, to } = entry.value;
                let value = self.raw.slice(from as usize..to as usize);
                take(entry.name.of(&self.raw), value);
            }
        }
        let more = Bytes::from(self.more);
        let mut rest = &more[..];
        while let Some(end) = memchr::memchr(b'\n', rest) {
            let (line, later) = rest.split_at(end + 1);
            rest = later;
            // As it was added: see `Fields::add`.
            if let Some(colon) = memchr::memchr(b':', line) {
                let value = &line[(colon + 2).min(line.len())..line.len().saturating_sub(2)];
                take(&line[..colon], more.slice_ref(value));
            }
        }
    }

    /// About how much memory they take.
    #[must_use]
    pub fn size(&self) -> usize {
        self.raw.len() + self.entries.len() * size_of::<Entry>() + self.more.len()
    }
}

/// Whether a field's value may have this byte (RFC 9110 §5.5).
#[must_use]
pub const fn is_value_byte(byte: u8) -> bool {
    byte == b'\t' || (byte >= 0x20 && byte != 0x7f)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fields of a head with a start line.
    fn fields(lines: &str) -> Fields {
        let raw = Bytes::from(format!("GET / HTTP/1.1\r\n{lines}\r\n"));
        let mut fields = Fields::new(raw.clone(), 4);
        for line in raw.split(|byte| *byte == b'\n').skip(1) {
            let Some(colon) = line.iter().position(|byte| *byte == b':') else {
                continue;
            };
            let name = Span::within(&raw, &line[..colon]);
            fields.push(name, Span::within(&raw, line[colon + 1..].trim_ascii()));
        }
        fields
    }

    fn written(fields: &Fields, skip: FieldSet) -> String {
        let mut out = Vec::new();
        fields.write(&mut out, skip);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn fields_pass_as_they_came_and_odd_lines_are_made_plain() {
        let lines =
            "Host: a\r\nX-A: 1\r\nX-B:2\r\nX-C: 3 \r\nX-D: 4\r\nX-E: \r\nX-F: 5\nX-G: 6\r\n";
        let plain =
            "Host: a\r\nX-A: 1\r\nX-B: 2\r\nX-C: 3\r\nX-D: 4\r\nX-E: \r\nX-F: 5\r\nX-G: 6\r\n";
        assert_eq!(written(&fields(lines), FieldSet::NONE), plain);
    }

    #[test]
    fn removed_and_skipped_fields_are_not_written_and_added_ones_are_last() {
        let mut fields =
            fields("Host: a\r\nTE: x\r\nX-A: 1\r\nte: y\r\nX_Y: z\r\nx-a: 2\r\nX-B: 3\r\n");
        assert!(fields.has(FieldId::Te) && fields.has(FieldId::Underscored));
        assert_eq!(fields.all(FieldId::Te).collect::<Vec<_>>(), [b"x", b"y"]);
        fields.remove(FieldSet::of(&[FieldId::Te, FieldId::Underscored]));
        fields.remove_named(b"X-A");
        fields.add("x-new", b"4");
        fields.add("x-bad", b"a\r\nb: c");
        assert!(!fields.has(FieldId::Te) && fields.get(FieldId::Te).is_none());
        let skip = FieldSet::of(&[FieldId::Host]);
        assert_eq!(written(&fields, skip), "X-B: 3\r\nx-new: 4\r\n");
        assert_eq!(fields.iter().count(), 2);
    }

    #[test]
    fn lines_are_what_would_be_written() {
        let mut fields = fields("Host: a\r\nTE: x\r\nX-A:1\r\nX-B: \r\n");
        fields.add("x-new", b"4: 5");
        fields.add("x-empty", b"");
        fields.remove_named(b"X-A");
        let skip = FieldSet::of(&[FieldId::Te]);
        let mut lines = String::new();
        fields.clone().into_lines(skip, |name, value| {
            let (name, value) = (name.to_vec(), value.to_vec());
            lines += &String::from_utf8(name).unwrap();
            lines += &format!(": {}\r\n", String::from_utf8(value).unwrap());
        });
        assert_eq!(lines, written(&fields, skip));
        assert_eq!(lines, "Host: a\r\nX-B: \r\nx-new: 4: 5\r\nx-empty: \r\n");
    }

    #[test]
    fn known_names_are_recognised_in_any_case() {
        for (name, id) in [
            ("HOST", FieldId::Host),
            ("Transfer-Encoding", FieldId::TransferEncoding),
            ("x-forwarded-FOR", FieldId::XForwardedFor),
            ("X-Real-Ip", FieldId::Claim),
            ("x-forwarded-prefix", FieldId::Claim),
            ("X-Forwarded-Protocol", FieldId::Claim),
            ("x-forwarded-client-cert", FieldId::Claim),
            ("x-forwarded-", FieldId::Claim),
            ("CLIENT-cert", FieldId::Certificate),
            ("client-cert-CHAIN", FieldId::Certificate),
            ("X-Client-Cert-Subject", FieldId::Certificate),
            ("client_cert", FieldId::Underscored),
            ("TraceParent", FieldId::Traceparent),
            ("tracestate", FieldId::Tracestate),
            ("X-HTTP-Method-Override", FieldId::MethodOverride),
            ("x-http-METHOD", FieldId::MethodOverride),
            ("X-Method-Override", FieldId::MethodOverride),
            ("X-HTTP-Method-Overridd", FieldId::Other),
            ("x-forwarded", FieldId::Other),
            ("x-forwarded_for", FieldId::Underscored),
            ("x-forwarded-access_token", FieldId::Underscored),
            ("y-forwarded-user", FieldId::Other),
            ("Proxy-Connection", FieldId::ProxyConnection),
            ("HTTP2-Settings", FieldId::Http2Settings),
            ("Hos_", FieldId::Underscored),
            ("Hose", FieldId::Other),
            ("", FieldId::Other),
        ] {
            assert_eq!(FieldId::of(name.as_bytes()), id, "{name}");
        }
    }
}
