//! Nothing is left behind, whatever becomes of us: a shell of our own waits for our end and clears up after us.
//!
//! Every process of a rehearsal carries a mark in its environment, which its children inherit. The guard reads from a pipe
//! whose other end only we hold. When it closes (we are done, have panicked, or were killed), the guard kills whatever
//! carries the mark, and removes the folder if we did not get round to it.

use std::io::{self, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::trouble::Trouble;

/// The environment variable that marks a rehearsal's processes.
pub const MARK: &str = "HOTWARM_REHEARSAL";

/// Waits for end of input; then kills, again and again until nobody is left (at most 100 times, 2 s); then removes the
/// folders, unless we said that we are done: then they are ours to remove, or to keep for somebody to look at.
const SCRIPT: &str = r#"
trap '' INT TERM HUP
said=$(cat)
round=0
while [ $round -lt 100 ]; do
    found=$(grep -lsz "^$1=$2\$" /proc/[0-9]*/environ | sed 's|/proc/||; s|/environ||')
    [ -n "$found" ] || break
    kill -9 $found 2>/dev/null
    sleep 0.02
    round=$((round + 1))
done
shift 2
[ "$said" = done ] || rm -rf "$@"
"#;

/// Clears up when dropped, and also when this process ends in any other way.
#[derive(Debug)]
pub struct Guard {
    mark: String,
    shell: Child,
}

impl Guard {
    /// Begins to watch. The folders are removed should this process end without dropping the guard.
    ///
    /// # Errors
    /// The shell cannot be started.
    pub fn new(folders: &[&Path]) -> Result<Self, Trouble> {
        let mark = format!("{}-{:x}", std::process::id(), shared::clock::unix_nanos());
        let shell = start(&mark, folders).map_err(Trouble::system("start the guard"))?;
        Ok(Self { mark, shell })
    }

    /// The value of [`MARK`] for the processes to guard.
    #[must_use]
    pub fn mark(&self) -> &str {
        &self.mark
    }
}

/// The shell must not carry the mark itself, and sits in a process group of its own so that Ctrl-C does not reach it.
fn start(mark: &str, folders: &[&Path]) -> io::Result<Child> {
    use std::os::unix::process::CommandExt;
    Command::new("/bin/sh")
        .args(["-c", SCRIPT, "guard", MARK, mark])
        .args(folders)
        .env_remove(MARK)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(mut pipe) = self.shell.stdin.take() {
            // A guard that is gone has nothing to be told.
            let _ = pipe.write_all(b"done\n");
        }
        let _ = self.shell.wait();
    }
}
