//! Files that are whole after a crash, and that say so: written beside, synced, renamed over, the folder synced; sealed with a
//! checksum so that a damaged file is an error and never "no file".

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use thiserror::Error;

const MAGIC: &str = "hotwarm-state-1";

/// Why a sealed file could not be read.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The file system refused.
    #[error("read state file {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The bytes are not what was written.
    #[error(
        "state file {path} is damaged ({why}); it is not treated as missing, because that could lose writes. \
         Restore it from a backup, or, if you are sure that this state can be given up, move it away and start again"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        why: String,
    },
}

/// Replaces `path` by `bytes`: after a crash at any instant it holds the old bytes or the new ones, whole.
///
/// # Errors
/// Whatever the file system says; the old file is then untouched.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or_else(|| Path::new("."));
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let mut file = File::create(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    drop(file);
    fs::rename(&beside, path)?;
    sync_folder(folder)
}

/// Makes the names in `folder` durable.
///
/// # Errors
/// Whatever the file system says.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Replaces `path` by `body` under a seal that [`load`] checks.
///
/// # Errors
/// Whatever the file system says; the old file is then untouched.
pub fn save(path: &Path, body: &[u8]) -> io::Result<()> {
    let mut sealed = format!(
        "{MAGIC} {:016x} {}\n",
        xxhash_rust::xxh3::xxh3_64(body),
        body.len()
    )
    .into_bytes();
    sealed.extend_from_slice(body);
    replace(path, &sealed)
}

/// Reads what [`save`] wrote; `None` only when there is no such file.
///
/// # Errors
/// The file cannot be read, or its seal is broken.
pub fn load(path: &Path) -> Result<Option<Vec<u8>>, LoadError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(LoadError::Read {
                path: path.into(),
                source,
            });
        }
    };
    let damaged = |why: &str| LoadError::Damaged {
        path: path.into(),
        why: why.to_owned(),
    };
    let end = bytes
        .iter()
        .position(|byte| *byte == b'\n')
        .ok_or_else(|| damaged("no header line"))?;
    let header = std::str::from_utf8(&bytes[..end]).map_err(|_| damaged("header is not text"))?;
    let body = &bytes[end + 1..];
    let mut words = header.split(' ');
    if words.next() != Some(MAGIC) {
        return Err(damaged("not a state file of this version"));
    }
    let sum = words
        .next()
        .and_then(|word| u64::from_str_radix(word, 16).ok());
    let length = words.next().and_then(|word| word.parse::<usize>().ok());
    if length != Some(body.len()) {
        return Err(damaged("it was cut short or added to"));
    }
    if sum != Some(xxhash_rust::xxh3::xxh3_64(body)) {
        return Err(damaged("its checksum does not match"));
    }
    Ok(Some(body.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let folder =
            std::env::temp_dir().join(format!("hotwarm-durable-{}-{name}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        folder.join("state")
    }

    #[test]
    fn what_was_saved_is_loaded_and_absence_is_not_damage() {
        let path = scratch("roundtrip");
        assert!(load(&path).unwrap().is_none());
        save(&path, b"one").unwrap();
        save(&path, b"two").unwrap();
        assert_eq!(load(&path).unwrap().unwrap(), b"two");
        fs::remove_dir_all(path.parent().unwrap()).unwrap();
    }

    #[test]
    fn any_single_change_is_damage() {
        let path = scratch("damage");
        save(&path, b"{\"epoch\":7}").unwrap();
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            fs::write(&path, &bytes).unwrap();
            assert!(
                matches!(load(&path), Err(LoadError::Damaged { .. })),
                "byte {at}"
            );
            fs::write(&path, &whole[..at]).unwrap();
            assert!(
                matches!(load(&path), Err(LoadError::Damaged { .. })),
                "cut at {at}"
            );
        }
        fs::remove_dir_all(path.parent().unwrap()).unwrap();
    }
}
