//! Litestream beside an application, replicating to a folder, at its defaults.

use std::fs;
use std::path::{Path, PathBuf};

use crate::guard::MARK;
use crate::process::{Process, Spec};
use crate::programs::root;
use crate::stack::{Side, Stack};
use crate::trouble::Trouble;

/// A running Litestream.
#[derive(Debug)]
pub(crate) struct Litestream {
    replica: PathBuf,
    _process: Process,
}

impl Litestream {
    /// Starts to replicate node A's database of `stack`.
    ///
    /// # Errors
    /// It is not installed, or cannot be started.
    pub(crate) fn beside(stack: &Stack) -> Result<Self, Trouble> {
        let program = root().join(".venv/bin/litestream");
        if !program.exists() {
            return Err(Trouble::Missing {
                what: "litestream".to_owned(),
                remedy: "run scripts/python.sh bench/requirements.txt",
            });
        }
        let replica = stack.folder().join("replica");
        let args = [
            "replicate".to_owned(),
            stack.database(Side::A).display().to_string(),
            format!("file://{}", replica.display()),
        ];
        let spec = Spec {
            name: "litestream".to_owned(),
            program,
            args: args.into(),
            env: vec![(MARK.to_owned(), stack.mark().to_owned())],
            folder: stack.folder().to_owned(),
            log: stack.folder().join("litestream.log"),
        };
        let mut process = Process::new(stack.shape().place(Side::A, spec));
        process.start()?;
        Ok(Self {
            replica,
            _process: process,
        })
    }

    /// How many sets of changes are in the replica.
    pub(crate) fn changes(&self) -> usize {
        files(&self.replica.join("ltx/0"))
    }

    /// How many whole snapshots are in the replica.
    pub(crate) fn snapshots(&self) -> usize {
        files(&self.replica.join("ltx/9"))
    }
}

/// Finished files in a folder: those under way have another ending.
fn files(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let finished = |entry: &fs::DirEntry| entry.path().extension().is_some_and(|end| end == "ltx");
    entries.filter(finished).count()
}
