//! The file arbiter: what each service's machine must not forget, one sealed file a service, and the right to be the only one.
//!
//! A damaged file is an error, never "no state": a proxy that forgot who is in sync could promote a standby that lacks
//! acknowledged writes.

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use shared::durable::{self, LoadError};
use shared::model::{ClusterId, Epoch};
use thiserror::Error;

use crate::logic::NodeId;
use crate::logic::failover::Record;
use crate::takeover::Predecessor;

/// Why the arbiter cannot remember.
#[derive(Debug, Error)]
pub enum ArbiterError {
    /// The folder cannot be used.
    #[error("state_dir {}: {source}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another proxy uses it.
    #[error("state_dir {} is in use by another hotwarm; two proxies must not decide for the same services: stop it, take over from it (hotwarm run --takeover), or give this one a folder of its own", path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// A file cannot be read, or is damaged.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A file is whole but does not fit.
    #[error("state file {} does not fit: {why}", path.display())]
    Senseless {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        why: String,
    },
    /// A file cannot be written.
    #[error("write state file {}: {source}", path.display())]
    Save {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The folder, held for this process alone.
#[derive(Debug)]
pub struct Arbiter {
    folder: PathBuf,
    lock: Option<File>,
    before: Option<Arc<Predecessor>>,
}

/// A service's record in the folder.
#[derive(Clone, Debug)]
pub struct Place {
    path: PathBuf,
    service: String,
    nodes: Vec<String>,
    before: Option<Arc<Predecessor>>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Saved {
    service: String,
    cluster: Option<ClusterId>,
    epoch: Epoch,
    primary: Option<String>,
    in_sync: BTreeSet<String>,
    run: u64,
}

impl Arbiter {
    /// Takes the folder for this process, making it if need be.
    ///
    /// # Errors
    /// It cannot be made, or another process has it.
    pub fn open(folder: &Path) -> Result<Self, ArbiterError> {
        let mut arbiter = Self {
            folder: folder.into(),
            lock: None,
            before: None,
        };
        arbiter.take()?;
        Ok(arbiter)
    }

    /// Remembers who decided before, and may still be finishing requests.
    pub fn follow(&mut self, before: Arc<Predecessor>) {
        self.before = Some(before);
    }

    /// Whether nobody who decided before is finishing requests.
    #[must_use]
    pub fn is_alone(&self) -> bool {
        self.before.as_ref().is_none_or(|before| before.is_gone())
    }

    /// Lets another process have the folder. Nothing may be written there until [`Arbiter::take`].
    pub fn release(&mut self) {
        self.lock = None;
    }

    /// Whether the folder is this process's.
    #[must_use]
    pub const fn is_held(&self) -> bool {
        self.lock.is_some()
    }

    /// Takes the folder again.
    ///
    /// # Errors
    /// As [`Arbiter::open`].
    pub fn take(&mut self) -> Result<(), ArbiterError> {
        let folder = &self.folder;
        let failed = |source| ArbiterError::Folder {
            path: folder.into(),
            source,
        };
        fs::create_dir_all(folder).map_err(failed)?;
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(folder.join("lock"))
            .map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {
                self.lock = Some(lock);
                Ok(())
            }
            Err(TryLockError::WouldBlock) => Err(ArbiterError::InUse {
                path: folder.into(),
            }),
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }

    /// Where the record of `service`, with these nodes, is kept.
    #[must_use]
    pub fn place(&self, service: &str, nodes: Vec<String>) -> Place {
        Place {
            path: self.folder.join(format!("{service}.state")),
            service: service.to_owned(),
            nodes,
            before: self.before.clone(),
        }
    }
}

impl Drop for Arbiter {
    /// A write may still be under way in a thread of its own, so that nobody else may have the folder before the process has ended.
    fn drop(&mut self) {
        std::mem::forget(self.lock.take());
    }
}

impl Place {
    /// What was remembered; the default if nothing ever was.
    ///
    /// # Errors
    /// The file is damaged, or names nodes that are not configured any more.
    pub fn load(&self) -> Result<Record, ArbiterError> {
        let Some(body) = durable::load(&self.path)? else {
            return Ok(Record::default());
        };
        let senseless = |why: String| ArbiterError::Senseless {
            path: self.path.clone(),
            why,
        };
        let saved: Saved =
            serde_json::from_slice(&body).map_err(|error| senseless(error.to_string()))?;
        if saved.service != self.service {
            return Err(senseless(format!(
                "it is of service \"{}\", not \"{}\"",
                saved.service, self.service
            )));
        }
        let id = |name: &String| {
            let place = self.nodes.iter().position(|node| node == name);
            place.and_then(|place| u8::try_from(place).ok()).map(NodeId).ok_or_else(|| {
                senseless(format!(
                    "it names node \"{name}\", which is not configured (nodes: {}); name it again, or, if it is gone for good, \
                     switch over to another node before removing it",
                    self.nodes.join(", ")
                ))
            })
        };
        Ok(Record {
            cluster: saved.cluster,
            epoch: saved.epoch,
            primary: saved.primary.as_ref().map(id).transpose()?,
            // A standby that was removed from the configuration is simply not in sync any more.
            in_sync: saved
                .in_sync
                .iter()
                .filter_map(|name| id(name).ok())
                .collect(),
            run: saved.run,
        })
    }

    fn epoch_on_disk(&self) -> Result<Epoch, ArbiterError> {
        self.load().map(|record| record.epoch)
    }

    /// Whether every request of the service is this process's.
    #[must_use]
    pub fn is_alone(&self) -> bool {
        self.before.as_ref().is_none_or(|before| before.is_gone())
    }

    /// How many responses the process before this one may have released since its last word about the primary's position.
    #[must_use]
    pub fn released_before(&self) -> u64 {
        let before = self.before.as_ref();
        before.map_or(0, |before| before.released(&self.service))
    }

    /// Remembers `record`: it is on disk when this returns. If it is of a new epoch, a process that finishes requests of the
    /// former one has stopped sending any.
    ///
    /// # Errors
    /// The file cannot be written, or that process does not answer; the old one stands.
    pub fn save(&self, record: &Record) -> Result<(), ArbiterError> {
        let failed = |source| ArbiterError::Save {
            path: self.path.clone(),
            source,
        };
        if let Some(before) = self.before.as_ref().filter(|before| !before.is_gone())
            && self.epoch_on_disk()? != record.epoch
        {
            // Its requests go where the former epoch says, until it knows that this has ended.
            before.close(&self.service).map_err(failed)?;
        }
        let name = |node: &NodeId| self.nodes.get(node.index()).cloned().unwrap_or_default();
        let saved = Saved {
            service: self.service.clone(),
            cluster: record.cluster,
            epoch: record.epoch,
            primary: record.primary.as_ref().map(name),
            in_sync: record.in_sync.iter().map(name).collect(),
            run: record.run,
        };
        let body = serde_json::to_vec(&saved).map_err(|error| failed(error.into()))?;
        durable::save(&self.path, &body).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("hotwarm-arbiter-{}-{name}", std::process::id()))
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_record_is_kept_by_the_nodes_names() {
        let folder = scratch("names");
        let arbiter = Arbiter::open(&folder).unwrap();
        let place = arbiter.place("shop", names(&["a", "b"]));
        assert_eq!(place.load().unwrap(), Record::default());
        let record = Record {
            epoch: Epoch(3),
            primary: Some(NodeId(1)),
            in_sync: [NodeId(0)].into(),
            run: 2,
            cluster: Some(ClusterId(5)),
        };
        place.save(&record).unwrap();
        assert_eq!(place.load().unwrap(), record);
        let swapped = arbiter.place("shop", names(&["b", "a"])).load().unwrap();
        assert_eq!(
            (swapped.primary, swapped.in_sync),
            (Some(NodeId(0)), [NodeId(1)].into())
        );
        let error = arbiter
            .place("shop", names(&["a", "c"]))
            .load()
            .unwrap_err()
            .to_string();
        assert!(error.contains("names node \"b\""), "{error}");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn only_one_process_decides() {
        let folder = scratch("lock");
        let mut first = Arbiter::open(&folder).unwrap();
        assert!(matches!(
            Arbiter::open(&folder),
            Err(ArbiterError::InUse { .. })
        ));
        first.release();
        Arbiter::open(&folder).unwrap();
        assert!(
            first.take().is_err(),
            "it is not given back by being dropped"
        );
        fs::remove_dir_all(folder).unwrap();
    }
}
