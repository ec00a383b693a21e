//! gRPC as its users have it, where the tests' Python environment is there (`scripts/python.sh`).

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Python with gRPC.
pub(crate) struct Grpc {
    python: PathBuf,
    folder: PathBuf,
}

/// gRPC, if it is installed; says so if it is not.
#[expect(clippy::print_stderr, reason = "a test that does nothing says so")]
pub(crate) fn grpc() -> Option<Grpc> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/grpc");
    // Not resolved: it knows its environment by its own path.
    let python = folder.join("../../../.venv/bin/python");
    let found = Command::new(&python)
        .args(["-c", "import grpc, grpc_health.v1.health"])
        .stderr(Stdio::null())
        .status();
    if !found.is_ok_and(|status| status.success()) {
        eprintln!(
            "skipped: there is no gRPC; run scripts/python.sh proxy/tests/grpc/requirements.txt"
        );
        return None;
    }
    Some(Grpc { python, folder })
}

/// A running `node.py`; it is killed in the end.
pub(crate) struct GrpcNode {
    pub(crate) address: SocketAddr,
    child: Child,
}

impl Grpc {
    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(&self.python);
        command
            .arg(self.folder.join(name))
            .env("PYTHONDONTWRITEBYTECODE", "1");
        command
    }

    /// A node that calls itself so, and notes calls in `journal`.
    pub(crate) fn node(&self, name: &str, journal: Option<&Path>) -> GrpcNode {
        let mut child = self
            .program("node.py")
            .arg(name)
            .args(journal)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut port = String::new();
        let mut said = BufReader::new(child.stdout.take().unwrap());
        said.read_line(&mut port).unwrap();
        GrpcNode {
            address: ([127, 0, 0, 1], port.trim().parse().unwrap()).into(),
            child,
        }
    }

    /// A client that makes calls of one kind.
    pub(crate) fn client(&self, to: SocketAddr, case: &str, argument: &str) -> Command {
        let mut command = self.program("client.py");
        command.arg(to.to_string()).args([case, argument]);
        command
    }

    /// Makes calls of one kind, which must all go as they should.
    pub(crate) fn calls(&self, to: SocketAddr, case: &str, argument: &str) {
        let done = self.client(to, case, argument).output().unwrap();
        assert!(
            done.status.success(),
            "{case}: {}",
            String::from_utf8_lossy(&done.stderr)
        );
    }
}

impl GrpcNode {
    pub(crate) fn url(&self) -> String {
        format!("h2c://{}", self.address)
    }

    /// Kills it at once.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for GrpcNode {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.kill();
        }
    }
}
