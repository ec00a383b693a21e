//! The access log: workers gather lines, one thread writes them. A slow disk or a full pipe never slows a request: what does
//! not fit into the queue is dropped and counted.
//!
//! The file is opened again when it was moved away (logrotate), seen by its number.

pub mod line;

use std::cell::RefCell;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use shared::clock;
use shared::metrics::IntCounter;

use crate::config::{self, AccessFormat};

/// Batches that may wait for the disk: at [`BATCH`] each, 4 MiB at most.
const QUEUE: usize = 64;
/// A worker hands its lines over when they reach this size, or when the next tick comes.
const BATCH: usize = 64 << 10;
/// How often the writer looks whether its file is still the one by that name.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often trouble with the disk is reported.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// The way to the writer. Cheap to clone; the writer ends when the last one is gone.
#[derive(Clone, Debug)]
pub struct AccessLog {
    batches: SyncSender<Batch>,
    dropped: IntCounter,
    /// The form of a line.
    pub format: AccessFormat,
}

#[derive(Debug)]
struct Batch {
    text: Vec<u8>,
    lines: u64,
}

/// The writer; wait for it at the end.
#[derive(Debug)]
pub struct Writer(Receiver<()>);

impl Writer {
    /// Waits until everything is written, at most `within`; a pipe that nobody reads must not keep the program alive.
    pub fn finish(self, within: Duration) {
        let _ = self.0.recv_timeout(within);
    }
}

/// Opens the log and starts its writer.
///
/// # Errors
/// The file cannot be opened, or no thread can be started.
pub fn start(settings: &config::AccessLog, dropped: IntCounter) -> io::Result<(AccessLog, Writer)> {
    let target = Target::open(settings.path.clone())?;
    let (batches, arrived) = sync_channel(QUEUE);
    let (done, ended) = sync_channel(1);
    let counter = dropped.clone();
    thread::Builder::new()
        .name("access-log".to_owned())
        .spawn(move || {
            write_all(target, &arrived, &counter);
            let _ = done.try_send(());
        })?;
    let log = AccessLog {
        batches,
        dropped,
        format: settings.format,
    };
    Ok((log, Writer(ended)))
}

fn write_all(mut target: Target, batches: &Receiver<Batch>, dropped: &IntCounter) {
    let mut complained: Option<Instant> = None;
    for batch in batches {
        if let Err(error) = target.write(&batch.text) {
            dropped.inc_by(batch.lines);
            let now = clock::now();
            if complained.is_none_or(|last| now.duration_since(last) >= COMPLAIN_EVERY) {
                complained = Some(now);
                tracing::warn!(%error, lines = batch.lines, "write the access log");
            }
        }
    }
}

enum Target {
    Stdout,
    File {
        path: PathBuf,
        file: File,
        number: (u64, u64),
        looked: Instant,
    },
}

impl Target {
    fn open(path: Option<PathBuf>) -> io::Result<Self> {
        let Some(path) = path else {
            return Ok(Self::Stdout);
        };
        let file = OpenOptions::new().append(true).create(true).open(&path)?;
        let meta = file.metadata()?;
        Ok(Self::File {
            path,
            file,
            number: (meta.dev(), meta.ino()),
            looked: clock::now(),
        })
    }

    fn write(&mut self, text: &[u8]) -> io::Result<()> {
        match self {
            Self::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(text)?;
                out.flush()
            }
            Self::File { .. } => {
                self.look()?;
                match self {
                    Self::File { file, .. } => file.write_all(text),
                    Self::Stdout => Ok(()),
                }
            }
        }
    }

    /// Opens the file again if another, or none, has its name now.
    fn look(&mut self) -> io::Result<()> {
        let Self::File {
            path,
            number,
            looked,
            ..
        } = self
        else {
            return Ok(());
        };
        let now = clock::now();
        if now.duration_since(*looked) < LOOK_EVERY {
            return Ok(());
        }
        *looked = now;
        let there = fs::metadata(&*path)
            .ok()
            .map(|meta| (meta.dev(), meta.ino()));
        if there != Some(*number) {
            *self = Self::open(Some(path.clone()))?;
        }
        Ok(())
    }
}

