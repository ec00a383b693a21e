//! Writes that a failover left behind: kept whole before anything is overwritten, and made readable.
//!
//! One folder each, under `diverged/` in the state folder: a copy of the database, `manifest.json` with when and why, and, once the
//! node is a copy of its primary again, `changes.sql`: what the kept database has that the present one has not.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use shared::clock;
use shared::durable;
use shared::model::{Epoch, Position};

use crate::sqlite::preserve;

/// The name of the readable difference.
pub const CHANGES: &str = "changes.sql";
const MANIFEST: &str = "manifest.json";
/// Besides the copy itself, this much of the disk must stay free.
const SPARE: u64 = 64 << 20;

/// What is known of one set of diverged writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Its name.
    pub id: String,
    /// The node that had them.
    pub node: String,
    /// The source.
    pub source: String,
    /// When they were kept, RFC 3339.
    pub at: String,
    /// The term in which they were found to have diverged.
    pub epoch: Epoch,
    /// Why, as in the metrics.
    pub reason: String,
    /// Where the node believed to stand.
    pub position: Option<Position>,
    /// The copy, within the folder.
    pub database: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// Rows that only the copy has, rows that differ, rows that only the present database has; once compared.
    pub rows: Option<(u64, u64, u64)>,
}

/// Under which circumstances something is kept.
#[derive(Clone, Copy, Debug)]
pub struct Circumstances<'a> {
    /// The node that has it.
    pub node: &'a str,
    /// The source.
    pub source: &'a str,
    /// The term in which it was found to have diverged.
    pub epoch: Epoch,
    /// Why, as in the metrics.
    pub reason: &'static str,
    /// Where the node believes to stand.
    pub position: Option<Position>,
}

/// A copy that was just made, to be explained when the node is a copy of its primary again.
#[derive(Clone, Debug)]
pub struct Keepsake {
    /// Its name.
    pub id: String,
    folder: PathBuf,
    copy: PathBuf,
}

/// Keeps the database at `path` in a folder of its own under `folder` before it is overwritten. The copy is on disk when this returns.
///
/// # Errors
/// There is no room, or the disk or the database refuses: nothing may be overwritten then.
pub(crate) fn keep(
    folder: &Path,
    path: &Path,
    found: Circumstances<'_>,
) -> Result<Keepsake, String> {
    fs::create_dir_all(folder).map_err(|error| format!("make {}: {error}", folder.display()))?;
    check_room(path, folder)?;
    let id = free_name(folder, found.epoch, found.source);
    let folder = folder.join(&id);
    let copy = preserve::copy(path, &folder).map_err(|error| error.to_string())?;
    let bytes = fs::metadata(&copy).map_or(0, |copy| copy.len());
    let database = copy
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let manifest = Manifest {
        id: id.clone(),
        node: found.node.to_owned(),
        source: found.source.to_owned(),
        at: clock::rfc3339(),
        epoch: found.epoch,
        reason: found.reason.to_owned(),
        position: found.position,
        database,
        bytes,
        rows: None,
    };
    save(&folder, &manifest)?;
    tracing::warn!(
        source = found.source,
        id,
        bytes,
        reason = manifest.reason,
        "kept diverged writes; `syncd diverged show` reads them"
    );
    Ok(Keepsake { id, folder, copy })
}

impl Keepsake {
    /// Writes down what the copy has that the database at `present` has not, in a thread of its own.
    pub fn explain(self, present: PathBuf) {
        let explained = std::thread::Builder::new()
            .name("explain".to_owned())
            .spawn(move || {
                if let Err(error) = self.write_changes(&present) {
                    tracing::warn!(
                        id = self.id,
                        error,
                        "could not write down what diverged; the copy itself is kept"
                    );
                }
            });
        if let Err(error) = explained {
            tracing::warn!(%error, "could not start the thread that writes down what diverged; the copy itself is kept");
        }
    }

    fn write_changes(&self, present: &Path) -> Result<(), String> {
        let failed = |error: std::io::Error| error.to_string();
        let partial = self.folder.join("changes.sql.partial");
        let mut out = BufWriter::new(File::create(&partial).map_err(failed)?);
        writeln!(
            out,
            "-- What {} holds that the present database does not.",
            self.copy.display()
        )
        .map_err(failed)?;
        let found = preserve::difference(present, &self.copy, &mut out)
            .map_err(|error| error.to_string())?;
        out.into_inner()
            .map_err(|error| error.to_string())?
            .sync_all()
            .map_err(failed)?;
        fs::rename(&partial, self.folder.join(CHANGES)).map_err(failed)?;
        let mut manifest = load(&self.folder)?;
        manifest.rows = Some((found.inserted, found.updated, found.deleted));
        save(&self.folder, &manifest)
    }
}

/// All that is kept, oldest first.
///
/// # Errors
/// The folder cannot be read.
pub fn list(folder: &Path) -> Result<Vec<Manifest>, String> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(format!("read {}: {error}", folder.display())),
    };
    let mut found: Vec<_> = entries
        .flatten()
        .filter_map(|entry| load(&entry.path()).ok())
        .collect();
    found.sort_by(|a, b| (&a.at, &a.id).cmp(&(&b.at, &b.id)));
    Ok(found)
}

/// The manifest of `id`, and its folder.
///
/// # Errors
/// There is none of that name.
pub fn find(folder: &Path, id: &str) -> Result<(Manifest, PathBuf), String> {
    let plain = !id.is_empty() && !id.contains(['/', '\\']) && id != "." && id != "..";
    let folder = folder.join(if plain { id } else { "-" });
    match load(&folder) {
        Ok(manifest) if plain => Ok((manifest, folder)),
        _ => Err(format!(
            "nothing is kept under the name \"{id}\"; `syncd diverged list` shows the names"
        )),
    }
}

fn load(folder: &Path) -> Result<Manifest, String> {
    let text = fs::read(folder.join(MANIFEST)).map_err(|error| error.to_string())?;
    serde_json::from_slice(&text).map_err(|error| error.to_string())
}

fn save(folder: &Path, manifest: &Manifest) -> Result<(), String> {
    let text = serde_json::to_vec_pretty(manifest).map_err(|error| error.to_string())?;
    durable::replace(&folder.join(MANIFEST), &text)
        .map_err(|error| format!("write the manifest: {error}"))
}

fn free_name(folder: &Path, epoch: Epoch, source: &str) -> String {
    let names = (0_u32..).map(|n| {
        if n == 0 {
            format!("{epoch}-{source}")
        } else {
            format!("{epoch}-{source}-{n}")
        }
    });
    names
        .into_iter()
        .find(|name| !folder.join(name).exists())
        .unwrap_or_default()
}

fn check_room(path: &Path, folder: &Path) -> Result<(), String> {
    let size = fs::metadata(path).map_or(0, |file| file.len());
    let stat = rustix::fs::statvfs(folder)
        .map_err(|error| format!("look at the disk of {}: {error}", folder.display()))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free >= size.saturating_add(SPARE) {
        return Ok(());
    }
    Err(format!(
        "diverged writes must be kept before they are overwritten, but {} has only {free} bytes free for a copy of {size}; \
         make room there (`syncd diverged list` shows what is kept)",
        folder.display()
    ))
}
