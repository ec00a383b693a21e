//! Parts of syncd as processes of their own, so that they can be killed. A process is this test binary, running [`run`].

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use shared::model::Position;
use syncd::log::{Limits, Log, Point};
use syncd::sqlite::{Apply, CaptureError, Continuity, Journal, Mark, Options, Tail};
use syncd::wire::increment::Increment;

use crate::rig::{Tender, resync};
use crate::support::{Scratch, open, position, standby};

const LIMITS: Limits = Limits {
    segment_bytes: 4 << 20,
    ring_bytes: 0,
};

/// A process under test. Killed when dropped.
pub(crate) struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Process {
    pub(crate) fn start(kind: &str, folder: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "--nocapture", "process::run"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        writeln!(stdin, "{kind} {}", folder.display()).unwrap();
        Self {
            stdin: Some(stdin),
            stdout: BufReader::new(child.stdout.take().unwrap()),
            child,
        }
    }

    /// Waits for a line that begins with one of `words` and returns it; `None` when the process has ended.
    pub(crate) fn hear(&mut self, words: &[&str]) -> Option<String> {
        loop {
            let mut line = String::new();
            if self.stdout.read_line(&mut line).unwrap() == 0 {
                return None;
            }
            // The test runner writes the name of the test in front of the first line.
            if let Some(word) = words.iter().find_map(|word| line.find(word)) {
                return Some(line[word..].trim_end().to_owned());
            }
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Tells it to come to an end.
    pub(crate) fn end(&mut self) {
        drop(self.stdin.take());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn options(folder: &Path, name: &str) -> Options {
    Options {
        path: folder.join(name),
        lock_path: folder.join(format!("{name}.lock")),
        journal: Journal::Convert,
    }
}

fn tell(line: &str) {
    let mut out = std::io::stdout();
    writeln!(out, "{line}").unwrap();
    out.flush().unwrap();
}

#[test]
#[ignore = "run by other tests as a process of its own"]
fn run() {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    let (kind, folder) = line.trim_end().split_once(' ').unwrap();
    let folder = PathBuf::from(folder);
    match kind {
        "apply" => apply(&folder, Duration::ZERO),
        "apply-slowly" => apply(&folder, Duration::from_millis(3)),
        "capture" => capture(&folder),
        other => panic!("no such process: {other}"),
    }
}

/// Applies the log in `folder` to `standby.db`, in batches of random sizes with pauses between them, then says "done".
fn apply(folder: &Path, pause: Duration) {
    let log = Log::open(&folder.join("log"), LIMITS).unwrap();
    let mut database = open(&options(folder, "standby.db"));
    while !database.try_fence().unwrap() {
        std::thread::yield_now();
    }
    let mut apply = Apply::attach(&mut database).unwrap();
    let _tender = Tender::start(&database);
    let stands = apply
        .position()
        .expect("a standby that was killed stands at a position");
    tell(&format!("ready {}", stands.seq));
    let mut reader = log.reader(stands).unwrap();
    let mut rng = shared::rng::Rng::with_seed(stands.seq);
    let mut waiting: Vec<Increment> = Vec::new();
    loop {
        let next = reader.poll().unwrap();
        let is_end = next.is_none();
        waiting.extend(next);
        if is_end || (waiting.last().is_some_and(|last| last.last) && rng.u32(0..4) == 0) {
            apply.apply(&mut database, &waiting).unwrap();
            waiting.clear();
            shared::clock::pause_thread(pause);
        }
        if is_end {
            break;
        }
    }
    tell("done");
}

/// Captures `primary.db` into the log in `folder` until its input ends. When continuity is lost, `standby.db` is brought up to date and the
/// log begins anew there.
fn capture(folder: &Path) {
    let mut log = Log::open(&folder.join("log"), LIMITS).unwrap();
    let mut database = open(&options(folder, "primary.db"));
    let mark = log.mark().and_then(|mark| Mark::from_bytes(&mark));
    let (mut tail, continuity) = loop {
        // The application may be in the middle of a checkpoint of its own.
        match Tail::attach(&mut database, mark.as_ref()) {
            Err(CaptureError::CheckpointLock | CaptureError::Unreadable) => {
                std::thread::yield_now();
            }
            attached => break attached.unwrap(),
        }
    };
    let _tender = Tender::start(&database);
    match (continuity, log.end()) {
        (Continuity::Kept, Some(end)) => {
            tail.stand_at(end.position);
            tell("kept");
        }
        (_, end) => {
            let generation = end.map_or(0, |end| end.position.generation + 1);
            let after = end.map_or(0, |end| end.position.seq);
            tail.stand_at(Position {
                generation,
                ..position(after)
            });
            let scratch = Scratch::new("process");
            let (mut copy, mut apply) =
                standby(&options(folder, "standby.db"), database.page_size());
            resync(&scratch, &mut database, &mut tail, &mut copy, &mut apply);
            let base = Point {
                position: tail.position(),
                content: database.checksum().unwrap(),
            };
            log.reset(base).unwrap();
            tell("lost");
        }
    }
    let (ended, is_ended) = std::sync::mpsc::channel::<()>();
    std::thread::spawn(move || {
        let mut rest = String::new();
        let _ = std::io::stdin().read_line(&mut rest);
        drop(ended);
    });
    while is_ended.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
        keep(&mut tail, &mut database, &mut log);
        tail.rest(&mut database, Duration::from_millis(20)).unwrap();
    }
    // The application is gone. What its old SQLite left without checksums is safe once the log is emptied.
    loop {
        keep(&mut tail, &mut database, &mut log);
        if !database.is_log_at_risk() {
            break;
        }
        tail.rest(&mut database, Duration::from_millis(1)).unwrap();
    }
    log.sync().unwrap();
    tell("done");
}

fn keep(tail: &mut Tail, database: &mut syncd::sqlite::Database, log: &mut Log) {
    while let Some(increment) = tail.poll(database).unwrap() {
        let mark = tail.mark(database).map(|mark| mark.to_bytes());
        log.append(
            &increment,
            mark.as_ref().map(<[u8; Mark::LENGTH]>::as_slice),
        )
        .unwrap();
    }
}
