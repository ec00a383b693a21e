//! What this node must not forget: the epoch it has seen, who led, and where each source's history began.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use shared::api::Fork;
use shared::durable::{self, LoadError};
use shared::model::{ClusterId, Epoch};
use thiserror::Error;

use crate::logic::station::{Held, Leader};

/// Why something could not be remembered.
#[derive(Debug, Error)]
pub enum StoreError {
    /// A state file cannot be read, or is damaged.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A state file is whole but says what it should not.
    #[error("state file {} does not make sense: {why}. Restore it from a backup, or move it away if its state can be given up", path.display())]
    Senseless {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// It could not be written.
    #[error("write state file {}: {source}", path.display())]
    Save {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The files in a state folder.
#[derive(Clone, Debug)]
pub struct Store {
    folder: PathBuf,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct StationFile {
    node: String,
    cluster: Option<ClusterId>,
    epoch: Epoch,
    last: Option<LeaderFile>,
}

#[derive(Debug, Serialize, Deserialize)]
struct LeaderFile {
    name: String,
    url: String,
}

/// Where one source's history began, and under which boot of the machine it was last captured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lineage {
    /// Where epochs and gens began, oldest first.
    pub forks: Vec<Fork>,
    /// The machine's boot in which this node last captured commits; empty if it never did.
    pub captured_in: String,
}

impl Store {
    /// Uses the files in `folder`, which is there.
    #[must_use]
    pub const fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// The folder of one source.
    #[must_use]
    pub fn source(&self, name: &str) -> PathBuf {
        self.folder.join("source").join(name)
    }

    /// The folder of copies of diverged data.
    #[must_use]
    pub fn diverged(&self) -> PathBuf {
        self.folder.join("diverged")
    }

    /// What the node `name` remembers.
    ///
    /// # Errors
    /// The file is damaged, or of another node.
    pub fn load_held(&self, name: &str) -> Result<Held, StoreError> {
        let path = self.station();
        let Some(file) = load::<StationFile>(&path)? else {
            return Ok(Held::default());
        };
        if file.node != name {
            let why = format!(
                "it is of node \"{}\", but this one is called \"{name}\"",
                file.node
            );
            return Err(StoreError::Senseless { path, why });
        }
        let last = file.last.map(|last| Leader {
            name: last.name,
            url: last.url,
        });
        Ok(Held {
            cluster: file.cluster,
            epoch: file.epoch,
            last,
        })
    }

    /// Remembers `held`: it is on disk when this returns.
    ///
    /// # Errors
    /// The file cannot be written; the old one stands.
    pub fn save_held(&self, name: &str, held: &Held) -> Result<(), StoreError> {
        let last = held.last.as_ref().map(|last| LeaderFile {
            name: last.name.clone(),
            url: last.url.clone(),
        });
        let file = StationFile {
            node: name.to_owned(),
            cluster: held.cluster,
            epoch: held.epoch,
            last,
        };
        save(&self.station(), &file)
    }

    /// The lineage of one source.
    ///
    /// # Errors
    /// The file is damaged.
    pub fn load_lineage(&self, source: &str) -> Result<Lineage, StoreError> {
        Ok(load(&self.lineage(source))?.unwrap_or_default())
    }

    /// Remembers the lineage of one source: it is on disk when this returns.
    ///
    /// # Errors
    /// The file cannot be written; the old one stands.
    pub fn save_lineage(&self, source: &str, lineage: &Lineage) -> Result<(), StoreError> {
        save(&self.lineage(source), lineage)
    }

    fn station(&self) -> PathBuf {
        self.folder.join("station")
    }

    fn lineage(&self, source: &str) -> PathBuf {
        self.source(source).join("lineage")
    }
}

fn load<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>, StoreError> {
    let Some(body) = durable::load(path)? else {
        return Ok(None);
    };
    let senseless = |error: serde_json::Error| StoreError::Senseless {
        path: path.into(),
        why: error.to_string(),
    };
    serde_json::from_slice(&body).map(Some).map_err(senseless)
}

fn save<T: Serialize>(path: &Path, value: &T) -> Result<(), StoreError> {
    let failed = |source| StoreError::Save {
        path: path.into(),
        source,
    };
    let body = serde_json::to_vec(value).map_err(|error| failed(error.into()))?;
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    durable::save(path, &body).map_err(failed)
}

/// Stands for a boot in [`Lineage::captured_in`] after a clean end: everything was on disk.
pub const CLEAN: &str = "clean";

/// Names the present boot of this machine; empty when the system does not tell.
#[must_use]
pub fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|id| id.trim().to_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let folder =
            std::env::temp_dir().join(format!("syncd-store-{}-{name}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn what_is_held_survives_and_belongs_to_one_node() {
        let folder = scratch("held");
        let store = Store::new(folder.clone());
        assert_eq!(store.load_held("a").unwrap(), Held::default());
        let last = Some(Leader {
            name: "b".into(),
            url: "http://b:1".into(),
        });
        let held = Held {
            cluster: Some(ClusterId(7)),
            epoch: Epoch(3),
            last,
        };
        store.save_held("a", &held).unwrap();
        assert_eq!(store.load_held("a").unwrap(), held);
        assert!(matches!(
            store.load_held("b"),
            Err(StoreError::Senseless { .. })
        ));
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_damaged_state_file_is_never_no_state() {
        let folder = scratch("damaged");
        let store = Store::new(folder.clone());
        store.save_held("a", &Held::default()).unwrap();
        fs::write(folder.join("station"), b"hotwarm-state-1 00 2\n{}").unwrap();
        let error = store.load_held("a").unwrap_err().to_string();
        assert!(
            error.contains("damaged") && error.contains("station"),
            "{error}"
        );
        fs::remove_dir_all(folder).unwrap();
    }
}
