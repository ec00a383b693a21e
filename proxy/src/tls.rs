//! Certificates and keys: read from files, chosen by the name that a client asks for, and read again when the files change;
//! and those who certify clients, likewise.
//!
//! A changed file is read once it has been left alone for a moment, so that a certificate and its key can be replaced one
//! after the other. What cannot be used is said once, and what was there before stays.

mod clients;
mod files;
pub mod outgoing;
pub mod x509;

use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};
use std::{fmt, io};

use arc_swap::ArcSwap;
use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, SignatureScheme};
use shared::clock;
use shared::metrics::{IntCounterVec, IntGaugeVec};
use thiserror::Error;

use self::clients::Verifier;
pub use self::clients::{Clients, Identity, identity};
pub use self::files::LoadError;
use self::files::Stamps;

/// How often the files are looked at. A change is taken up at the second look that finds it.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A certificate that ends within this is worth a word: whatever renews it should have done so by then, and a person still
/// has time.
const ENDS_SOON: i64 = 14 * DAY;
/// How often that word is said.
const WARN_EVERY: Duration = Duration::from_secs(24 * 3600);
const DAY: i64 = 24 * 3600;

/// Where a certificate and its key are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The certificate, and behind it those of its issuers, as PEM.
    pub cert: PathBuf,
    /// Its private key, as PEM.
    pub key: PathBuf,
}

/// A certificate with its key, as they were read.
#[derive(Clone, Debug)]
pub struct Loaded {
    pair: Pair,
    stamps: Stamps,
    certified: Arc<CertifiedKey>,
    not_after: Option<i64>,
}

impl Loaded {
    /// Reads `pair` and checks that its key fits.
    ///
    /// # Errors
    /// A file is missing, too large, or not what it should be; the key belongs to another certificate.
    pub fn read(pair: Pair) -> Result<Self, LoadError> {
        // Before the files: what changes while they are read is seen as a change.
        let stamps = Stamps::of(&pair);
        let certified = Arc::new(files::read(&pair)?);
        Ok(Self {
            pair,
            stamps,
            not_after: not_after(&certified),
            certified,
        })
    }

    /// Different when the files were different.
    #[must_use]
    pub fn mark(&self) -> String {
        format!("{:?}", self.stamps)
    }

    /// What there is to say at `now`, in seconds since 1970, if the certificate ends soon or has ended.
    #[must_use]
    pub fn worry(&self, now: i64) -> Option<String> {
        worry(&self.pair, self.not_after, now)
    }
}

fn not_after(certified: &CertifiedKey) -> Option<i64> {
    let cert = certified.end_entity_cert().ok()?;
    x509::read(cert).map(|facts| facts.not_after)
}

fn worry(pair: &Pair, not_after: Option<i64>, now: i64) -> Option<String> {
    let (cert, left) = (pair.cert.display(), not_after? - now);
    let days = left.abs() / DAY;
    if left < 0 {
        Some(format!(
            "the certificate in {cert} ended {days} days ago, and clients refuse it; put a new one into its place"
        ))
    } else {
        (left < ENDS_SOON).then(|| {
            format!("the certificate in {cert} ends in {days} days; put a new one into its place")
        })
    }
}

fn unix_seconds() -> i64 {
    i64::try_from(clock::unix_nanos() / 1_000_000_000).unwrap_or(i64::MAX)
}

/// Where what happens to a listener's certificates is counted.
#[derive(Clone, Debug)]
pub struct Numbers {
    /// The listener's address.
    pub listener: String,
    /// When certificates end, in seconds since 1970, by listener and file.
    pub expiry: IntGaugeVec,
    /// Changed files, by listener and what came of them.
    pub reloads: IntCounterVec,
}

impl Numbers {
    fn ends(&self, pair: &Pair, not_after: Option<i64>) {
        let cert = pair.cert.display().to_string();
        let labels = [&*self.listener, &*cert];
        self.expiry
            .with_label_values(&labels)
            .set(not_after.unwrap_or_default());
    }

    fn forget(&self, pair: &Pair) {
        let cert = pair.cert.display().to_string();
        let _ = self.expiry.remove_label_values(&[&*self.listener, &*cert]);
    }

    fn read_again(&self, result: &str) {
        let labels = [&*self.listener, result];
        self.reloads.with_label_values(&labels).inc();
    }
}

/// Why TLS cannot be offered.
#[derive(Debug, Error)]
pub enum SetUpError {
    /// The library refuses.
    #[error("set up TLS: {0}")]
    Library(#[from] rustls::Error),
    /// There is no thread to watch the files.
    #[error("start the thread that watches certificates: {0}")]
    Thread(#[source] io::Error),
}

/// Makes what a listener offers: TLS 1.2 and 1.3 with session tickets, HTTP/2 and HTTP/1.1, and the certificate that fits, the
/// first one if none does. The files are watched for as long as the offer lives.
///
/// Where clients show certificates, no session is resumed: a resumed one would be believed without another look, also when
/// its certificate has ended since, or those who certify clients have changed.
///
/// # Errors
/// The library refuses, or there is no thread to watch the files.
pub fn offer(
    certificates: Vec<Loaded>,
    clients: Option<Clients>,
    numbers: Numbers,
) -> Result<Arc<ServerConfig>, SetUpError> {
    offer_watched(certificates, clients, numbers, LOOK_EVERY)
}

fn offer_watched(
    certificates: Vec<Loaded>,
    clients: Option<Clients>,
    numbers: Numbers,
    every: Duration,
) -> Result<Arc<ServerConfig>, SetUpError> {
    let (sites, watched): (Vec<_>, Vec<_>) = certificates.into_iter().map(Watched::new).unzip();
    let chooser = Arc::new(Chooser(sites));
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?;
    let verifier = clients.map(|clients| Arc::new(Verifier::new(clients)));
    let config = match &verifier {
        None => config.with_no_client_auth(),
        Some(verifier) => config.with_client_cert_verifier(Arc::<Verifier>::clone(verifier)),
    };
    let mut config = config.with_cert_resolver(Arc::<Chooser>::clone(&chooser));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    if verifier.is_some() {
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    } else {
        // One key for all workers: a session goes on wherever its client connects again.
        config.ticketer = ring::Ticketer::new()?;
    }
    let watch = Watch {
        watched,
        verifier,
        alive: Arc::downgrade(&chooser),
        numbers,
    };
    thread::Builder::new()
        .name("certificates".to_owned())
        .spawn(move || watch.run(every))
        .map_err(SetUpError::Thread)?;
    Ok(Arc::new(config))
}

type Site = Arc<ArcSwap<CertifiedKey>>;

/// Chooses a certificate for each client.
struct Chooser(Vec<Site>);

impl fmt::Debug for Chooser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Chooser").field(&self.0.len()).finish()
    }
}

