//! A primary and a standby in one process, with threads where syncd has them: capture, apply, and a checkpointer for each.

use std::io::Read as _;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use syncd::sqlite::{
    Apply, Checkpointer, Database, End, Options, PageReader, Stage, StageBase, Tail, Tended,
};
use syncd::wire::increment::Increment;

use crate::support::{Scratch, drain, open, position, standby};

/// Tends a database until it is dropped, and keeps what was worst.
pub(crate) struct Tender {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Tale>>,
}

/// What a checkpointer did all in all.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tale {
    pub(crate) copied: u64,
    pub(crate) resets: u32,
    pub(crate) holds: u32,
    pub(crate) longest_hold: Duration,
    pub(crate) longest_trim: Duration,
    pub(crate) trimmed: u64,
    pub(crate) largest_log: u64,
}

impl Tender {
    pub(crate) fn start(database: &Database) -> Self {
        let mut checkpointer = Checkpointer::open(database).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut tale = Tale::default();
            while !stopped.load(Ordering::Relaxed) {
                let tended = checkpointer.tend().unwrap();
                tale.add(&tended);
                std::thread::park_timeout(tended.again_after);
            }
            tale
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }

    pub(crate) fn stop(mut self) -> Tale {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Tender {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Tale {
    fn add(&mut self, tended: &Tended) {
        self.copied += u64::from(tended.copied);
        self.resets += u32::from(tended.reset);
        self.trimmed += tended.trimmed;
        self.largest_log = self.largest_log.max(tended.log_bytes);
        if let Some(held) = tended.held {
            self.holds += tended.holds;
            if tended.trimmed > 0 {
                self.longest_trim = self.longest_trim.max(held);
            } else {
                self.longest_hold = self.longest_hold.max(held);
            }
        }
    }
}

/// Makes a standby of a primary that is being written: pages in short reads, then the increments of the meantime.
pub(crate) fn snapshot(
    scratch: &Scratch,
    primary: &mut Database,
    tail: &mut Tail,
    options: &Options,
) -> (Box<Database>, Apply) {
    let (mut database, mut apply) = standby(options, primary.page_size());
    resync(scratch, primary, tail, &mut database, &mut apply);
    (database, apply)
}

/// Brings a standby whose content may be anything to where the primary is.
pub(crate) fn resync(
    scratch: &Scratch,
    primary: &mut Database,
    tail: &mut Tail,
    database: &mut Database,
    apply: &mut Apply,
) -> usize {
    let mut since = drain(tail, primary);
    since.clear();
    let base = StageBase {
        lineage: 1,
        position: tail.position(),
        content: primary.checksum().unwrap(),
        pages: primary.hashes().pages(),
        page_size: primary.page_size(),
    };
    let path = scratch.path("stage");
    let mut stage = Stage::open(&path, base).unwrap();
    let mut reader = PageReader::open(primary).unwrap();
    let (theirs, ours) = (primary.hashes(), database.hashes());
    let mut first = 1;
    while first <= base.pages {
        let wanted: Vec<_> = theirs
            .range(first, 500)
            .iter()
            .zip(
                ours.range(first, 500)
                    .into_iter()
                    .map(Some)
                    .chain(std::iter::repeat(None)),
            )
            .zip(first..)
            .filter(|((theirs, ours), _)| Some(**theirs) != *ours)
            .map(|(_, number)| number)
            .collect();
        let mut rest = &wanted[..];
        while !rest.is_empty() {
            let (pages, done) = reader.read(rest).unwrap();
            for (number, page) in pages {
                stage.put(number, &page).unwrap();
            }
            rest = &rest[done..];
            since.extend(drain(tail, primary));
        }
        first += 500;
    }
    since.extend(drain(tail, primary));
    let end = since.last().map_or(
        End {
            position: base.position,
            pages: base.pages,
            content: base.content,
        },
        End::of,
    );
    let staged = stage.len();
    let mut batch = apply.resync(database, &stage, end).unwrap();
    for increment in &since {
        batch.push(increment).unwrap();
    }
    batch.commit().unwrap();
    stage.remove().unwrap();
    staged
}

/// A Python program beside the test.
pub(crate) struct Program {
    child: Child,
    stdin: Option<ChildStdin>,
    said: Option<JoinHandle<String>>,
}

impl Program {
    pub(crate) fn start(script: &str, arguments: &[&str]) -> Self {
        let script = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("tests/sqlite")
            .join(script);
        let mut child = Command::new("python3")
            .arg(script)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let said = std::thread::spawn(move || {
            let mut said = String::new();
            stdout.read_to_string(&mut said).unwrap();
            said
        });
        Self {
            stdin: child.stdin.take(),
            said: Some(said),
            child,
        }
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Ends its input and returns what it says.
    pub(crate) fn finish(mut self) -> String {
        drop(self.stdin.take());
        let said = self.said.take().unwrap().join().unwrap();
        assert!(self.child.wait().unwrap().success());
        said
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Applies what it is sent, in batches of whatever is waiting, until the sender is gone.
pub(crate) fn apply_all(
    mut database: Box<Database>,
    mut apply: Apply,
    from: Receiver<Increment>,
) -> JoinHandle<(Box<Database>, Apply)> {
    std::thread::spawn(move || {
        let mut waiting: Vec<Increment> = Vec::new();
        while let Ok(increment) = from.recv() {
            waiting.push(increment);
            while waiting.len() < 200
                && let Ok(increment) = from.try_recv()
            {
                waiting.push(increment);
            }
            while !waiting.last().unwrap().last {
                waiting.push(from.recv().unwrap());
            }
            apply.apply(&mut database, &waiting).unwrap();
            waiting.clear();
        }
        (database, apply)
    })
}

/// What a chaotic hour of an application comes to on the standby.
pub(crate) struct Chaos {
    pub(crate) seed: u64,
    pub(crate) seconds: f64,
    pub(crate) workers: u64,
    pub(crate) vacuum: f64,
    pub(crate) page_size: u32,
    pub(crate) auto_vacuum: &'static str,
    pub(crate) journal: &'static str,
}

impl Chaos {
    /// Runs it and returns the two databases, page for page the same if all is well, and what the programs said.
    pub(crate) fn run(&self, scratch: &Scratch) -> Outcome {
        let primary = scratch.options("primary.db");
        let second = scratch.options("standby.db");
        let path = primary.path.to_str().unwrap().to_owned();
        let size = self.page_size.to_string();
        Program::start("init.py", &[&path, &size, self.auto_vacuum, self.journal]).finish();
        let seconds = self.seconds.to_string();
        let vacuum = self.vacuum.to_string();
        let mut workers: Vec<_> = (0..self.workers)
            .map(|worker| {
                let seed = (self.seed * 100 + worker).to_string();
                Program::start("chaos.py", &[&path, &seconds, &seed, &vacuum])
            })
            .collect();

        let mut database = open(&primary);
        let (mut tail, _) = Tail::attach(&mut database, None).unwrap();
        tail.stand_at(position(0));
        let tender = Tender::start(&database);
        let (copy, apply) = snapshot(scratch, &mut database, &mut tail, &second);
        let copy_tender = Tender::start(&copy);
        let reader = Program::start("reader.py", &[second.path.to_str().unwrap(), "1000000"]);
        let (to, from): (SyncSender<_>, _) = sync_channel(1000);
        let applying = apply_all(copy, apply, from);
        while workers.iter_mut().any(Program::is_running) {
            while let Some(increment) = tail.poll(&mut database).unwrap() {
                to.send(increment).unwrap();
            }
            tail.rest(&mut database, Duration::from_millis(20)).unwrap();
        }
        drain(&mut tail, &mut database)
            .into_iter()
            .for_each(|increment| to.send(increment).unwrap());
        drop(to);
        let (copy, apply) = applying.join().unwrap();
        assert_eq!(apply.position(), Some(tail.position()));
        assert_eq!(copy.checksum(), database.checksum());
        let said = workers.into_iter().map(Program::finish).collect();
        Outcome {
            said,
            reader: reader.finish(),
            primary: tender.stop(),
            standby: copy_tender.stop(),
            position: tail.position().seq,
            databases: (database, copy),
        }
    }
}

/// Of a [`Chaos`].
pub(crate) struct Outcome {
    pub(crate) said: Vec<String>,
    pub(crate) reader: String,
    pub(crate) primary: Tale,
    pub(crate) standby: Tale,
    pub(crate) position: u64,
    pub(crate) databases: (Box<Database>, Box<Database>),
}
