//! The access log: workers gather lines, one thread writes them. A slow disk or a full pipe never slows a request: what does
//! not fit into the queue is dropped and counted.
//!
//! The file is opened again when its name belongs to another one, or to none (logrotate), which is looked for every second, and
//! when somebody says so (SIGUSR1, a reload). It is only ever appended to, so that it may also be emptied under our hands
//! (`copytruncate`). What cannot be written is told once, and the end of it once; lines are dropped and counted meanwhile.

pub mod line;

use std::cell::RefCell;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
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

/// The way to the writer. Cheap to clone; the writer ends when the last one is gone.
#[derive(Clone, Debug)]
pub struct AccessLog {
    batches: SyncSender<Batch>,
    dropped: IntCounter,
    again: Arc<AtomicBool>,
    /// The form of a line.
    pub format: AccessFormat,
}

impl AccessLog {
    /// The file is opened again by its name, soon.
    pub fn reopen(&self) {
        self.again.store(true, SeqCst);
        // Wakes the writer; if the queue is full it is awake.
        let _ = self.batches.try_send(Batch::default());
    }
}

#[derive(Debug, Default)]
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
    let mut target = Target::new(settings.path.clone());
    target.open()?;
    let (batches, arrived) = sync_channel(QUEUE);
    let (done, ended) = sync_channel(1);
    let again = Arc::new(AtomicBool::new(false));
    let mut pages = Pages {
        target,
        dropped: dropped.clone(),
        again: Arc::clone(&again),
        trouble: None,
    };
    thread::Builder::new()
        .name("access-log".to_owned())
        .spawn(move || {
            pages.write_all(&arrived);
            let _ = done.try_send(());
        })?;
    let log = AccessLog {
        batches,
        dropped,
        again,
        format: settings.format,
    };
    Ok((log, Writer(ended)))
}

/// What the writer has.
struct Pages {
    target: Target,
    dropped: IntCounter,
    again: Arc<AtomicBool>,
    /// How many lines were dropped since it was told that nothing can be written.
    trouble: Option<u64>,
}

impl Pages {
    fn write_all(&mut self, batches: &Receiver<Batch>) {
        loop {
            let text = match batches.recv_timeout(LOOK_EVERY) {
                Ok(batch) => batch.text,
                Err(RecvTimeoutError::Timeout) => Vec::new(),
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let again = self.again.swap(false, SeqCst);
            self.write(&text, again);
        }
    }

    fn write(&mut self, text: &[u8], again: bool) {
        let now = clock::now();
        let (written, result) = match self.target.look(now, again) {
            Ok(()) => self.target.write(text),
            Err(error) => (0, Err(error)),
        };
        let rest = text.get(written..).unwrap_or_default();
        let lost = rest.iter().filter(|byte| **byte == b'\n').count() as u64;
        self.dropped.inc_by(lost);
        match (result, &mut self.trouble) {
            (Ok(()), None) => (),
            // Nothing was written, so nothing is known.
            (Ok(()), Some(_)) if text.is_empty() => (),
            (Ok(()), Some(lines)) => {
                tracing::info!(
                    lines = *lines,
                    "the access log is written again; so many lines were dropped"
                );
                self.trouble = None;
            }
            (Err(_), Some(lines)) => *lines += lost,
            (Err(error), None) => {
                tracing::warn!(%error, to = %self.target.shown(), "the access log cannot be written; lines are dropped and counted until it can");
                self.trouble = Some(lost);
            }
        }
    }
}

/// Where lines go.
struct Target {
    /// The standard output, if there is none.
    path: Option<PathBuf>,
    file: Option<(File, (u64, u64))>,
    looked: Option<Instant>,
    /// The last line in it is not whole.
    torn: bool,
}

impl Target {
    const fn new(path: Option<PathBuf>) -> Self {
        Self {
            path,
            file: None,
            looked: None,
            torn: false,
        }
    }

    fn shown(&self) -> String {
        let path = self.path.as_deref();
        path.map_or_else(|| "stdout".to_owned(), |path| path.display().to_string())
    }

    fn open(&mut self) -> io::Result<()> {
        let Some(path) = &self.path else {
            return Ok(());
        };
        self.file = None;
        let file = OpenOptions::new().append(true).create(true).open(path)?;
        let meta = file.metadata()?;
        self.file = Some((file, (meta.dev(), meta.ino())));
        self.torn = false;
        Ok(())
    }