impl ResolvesServerCert for Chooser {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let keys: Vec<_> = self.0.iter().map(|site| site.load_full()).collect();
        let at = choose(&keys, hello.server_name(), hello.signature_schemes());
        keys.into_iter().nth(at)
    }
}

/// The first that is for `name` and that the client can verify; else the first for `name`; else, in the same order, of all.
fn choose(keys: &[Arc<CertifiedKey>], name: Option<&str>, schemes: &[SignatureScheme]) -> usize {
    let named: Vec<usize> = (0..keys.len())
        .filter(|n| name.is_some_and(|name| is_for(&keys[*n], name)))
        .collect();
    let among = if named.is_empty() {
        (0..keys.len()).collect()
    } else {
        named
    };
    let verifiable = |n: &&usize| keys[**n].key.choose_scheme(schemes).is_some();
    let chosen = among.iter().find(verifiable).or_else(|| among.first());
    chosen.copied().unwrap_or_default()
}

/// Whether one of the certificate's subject alternative names, wildcards among them, is `name`.
fn is_for(key: &CertifiedKey, name: &str) -> bool {
    let Ok(name) = ServerName::try_from(name) else {
        return false;
    };
    let parsed = key.end_entity_cert().and_then(ParsedCertificate::try_from);
    parsed.is_ok_and(|cert| rustls::client::verify_server_name(&cert, &name).is_ok())
}

/// A pair of files under watch.
struct Watched {
    pair: Pair,
    site: Site,
    settling: Settling,
    not_after: Option<i64>,
    warned: Option<Instant>,
}

impl Watched {
    fn new(loaded: Loaded) -> (Site, Self) {
        let site: Site = Arc::new(ArcSwap::new(loaded.certified));
        let watched = Self {
            pair: loaded.pair,
            site: Arc::clone(&site),
            settling: Settling::new(loaded.stamps),
            not_after: loaded.not_after,
            // Whoever loaded it has said so already.
            warned: Some(clock::now()),
        };
        (site, watched)
    }

    fn look(&mut self, numbers: &Numbers) {
        if !self.settling.handle_look(Stamps::of(&self.pair)) {
            return;
        }
        match files::read(&self.pair) {
            Ok(certified) => {
                self.not_after = not_after(&certified);
                self.warned = None;
                numbers.ends(&self.pair, self.not_after);
                numbers.read_again("ok");
                self.site.store(Arc::new(certified));
                tracing::info!(cert = %self.pair.cert.display(), "the certificate is renewed");
            }
            Err(error) => {
                numbers.read_again("failed");
                tracing::error!(%error, "a changed certificate cannot be used; the one before it stays");
            }
        }
    }

    /// Says once a day that the end is near.
    fn warn(&mut self, now: Instant) {
        let said = |warned| now.saturating_duration_since(warned) < WARN_EVERY;
        if self.warned.is_some_and(said) {
            return;
        }
        self.warned = Some(now);
        if let Some(worry) = worry(&self.pair, self.not_after, unix_seconds()) {
            tracing::warn!("{worry}");
        }
    }
}

/// Everything of one listener that is under watch.
struct Watch {
    watched: Vec<Watched>,
    verifier: Option<Arc<Verifier>>,
    alive: Weak<Chooser>,
    numbers: Numbers,
}

impl Watch {
    fn run(mut self, every: Duration) {
        let mut clients = self.verifier.as_ref().map(|verifier| verifier.settling());
        while self.alive.strong_count() > 0 {
            for watched in &mut self.watched {
                // Every time: whoever watched the same file for a former offer forgets it when that one ends.
                self.numbers.ends(&watched.pair, watched.not_after);
                watched.warn(clock::now());
            }
            clock::pause_thread(every);
            for watched in &mut self.watched {
                watched.look(&self.numbers);
            }
            if let (Some(verifier), Some(settling)) = (&self.verifier, &mut clients)
                && let Some(result) = verifier.look(settling)
            {
                self.numbers.read_again(result);
            }
        }
        for watched in &self.watched {
            self.numbers.forget(&watched.pair);
        }
    }
}

/// When a change is taken up.
struct Settling<S = Stamps> {
    /// What was read last.
    known: S,
    /// What was seen last.
    seen: S,
}

impl<S: Copy + PartialEq> Settling<S> {
    const fn new(known: S) -> Self {
        Self { known, seen: known }
    }

    /// Whether the files shall be read: they have changed, and not since the last look.
    fn handle_look(&mut self, now: S) -> bool {
        let at_rest = self.seen == now;
        self.seen = now;
        let due = at_rest && self.known != now;
        if due {
            self.known = now;
        }
        due
    }
}

#[cfg(test)]
mod tests;
