//! Where the programs are that a rehearsal starts.

use std::path::{Path, PathBuf};

use crate::trouble::Trouble;

/// The programs that make up a deployment.
#[derive(Clone, Debug)]
pub struct Programs {
    /// The proxy.
    pub hotwarm: PathBuf,
    /// The replicator.
    pub syncd: PathBuf,
    /// The Python of the project's own environment.
    pub python: PathBuf,
    /// Gunicorn, in the same environment.
    pub gunicorn: PathBuf,
    /// The folder of the order service.
    pub orders: PathBuf,
}

impl Programs {
    /// Finds them in the checkout that this was built from: the release build if there is one, else the debug build.
    ///
    /// # Errors
    /// One of them is not there; says which and how to get it.
    pub fn find() -> Result<Self, Trouble> {
        let root = root();
        let programs = Self {
            hotwarm: built("hotwarm")?,
            syncd: built("syncd")?,
            python: root.join(".venv/bin/python"),
            gunicorn: root.join(".venv/bin/gunicorn"),
            orders: root.join("examples/orders"),
        };
        for python in [&programs.python, &programs.gunicorn] {
            present(
                python,
                "run scripts/python.sh examples/orders/requirements.txt",
            )?;
        }
        Ok(programs)
    }
}

/// The folder of the checkout that this was built from.
#[must_use]
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// A program of this workspace.
fn built(name: &str) -> Result<PathBuf, Trouble> {
    let folders = target_folders();
    let found = folders
        .iter()
        .map(|folder| folder.join(name))
        .find(|path| path.is_file());
    found.ok_or_else(|| Trouble::Missing {
        what: format!("the program {name}"),
        remedy: "run cargo build --release",
    })
}

/// Where cargo leaves programs: beside the one that is running, and in the checkout's own target folder.
fn target_folders() -> Vec<PathBuf> {
    let running = std::env::current_exe().unwrap_or_default();
    let targets = running
        .ancestors()
        .filter(|folder| folder.ends_with("release") || folder.ends_with("debug"))
        .filter_map(Path::parent)
        .map(Path::to_owned);
    targets
        .chain([root().join("target")])
        .flat_map(|target| [target.join("release"), target.join("debug")])
        .collect()
}

fn present(path: &Path, remedy: &'static str) -> Result<(), Trouble> {
    if path.exists() {
        return Ok(());
    }
    Err(Trouble::Missing {
        what: path.display().to_string(),
        remedy,
    })
}
