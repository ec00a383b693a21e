//! One program in a process group of its own, so that it can be killed or stopped with all that it started.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use shared::clock;

use crate::trouble::Trouble;

/// How long a killed group may take to be gone.
const GONE_WITHIN: Duration = Duration::from_secs(5);
/// How often we look whether something has ended.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// What to run.
#[derive(Clone, Debug)]
pub struct Spec {
    /// For messages.
    pub name: String,
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// What is added to its environment.
    pub env: Vec<(String, String)>,
    /// Where it runs.
    pub folder: PathBuf,
    /// Where its output goes, appended.
    pub log: PathBuf,
}

/// One program, running or not.
#[derive(Debug)]
pub struct Process {
    spec: Spec,
    child: Option<Child>,
    starts: u32,
}

impl Process {
    /// Not started yet.
    #[must_use]
    pub const fn new(spec: Spec) -> Self {
        Self {
            spec,
            child: None,
            starts: 0,
        }
    }

    /// What it runs.
    #[must_use]
    pub const fn spec(&self) -> &Spec {
        &self.spec
    }

    /// How often it was started.
    #[must_use]
    pub const fn starts(&self) -> u32 {
        self.starts
    }

    /// Starts it unless it is running.
    ///
    /// # Errors
    /// The system does not let us.
    pub fn start(&mut self) -> Result<(), Trouble> {
        if self.is_running() {
            return Ok(());
        }
        let doing = || format!("start {}", self.spec.name);
        let child = self.spawn().map_err(Trouble::system(doing()))?;
        self.child = Some(child);
        self.starts += 1;
        Ok(())
    }

    /// Whether it is there, stopped or not. Reaps it if it has ended.
    pub fn is_running(&mut self) -> bool {
        self.child.is_some() && self.ended().is_none()
    }

    /// How it ended, if it was started and has ended by itself.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        let status = self.child.as_mut()?.try_wait().ok().flatten()?;
        // The leader may have left others of its group behind; a supervisor would not leave them alone either.
        self.signal(Signal::KILL);
        Some(status)
    }

    /// Sends `signal` to the whole group. Nothing happens when there is none.
    pub fn signal(&self, signal: Signal) {
        if let Some(group) = self.group() {
            // The group may just have gone.
            let _ = kill_process_group(group, signal);
        }
    }

    /// `kill -9` of the whole group; returns when it is gone.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.reap();
    }

    /// Waits until a killed group is gone.
    pub fn reap(&mut self) {
        let Some(group) = self.group() else { return };
        if let Some(mut child) = self.child.take() {
            let _ = child.wait();
        }
        let deadline = clock::now() + GONE_WITHIN;
        while group_lives(group) && clock::now() < deadline {
            clock::pause_thread(LOOK_EVERY);
        }
    }

    /// Asks it to end (SIGTERM to its leader) and waits; kills it after `grace`. The status if it ended by itself.
    pub fn terminate(&mut self, grace: Duration) -> Option<ExitStatus> {
        if let Some(leader) = self.group() {
            let _ = rustix::process::kill_process(leader, Signal::TERM);
        }
        let status = self.wait(grace);
        self.kill();
        status
    }

    /// Waits for its end, at most `within`.
    pub fn wait(&mut self, within: Duration) -> Option<ExitStatus> {
        let deadline = clock::now() + within;
        while self.child.is_some() && clock::now() < deadline {
            if let Some(status) = self.ended() {
                return Some(status);
            }
            clock::pause_thread(LOOK_EVERY);
        }
        None
    }

    /// The last lines of its output, for messages.
    #[must_use]
    pub fn tail(&self) -> String {
        tail(&self.spec.log)
    }

    /// The process id of its leader, which is also the group's.
    #[must_use]
    pub fn group(&self) -> Option<Pid> {
        Pid::from_raw(i32::try_from(self.child.as_ref()?.id()).ok()?)
    }

    fn spawn(&self) -> io::Result<Child> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.spec.log)?;
        Command::new(&self.spec.program)
            .args(&self.spec.args)
            .envs(self.spec.env.iter().cloned())
            .current_dir(&self.spec.folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Whether anybody of the group is there and not merely waiting for init to reap it.
fn group_lives(group: Pid) -> bool {
    let Ok(processes) = fs::read_dir("/proc") else {
        return false;
    };
    let stats = processes
        .flatten()
        .filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    // The fields after the name, which is in parentheses and may hold anything: state, parent, group (proc(5)).
    let lives = |stat: String| {
        let mut fields = stat.rsplit(") ").next()?.split(' ');
        let (state, _parent, of) = (fields.next()?, fields.next()?, fields.next()?);
        (state != "Z" && of.parse() == Ok(group.as_raw_pid())).then_some(())
    };
    stats.into_iter().any(|stat| lives(stat).is_some())
}

/// The last 2,000 bytes of a file, or what is wrong with it.
#[must_use]
pub fn tail(path: &Path) -> String {
    let read = || -> io::Result<String> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(2_000)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    read().unwrap_or_else(|error| format!("({}: {error})", path.display()))
}
