//! What happened to one request, for the access log and the numbers. Filled in by whoever does something with it.

use std::cell::{Cell, OnceCell, RefCell};
use std::net::IpAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use http::Version;
use shared::model::Epoch;

use super::{Head, Response};
use crate::logic::NodeId;
use crate::logic::seen::Seen;

/// So many interim responses of one request are passed on.
const INTERIM_MOST: u32 = 8;
/// How much they may say together, in bytes.
const INTERIM_BYTES_MOST: usize = 64 << 10;
/// How many attempts are remembered one by one.
const ATTEMPTS_KEPT: usize = 8;

/// One attempt, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tried {
    /// At which node.
    pub node: NodeId,
    /// How it ended: `ok`, or what is known of its processing.
    pub result: &'static str,
    /// What happened, in a word; empty if it was answered.
    pub error: &'static str,
    /// Whether a byte of it may have reached the node.
    pub sent: bool,
    /// How long it took.
    pub took: Duration,
}

/// Who ended the exchange.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Closer {
    /// It came to its end.
    #[default]
    Nobody,
    /// The client went away.
    Client,
    /// The node broke off its response.
    Upstream,
    /// The proxy refused or gave up.
    Proxy,
}

impl Closer {
    /// The word in the log.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Nobody => "none",
            Self::Client => "client",
            Self::Upstream => "upstream",
            Self::Proxy => "proxy",
        }
    }
}

/// What a request is called in all logs on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestId {
    /// Ours: 32 hexadecimal digits.
    New([u8; 32]),
    /// From a proxy that is believed.
    Given(Box<[u8]>),
}

impl RequestId {
    /// Its text.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::New(digits) => digits,
            Self::Given(text) => text,
        }
    }
}

/// Who is connected, shared by all requests of a connection.
#[derive(Clone, Debug)]
pub struct Peer {
    /// The address.
    pub ip: IpAddr,
    /// The same as text.
    pub shown: Box<str>,
    /// How `Forwarded` begins that says who it is and what it speaks (RFC 7239).
    pub forwarded: Box<str>,
    /// What it speaks: `http`, or `https` if the connection is encrypted.
    pub scheme: &'static str,
    /// How long it may pause within a body.
    pub body_idle: Duration,
    /// How many bytes of a body it must send in a second, on average; 0 if any rate is good.
    pub least_rate: u64,
    /// How the connection is encrypted, if it is.
    pub encryption: Option<Encryption>,
}

/// How a connection is encrypted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encryption {
    /// `TLSv1.2` or `TLSv1.3`.
    pub version: &'static str,
    /// The name that the client asked for (SNI); empty if it asked for none.
    pub name: Box<str>,
    /// What is known of the client by its certificate.
    pub certified: Certified,
}

/// What is known of a client by its certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Certified {
    /// Nobody asked for one.
    #[default]
    NotAsked,
    /// It has none.
    Nobody,
    /// It has shown one, and that was verified.
    As {
        /// The value of `Client-Cert`; empty if the certificate is too long for a field.
        cert: Box<str>,
        /// Whose it is, in ASCII; empty if that is not known.
        subject: Box<str>,
    },
}

impl Peer {
    /// Writes the address down once.
    #[must_use]
    pub fn new(ip: IpAddr, scheme: &'static str, body_idle: Duration) -> Rc<Self> {
        let ip = ip.to_canonical();
        let shown = ip.to_string();
        let node = match ip {
            IpAddr::V4(_) => shown.clone(),
            IpAddr::V6(_) => format!("\"[{shown}]\""),
        };
        Rc::new(Self {
            ip,
            shown: shown.into(),
            forwarded: format!("for={node};proto={scheme}").into(),
            scheme,
            body_idle,
            least_rate: 0,
            encryption: None,
        })
    }

    /// What is known of the client by its certificate.
    #[must_use]
    pub const fn certified(&self) -> &Certified {
        match &self.encryption {
            Some(encryption) => &encryption.certified,
            None => &Certified::NotAsked,
        }
    }
}

/// The trail of one request.
#[derive(Debug)]
pub struct Trail {
    /// When its head had arrived.
    pub began: Instant,
    /// Who is connected.
    pub peer: Rc<Peer>,
    client: Cell<IpAddr>,
    head: OnceCell<Rc<Head>>,
    id: OnceCell<RequestId>,
    adds_lines: Cell<bool>,
    service: Cell<Option<usize>>,
    node: Cell<Option<NodeId>>,
    epoch: Cell<Epoch>,
    held: Cell<Duration>,
    gated: Cell<Duration>,
    upstream: Cell<Duration>,
    received: Cell<u64>,
    passed: Cell<u64>,
    sent: Cell<bool>,
    seen: RefCell<Option<Box<Seen>>>,
    closer: Cell<Closer>,
    interim: RefCell<Option<Box<Interim>>>,
    attempts: RefCell<Attempts>,
}

