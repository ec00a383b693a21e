//! What systemd is told of this process (`sd_notify`): ready, reloading, stopping, succeeded by another. Without systemd nothing is told to nobody.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// What there is to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Requests are taken.
    Ready,
    /// The configuration is read again.
    Reloading,
    /// Requests under way are finished, and no new ones taken.
    Stopping,
    /// The process of this number goes on instead.
    Succeeded(i32),
}

impl State {
    fn words(self) -> String {
        match self {
            Self::Ready => "READY=1".to_owned(),
            Self::Reloading => "RELOADING=1".to_owned(),
            Self::Stopping => "STOPPING=1".to_owned(),
            Self::Succeeded(pid) => format!("MAINPID={pid}"),
        }
    }
}

/// Tells it to whoever `NOTIFY_SOCKET` names, if there is such a variable.
pub fn tell(state: State) {
    if let Some(socket) = env::var_os("NOTIFY_SOCKET")
        && let Err(error) = send(&socket, state.words().as_bytes())
    {
        tracing::warn!(%error, ?state, "tell systemd");
    }
}

/// One datagram to a path, or to an abstract name if it begins with `@`.
fn send(socket: &OsStr, words: &[u8]) -> io::Result<()> {
    let address = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    let from = UnixDatagram::unbound()?;
    from.set_nonblocking(true)?;
    from.send_to_addr(words, &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_reach_a_path_and_an_abstract_name() {
        let name = format!("hotwarm-supervisor-{}", std::process::id());
        let path = env::temp_dir().join(&name);
        let abstracted = SocketAddr::from_abstract_name(&name).unwrap();
        let heard = |at: UnixDatagram, socket: &OsStr| {
            send(socket, State::Ready.words().as_bytes()).unwrap();
            let mut words = [0; 64];
            let length = at.recv(&mut words).unwrap();
            assert_eq!(&words[..length], b"READY=1");
        };
        heard(UnixDatagram::bind(&path).unwrap(), path.as_os_str());
        std::fs::remove_file(path).unwrap();
        let at = UnixDatagram::bind_addr(&abstracted).unwrap();
        heard(at, OsStr::new(&format!("@{name}")));
    }
}
