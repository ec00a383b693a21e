//! The program itself, run by a file that a test may write again.

use std::cell::RefCell;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::Duration;

use shared::clock;

use super::{Answer, Client, PATIENCE, nobody};

static FOLDERS: AtomicU32 = AtomicU32::new(0);

/// A running `hotwarm`.
pub(crate) struct Program {
    pub(crate) listener: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) folder: PathBuf,
    child: RefCell<Child>,
}

impl Program {
    /// Runs it with one listener and what `services` says.
    pub(crate) fn start(services: &str) -> Self {
        Self::start_into(services, Stdio::null())
    }

    /// The same with somebody at its standard output.
    pub(crate) fn start_into(services: &str, stdout: Stdio) -> Self {
        let number = FOLDERS.fetch_add(1, SeqCst);
        let name = format!("hotwarm-program-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir_all(&folder).unwrap();
        let (listener, admin) = (nobody(), nobody());
        write(&folder, listener, admin, services);
        let child = spawn(&folder, &[], stdout);
        let program = Self {
            listener,
            admin,
            folder,
            child: RefCell::new(child),
        };
        program.until("it is ready", || program.is_ready());
        program
    }

    pub(crate) fn is_ready(&self) -> bool {
        std::net::TcpStream::connect(self.admin).is_ok() && self.get("/readyz").status == 200
    }

    /// Writes the file again.
    pub(crate) fn write(&self, services: &str) {
        write(&self.folder, self.listener, self.admin, services);
    }

    /// Has the file read again.
    pub(crate) fn reload(&self) -> Answer {
        let request = "POST /api/v1/reload HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n";
        Client::connect(self.admin).ask(request)
    }

    /// Writes the file again, and has it read.
    pub(crate) fn change(&self, services: &str) -> Answer {
        self.write(services);
        self.reload()
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        Client::connect(self.admin).ask(&request)
    }

    pub(crate) fn metrics(&self) -> String {
        self.get("/metrics").text()
    }

    /// The value of a metric, by how its line begins.
    pub(crate) fn metric(&self, line: &str) -> Option<f64> {
        let text = self.metrics();
        let value = text.lines().find_map(|found| found.strip_prefix(line));
        value.and_then(|value| value.trim().parse().ok())
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(self.listener)
    }

    /// Whether it has ended in good order.
    pub(crate) fn has_ended(&self) -> bool {
        let status = self.child.borrow_mut().try_wait().unwrap();
        status.is_some_and(|status| {
            assert!(status.success(), "{status}; {}", self.log());
            true
        })
    }

    /// Has another process take over, and waits until this one has ended in good order.
    pub(crate) fn take_over(&self) {
        let next = self.successor();
        let mut former = self.child.replace(next);
        let until = clock::now() + PATIENCE;
        let status = loop {
            if let Some(status) = former.try_wait().unwrap() {
                break status;
            }
            if clock::now() > until {
                let _ = former.kill();
                let _ = former.wait();
                panic!("the former one does not end; {}", self.log());
            }
            clock::pause_thread(Duration::from_millis(5));
        };
        assert!(status.success(), "{status}; {}", self.log());
        assert!(!self.has_ended());
    }

    /// Another process that tries to take over. Whoever asks for it must wait for it.
    pub(crate) fn successor(&self) -> Child {
        spawn(&self.folder, &["--takeover"], Stdio::null())
    }

    /// Another process, which is given this socket as systemd gives them.
    pub(crate) fn activated(&self, socket: &std::net::TcpListener) -> Child {
        let socket = std::os::fd::OwnedFd::from(socket.try_clone().unwrap());
        let log = File::options()
            .append(true)
            .open(self.folder.join("log"))
            .unwrap();
        // The shell has the number of the program that it becomes.
        let words =
            "exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" run --config \"$1\"";
        Command::new("sh")
            .args(["-c", words, env!("CARGO_BIN_EXE_hotwarm")])
            .arg(self.folder.join("hotwarm.toml"))
            .stdin(socket)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap()
    }

    /// From now on this one is the program.
    pub(crate) fn replace(&self, next: Child) {
        let mut former = self.child.replace(next);
        let _ = former.kill();
        let _ = former.wait();
    }

    /// Writes the file again with other words.
    pub(crate) fn rewrite(&self, words: &str, by: &str) {
        let path = self.folder.join("hotwarm.toml");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(words));
        fs::write(path, text.replace(words, by)).unwrap();
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.borrow().id()
    }

    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.borrow().id().to_string();
        let sent = Command::new("kill").args(["-s", name, &pid]).status();
        assert!(sent.unwrap().success());
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap()
    }

    /// Its memory, in KiB.
    pub(crate) fn memory(&self) -> u64 {
        let status =
            fs::read_to_string(format!("/proc/{}/status", self.child.borrow().id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let value = line.and_then(|line| line.split_whitespace().nth(1));
        value.and_then(|value| value.parse().ok()).unwrap()
    }

    pub(crate) fn until(&self, what: &str, is_so: impl Fn() -> bool) {
        let until = clock::now() + PATIENCE;
        while !is_so() {
            assert!(clock::now() < until, "in vain: {what}; {}", self.log());
            clock::pause_thread(Duration::from_millis(5));
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let child = self.child.get_mut();
        let _ = child.kill();
        let _ = child.wait();
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

fn write(folder: &std::path::Path, listener: SocketAddr, admin: SocketAddr, services: &str) {
    let (before, services) = services.split_once("---\n").unwrap_or(("", services));
    let text = format!(
        "state_dir = \"state\"\nthreads = 2\ndrain_timeout = \"2s\"\n{before}\n[admin]\nbind = \"{admin}\"\n[[listener]]\nbind = \"{listener}\"\n{services}\n"
    );
    let next = folder.join("next.toml");
    fs::write(&next, text).unwrap();
    fs::rename(next, folder.join("hotwarm.toml")).unwrap();
}

fn spawn(folder: &std::path::Path, arguments: &[&str], stdout: Stdio) -> Child {
    let log = File::options()
        .create(true)
        .append(true)
        .open(folder.join("log"))
        .unwrap();
    Command::new(env!("CARGO_BIN_EXE_hotwarm"))
        .arg("run")
        .arg("--config")
        .arg(folder.join("hotwarm.toml"))
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(log)
        .spawn()
        .unwrap()
}