/// What nodes say before their answer.
#[derive(Debug, Default)]
struct Interim {
    waiting: Vec<Response<()>>,
    count: u32,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Attempts {
    first: [Option<Tried>; ATTEMPTS_KEPT],
    count: usize,
}

impl Trail {
    /// Begins a trail.
    #[must_use]
    pub fn new(began: Instant, peer: Rc<Peer>) -> Self {
        Self {
            began,
            client: Cell::new(peer.ip),
            peer,
            head: OnceCell::new(),
            id: OnceCell::new(),
            adds_lines: Cell::new(false),
            service: Cell::new(None),
            node: Cell::new(None),
            epoch: Cell::new(Epoch(0)),
            held: Cell::default(),
            gated: Cell::default(),
            upstream: Cell::default(),
            received: Cell::new(0),
            passed: Cell::new(0),
            sent: Cell::new(false),
            seen: RefCell::default(),
            closer: Cell::default(),
            interim: RefCell::default(),
            attempts: RefCell::default(),
        }
    }

    #[cfg(test)]
    pub(crate) fn for_test() -> Self {
        let peer = Peer::new([127, 0, 0, 1].into(), "http", Duration::from_secs(30));
        Self::new(shared::clock::now(), peer)
    }

    /// Remembers the head as it will not change any more.
    pub(super) fn freeze(&self, head: &Rc<Head>) {
        let _ = self.head.set(Rc::clone(head));
    }

    /// The head, once it is frozen.
    #[must_use]
    pub fn head(&self) -> Option<&Rc<Head>> {
        self.head.get()
    }

    /// Remembers the request's id.
    pub fn identify(&self, id: RequestId) {
        let _ = self.id.set(id);
    }

    /// The request's id.
    #[must_use]
    pub fn id(&self) -> Option<&RequestId> {
        self.id.get()
    }

    /// The head says nothing of its way here, so all of that is written behind it; see `layer::forward`.
    pub fn add_lines(&self) {
        self.adds_lines.set(true);
    }

    /// Whether the request's way here must be written behind its head.
    #[must_use]
    pub fn adds_lines(&self) -> bool {
        self.adds_lines.get()
    }

    /// Remembers who the client is, behind proxies that are believed.
    pub fn set_client(&self, client: IpAddr) {
        self.client.set(client);
    }

    /// Who the client is.
    #[must_use]
    pub fn client(&self) -> IpAddr {
        self.client.get()
    }

    /// Remembers the service it is for.
    pub fn routed(&self, service: usize) {
        self.service.set(Some(service));
    }

    /// The service it is for, by its place in the configuration.
    #[must_use]
    pub fn service(&self) -> Option<usize> {
        self.service.get()
    }

    /// Remembers where it was admitted to.
    pub fn admitted(&self, node: NodeId, epoch: Epoch) {
        self.node.set(Some(node));
        self.epoch.set(epoch);
    }

    /// The node it was last sent to, and the epoch.
    #[must_use]
    pub fn node(&self) -> (Option<NodeId>, Epoch) {
        (self.node.get(), self.epoch.get())
    }

    /// Adds time that it was held.
    pub fn held_for(&self, took: Duration) {
        self.held.set(self.held.get() + took);
    }

    /// How long it was held.
    #[must_use]
    pub fn held(&self) -> Duration {
        self.held.get()
    }

    /// Adds time that its response waited for a standby.
    pub fn gated_for(&self, took: Duration) {
        self.gated.set(self.gated.get() + took);
    }

    /// How long its response waited for a standby.
    #[must_use]
    pub fn gated(&self) -> Duration {
        self.gated.get()
    }

    /// How long the last attempt took to the head of its response.
    #[must_use]
    pub fn upstream(&self) -> Duration {
        self.upstream.get()
    }

    /// Counts bytes of its body.
    pub fn received(&self, bytes: usize) {
        self.received.set(self.received.get() + bytes as u64);
    }

    /// Bytes of its body that came.
    #[must_use]
    pub fn bytes_in(&self) -> u64 {
        self.received.get()
    }

    /// Counts bytes that a tunnel carried to the client.
    pub fn passed(&self, bytes: usize) {
        self.passed.set(self.passed.get() + bytes as u64);
    }

    /// Bytes that a tunnel carried to the client.
    #[must_use]
    pub fn bytes_passed(&self) -> u64 {
        self.passed.get()
    }

