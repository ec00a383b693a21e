//! The trail of proxies in a request's fields: who the client is, what it asked for, which way it came.
//!
//! What a client says about itself is believed only if the peer is a trusted proxy; everybody else's word is replaced.

pub mod chain;
pub mod trace;

use std::cell::RefCell;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{StatusCode, Version};
use shared::rng::Rng;
use tower::{Layer, Service};

use self::chain::Step;
use super::checked::Checked;
use crate::config;
use crate::exchange::fields::{FieldId, FieldSet, Fields};
use crate::exchange::{Certified, Fault, Head, Request, RequestId, Response, Trail};

/// Whatever a request may say about its way here. Most say nothing.
const SAID: FieldSet = FieldSet::of(&[
    FieldId::Via,
    FieldId::Forwarded,
    FieldId::XForwardedFor,
    FieldId::XForwardedProto,
    FieldId::XForwardedHost,
    FieldId::XRequestId,
    FieldId::Claim,
    FieldId::Certificate,
]);
/// What a stranger's word is worth.
const CLAIMS: FieldSet = FieldSet::of(&[FieldId::Forwarded, FieldId::Claim, FieldId::Certificate]);
/// What nobody else may say where we ask for certificates ourselves.
const CERTIFICATE: FieldSet = FieldSet::of(&[FieldId::Certificate]);

/// The name that this proxy goes by.
const PSEUDONYM: &str = "hotwarm";
/// A request that came through proxies of this name this often goes in circles.
const ROUNDS_MOST: usize = 8;
/// A longer id is not one.
const ID_MOST: usize = 128;

/// Rewrites the head for nodes; `Err` when the request goes in circles.
///
/// # Errors
/// It has been here too often.
pub fn outbound(
    head: &mut Head,
    trail: &Trail,
    service: &config::Service,
    rng: &mut Rng,
) -> Result<(), Fault> {
    trace::check(&mut head.fields);
    if head.version == Version::HTTP_10 && head.host().is_empty() {
        // Nodes are asked in HTTP/1.1, where it must be there even if it says nothing (RFC 9112 §3.2).
        head.fields.remove(FieldSet::of(&[FieldId::Host]));
        head.fields.add("Host", b"");
    }
    let certified = trail.peer.certified();
    if !head.fields.present().meets(SAID) && !matches!(certified, Certified::As { .. }) {
        // Nothing to keep, to extend or to take away: it is all written behind the head.
        trail.identify(new_id(rng));
        trail.add_lines();
        return Ok(());
    }
    let host = head.host().to_vec();
    let fields = &mut head.fields;
    let trusted = is_trusted(service, trail.peer.ip);
    if !trusted {
        fields.remove(CLAIMS);
    }
    certificate(fields, certified);
    via(fields, head.version)?;
    way_here(fields, trail, service, trusted, &host);
    let given = fields
        .get(FieldId::XRequestId)
        .filter(|id| trusted && is_id(id));
    let id = given.map_or_else(|| new_id(rng), |id| RequestId::Given(id.into()));
    if matches!(id, RequestId::New(_)) {
        fields.remove(FieldSet::of(&[FieldId::XRequestId]));
        fields.add("X-Request-Id", id.as_bytes());
    }
    trail.identify(id);
    Ok(())
}

/// Says who the client is by its certificate (RFC 9440), if it was asked for one here; then nobody else's word counts.
fn certificate(fields: &mut Fields, certified: &Certified) {
    if !matches!(certified, Certified::NotAsked) {
        fields.remove(CERTIFICATE);
    }
    if let Certified::As { cert, subject } = certified {
        for (name, value) in [("Client-Cert", cert), ("X-Client-Cert-Subject", subject)] {
            if !value.is_empty() {
                fields.add(name, value.as_bytes());
            }
        }
    }
}

