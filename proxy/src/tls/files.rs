//! Files of PEM as a certificate with its key.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::CertifiedKey;
use thiserror::Error;

use super::Pair;

/// A chain of certificates is a few KiB; more than this is another file, in bytes.
const FILE_MOST: u64 = 1 << 20;

/// Why a certificate or its key cannot be used.
#[derive(Debug, Error)]
pub enum LoadError {
    /// A file cannot be read.
    #[error("read {path}: {source}; name a PEM file that hotwarm may read", path = path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Whether it is the key's.
        is_key: bool,
        /// What the system said.
        source: io::Error,
    },
    /// There is no certificate.
    #[error(
        "{path} holds no certificate; it must be a PEM file with \"-----BEGIN CERTIFICATE-----\", the site's own first and then those of its issuers",
        path = path.display()
    )]
    NoCertificate {
        /// Where.
        path: PathBuf,
    },
    /// The certificate is damaged.
    #[error("{path} holds a certificate that cannot be read ({why}); ask its issuer for a new copy", path = path.display())]
    Damaged {
        /// Where.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// There is no key.
    #[error(
        "{path} holds no private key; it must be a PEM file with \"-----BEGIN PRIVATE KEY-----\" (PKCS#8, PKCS#1 or SEC1, not encrypted)",
        path = path.display()
    )]
    NoKey {
        /// Where.
        path: PathBuf,
    },
    /// The key is of no use.
    #[error("{path} holds a private key that cannot be used ({why}); use RSA from 2048 bits, ECDSA P-256 or P-384, or Ed25519", path = path.display())]
    UnusableKey {
        /// Where.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The key is another certificate's.
    #[error("the key in {key} does not fit the certificate in {cert}; name the key that the certificate was made for", key = key.display(), cert = cert.display())]
    Unfit {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// There is no authority.
    #[error(
        "{path} holds no certificate; it must be a PEM file with the certificates (\"-----BEGIN CERTIFICATE-----\") of those who certify clients",
        path = path.display()
    )]
    NoAuthority {
        /// Where.
        path: PathBuf,
    },
    /// An authority is of no use.
    #[error("{path} holds a certificate that cannot certify clients ({why}); name those of their issuers", path = path.display())]
    UnusableAuthority {
        /// Where.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

impl LoadError {
    /// The file at fault, if it is one alone.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Read { path, .. }
            | Self::NoCertificate { path }
            | Self::Damaged { path, .. }
            | Self::NoKey { path }
            | Self::UnusableKey { path, .. }
            | Self::NoAuthority { path }
            | Self::UnusableAuthority { path, .. } => Some(path),
            Self::Unfit { .. } => None,
        }
    }

    /// Whether the key's file is at fault, and not the certificate's.
    #[must_use]
    pub const fn is_about_key(&self) -> bool {
        match self {
            Self::Read { is_key, .. } => *is_key,
            Self::NoKey { .. } | Self::UnusableKey { .. } | Self::Unfit { .. } => true,
            Self::NoCertificate { .. }
            | Self::Damaged { .. }
            | Self::NoAuthority { .. }
            | Self::UnusableAuthority { .. } => false,
        }
    }
}

/// Reads a certificate, its chain and its key.
pub(super) fn read(pair: &Pair) -> Result<CertifiedKey, LoadError> {
    let chain = chain(&pair.cert)?;
    let path = &pair.key;
    let text = read_bounded(path).map_err(|source| LoadError::Read {
        path: path.clone(),
        is_key: true,
        source,
    })?;
    let key = PrivateKeyDer::from_pem_slice(&text)
        .map_err(|_| LoadError::NoKey { path: path.clone() })?;
    let key = ring::sign::any_supported_type(&key).map_err(|error| LoadError::UnusableKey {
        path: path.clone(),
        why: error.to_string(),
    })?;
    let certified = CertifiedKey::new(chain, key);
    match certified.keys_match() {
        Ok(()) => Ok(certified),
        Err(rustls::Error::InconsistentKeys(_)) => Err(LoadError::Unfit {
            cert: pair.cert.clone(),
            key: path.clone(),
        }),
        Err(error) => Err(LoadError::Damaged {
            path: pair.cert.clone(),
            why: error.to_string(),
        }),
    }
}

/// Reads those who certify clients.
pub(super) fn authorities(path: &Path) -> Result<Arc<dyn ClientCertVerifier>, LoadError> {
    let unusable = |why: String| LoadError::UnusableAuthority {
        path: path.into(),
        why,
    };
    let found = match chain(path) {
        Err(LoadError::NoCertificate { path }) => return Err(LoadError::NoAuthority { path }),
        found => found?,
    };
    let mut roots = RootCertStore::empty();
    for cert in found {
        roots
            .add(cert)
            .map_err(|error| unusable(error.to_string()))?;
    }
    let provider = Arc::new(ring::default_provider());
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map(|verifier| verifier as Arc<dyn ClientCertVerifier>)
        .map_err(|error| unusable(error.to_string()))
}

fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, LoadError> {
    let text = read_bounded(path).map_err(|source| LoadError::Read {
        path: path.into(),
        is_key: false,
        source,
    })?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let chain = chain.map_err(|error| LoadError::Damaged {
        path: path.into(),
        why: error.to_string(),
    })?;
    if chain.is_empty() {
        return Err(LoadError::NoCertificate { path: path.into() });
    }
    Ok(chain)
}

/// Reads authorities. The system's may hold some that cannot be used; one's own may not.
pub(super) fn roots(path: &Path, are_systems: bool) -> Result<RootCertStore, LoadError> {
    let found = chain(path)?;
    let mut roots = RootCertStore::empty();
    if are_systems {
        roots.add_parsable_certificates(found);
        return Ok(roots);
    }
    for certificate in found {
        roots.add(certificate).map_err(|error| LoadError::Damaged {
            path: path.into(),
            why: error.to_string(),
        })?;
    }
    Ok(roots)
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    // Opening anything else may wait for ever.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    let mut text = Vec::new();
    File::open(path)?
        .take(FILE_MOST + 1)
        .read_to_end(&mut text)?;
    if text.len() as u64 > FILE_MOST {
        return Err(io::Error::other("it is larger than 1MiB"));
    }
    Ok(text)
}

/// What is seen of files from outside; different when one was replaced or written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamps([Option<Stamp>; 2]);

/// What is seen of a file from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Stamps {
    pub(super) fn of(pair: &Pair) -> Self {
        Self([stamp(&pair.cert), stamp(&pair.key)])
    }

    pub(super) fn of_one(path: &Path) -> Self {
        Self([stamp(path), None])
    }
}

/// `None` if there is no such file.
pub(super) fn stamp(path: &Path) -> Option<Stamp> {
    let seen = fs::metadata(path).ok()?;
    Some(Stamp {
        device: seen.dev(),
        inode: seen.ino(),
        size: seen.size(),
        modified: (seen.mtime(), seen.mtime_nsec()),
    })
}
