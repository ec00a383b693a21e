//! Certificates that clients show: who may certify them, and what a node gets to know of them.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

use super::files::{self, LoadError, Stamps};
use super::{Settling, x509};

/// A certificate of more bytes is not sent to nodes: few take a field of more than 8 KiB, and base64 makes it a third longer.
const SENT_MOST: usize = 6000;

/// Who may connect by certificate, as it was read.
#[derive(Clone)]
pub struct Clients {
    path: PathBuf,
    required: bool,
    stamps: Stamps,
    authorities: Arc<dyn ClientCertVerifier>,
}

impl fmt::Debug for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clients")
            .field("path", &self.path)
            .field("required", &self.required)
            .finish_non_exhaustive()
    }
}

impl Clients {
    /// Different when the file was different.
    #[must_use]
    pub fn mark(&self) -> String {
        format!("{:?}", self.stamps)
    }

    /// Reads those who certify clients. Whoever has no certificate is let in only if it is not `required`; whoever has one
    /// that is not theirs is never let in.
    ///
    /// # Errors
    /// The file is missing, too large, or not what it should be.
    pub fn read(path: PathBuf, required: bool) -> Result<Self, LoadError> {
        // Before the file: what changes while it is read is seen as a change.
        let stamps = Stamps::of_one(&path);
        let authorities = files::authorities(&path)?;
        Ok(Self {
            path,
            required,
            stamps,
            authorities,
        })
    }
}

/// Judges certificates by the file as it is now.
pub(super) struct Verifier {
    clients: Clients,
    now: ArcSwap<Arc<dyn ClientCertVerifier>>,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Verifier").field(&self.clients).finish()
    }
}

impl Verifier {
    pub(super) fn new(clients: Clients) -> Self {
        Self {
            now: ArcSwap::from_pointee(Arc::clone(&clients.authorities)),
            clients,
        }
    }

    pub(super) fn settling(&self) -> Settling {
        Settling::new(self.clients.stamps)
    }

    /// Takes up a change of the file; says what came of it, if there was one.
    pub(super) fn look(&self, settling: &mut Settling) -> Option<&'static str> {
        let path = &self.clients.path;
        if !settling.handle_look(Stamps::of_one(path)) {
            return None;
        }
        match files::authorities(path) {
            Ok(authorities) => {
                self.now.store(Arc::new(authorities));
                tracing::info!(client_ca = %path.display(), "those who certify clients are read again");
                Some("ok")
            }
            Err(error) => {
                tracing::error!(%error, "a changed client_ca cannot be used; the one before it stays");
                Some("failed")
            }
        }
    }
}

impl ClientCertVerifier for Verifier {
    fn client_auth_mandatory(&self) -> bool {
        self.clients.required
    }

    /// None: they may change while somebody looks at them, and every client may show what it has without them.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let authorities = self.now.load();
        authorities.verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.now.load().verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.now.load().verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.now.load().supported_verify_schemes()
    }
}

/// A certificate that was shown and verified, as nodes get to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The value of `Client-Cert` (RFC 9440 §2.2): the certificate in base64 between colons. Empty if it is too long for a
    /// field.
    pub cert: String,
    /// Whose it is (RFC 4514), in ASCII. Empty if that is not said, or cannot be read.
    pub subject: String,
}

/// Writes down the certificate that a client has shown.
#[must_use]
pub fn identity(cert: &CertificateDer<'_>) -> Identity {
    let subject = x509::read(cert).map(|facts| facts.subject);
    let sent = cert.len() <= SENT_MOST;
    Identity {
        cert: if sent {
            format!(":{}:", base64(cert))
        } else {
            String::new()
        },
        subject: subject.unwrap_or_default(),
    }
}

/// RFC 4648 §4, with padding.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let byte = |at: usize| u32::from(three.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            let at = (bits >> (18 - 6 * digit) & 63) as usize;
            text.push(if digit > three.len() {
                '='
            } else {
                char::from(DIGITS[at])
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
        assert_eq!(base64(&[0xfb, 0xff, 0xbf]), "+/+/");
    }
}