/// Leaves of the protocols that the client would rather speak the first of those that the service's nodes are offered.
///
/// # Errors
/// There is none, and the client's word can mean nothing else (RFC 8441 §4); in HTTP/1.1 it can be ignored.
fn offer(head: &mut Head, service: &config::Service) -> Result<(), Fault> {
    let Some(wanted) = head.upgrade.take() else {
        return Ok(());
    };
    let is_wanted = |allowed: &str| {
        let mut wanted = wanted.split(',').map(str::trim);
        wanted.any(|protocol| protocol.eq_ignore_ascii_case(allowed))
    };
    let mut allowed = service.upgrades.iter();
    head.upgrade = allowed.find(|allowed| is_wanted(allowed)).cloned();
    if head.upgrade.is_none() && head.version == Version::HTTP_2 {
        return Err(Fault::Request {
            status: StatusCode::NOT_IMPLEMENTED,
            why: "a protocol that this service does not offer",
        });
    }
    Ok(())
}

fn is_trusted(service: &config::Service, address: IpAddr) -> bool {
    service
        .trusted
        .iter()
        .any(|network| network.contains(address))
}

/// Says it in our words, unless it has been said.
fn say(fields: &mut Fields, id: FieldId, name: &str, value: &[u8], said: bool) {
    if said && fields.has(id) {
        return;
    }
    fields.remove(FieldSet::of(&[id]));
    if !value.is_empty() {
        fields.add(name, value);
    }
}

/// Adds this proxy to `Via` (RFC 9110 §7.6.3).
fn via(fields: &mut Fields, version: Version) -> Result<(), Fault> {
    let by_us = |value: &[u8]| {
        let steps = value.split(|byte| *byte == b',');
        let by = |step: &[u8]| {
            let mut words = step
                .split(u8::is_ascii_whitespace)
                .filter(|word| !word.is_empty());
            words.nth(1) == Some(PSEUDONYM.as_bytes())
        };
        steps.filter(|step| by(step)).count()
    };
    let rounds: usize = fields.all(FieldId::Via).map(by_us).sum();
    if rounds >= ROUNDS_MOST {
        return Err(Fault::Request {
            status: StatusCode::LOOP_DETECTED,
            why: "the request came through this proxy too often",
        });
    }
    let ours: &[u8] = match version {
        Version::HTTP_10 => b"1.0 hotwarm",
        Version::HTTP_2 => b"2.0 hotwarm",
        _ => b"1.1 hotwarm",
    };
    fields.add("Via", ours);
    Ok(())
}

/// Says in both ways who the client is and what it asked for: the peer is added to what trusted proxies said, or named alone.
/// What they said in one way only is said in the other, too, so that it does not matter which of them an application reads.
fn way_here(
    fields: &mut Fields,
    trail: &Trail,
    service: &config::Service,
    trusted: bool,
    host: &[u8],
) {
    let peer = &trail.peer;
    let here = Step {
        from: Some(peer.ip),
        proto: peer.scheme.as_bytes(),
        host,
    };
    let mut listed = Vec::new();
    let mut forwarded = Vec::new();
    let (mut proto, mut asked) = (here.proto.to_vec(), host.to_vec());
    let lines = chain::steps(fields.all(FieldId::Forwarded)).filter(|_| trusted);
    if trusted && fields.has(FieldId::XForwardedFor) {
        for value in fields.all(FieldId::XForwardedFor) {
            listed.extend_from_slice(value);
            listed.extend_from_slice(b", ");
        }
        trail.set_client(client(&listed, service).unwrap_or(peer.ip));
        if lines.as_ref().is_none_or(Vec::is_empty) {
            let first = Step {
                from: None,
                proto: fields.get(FieldId::XForwardedProto).unwrap_or_default(),
                host: fields.get(FieldId::XForwardedHost).unwrap_or_default(),
            };
            translate(&listed, first, &mut forwarded);
        }
    } else if let Some(entry) = lines.as_deref().and_then(|steps| entry(steps, service)) {
        for step in lines.iter().flatten() {
            let text = step
                .from
                .map_or_else(|| "unknown".to_owned(), |ip| ip.to_string());
            listed.extend_from_slice(text.as_bytes());
            listed.extend_from_slice(b", ");
        }
        trail.set_client(entry.from.unwrap_or(peer.ip));
        for (said, by_us) in [(entry.proto, &mut proto), (entry.host, &mut asked)] {
            if !said.is_empty() {
                *by_us = said.to_vec();
            }
        }
    }
    chain::write(&mut forwarded, here);
    listed.extend_from_slice(peer.shown.as_bytes());
    let believed = lines.is_some();
    if !believed {
        fields.remove(FieldSet::of(&[FieldId::Forwarded]));
    }
    fields.remove(FieldSet::of(&[FieldId::XForwardedFor]));
    fields.add("X-Forwarded-For", &listed);
    fields.add("Forwarded", &forwarded);
    let (name, id) = ("X-Forwarded-Proto", FieldId::XForwardedProto);
    say(fields, id, name, &proto, trusted);
    let (name, id) = ("X-Forwarded-Host", FieldId::XForwardedHost);
    say(fields, id, name, &asked, trusted);
}

