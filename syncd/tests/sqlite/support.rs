//! What every test here needs: scratch folders, applications in Python, and comparing databases page by page.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};
use shared::model::{Epoch, Position};
use syncd::sqlite::{Apply, Database, Journal, Opened, Options, Tail};
use syncd::wire::checksum::{Sums, page_hash};
use syncd::wire::increment::Increment;

/// A folder that is gone afterwards.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new(name: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let unique = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder =
            std::env::temp_dir().join(format!("syncd-{name}-{}-{unique}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn options(&self, name: &str) -> Options {
        Options {
            path: self.path(name),
            lock_path: self.path(&format!("{name}.lock")),
            journal: Journal::Convert,
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A Python process that runs one line of code after another and answers each with one line.
pub(crate) struct Python {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

const SERVE: &str = "
import sqlite3, sys, time, random, os
for line in sys.stdin:
    try:
        print(repr(eval(line) if not line.startswith('!') else exec(line[1:].replace('\\\\n', '\\n'))), flush=True)
    except Exception as e:
        print('error: %s' % e, flush=True)
";

impl Python {
    pub(crate) fn start() -> Self {
        let mut child = Command::new("python3")
            .args(["-u", "-c", SERVE])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            to: child.stdin.take().unwrap(),
            from: BufReader::new(child.stdout.take().unwrap()),
            child,
        }
    }

    /// With a connection `c` to the database at `path`.
    pub(crate) fn connected(path: &Path) -> Self {
        let mut python = Self::start();
        python.run(&format!(
            "c = sqlite3.connect({:?}, timeout=5, isolation_level=None)",
            path.display()
        ));
        python
    }

    /// Says an expression and returns what it evaluates to, as Python prints it.
    pub(crate) fn ask(&mut self, expression: &str) -> String {
        self.say(expression);
        self.hear()
    }

    /// Runs a statement.
    pub(crate) fn run(&mut self, statement: &str) {
        let answer = self.ask(&format!("!{}", statement.replace('\n', "\\n")));
        assert_eq!(answer, "None", "{statement}");
    }

    /// Executes SQL on `c` and returns the rows.
    pub(crate) fn sql(&mut self, sql: &str) -> String {
        self.ask(&format!("c.execute({sql:?}).fetchall()"))
    }

    /// Executes many statements on `c`.
    pub(crate) fn script(&mut self, sql: &str) {
        let hex: String = sql.bytes().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        });
        self.run(&format!("c.executescript(bytes.fromhex('{hex}').decode())"));
    }

    pub(crate) fn say(&mut self, line: &str) {
        writeln!(self.to, "{line}").unwrap();
    }

    pub(crate) fn hear(&mut self) -> String {
        let mut answer = String::new();
        self.from.read_line(&mut answer).unwrap();
        answer.trim_end().to_owned()
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Opens a database that must be ready.
pub(crate) fn open(options: &Options) -> Box<Database> {
    for _ in 0..200 {
        match Database::open(options).unwrap() {
            Opened::Ready(database) => return database,
            Opened::NotYet(_) => shared::clock::pause_thread(Duration::from_millis(5)),
        }
    }
    panic!("{} was never ready", options.path.display());
}

/// Creates a standby's database, fences it, and begins to apply.
pub(crate) fn standby(options: &Options, page_size: u32) -> (Box<Database>, Apply) {
    let Opened::Ready(mut database) = Database::create(options, page_size).unwrap() else {
        panic!("a database that was made is not ready");
    };
    assert!(database.try_fence().unwrap());
    let apply = Apply::attach(&mut database).unwrap();
    (database, apply)
}

pub(crate) fn position(seq: u64) -> Position {
    Position {
        epoch: Epoch(1),
        generation: 0,
        seq,
    }
}

/// Everything that is committed and was not read yet.
pub(crate) fn drain(tail: &mut Tail, database: &mut Database) -> Vec<Increment> {
    let mut increments = Vec::new();
    while let Some(increment) = tail.poll(database).unwrap() {
        increments.push(increment);
    }
    increments
}

/// The page hashes of a database as any reader sees it.
pub(crate) fn hashes(path: &Path) -> Sums {
    let connection = reader(path);
    let page_size: u32 = connection
        .pragma_query_value(None, "page_size", |row| row.get(0))
        .unwrap();
    let mut sums = Sums::new(page_size);
    let mut pages = connection
        .prepare("SELECT pgno, data FROM sqlite_dbpage")
        .unwrap();
    let mut rows = pages.query([]).unwrap();
    while let Some(row) = rows.next().unwrap() {
        let number: u32 = row.get(0).unwrap();
        let page = row.get_ref(1).unwrap().as_blob().unwrap();
        sums.resize(number);
        sums.set(number, page_hash(number, page));
    }
    sums
}

pub(crate) fn reader(path: &Path) -> Connection {
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE).unwrap();
    connection.busy_timeout(Duration::from_secs(5)).unwrap();
    connection
        .pragma_update(None, "wal_autocheckpoint", 0)
        .unwrap();
    connection
}

/// Says where two databases differ; pages on the freelist count too.
pub(crate) fn assert_same(one: &Path, other: &Path) {
    let (one, other) = (hashes(one), hashes(other));
    let mut differences = String::new();
    for number in 1..=one.pages().max(other.pages()) {
        if one.hash(number) != other.hash(number) {
            let _ = write!(differences, " {number}");
        }
    }
    assert!(
        differences.is_empty() && one.checksum() == other.checksum(),
        "{} and {} pages, different:{differences}",
        one.pages(),
        other.pages()
    );
}

pub(crate) fn assert_sound(path: &Path) {
    let verdict: String = reader(path)
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .unwrap();
    assert_eq!(verdict, "ok");
}

/// Tells whoever watches.
pub(crate) fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
