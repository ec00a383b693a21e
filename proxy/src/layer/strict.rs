//! The rules that a request must keep before anything is decided by it (RFC 9112 §3, §6; RFC 9110 §7).
//!
//! What is ambiguous must not travel on, because the next reader may decide otherwise and take one request for two, or ours
//! for somebody else's.

use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Method, StatusCode, Version};
use tower::{Layer, Service};

use super::checked::Checked;
use crate::exchange::decode::decimal;
use crate::exchange::fields::{FieldId, FieldSet, Fields};
use crate::exchange::{Fault, Head, Request, Response, trailers};

/// What must be looked at more closely; most requests have none of it.
const ODD: FieldSet = FieldSet::of(&[
    FieldId::Underscored,
    FieldId::Connection,
    FieldId::TransferEncoding,
    FieldId::Te,
    FieldId::Trailer,
    FieldId::Upgrade,
    FieldId::Expect,
    FieldId::KeepAlive,
    FieldId::ProxyConnection,
    FieldId::Http2Settings,
]);

/// What concerns only the client's connection. `X_Forwarded_For` and `X-Forwarded-For` are one variable to a CGI-like
/// application, and only one of them is ours, so names with underscores go, too.
const ENDS_HERE: FieldSet = FieldSet::of(&[
    FieldId::Underscored,
    FieldId::Connection,
    FieldId::Te,
    FieldId::Trailer,
    FieldId::Upgrade,
    FieldId::KeepAlive,
    FieldId::ProxyConnection,
    FieldId::Http2Settings,
]);

/// Fields that no `Connection` line may take away: they mean something to the node, or to us.
const END_TO_END: [&str; 14] = [
    "host",
    "cookie",
    "authorization",
    "content-length",
    "content-type",
    "transfer-encoding",
    "forwarded",
    "via",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "x-request-id",
    "traceparent",
    "date",
];

/// So many names may stand on all `Connection` lines together; honest clients have a handful.
const NOMINATED_MOST: usize = 32;

/// Which rule a request breaks, and the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal(pub StatusCode, pub &'static str);

const fn bad(why: &'static str) -> Refusal {
    Refusal(StatusCode::BAD_REQUEST, why)
}

/// Checks a head, and takes out of it what concerns only the client's connection.
///
/// # Errors
/// The rule that it breaks.
pub fn check(head: &mut Head) -> Result<(), Refusal> {
    if matches!(head.method, Method::CONNECT | Method::TRACE) {
        let why = "CONNECT and TRACE are never forwarded";
        return Err(Refusal(StatusCode::METHOD_NOT_ALLOWED, why));
    }
    target(head)?;
    host(head)?;
    if !head.fields.present().meets(ODD) {
        return Ok(());
    }
    expectation(&head.fields)?;
    let takes_trailers = trailers::are_wanted(&head.fields);
    if head.fields.has(FieldId::Upgrade) {
        head.upgrade = upgrade(head)?;
    }
    for name in nominated(&head.fields)? {
        head.fields.remove_named(&name);
    }
    head.fields.remove(ENDS_HERE);
    if takes_trailers {
        // What else `TE` says is about codings that nobody uses.
        head.takes_trailers = true;
        head.fields.add("TE", b"trailers");
    }
    Ok(())
}

/// Leaves a path and a query, or `*`; an absolute target's authority counts as the host (RFC 9112 §3.2.2).
fn target(head: &mut Head) -> Result<(), Refusal> {
    let target = head.target();
    if !target.iter().all(u8::is_ascii_graphic) {
        return Err(bad("bytes outside ASCII in the target"));
    }
    if target.contains(&b'#') {
        return Err(bad("a fragment in the target"));
    }
    match target.first() {
        Some(b'/') => Ok(()),
        Some(b'*') if target.len() == 1 && head.method == Method::OPTIONS => Ok(()),
        Some(b'*') => Err(bad("the target * is for OPTIONS only")),
        _ => absolute(head),
    }
}