/// Writes what stands in `X-Forwarded-For` as steps; the first of them asked for what `first` says.
fn translate(listed: &[u8], first: Step<'_>, out: &mut Vec<u8>) {
    let mut what = first;
    for part in listed.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
        if part.is_empty() {
            continue;
        }
        what.from = chain::address(part);
        chain::write(out, what);
        out.extend_from_slice(b", ");
        what = Step::default();
    }
}

/// The last address of the chain that is not a trusted proxy.
fn client(chain: &[u8], service: &config::Service) -> Option<IpAddr> {
    let mut last = None;
    for part in chain.rsplit(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
        if part.is_empty() {
            continue;
        }
        let address = chain::address(part)?;
        last = Some(address);
        if !is_trusted(service, address) {
            break;
        }
    }
    last
}

/// The step by which the request came to the first trusted proxy.
fn entry<'s>(steps: &[Step<'s>], service: &config::Service) -> Option<Step<'s>> {
    let foreign = |step: &&Step<'_>| !step.from.is_some_and(|ip| is_trusted(service, ip));
    steps
        .iter()
        .rfind(foreign)
        .or_else(|| steps.first())
        .copied()
}

fn is_id(id: &[u8]) -> bool {
    (1..=ID_MOST).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic)
}

/// 128 random bits as 32 hexadecimal digits.
pub fn new_id(rng: &mut Rng) -> RequestId {
    let mut text = [0; 32];
    let bits = rng.u128(..).to_be_bytes();
    for (pair, byte) in text.chunks_exact_mut(2).zip(bits) {
        pair[0] = b"0123456789abcdef"[usize::from(byte >> 4)];
        pair[1] = b"0123456789abcdef"[usize::from(byte & 15)];
    }
    RequestId::New(text)
}

/// Puts a [`Forward`] around a service.
#[derive(Clone, Debug)]
pub struct ForwardLayer {
    service: Arc<config::Service>,
    rng: Rc<RefCell<Rng>>,
}

impl ForwardLayer {
    /// By this service's rules; `rng` is where new ids come from.
    #[must_use]
    pub const fn new(service: Arc<config::Service>, rng: Rc<RefCell<Rng>>) -> Self {
        Self { service, rng }
    }
}

impl<S> Layer<S> for ForwardLayer {
    type Service = Forward<S>;

    fn layer(&self, inner: S) -> Forward<S> {
        Forward {
            inner,
            rules: self.clone(),
        }
    }
}

/// Rewrites requests for nodes. Once, however often they are tried: nothing in it depends on the node.
#[derive(Clone, Debug)]
pub struct Forward<S> {
    inner: S,
    rules: ForwardLayer,
}

