//! What only this proxy can have written: a key of its own, and the marks that it makes with it for cookies.
//!
//! The key is made once, from the system's randomness, and kept in `state_dir` for its owner alone. Whoever copies it can forge
//! marks, which lets a client choose its node; whoever loses it makes clients lose their node once. Neither reveals or changes
//! data.

use std::fmt;
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ring::hmac::{self, HMAC_SHA256};
use ring::rand::{SecureRandom, SystemRandom};
use shared::durable;
use thiserror::Error;

/// Bytes of the key: as many as the hash gives.
const KEY: usize = 32;
/// Characters of a mark: 128 bits in hexadecimal digits.
pub const MARK: usize = 32;

/// Why there is no key.
#[derive(Debug, Error)]
#[error("secret {}: {source}; remove the file to have a new one made", path.display())]
pub struct SecretError {
    path: PathBuf,
    source: io::Error,
}

/// The key. Cheap to clone.
#[derive(Clone)]
pub struct Secret(Arc<hmac::Key>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl Secret {
    /// The key kept in `folder`; made there if there is none yet.
    ///
    /// # Errors
    /// It cannot be read, written, or is none.
    pub fn open(folder: &Path) -> Result<Self, SecretError> {
        let path = folder.join("secret");
        let failed = |source| SecretError {
            path: path.clone(),
            source,
        };
        match fs::read(&path) {
            Ok(bytes) if bytes.len() == KEY => Ok(Self::of(&bytes)),
            Ok(_) => Err(failed(io::Error::other("it does not hold a key"))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let key = random();
                save(&path, &key).map_err(failed)?;
                Ok(Self::of(&key))
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// A key that ends with the process.
    #[must_use]
    pub fn fresh() -> Self {
        Self::of(&random())
    }

    fn of(key: &[u8]) -> Self {
        Self(Arc::new(hmac::Key::new(HMAC_SHA256, key)))
    }

    /// The mark of `parts`, which nobody can make or guess without the key. Parts are kept apart: `["a", "bc"]` and
    /// `["ab", "c"]` have different marks.
    #[must_use]
    pub fn mark(&self, parts: &[&[u8]]) -> [u8; MARK] {
        let mut context = hmac::Context::with_key(&self.0);
        for part in parts {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        let tag = context.sign();
        let mut text = [0; MARK];
        for (pair, byte) in text.chunks_exact_mut(2).zip(tag.as_ref()) {
            pair[0] = b"0123456789abcdef"[usize::from(byte >> 4)];
            pair[1] = b"0123456789abcdef"[usize::from(byte & 15)];
        }
        text
    }

    /// Whether `shown` is the mark of `parts`; takes the same time whatever it is.
    #[must_use]
    pub fn is_mark(&self, parts: &[&[u8]], shown: &[u8]) -> bool {
        let mark = self.mark(parts);
        let pairs = mark.iter().zip(shown);
        shown.len() == MARK && pairs.fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
    }
}

fn random() -> [u8; KEY] {
    let mut key = [0; KEY];
    SystemRandom::new()
        .fill(&mut key)
        .expect("the system has randomness once it has started");
    key
}

/// Whole or not at all, and never readable by others.
fn save(path: &Path, key: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("new");
    let mut file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&beside)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(key)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    durable::sync_folder(path.parent().unwrap_or_else(|| Path::new(".")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_made_once_and_is_for_its_owner_alone() {
        let folder = std::env::temp_dir().join(format!("hotwarm-secret-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let first = Secret::open(&folder).unwrap().mark(&[b"a"]);
        assert_eq!(Secret::open(&folder).unwrap().mark(&[b"a"]), first);
        let path = folder.join("secret");
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::write(&path, "short").unwrap();
        let error = Secret::open(&folder).unwrap_err().to_string();
        assert!(
            error.contains("does not hold a key; remove the file"),
            "{error}"
        );
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn marks_tell_parts_and_keys_apart() {
        let secret = Secret::fresh();
        let mark = secret.mark(&[b"a", b"bc"]);
        assert_ne!(mark, secret.mark(&[b"ab", b"c"]));
        assert_ne!(mark, Secret::fresh().mark(&[b"a", b"bc"]));
        assert!(mark.iter().all(u8::is_ascii_hexdigit));
        assert!(secret.is_mark(&[b"a", b"bc"], &mark));
        assert!(
            !secret.is_mark(&[b"a", b"bd"], &mark) && !secret.is_mark(&[b"a", b"bc"], &mark[1..])
        );
    }
}
