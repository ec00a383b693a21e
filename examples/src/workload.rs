//! A Python program of `workloads/` at work: it runs until its standard input is closed and then says in JSON what it found.

use std::process::{Child, Command, Stdio};

use serde::de::DeserializeOwned;

use crate::guard::MARK;
use crate::programs::{Programs, root};
use crate::trouble::Trouble;

/// A running workload. Killed when dropped.
#[derive(Debug)]
pub struct Workload {
    name: String,
    child: Child,
}

impl Workload {
    /// Starts `workloads/FILE ARGS…`; `mark` is the rehearsal's.
    ///
    /// # Errors
    /// The system does not let us.
    pub fn start(
        programs: &Programs,
        mark: &str,
        file: &str,
        args: &[&str],
    ) -> Result<Self, Trouble> {
        let name = format!("{file} {}", args.join(" "));
        let child = Command::new(&programs.python)
            .arg(root().join("examples/workloads").join(file))
            .args(args)
            .env(MARK, mark)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .map_err(Trouble::system(format!("start {name}")))?;
        Ok(Self { name, child })
    }

    /// Tells it to end and returns what it found.
    ///
    /// # Errors
    /// It failed, or said something else.
    pub fn finish<T: DeserializeOwned>(mut self) -> Result<T, Trouble> {
        drop(self.child.stdin.take());
        let mut said = Vec::new();
        if let Some(output) = &mut self.child.stdout {
            std::io::Read::read_to_end(output, &mut said)
                .map_err(Trouble::system(format!("read from {}", self.name)))?;
        }
        serde_json::from_slice(&said).map_err(|error| {
            let said = String::from_utf8_lossy(&said);
            Trouble::Nonsense(format!("{} said {said:?}: {error}", self.name))
        })
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        // It has ended already unless something went wrong here.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
