//! Certificates and keys: read from files, chosen by the name that a client asks for, and read again when the files change.
//!
//! A changed file is read once it has been left alone for a moment, so that a certificate and its key can be replaced one
//! after the other. What cannot be used is said once, and what was there before stays.

mod files;

use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;
use std::{fmt, io};

use arc_swap::ArcSwap;
use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, SignatureScheme};
use shared::clock;
use thiserror::Error;

pub use self::files::LoadError;
use self::files::Stamps;

/// How often the files are looked at. A change is taken up at the second look that finds it.
const LOOK_EVERY: Duration = Duration::from_secs(1);

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
            certified,
        })
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

/// Makes what a listener offers: TLS 1.2 and 1.3 with session tickets, HTTP/1.1, and the certificate that fits, the first one
/// if none does. The files are watched for as long as the offer lives.
///
/// # Errors
/// The library refuses, or there is no thread to watch the files.
pub fn offer(certificates: Vec<Loaded>) -> Result<Arc<ServerConfig>, SetUpError> {
    offer_watched(certificates, LOOK_EVERY)
}

fn offer_watched(
    certificates: Vec<Loaded>,
    every: Duration,
) -> Result<Arc<ServerConfig>, SetUpError> {
    let (sites, watched): (Vec<_>, Vec<_>) = certificates.into_iter().map(Watched::new).unzip();
    let chooser = Arc::new(Chooser(sites));
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::<Chooser>::clone(&chooser));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // One key for all workers: a session goes on wherever its client connects again.
    config.ticketer = ring::Ticketer::new()?;
    let alive = Arc::downgrade(&chooser);
    thread::Builder::new()
        .name("certificates".to_owned())
        .spawn(move || watch(watched, &alive, every))
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
}

impl Watched {
    fn new(loaded: Loaded) -> (Site, Self) {
        let site: Site = Arc::new(ArcSwap::new(loaded.certified));
        let watched = Self {
            pair: loaded.pair,
            site: Arc::clone(&site),
            settling: Settling::new(loaded.stamps),
        };
        (site, watched)
    }

    fn look(&mut self) {
        if !self.settling.handle_look(Stamps::of(&self.pair)) {
            return;
        }
        match files::read(&self.pair) {
            Ok(certified) => {
                self.site.store(Arc::new(certified));
                tracing::info!(cert = %self.pair.cert.display(), "the certificate is renewed");
            }
            Err(error) => {
                tracing::error!(%error, "a changed certificate cannot be used; the one before it stays");
            }
        }
    }
}

fn watch(mut watched: Vec<Watched>, alive: &Weak<Chooser>, every: Duration) {
    while alive.strong_count() > 0 {
        clock::pause_thread(every);
        watched.iter_mut().for_each(Watched::look);
    }
}

/// When a change is taken up.
struct Settling {
    /// What was read last.
    known: Stamps,
    /// What was seen last.
    seen: Stamps,
}

impl Settling {
    const fn new(known: Stamps) -> Self {
        Self { known, seen: known }
    }

    /// Whether the files shall be read: they have changed, and not since the last look.
    fn handle_look(&mut self, now: Stamps) -> bool {
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