fn absolute(head: &mut Head) -> Result<(), Refusal> {
    let target = head.target().to_vec();
    let after = |scheme: &str| {
        let (start, rest) = target.split_at_checked(scheme.len())?;
        start
            .eq_ignore_ascii_case(scheme.as_bytes())
            .then_some(rest)
    };
    let rest = after("http://").or_else(|| after("https://"));
    let rest = rest.ok_or(bad("the target is neither a path nor an http URL"))?;
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?'));
    let (authority, path) = rest.split_at(end.unwrap_or(rest.len()));
    if !is_host(authority) {
        return Err(bad("invalid host in the target"));
    }
    head.part_target(authority, path.len());
    Ok(())
}

/// One valid host (RFC 9112 §3.2).
fn host(head: &Head) -> Result<(), Refusal> {
    let mut hosts = head.fields.all(FieldId::Host);
    match (hosts.next(), hosts.next()) {
        (Some(_), Some(_)) => Err(bad("more than one Host")),
        (Some(host), None) if is_host(host) => Ok(()),
        (Some(_), None) => Err(bad("invalid Host")),
        (None, _) if head.version == Version::HTTP_10 => Ok(()),
        (None, _) => Err(bad("no Host")),
    }
}

/// `uri-host [":" port]` (RFC 9110 §7.2), without userinfo, never empty.
fn is_host(text: &[u8]) -> bool {
    let (host, rest) = if text.first() == Some(&b'[') {
        let Some(end) = text.iter().position(|byte| *byte == b']') else {
            return false;
        };
        let inside = &text[1..end];
        let is_address = |byte: &u8| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.');
        if !inside.iter().all(is_address) || !inside.contains(&b':') {
            return false;
        }
        (inside, &text[end + 1..])
    } else {
        let end = text
            .iter()
            .position(|byte| *byte == b':')
            .unwrap_or(text.len());
        let (name, rest) = text.split_at(end);
        if !name.iter().all(|byte| NAME[usize::from(*byte)]) {
            return false;
        }
        (name, rest)
    };
    let port = match rest {
        [] => true,
        [b':', digits @ ..] => digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    port && !host.is_empty()
}

/// What a registered name may be made of (RFC 3986 §3.2.2).
const NAME: [bool; 256] = {
    let all = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~%!$&'()*+,;=";
    let mut name = [false; 256];
    let mut at = 0;
    while at < all.len() {
        name[all[at] as usize] = true;
        at += 1;
    }
    name
};

fn expectation(fields: &Fields) -> Result<(), Refusal> {
    let known = |value: &[u8]| value.eq_ignore_ascii_case(b"100-continue");
    if fields.all(FieldId::Expect).all(known) {
        return Ok(());
    }
    let why = "an expectation other than 100-continue";
    Err(Refusal(StatusCode::EXPECTATION_FAILED, why))
}

/// The protocols that the client would rather speak. One that asks otherwise than by the rules is understood as one that does
/// not ask, which RFC 9110 §7.8 always allows; but with a body it could mean one request here and two behind us.
fn upgrade(head: &Head) -> Result<Option<Arc<str>>, Refusal> {
    let fields = &head.fields;
    let body = fields.has(FieldId::TransferEncoding)
        || fields
            .get(FieldId::ContentLength)
            .is_some_and(|value| value != b"0");
    if body {
        return Err(bad("Upgrade in a request with a body"));
    }
    let mut options = fields
        .all(FieldId::Connection)
        .flat_map(|value| value.split(|byte| *byte == b','));
    let asked = head.version == Version::HTTP_11
        && head.method == Method::GET
        && options.any(|option| option.trim_ascii().eq_ignore_ascii_case(b"upgrade"));
    let lines: Vec<_> = fields.all(FieldId::Upgrade).collect();
    let protocols = lines.join(&b","[..]);
    Ok(String::from_utf8(protocols)
        .ok()
        .filter(|_| asked)
        .map(Into::into))
}

/// The names on all `Connection` lines.
fn nominated(fields: &Fields) -> Result<Vec<Vec<u8>>, Refusal> {
    let mut names = Vec::new();
    for value in fields.all(FieldId::Connection) {
        for option in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            if option.is_empty() || option.eq_ignore_ascii_case(b"close") {
                continue;
            }
            if !option.iter().all(|byte| byte.is_ascii_graphic()) {
                return Err(bad("invalid name in Connection"));
            }
            if END_TO_END
                .iter()
                .any(|name| option.eq_ignore_ascii_case(name.as_bytes()))
            {
                return Err(bad("Connection names a field that is not its own"));
            }
            if names.len() == NOMINATED_MOST {
                return Err(bad("too many names in Connection"));
            }
            names.push(option.to_vec());
        }
    }
    Ok(names)
}

