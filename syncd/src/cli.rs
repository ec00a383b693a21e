//! What the commands do, and what they print.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use shared::api::Status;
use shared::call::{CallError, Peer};
use shared::clock;
use shared::model::Lag;
use shared::telemetry;

use crate::admin::Verdict;
use crate::config::{self, Settings};
use crate::diverged::{self, CHANGES, Manifest};
use crate::store::Store;
use crate::{app, sqlite};

/// How long a running syncd may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Reading a large database anew takes a while.
const VERIFY_WITHIN: Duration = Duration::from_secs(3600);
const WATCH_EVERY: Duration = Duration::from_millis(500);

/// Why a command did not do what it should.
#[derive(Debug)]
pub struct Failure {
    /// 1 it failed or was refused, 2 usage or configuration, 3 not reachable.
    pub code: u8,
    /// For stderr.
    pub message: String,
}

impl Failure {
    fn failed(message: impl ToString) -> Self {
        Self {
            code: 1,
            message: message.to_string(),
        }
    }

    fn usage(message: impl ToString) -> Self {
        Self {
            code: 2,
            message: message.to_string(),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::failed(error)
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        let unreachable = matches!(error, CallError::Connect { .. } | CallError::Timeout { .. });
        let code = if unreachable { 3 } else { 1 };
        let hint = if unreachable {
            "; is syncd running there? (--url says where)"
        } else {
            ""
        };
        Self {
            code,
            message: format!("{error}{hint}"),
        }
    }
}

fn load(path: &Path) -> Result<Settings, Failure> {
    config::load(path).map_err(Failure::usage)
}

/// `syncd run`.
///
/// # Errors
/// It could not start, or ended unexpectedly.
pub fn run(path: &Path) -> Result<(), Failure> {
    let settings = load(path)?;
    telemetry::start(settings.log);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    runtime
        .block_on(app::run(settings))
        .map_err(Failure::failed)
}

/// `syncd check`.
///
/// # Errors
/// Every fault of the file.
pub fn check(path: &Path, out: &mut dyn Write) -> Result<(), Failure> {
    let settings = load(path)?;
    Store::new(settings.state_dir.clone())
        .load_held(&settings.node)
        .map_err(Failure::usage)?;
    sqlite::check_library().map_err(Failure::usage)?;
    writeln!(
        out,
        "{}: ok: node \"{}\", {} source(s)",
        path.display(),
        settings.node,
        settings.sources.len()
    )?;
    Ok(())
}

/// `syncd status`.
///
/// # Errors
/// It is not reachable.
pub fn status(
    url: &str,
    token_file: Option<&Path>,
    json: bool,
    watch: bool,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let peer = peer(url, token_file)?;
    asking(async {
        loop {
            let status: Status = peer.get("/v1/status", ANSWER_WITHIN).await?;
            if json {
                serde_json::to_writer(&mut *out, &status).map_err(Failure::failed)?;
                writeln!(out)?;
            } else {
                if watch {
                    write!(out, "\x1b[2J\x1b[H")?;
                }
                print_status(&status, out)?;
            }
            out.flush()?;
            if !watch {
                return Ok(());
            }
            clock::sleep(WATCH_EVERY).await;
        }
    })
}

fn print_status(status: &Status, out: &mut dyn Write) -> io::Result<()> {
    let report = &status.report;
    let of = report
        .primary
        .as_ref()
        .filter(|primary| **primary != report.node);
    let of = of.map_or_else(String::new, |primary| format!(" of {primary}"));
    let fenced = if report.fenced { ", writes fenced" } else { "" };
    writeln!(
        out,
        "{}: {}{of}, epoch {}{fenced}",
        report.node, report.role, report.epoch
    )?;
    if let Some(why) = &report.unfit {
        writeln!(out, "  must not be promoted: {why}")?;
    }
    for source in &status.sources {
        let checksum = source.checksum.as_deref().unwrap_or("-");
        writeln!(
            out,
            "  {:<12} {:<10} {}  checksum {checksum}  lag {}",
            source.name,
            source.position.to_string(),
            source.state,
            lag(&source.lag)
        )?;
        if let Some((done, all)) = source.progress {
            writeln!(out, "  {:<12} {}", "", bar(done, all))?;
        }
        if let Some(error) = &source.error {
            writeln!(out, "  {:<12} ! {error}", "")?;
        }
    }
    for (name, peer) in &report.peers {
        let connected = if peer.connected {
            "connected"
        } else {
            "not connected"
        };
        writeln!(
            out,
            "  standby {name}: {connected}, durable {}, applied {}, lag {}",
            peer.durable,
            peer.applied,
            lag(&peer.lag)
        )?;
    }
    if status.diverged > 0 {
        writeln!(
            out,
            "  {} set(s) of diverged writes are kept: `syncd diverged list`",
            status.diverged
        )?;
    }
    Ok(())
}

fn lag(lag: &Lag) -> String {
    let seconds = lag
        .seconds
        .map_or_else(|| "unknown".to_owned(), |seconds| format!("{seconds:.3} s"));
    let bytes = lag
        .bytes
        .map_or_else(|| "?".to_owned(), |bytes| bytes.to_string());
    let transactions = lag
        .transactions
        .map_or_else(|| "?".to_owned(), |count| count.to_string());
    format!("{seconds} ({bytes} bytes, {transactions} transactions)")
}

fn bar(done: u64, all: u64) -> String {
    let width = 40;
    let share = |of: u64| (done.min(all) * of).checked_div(all).unwrap_or(0);
    let filled = usize::try_from(share(width)).unwrap_or(0);
    let percent = share(100);
    let (mib_done, mib_all) = (done >> 20, all >> 20);
    format!(
        "[{:<40}] {percent:>3} %  {mib_done} of {mib_all} MiB",
        "#".repeat(filled)
    )
}

/// `syncd verify`.
///
/// # Errors
/// It is not reachable, or something differs.
pub fn verify(url: &str, token_file: Option<&Path>, out: &mut dyn Write) -> Result<(), Failure> {
    let peer = peer(url, token_file)?;
    let verdicts: Vec<Verdict> =
        asking(async { Ok(peer.post("/v1/verify", &(), VERIFY_WITHIN).await?) })?;
    for verdict in &verdicts {
        let position = verdict
            .position
            .map_or_else(|| "-".to_owned(), |position| position.to_string());
        let (here, there) = (
            verdict.here.as_deref().unwrap_or("-"),
            verdict.there.as_deref().unwrap_or("-"),
        );
        let word = if verdict.is_equal() {
            "equal"
        } else {
            "DIFFERENT"
        };
        writeln!(
            out,
            "{}: {word} at {position}: here {here}, primary {there}",
            verdict.source
        )?;
        if let Some(error) = &verdict.error {
            writeln!(out, "  {error}")?;
        }
    }
    let different: Vec<_> = verdicts
        .iter()
        .filter(|verdict| !verdict.is_equal())
        .map(|verdict| verdict.source.as_str())
        .collect();
    if different.is_empty() {
        Ok(())
    } else {
        Err(Failure::failed(format!(
            "not proved equal: {}",
            different.join(", ")
        )))
    }
}

/// `syncd diverged list`.
///
/// # Errors
/// The folder cannot be read.
pub fn list_diverged(path: &Path, out: &mut dyn Write) -> Result<(), Failure> {
    let folder = Store::new(load(path)?.state_dir).diverged();
    let list = diverged::list(&folder).map_err(Failure::failed)?;
    if list.is_empty() {
        writeln!(out, "nothing is kept")?;
    }
    for manifest in list {
        writeln!(out, "{}", line(&manifest))?;
    }
    Ok(())
}

fn line(manifest: &Manifest) -> String {
    let rows = manifest.rows.map_or_else(
        || "not compared yet".to_owned(),
        |(only, other, _)| format!("{only} rows only here, {other} changed"),
    );
    let Manifest {
        id,
        source,
        at,
        epoch,
        reason,
        bytes,
        ..
    } = manifest;
    format!("{id}  {at}  source {source}  epoch {epoch}  {reason}  {bytes} bytes  {rows}")
}

/// `syncd diverged show`.
///
/// # Errors
/// There is none of that name, or it is not compared yet.
pub fn show_diverged(path: &Path, id: &str, out: &mut dyn Write) -> Result<(), Failure> {
    let folder = Store::new(load(path)?.state_dir).diverged();
    let (manifest, folder) = diverged::find(&folder, id).map_err(Failure::failed)?;
    writeln!(out, "-- {}", line(&manifest))?;
    let changes = fs::File::open(folder.join(CHANGES)).map_err(|error| {
        Failure::failed(format!(
            "{id} is kept, but not compared yet ({error}); that is done once the node is a copy of its primary again. The whole database: {}",
            folder.join(&manifest.database).display()
        ))
    })?;
    io::copy(&mut io::BufReader::new(changes), out)?;
    Ok(())
}

/// `syncd diverged export`.
///
/// # Errors
/// There is none of that name, or it cannot be copied.
pub fn export_diverged(
    path: &Path,
    id: &str,
    target: &Path,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let folder = Store::new(load(path)?.state_dir).diverged();
    let (_, folder) = diverged::find(&folder, id).map_err(Failure::failed)?;
    fs::create_dir_all(target)?;
    for entry in fs::read_dir(&folder)? {
        let from = entry?.path();
        let Some(name) = from.file_name() else {
            continue;
        };
        let to = target.join(name);
        fs::copy(&from, &to)?;
        writeln!(out, "{}", to.display())?;
    }
    Ok(())
}

fn peer(url: &str, token_file: Option<&Path>) -> Result<Peer, Failure> {
    let token = token_file
        .map(fs::read_to_string)
        .transpose()
        .map_err(|error| Failure::usage(format!("read the token: {error}")))?;
    Peer::new(url, token.as_deref().map(str::trim)).map_err(Failure::usage)
}

fn asking<T>(call: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(call)
}
