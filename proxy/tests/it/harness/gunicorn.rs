//! A real application server, where the tests' Python environment is there (`scripts/python.sh`).

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

/// Answers with the `Host` field and the body.
const APP: &str = r#"
def app(environ, start):
    body = environ["HTTP_HOST"].encode() + environ["wsgi.input"].read()
    start("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"#;

static FOLDERS: AtomicU32 = AtomicU32::new(0);

/// The program and a folder with an application.
pub(crate) struct Gunicorn {
    program: PathBuf,
    folder: PathBuf,
}

/// A running one; it is killed in the end, and its workers with it.
pub(crate) struct Running(Child);

/// Gunicorn, if it is installed.
pub(crate) fn gunicorn() -> Option<Gunicorn> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let program = root.join(".venv/bin/gunicorn").canonicalize().ok()?;
    let number = FOLDERS.fetch_add(1, SeqCst);
    let name = format!("hotwarm-gunicorn-{}-{number}", std::process::id());
    let folder = std::env::temp_dir().join(name);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("app.py"), APP).unwrap();
    Some(Gunicorn { program, folder })
}

impl Gunicorn {
    pub(crate) fn start(&self, options: &[&str]) -> Running {
        let child = Command::new(&self.program)
            .current_dir(&self.folder)
            .args(["--worker-class", "gthread", "--threads", "2"])
            .args(["--no-control-socket", "--log-level", "error", "app:app"])
            .args(options)
            .stdin(Stdio::null())
            .process_group(0)
            .spawn();
        Running(child.unwrap())
    }
}

impl Drop for Gunicorn {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

impl Running {
    /// Kills it and its workers at once.
    pub(crate) fn kill(&mut self) {
        let group = format!("-{}", self.0.id());
        let killed = Command::new("kill").args(["-9", "--", &group]).status();
        assert!(killed.unwrap().success());
        self.0.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            self.kill();
        }
    }
}
