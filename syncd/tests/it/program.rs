//! One real syncd with its folder, its database, and its door.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use shared::api::Status;
use shared::call::Peer;
use shared::clock;

/// However slow the machine, whatever is waited for has come about by then, or never will.
pub(crate) const WITHIN: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(3);

/// A folder that is gone afterwards.
#[derive(Debug)]
pub(crate) struct Scratch(pub(crate) PathBuf);

impl Scratch {
    pub(crate) fn new(name: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let unique = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder =
            std::env::temp_dir().join(format!("syncd-it-{name}-{}-{unique}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

/// A syncd, running or not.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) name: &'static str,
    pub(crate) address: SocketAddr,
    folder: PathBuf,
    child: Option<Child>,
}

impl Program {
    /// Writes its configuration.
    pub(crate) fn new(scratch: &Scratch, name: &'static str) -> Self {
        let folder = scratch.0.join(name);
        fs::create_dir_all(&folder).unwrap();
        let address = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let text = format!(
            "node = \"{name}\"\nlisten = \"{address}\"\nstate_dir = \"state\"\n\
             [[source]]\nname = \"db\"\nkind = \"sqlite\"\npath = \"app.db\"\n"
        );
        fs::write(folder.join("syncd.toml"), text).unwrap();
        Self {
            name,
            address,
            folder,
            child: None,
        }
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.folder.join("app.db")
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.folder.join("state")
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// Starts it, and waits until its door is open.
    pub(crate) async fn start(&mut self) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.folder.join("log"))
            .unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_syncd"))
            .args(["run", "--config", "syncd.toml"])
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
        self.until("its door is open", |_| true).await;
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// As a supervisor ends it.
    pub(crate) fn terminate(&mut self) {
        if let Some(mut child) = self.child.take() {
            kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
            assert!(child.wait().unwrap().success(), "{}", self.log());
        }
    }

    pub(crate) fn peer(&self) -> Peer {
        Peer::new(&format!("http://{}", self.address), None).unwrap()
    }

    pub(crate) async fn status(&self) -> Option<Status> {
        self.peer().get("/v1/status", WITHIN).await.ok()
    }

    /// Waits until its status is as it should be.
    pub(crate) async fn until(&self, what: &str, is_so: impl Fn(&Status) -> bool) -> Status {
        let deadline = clock::now() + WITHIN;
        loop {
            let status = self.status().await;
            if let Some(status) = status.as_ref().filter(|status| is_so(status)) {
                return status.clone();
            }
            assert!(
                clock::now() < deadline,
                "{} does not come to this: {what}; it says {status:#?}\n{}",
                self.name,
                self.log()
            );
            clock::sleep(LOOK_EVERY).await;
        }
    }

    /// Copies of diverged databases that it keeps.
    pub(crate) fn kept(&self) -> Vec<PathBuf> {
        let Ok(sets) = fs::read_dir(self.state().join("diverged")) else {
            return Vec::new();
        };
        let copies = sets.map(|set| set.unwrap().path().join("app.db"));
        copies.filter(|copy| Path::exists(copy)).collect()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
    }
}