    /// Takes in an interim response for the client. What is too much, or beyond an HTTP/1.0 client (RFC 9110 §15.2), ends here.
    pub fn say(&self, interim: Response<()>) {
        let mut said = self.interim.borrow_mut();
        let said = said.get_or_insert_default();
        said.count += 1;
        said.bytes += interim.fields.size();
        let hears = self
            .head()
            .is_some_and(|head| head.version != Version::HTTP_10);
        if hears && said.count <= INTERIM_MOST && said.bytes <= INTERIM_BYTES_MOST {
            said.waiting.push(interim);
        }
    }

    /// The interim responses that were not passed on yet.
    #[must_use]
    pub fn take_interim(&self) -> Vec<Response<()>> {
        let mut said = self.interim.borrow_mut();
        said.as_mut()
            .map_or_else(Vec::new, |said| std::mem::take(&mut said.waiting))
    }

    /// Whether a node has said anything before its answer.
    #[must_use]
    pub fn has_interim(&self) -> bool {
        self.interim.borrow().is_some()
    }

    /// Remembers where the data stood after what it wrote.
    pub fn saw(&self, seen: Seen) {
        *self.seen.borrow_mut() = Some(Box::new(seen));
    }

    /// Where the data stood after what it wrote, if that is known. Once.
    #[must_use]
    pub fn take_seen(&self) -> Option<Seen> {
        self.seen.borrow_mut().take().map(|seen| *seen)
    }

    /// Remembers who ended it, if nobody did before.
    pub fn closed_by(&self, closer: Closer) {
        if self.closer.get() == Closer::Nobody {
            self.closer.set(closer);
        }
    }

    /// Who ended it.
    #[must_use]
    pub fn closer(&self) -> Closer {
        self.closer.get()
    }

    /// An attempt begins or, with `true`, the system has taken a byte of it.
    pub fn set_sent(&self, sent: bool) {
        self.sent.set(sent);
    }

    /// Whether a byte of the present attempt may have reached a node.
    #[must_use]
    pub fn is_sent(&self) -> bool {
        self.sent.get()
    }

    /// Remembers an attempt; of very many, the last.
    pub fn tried(&self, tried: Tried) {
        self.upstream.set(tried.took);
        let mut attempts = self.attempts.borrow_mut();
        let place = attempts.count.min(ATTEMPTS_KEPT - 1);
        attempts.first[place] = Some(tried);
        attempts.count += 1;
    }

    /// More is known of the last attempt than when it ended.
    pub fn tried_after_all(&self, result: &'static str) {
        let mut attempts = self.attempts.borrow_mut();
        let place = attempts.count.min(ATTEMPTS_KEPT).saturating_sub(1);
        if let Some(tried) = &mut attempts.first[place] {
            tried.result = result;
        }
    }

    /// How many attempts there were.
    #[must_use]
    pub fn attempt_count(&self) -> usize {
        self.attempts.borrow().count
    }

    /// Looks at the attempts in their order.
    pub fn for_each_attempt(&self, see: impl FnMut(&Tried)) {
        self.attempts.borrow().first.iter().flatten().for_each(see);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::StatusCode;

    #[test]
    fn interim_responses_are_bounded_in_number_and_size_and_not_for_http_1_0() {
        let hint = |size: usize| {
            let mut hint = Response::new(StatusCode::EARLY_HINTS, ());
            hint.fields.add("Link", &vec![b'x'; size]);
            hint
        };
        let taken = |version, sizes: &[usize]| {
            let trail = Trail::for_test();
            let mut head = Head::plain(http::Method::GET, "/");
            head.version = version;
            trail.freeze(&Rc::new(head));
            sizes.iter().for_each(|size| trail.say(hint(*size)));
            trail.take_interim().len()
        };
        assert_eq!(taken(Version::HTTP_11, &[10; 20]), 8);
        assert_eq!(taken(Version::HTTP_11, &[30_000; 3]), 2);
        assert_eq!(taken(Version::HTTP_2, &[10]), 1);
        assert_eq!(taken(Version::HTTP_10, &[10]), 0);
    }

    #[test]
    fn of_very_many_attempts_the_first_and_the_last_are_kept() {
        let trail = Trail::for_test();
        for n in 0..20_u8 {
            trail.tried(Tried {
                node: NodeId(n),
                result: "never-sent",
                error: "refused",
                sent: false,
                took: Duration::ZERO,
            });
        }
        let mut seen = Vec::new();
        trail.for_each_attempt(|tried| seen.push(tried.node.0));
        assert_eq!(seen, [0, 1, 2, 3, 4, 5, 6, 19]);
        assert_eq!(trail.attempt_count(), 20);
    }
}