    /// Opens the file again if another, or none, has its name now; looked for every second, or at once if `again`.
    fn look(&mut self, now: Instant, again: bool) -> io::Result<()> {
        let recently = |at: Instant| now.saturating_duration_since(at) < LOOK_EVERY;
        if again || !self.looked.is_some_and(recently) {
            self.looked = Some(now);
            let there = self.path.as_deref().and_then(number);
            if again || there.is_none() || there != self.file.as_ref().map(|(_, number)| *number) {
                self.open()?;
            }
        }
        Ok(())
    }

    /// Writes `text`; how much of it was, and why not all.
    fn write(&mut self, text: &[u8]) -> (usize, io::Result<()>) {
        let out: &mut dyn Write = match (&self.path, &mut self.file) {
            (None, _) => &mut io::stdout().lock(),
            (Some(_), Some((file, _))) => file,
            (Some(_), None) => return (0, Err(io::Error::other("the file is not open"))),
        };
        // What is not whole stays so, and spoils nothing of what comes after it.
        if self.torn && !text.is_empty() {
            match out.write(b"\n") {
                Ok(1) => self.torn = false,
                Ok(_) => return (0, Err(io::ErrorKind::WriteZero.into())),
                Err(error) => return (0, Err(error)),
            }
        }
        let mut written = 0;
        let result = loop {
            match text.get(written..) {
                None | Some([]) => break out.flush(),
                Some(rest) => match out.write(rest) {
                    Ok(0) => break Err(io::ErrorKind::WriteZero.into()),
                    Ok(more) => written += more,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                    Err(error) => break Err(error),
                },
            }
        };
        self.torn |= written > 0 && text.get(written - 1) != Some(&b'\n');
        (written, result)
    }
}

/// What tells a file from others of the same name.
fn number(path: &Path) -> Option<(u64, u64)> {
    let meta = fs::metadata(path).ok()?;
    Some((meta.dev(), meta.ino()))
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

    fn pages(path: &Path) -> Pages {
        let mut target = Target::new(Some(path.to_owned()));
        target.open().unwrap();
        Pages {
            target,
            dropped: counter(),
            again: Arc::default(),
            trouble: None,
        }
    }

    /// A second later.
    fn later(pages: &mut Pages) {
        pages.target.looked = None;
    }

    #[test]
    fn lines_reach_the_file_that_has_the_name_now() {
        let folder = folder("rotate");
        let path = folder.join("access.log");
        let mut pages = pages(&path);
        pages.write(b"one\n", false);
        fs::rename(&path, folder.join("access.log.1")).unwrap();
        pages.write(b"two\n", false);
        later(&mut pages);
        pages.write(b"three\n", false);
        let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
        assert_eq!(
            (read("access.log.1"), read("access.log")),
            ("one\ntwo\n".into(), "three\n".into())
        );
        fs::rename(&path, folder.join("access.log.1")).unwrap();
        pages.write(b"", true);
        pages.write(b"four\n", false);
        assert_eq!(read("access.log"), "four\n", "at once when told so");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_file_that_is_emptied_is_appended_to_from_its_beginning() {
        let folder = folder("truncate");
        let path = folder.join("access.log");
        let mut pages = pages(&path);
        pages.write(b"one\n", false);
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(0)
            .unwrap();
        pages.write(b"two\n", false);
        assert_eq!(fs::read_to_string(&path).unwrap(), "two\n");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_folder_that_is_gone_costs_the_lines_of_that_time_and_is_told_once() {
        let folder = folder("gone");
        let path = folder.join("access.log");
        let mut pages = pages(&path);
        fs::remove_dir_all(&folder).unwrap();
        later(&mut pages);
        pages.write(b"one\ntwo\n", false);
        assert_eq!((pages.dropped.get(), pages.trouble), (2, Some(2)));
        pages.write(b"three\n", false);
        assert_eq!((pages.dropped.get(), pages.trouble), (3, Some(3)));
        fs::create_dir_all(&folder).unwrap();
        later(&mut pages);
        pages.write(b"four\n", false);
        assert_eq!((pages.dropped.get(), pages.trouble), (3, None));
        assert_eq!(fs::read_to_string(&path).unwrap(), "four\n");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_full_disk_costs_the_lines_of_that_time() {
        let mut pages = pages(Path::new("/dev/full"));
        pages.write(b"one\ntwo\n", false);
        pages.write(b"three\n", false);
        assert_eq!((pages.dropped.get(), pages.trouble), (3, Some(3)));
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
            again: Arc::default(),
            format: AccessFormat::Json,
        });
        for _ in 0..3 {
            lines.add(|text| text.extend_from_slice(b"x"));
            lines.flush();
        }
        assert_eq!(dropped.get(), 2);
    }
}