/// An OPTIONS that may travel no further is answered here (RFC 9110 §7.6.2); otherwise it has one step less to go.
fn is_last_step(head: &mut Head) -> Result<bool, Refusal> {
    if head.method != Method::OPTIONS {
        return Ok(false);
    }
    let Some(value) = head.fields.get(FieldId::MaxForwards) else {
        return Ok(false);
    };
    let left = decimal(value).ok_or(bad("invalid Max-Forwards"))?;
    let Some(less) = left.checked_sub(1) else {
        return Ok(true);
    };
    head.fields.remove(FieldSet::of(&[FieldId::MaxForwards]));
    head.fields.add("Max-Forwards", less.to_string().as_bytes());
    Ok(false)
}

/// Puts a [`Strict`] around a service.
#[derive(Clone, Copy, Debug)]
pub struct StrictLayer;

impl<S> Layer<S> for StrictLayer {
    type Service = Strict<S>;

    fn layer(&self, inner: S) -> Strict<S> {
        Strict { inner }
    }
}

/// Refuses requests that break a rule.
#[derive(Clone, Debug)]
pub struct Strict<S> {
    inner: S,
}

impl<S> Service<Request> for Strict<S>
where
    S: Service<Request, Response = Response, Error = Fault>,
    S::Future: Unpin,
{
    type Response = Response;
    type Error = Fault;
    type Future = Checked<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request) -> Checked<S::Future> {
        if let Some(fault) = request.fault.take() {
            request.freeze();
            return Checked::refused(fault);
        }
        let head = request.head_mut();
        let checked = check(head).and_then(|()| is_last_step(head));
        match checked {
            Ok(false) => Checked::kept(self.inner.call(request)),
            Ok(true) => {
                request.freeze();
                Checked::answered(StatusCode::NO_CONTENT)
            }
            Err(Refusal(status, why)) => {
                request.freeze();
                Checked::refused(Fault::Request { status, why })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::rng::Rng;

    /// The head of `text`'s request line and fields, `\n` as line end.
    fn head(text: &str) -> Head {
        let (first, lines) = text.split_once('\n').unwrap_or((text, ""));
        let mut words = first.split(' ');
        let (method, target) = (words.next().unwrap(), words.next().unwrap());
        let lines = lines.replace('\n', "\r\n") + if lines.is_empty() { "" } else { "\r\n" };
        let mut head = Head::for_test(method, target, &lines);
        if words.next() == Some("1.0") {
            head.version = Version::HTTP_10;
        }
        head
    }

    fn names(head: &Head) -> Vec<String> {
        let names = head.fields.iter().map(|(_, name, _)| name);
        names
            .map(|name| String::from_utf8_lossy(name).into_owned())
            .collect()
    }

    fn checked(text: &str) -> Head {
        let mut head = head(text);
        assert_eq!(check(&mut head), Ok(()), "{text}");
        head
    }

    fn status(text: &str) -> u16 {
        check(&mut head(text)).map_or_else(|Refusal(status, _)| status.as_u16(), |()| 200)
    }

    #[test]
    fn there_is_exactly_one_valid_host() {
        for host in [
            "a",
            "a.b:80",
            "a:",
            "[::1]",
            "[::1]:8080",
            "127.0.0.1:1",
            "a_b",
            "x%41",
        ] {
            assert_eq!(status(&format!("GET /\nhost: {host}")), 200, "{host}");
        }
        for host in [
            "", " ", "a/b", "u@a", "a b", "[::1", "[a]", "[]", "a:b", "a:123456", "a?b", "a#b",
            "[::1]x", ":80",
        ] {
            assert_eq!(status(&format!("GET /\nhost: {host}")), 400, "{host}");
        }
        assert_eq!(status("GET /"), 400);
        assert_eq!(status("GET / 1.0"), 200);
        assert_eq!(status("GET /\nhost: a\nhost: a"), 400);
        assert_eq!(status("GET / 1.0\nhost: a\nhost: b"), 400);
    }

    #[test]
    fn the_target_s_authority_wins_over_the_field() {
        let head = checked("GET http://real:81/p?q\nhost: other");
        assert_eq!(
            (head.host(), head.target()),
            (&b"real:81"[..], &b"/p?q"[..])
        );
        assert_eq!(checked("GET http://real\nhost: a").target(), b"/");
        assert_eq!(checked("GET HTTPS://real?q\nhost: a").target(), b"/?q");
        assert_eq!(status("GET http:///p\nhost: a"), 400);
        assert_eq!(status("GET /p#f\nhost: a"), 400);
        assert_eq!(status("GET p\nhost: a"), 400);
        assert_eq!(status("GET http://u:p@a/\nhost: a"), 400);
        assert_eq!(status("GET ftp://a/\nhost: a"), 400);
        assert_eq!(status("GET a:80\nhost: a"), 400);
        assert_eq!(status("GET *\nhost: a"), 400);
        assert_eq!(status("OPTIONS *\nhost: a"), 200);
        assert_eq!(status("CONNECT a:80\nhost: a"), 405);
        assert_eq!(status("TRACE /\nhost: a"), 405);
    }

    #[test]
    fn fields_of_the_connection_end_here_whichever_line_names_them() {
        let head = checked(
            "GET /\nhost: a\nconnection: close, X-One\nx-one: 1\nconnection: x-two\nx-two: 2\nkeep-alive: 5\nproxy-connection: x\nte: trailers\ntrailer: x\nx-three: 3\nx_three: 4\nupgrade: h2c\nhttp2-settings: x",
        );
        assert_eq!(names(&head), ["host", "x-three"]);
        for name in END_TO_END {
            assert_eq!(
                status(&format!("GET /\nhost: a\nconnection: close, {name}")),
                400,
                "{name}"
            );
        }
        assert_eq!(status("GET /\nhost: a\nconnection: x y"), 400);
        // Each name is looked for among all fields: thousands of them would be work for nothing.
        let lines = |names: usize| {
            let many = vec!["x"; names].join(", ");
            format!("GET /\nhost: a\nconnection: {many}\nconnection: close, y")
        };
        assert_eq!(status(&lines(NOMINATED_MOST - 1)), 200);
        assert_eq!(status(&lines(NOMINATED_MOST)), 400);
    }

    #[test]
    fn ten_thousand_seeded_heads_leave_nothing_that_can_be_read_in_two_ways() {
        let seed = 0x0057_41c7_0000_u64;
        let spices = [
            "a",
            "b.c",
            ":80",
            "[::1]",
            "/",
            "?q",
            "#f",
            "@",
            "http://",
            "HTTPS://",
            "*",
            "%41",
            "\\",
            "é",
            ",",
            "host",
            "close",
            "content-length",
            "x-own",
            "-1",
            "+1",
            "0",
            " ",
        ];
        let names = [
            "host",
            "connection",
            "upgrade",
            "te",
            "expect",
            "x_own",
            "x-own",
            "max-forwards",
            "content-length",
        ];
        let mut passed = 0;
        for round in 0..10_000 {
            let mut rng = Rng::with_seed(seed + round);
            let some = |rng: &mut Rng, most| -> String {
                (0..rng.usize(..most))
                    .map(|_| spices[rng.usize(..spices.len())])
                    .collect()
            };
            let start = ["/", "/", "http://a", "*", ""][rng.usize(..5)];
            let method = ["GET", "OPTIONS", "POST", "TRACE", "trace"][rng.usize(..5)];
            let mut text = format!("{method} {start}{}", some(&mut rng, 3).replace(' ', ""));
            let valid = rng.bool();
            text += if valid { "\nhost: a" } else { "" };
            for _ in 0..rng.usize(..4) {
                let name = names[rng.usize(usize::from(valid)..names.len())];
                text += &format!("\n{name}: {}", some(&mut rng, 3));
            }
            let mut head = head(&text);
            if check(&mut head).is_err() {
                continue;
            }
            passed += 1;
            let shown = || format!("seed {}: {text:?}", seed + round);
            assert!(
                head.has_authority() || head.fields.all(FieldId::Host).count() == 1,
                "{}",
                shown()
            );
            let host = head.host();
            assert!(
                !host.iter().any(|byte| b"/?#@\\ ".contains(byte)),
                "{}",
                shown()
            );
            let target = head.target();
            assert!(
                target.iter().all(u8::is_ascii_graphic) && !target.contains(&b'#'),
                "{}",
                shown()
            );
            assert!(target.starts_with(b"/") || target == b"*", "{}", shown());
            assert!(!head.fields.present().meets(ENDS_HERE), "{}", shown());
            let left = head.fields.iter().any(|(id, _, _)| ENDS_HERE.has(id));
            assert!(!left, "{}", shown());
        }
        assert!(passed > 1000, "{passed}");
    }

    #[test]
    fn an_upgrade_is_understood_only_if_it_is_asked_for_by_the_rules() {
        let asked = |text: &str| checked(text).upgrade.as_deref().map(str::to_owned);
        let websocket = "GET /\nhost: a\nupgrade: websocket\nconnection: x, Upgrade";
        assert_eq!(asked(websocket).as_deref(), Some("websocket"));
        let several = "GET /\nhost: a\nupgrade: a\nupgrade: b, c\nconnection: upgrade";
        assert_eq!(asked(several).as_deref(), Some("a,b, c"));
        assert!(!checked(websocket).fields.has(FieldId::Upgrade));
        for ignored in [
            websocket.replace("GET /", "GET / 1.0"),
            websocket.replace("GET", "POST"),
            websocket.replace("Upgrade", "close"),
            "GET /\nhost: a\nupgrade: websocket".to_owned(),
            "GET /\nhost: a\nconnection: upgrade".to_owned(),
        ] {
            assert_eq!(asked(&ignored), None, "{ignored}");
        }
        let smuggler = "POST /\nhost: a\nupgrade: h2c\nconnection: upgrade\ncontent-length: 5";
        assert_eq!(status(smuggler), 400);
        assert_eq!(
            status("GET /\nhost: a\nupgrade: h2c\ncontent-length: 0"),
            200
        );
    }

    #[test]
    fn only_one_expectation_is_known() {
        assert_eq!(status("POST /\nhost: a\nexpect: 100-Continue"), 200);
        assert_eq!(status("POST /\nhost: a\nexpect: magic"), 417);
        assert!(
            checked("POST /\nhost: a\nexpect: 100-continue")
                .fields
                .has(FieldId::Expect)
        );
    }

    #[test]
    fn options_counts_its_steps() {
        let mut last = head("OPTIONS /\nhost: a\nmax-forwards: 0");
        assert_eq!(is_last_step(&mut last), Ok(true));
        let mut on = head("OPTIONS /\nhost: a\nmax-forwards: 2");
        assert_eq!(is_last_step(&mut on), Ok(false));
        assert!(format!("{:?}", on.fields).contains("Max-Forwards: 1"));
        for wrong in ["x", "+5", "-0", "5 5", "99999999999999999999"] {
            let mut wrong = head(&format!("OPTIONS /\nhost: a\nmax-forwards: {wrong}"));
            assert!(is_last_step(&mut wrong).is_err());
        }
        let mut other = head("GET /\nhost: a\nmax-forwards: 0");
        assert_eq!(is_last_step(&mut other), Ok(false));
    }
}