/// What one worker writes with; nothing, if there is no log. Another log can be put into its hand at any time.
#[derive(Debug, Default)]
pub struct Pen(RefCell<Option<Lines>>);

impl Pen {
    /// Writes to `log` from now on.
    pub fn take_up(&self, log: Option<AccessLog>) {
        let former = self.0.replace(log.map(Lines::new));
        // What it still has is handed over.
        drop(former);
    }

    /// Whether there is a log.
    #[must_use]
    pub fn writes(&self) -> bool {
        self.0.borrow().is_some()
    }

    /// Adds one line, written by `write` in the log's form.
    pub fn add(&self, write: impl FnOnce(AccessFormat, &mut Vec<u8>)) {
        if let Some(lines) = &*self.0.borrow() {
            lines.add(|text| write(lines.log.format, text));
        }
    }

    /// Hands over what there is.
    pub fn flush(&self) {
        if let Some(lines) = &*self.0.borrow() {
            lines.flush();
        }
    }
}

/// One worker's lines that are not handed over yet.
#[derive(Debug)]
pub struct Lines {
    log: AccessLog,
    batch: RefCell<Batch>,
}

impl Lines {
    /// An empty batch.
    #[must_use]
    pub const fn new(log: AccessLog) -> Self {
        Self {
            log,
            batch: RefCell::new(Batch {
                text: Vec::new(),
                lines: 0,
            }),
        }
    }

    /// Adds one line, written by `write`.
    pub fn add(&self, write: impl FnOnce(&mut Vec<u8>)) {
        let mut batch = self.batch.borrow_mut();
        write(&mut batch.text);
        batch.text.push(b'\n');
        batch.lines += 1;
        let full = batch.text.len() >= BATCH;
        drop(batch);
        if full {
            self.flush();
        }
    }

    /// Hands over what there is.
    pub fn flush(&self) {
        let mut batch = self.batch.borrow_mut();
        if batch.lines == 0 {
            return;
        }
        let next = Vec::with_capacity(batch.text.len() + batch.text.len() / 4);
        let text = std::mem::replace(&mut batch.text, next);
        let lines = std::mem::take(&mut batch.lines);
        match self.log.batches.try_send(Batch { text, lines }) {
            Ok(()) => (),
            Err(TrySendError::Full(lost) | TrySendError::Disconnected(lost)) => {
                self.log.dropped.inc_by(lost.lines);
            }
        }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counter() -> IntCounter {
        IntCounter::new("dropped", "lines").unwrap()
    }

    fn folder(name: &str) -> PathBuf {
        let folder =
            std::env::temp_dir().join(format!("hotwarm-log-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn lines_reach_the_file_that_has_the_name_now() {
        let folder = folder("rotate");
        let path = folder.join("access.log");
        let mut target = Target::open(Some(path.clone())).unwrap();
        target.write(b"one\n").unwrap();
        fs::rename(&path, folder.join("access.log.1")).unwrap();
        let Target::File { looked, .. } = &mut target else {
            panic!("a file");
        };
        *looked -= LOOK_EVERY;
        target.write(b"two\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "two\n");
        assert_eq!(
            fs::read_to_string(folder.join("access.log.1")).unwrap(),
            "one\n"
        );
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn everything_is_written_before_the_writer_ends() {
        let folder = folder("end");
        let path = folder.join("access.log");
        let settings = config::AccessLog {
            path: Some(path.clone()),
            format: AccessFormat::Json,
        };
        let (log, writer) = start(&settings, counter()).unwrap();
        let lines = Lines::new(log);
        for n in 0..1000 {
            lines.add(|text| text.extend_from_slice(n.to_string().as_bytes()));
        }
        drop(lines);
        writer.finish(Duration::from_secs(5));
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 1000);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_disk_that_does_not_keep_up_costs_lines_and_never_time() {
        let (batches, _never_read) = sync_channel(1);
        let dropped = counter();
        let lines = Lines::new(AccessLog {
            batches,
            dropped: dropped.clone(),
            format: AccessFormat::Json,
        });
        for _ in 0..3 {
            lines.add(|text| text.extend_from_slice(b"x"));
            lines.flush();
        }
        assert_eq!(dropped.get(), 2);
    }
}
