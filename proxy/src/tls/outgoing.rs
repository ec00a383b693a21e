//! TLS towards a node: whom to trust, what to show, and whose name must be on its certificate.
//!
//! Sessions go on where a node allows it. They end when a file changes: what was trusted then may not be trusted now.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::thread;

use arc_swap::ArcSwap;
use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{AlertDescription, CertificateError, ClientConfig, Error, RootCertStore};
use shared::clock;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::files::{self, LoadError, Stamp};
use super::{LOOK_EVERY, Pair, SetUpError, Settling};

/// Where systems keep the authorities that everybody trusts: Debian, Red Hat, SUSE, Alpine.
const SYSTEM: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Which files say whom to trust and what to show.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustFiles {
    /// Authorities, as PEM; `None` for those of the system.
    pub ca: Option<PathBuf>,
    /// What is shown to nodes that ask who is calling.
    pub identity: Option<Pair>,
}

type Stamps = [Option<Stamp>; 3];

impl TrustFiles {
    fn authorities(&self) -> &Path {
        let there = |path: &&&str| Path::new(path).is_file();
        match &self.ca {
            Some(path) => path,
            None => Path::new(SYSTEM.iter().find(there).unwrap_or(&SYSTEM[0])),
        }
    }

    fn stamps(&self) -> Stamps {
        let identity = self.identity.as_ref();
        [
            files::stamp(self.authorities()),
            identity.and_then(|pair| files::stamp(&pair.cert)),
            identity.and_then(|pair| files::stamp(&pair.key)),
        ]
    }
}

/// What the files say.
#[derive(Clone, Debug)]
pub struct Trust {
    files: TrustFiles,
    stamps: Stamps,
    roots: Arc<RootCertStore>,
    identity: Option<Arc<CertifiedKey>>,
}

impl Trust {
    /// Reads them.
    ///
    /// # Errors
    /// A file is missing, too large, or not what it should be; the key belongs to another certificate.
    pub fn read(files: TrustFiles) -> Result<Self, LoadError> {
        // Before the files: what changes while they are read is seen as a change.
        let stamps = files.stamps();
        let roots = files::roots(files.authorities(), files.ca.is_none())?;
        let identity = files.identity.as_ref().map(files::read).transpose()?;
        Ok(Self {
            stamps,
            roots: Arc::new(roots),
            identity: identity.map(Arc::new),
            files,
        })
    }

    fn config(&self) -> Result<Arc<ClientConfig>, Error> {
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
            .with_root_certificates(Arc::clone(&self.roots));
        let mut config = match &self.identity {
            Some(identity) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(
                CertifiedKey::clone(identity),
            ))),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

/// How connections to one node are encrypted.
pub struct Outgoing {
    name: ServerName<'static>,
    files: TrustFiles,
    read_at: Stamps,
    config: ArcSwap<ClientConfig>,
}

impl fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outgoing")
            .field("name", &self.name)
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

impl Outgoing {
    /// For a node whose certificate must be for `name`, a DNS name or an address.
    ///
    /// # Errors
    /// The library refuses what was read.
    pub fn new(trust: &Trust, name: ServerName<'static>) -> Result<Self, Error> {
        Ok(Self {
            name,
            files: trust.files.clone(),
            read_at: trust.stamps,
            config: ArcSwap::new(trust.config()?),
        })
    }

    /// Shakes hands over `stream`. It has no limit of time.
    ///
    /// # Errors
    /// The node is not whom it should be, speaks something else, or refuses; see [`refusal`].
    pub async fn connect<S>(&self, stream: S) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let connector = TlsConnector::from(self.config.load_full());
        connector.connect(self.name.clone(), stream).await
    }

    fn look(&self, settling: &mut Settling<Stamps>) {
        if !settling.handle_look(self.files.stamps()) {
            return;
        }
        let config = Trust::read(self.files.clone()).map(|trust| trust.config());
        match config {
            Ok(Ok(config)) => {
                self.config.store(config);
                tracing::info!(name = ?self.name, "what TLS to the node relies on is renewed");
            }
            Ok(Err(error)) => keep(&error),
            Err(error) => keep(&error),
        }
    }
}

fn keep(error: &dyn std::error::Error) {
    tracing::error!(
        %error,
        "a changed file of TLS to nodes cannot be used; what was read before stays"
    );
}

/// Looks at the files of all these for as long as any of them lives.
///
/// # Errors
/// There is no thread for it.
pub fn watch(all: &[Arc<Outgoing>]) -> Result<(), SetUpError> {
    if all.is_empty() {
        return Ok(());
    }
    let mut watched: Vec<(Weak<Outgoing>, Settling<Stamps>)> = all
        .iter()
        .map(|one| (Arc::downgrade(one), Settling::new(one.read_at)))
        .collect();
    let work = move || {
        while !watched.is_empty() {
            clock::pause_thread(LOOK_EVERY);
            watched.retain_mut(|(one, settling)| {
                let one = one.upgrade();
                one.inspect(|one| one.look(settling)).is_some()
            });
        }
    };
    thread::Builder::new()
        .name("node-trust".to_owned())
        .spawn(work)
        .map(drop)
        .map_err(SetUpError::Thread)
}

/// Why a handshake failed, in words for somebody who can do something about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The node's certificate is not accepted.
    Certificate(&'static str),
    /// Anything else.
    Handshake(&'static str),
}

/// Why [`Outgoing::connect`] failed.
#[must_use]
pub fn refusal(error: &io::Error) -> Refusal {
    use Refusal::{Certificate, Handshake};
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    match inner {
        None => Handshake("the connection ended"),
        Some(Error::InvalidCertificate(why)) => Certificate(untrusted(why)),
        Some(Error::AlertReceived(alert)) => Handshake(turned_away(*alert)),
        Some(Error::InvalidMessage(_)) => Handshake("the node does not speak TLS"),
        Some(Error::PeerIncompatible(_)) => Handshake("no common version or cipher"),
        Some(_) => Handshake("the node breaks the protocol"),
    }
}

/// What a node says of a certificate that it does not like.
const DISLIKED: [AlertDescription; 7] = [
    AlertDescription::BadCertificate,
    AlertDescription::UnsupportedCertificate,
    AlertDescription::CertificateRevoked,
    AlertDescription::CertificateExpired,
    AlertDescription::CertificateUnknown,
    AlertDescription::UnknownCA,
    AlertDescription::AccessDenied,
];

fn turned_away(alert: AlertDescription) -> &'static str {
    if alert == AlertDescription::CertificateRequired {
        "the node wants a certificate; set tls.cert and tls.key"
    } else if DISLIKED.contains(&alert) {
        "the node does not accept our certificate"
    } else if alert == AlertDescription::NoApplicationProtocol {
        "no common application protocol"
    } else {
        "the node refused it"
    }
}

fn untrusted(why: &CertificateError) -> &'static str {
    use CertificateError as Why;
    if matches!(why, Why::Expired | Why::ExpiredContext { .. }) {
        "it has expired"
    } else if matches!(why, Why::NotValidYet | Why::NotValidYetContext { .. }) {
        "it is not valid yet"
    } else if matches!(
        why,
        Why::NotValidForName | Why::NotValidForNameContext { .. }
    ) {
        "it is for another name; set tls.server_name"
    } else if matches!(why, Why::UnknownIssuer | Why::BadSignature) {
        "its issuer is not trusted; set tls.ca"
    } else if *why == Why::Revoked {
        "it is revoked"
    } else {
        "it is not acceptable"
    }
}