impl<S> Service<Request> for Forward<S>
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
        let trail = Rc::clone(&request.trail);
        let ForwardLayer { service, rng } = &self.rules;
        let offered = offer(request.head_mut(), service);
        let rewritten = offered
            .and_then(|()| outbound(request.head_mut(), &trail, service, &mut rng.borrow_mut()));
        request.freeze();
        match rewritten {
            Ok(()) => Checked::kept(self.inner.call(request)),
            Err(fault) => Checked::refused(fault),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::Peer;
    use std::collections::BTreeMap;
    use std::time::Duration;

    fn service(trusted: &str) -> config::Service {
        let folder = std::env::temp_dir();
        let thread = std::thread::current().id();
        let name = format!("hotwarm-forward-{}-{thread:?}.toml", std::process::id());
        let path = folder.join(name);
        let text = format!(
            "state_dir = \"{}\"\n[[listener]]\nbind = \"127.0.0.1:0\"\n[[service]]\nname = \"s\"\ntrusted_proxies = [{trusted}]\n[[service.node]]\nname = \"a\"\nurl = \"http://127.0.0.1:1\"\n",
            folder.display()
        );
        std::fs::write(&path, text).unwrap();
        let mut settings = config::load(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        Arc::into_inner(settings.services.remove(0)).unwrap()
    }

    /// The fields by their names in lower case, and the trail.
    fn outbound_from(
        peer: &str,
        trusted: &str,
        said: &[(&str, &str)],
    ) -> (BTreeMap<String, String>, Trail) {
        let lines: String = said
            .iter()
            .map(|(name, value)| format!("{name}: {value}\r\n"))
            .collect();
        let mut head = Head::for_test("GET", "/", &format!("host: shop\r\n{lines}"));
        let peer = Peer::new(peer.parse().unwrap(), "http", Duration::ZERO);
        let trail = Trail::new(shared::clock::now(), peer);
        let rewritten = outbound(&mut head, &trail, &service(trusted), &mut Rng::with_seed(1));
        rewritten.unwrap();
        let mut text = Vec::new();
        head.fields.write(&mut text, FieldSet::NONE);
        let text = String::from_utf8(text).unwrap();
        let mut fields = BTreeMap::new();
        for (name, value) in text.lines().filter_map(|line| line.split_once(": ")) {
            let all: &mut String = fields.entry(name.to_lowercase()).or_default();
            if !all.is_empty() {
                all.push_str(" | ");
            }
            all.push_str(value);
        }
        (fields, trail)
    }

    const SAID: [(&str, &str); 9] = [
        ("x-forwarded-for", "1.1.1.1, 2.2.2.2"),
        ("x-forwarded-for", "10.0.0.7"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "public"),
        ("forwarded", "for=1.1.1.1"),
        ("x-real-ip", "1.1.1.1"),
        ("x-forwarded-protocol", "ssl"),
        ("X-Forwarded-User", "root"),
        ("x-request-id", "theirs"),
    ];

    #[test]
    fn a_stranger_s_word_about_itself_is_replaced() {
        let (fields, trail) = outbound_from("9.9.9.9", "\"10.0.0.0/8\"", &SAID);
        assert_eq!(fields["x-forwarded-for"], "9.9.9.9");
        assert_eq!(fields["x-forwarded-proto"], "http");
        assert_eq!(fields["x-forwarded-host"], "shop");
        assert_eq!(fields["via"], "1.1 hotwarm");
        assert_eq!(fields["forwarded"], "for=9.9.9.9;proto=http;host=\"shop\"");
        for name in ["x-real-ip", "x-forwarded-protocol", "x-forwarded-user"] {
            assert!(!fields.contains_key(name), "{name}");
        }
        assert_eq!(fields["x-request-id"].len(), 32);
        assert_eq!(trail.client().to_string(), "9.9.9.9");
        let id = trail.id().map(RequestId::as_bytes);
        assert_eq!(id, Some(fields["x-request-id"].as_bytes()));
    }

    #[test]
    fn a_trusted_proxy_is_believed_and_added() {
        let (fields, trail) = outbound_from("10.1.1.1", "\"10.0.0.0/8\"", &SAID);
        assert_eq!(
            fields["x-forwarded-for"],
            "1.1.1.1, 2.2.2.2, 10.0.0.7, 10.1.1.1"
        );
        assert_eq!(fields["x-forwarded-proto"], "https");
        assert_eq!(fields["x-forwarded-host"], "public");
        let forwarded = "for=1.1.1.1 | for=10.1.1.1;proto=http;host=\"shop\"";
        assert_eq!(fields["forwarded"], forwarded);
        assert_eq!(fields["x-forwarded-user"], "root");
        assert_eq!(fields["x-request-id"], "theirs");
        assert_eq!(
            trail.client().to_string(),
            "2.2.2.2",
            "the last that is not a proxy of ours"
        );
    }

    #[test]
    fn what_a_trusted_proxy_says_in_one_way_is_said_in_the_other_too() {
        let old = [
            ("x-forwarded-for", "2001:db8::1, 10.0.0.7:99"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "public:8443"),
        ];
        let (fields, trail) = outbound_from("10.1.1.1", "\"10.0.0.0/8\"", &old);
        assert_eq!(
            fields["forwarded"],
            "for=\"[2001:db8::1]\";proto=https;host=\"public:8443\", for=10.0.0.7, for=10.1.1.1;proto=http;host=\"shop\""
        );
        assert_eq!(trail.client().to_string(), "2001:db8::1");

        let new = [
            (
                "forwarded",
                "for=\"[2001:db8::1]:5\";proto=https;host=\"public:8443\"",
            ),
            ("forwarded", "for=10.0.0.7;proto=http;host=inner"),
        ];
        let (fields, trail) = outbound_from("10.1.1.1", "\"10.0.0.0/8\"", &new);
        assert_eq!(fields["x-forwarded-for"], "2001:db8::1, 10.0.0.7, 10.1.1.1");
        assert_eq!(fields["x-forwarded-proto"], "https");
        assert_eq!(fields["x-forwarded-host"], "public:8443");
        assert!(fields["forwarded"].ends_with("| for=10.1.1.1;proto=http;host=\"shop\""));
        assert_eq!(trail.client().to_string(), "2001:db8::1");

        let odd = [("forwarded", "for=1.1.1.1, for="), ("via", "1.1 other")];
        let (fields, trail) = outbound_from("10.1.1.1", "\"10.0.0.0/8\"", &odd);
        assert_eq!(fields["forwarded"], "for=10.1.1.1;proto=http;host=\"shop\"");
        assert_eq!(fields["x-forwarded-for"], "10.1.1.1");
        assert_eq!(trail.client().to_string(), "10.1.1.1");
    }

    #[test]
    fn a_client_of_http_1_0_without_a_host_leaves_an_empty_one() {
        let mut head = Head::for_test("GET", "/", "accept: */*\r\n");
        head.version = Version::HTTP_10;
        let trail = Trail::for_test();
        outbound(&mut head, &trail, &service(""), &mut Rng::with_seed(1)).unwrap();
        let mut text = Vec::new();
        head.fields.write(&mut text, FieldSet::NONE);
        assert_eq!(text, b"accept: */*\r\nHost: \r\n");
        assert!(trail.adds_lines());
    }

    #[test]
    fn a_head_that_says_nothing_is_left_alone_and_written_behind() {
        let (fields, trail) = outbound_from("9.9.9.9", "", &[("accept", "*/*")]);
        assert_eq!(fields.len(), 2);
        assert!(trail.adds_lines() && matches!(trail.id(), Some(RequestId::New(_))));
        let (_, spoken) = outbound_from("9.9.9.9", "", &[("via", "1.1 a")]);
        assert!(!spoken.adds_lines());
    }

    #[test]
    fn ids_are_only_kept_when_they_are_ids() {
        for id in ["", "two words", &"x".repeat(129)] {
            let (fields, _) = outbound_from("10.1.1.1", "\"10.0.0.0/8\"", &[("x-request-id", id)]);
            assert_eq!(fields["x-request-id"].len(), 32, "{id}");
        }
        let mut rng = Rng::with_seed(7);
        assert_ne!(new_id(&mut rng), new_id(&mut rng));
    }

    #[test]
    fn a_request_that_goes_in_circles_is_stopped() {
        let (fields, _) = outbound_from("9.9.9.9", "", &[("via", "1.1 a, 1.1 hotwarm")]);
        assert_eq!(fields["via"], "1.1 a, 1.1 hotwarm | 1.1 hotwarm");
        let others = ["1.1 nothotwarm, 1.1 a (hotwarm)"; ROUNDS_MOST].join(", ");
        let mut head = Head::for_test("GET", "/", &format!("via: {others}\r\n"));
        assert!(via(&mut head.fields, Version::HTTP_11).is_ok());
        let many = ["1.1 hotwarm (x)"; ROUNDS_MOST].join(", ");
        let mut head = Head::for_test("GET", "/", &format!("via: {many}\r\n"));
        assert!(via(&mut head.fields, Version::HTTP_11).is_err());
    }
}
