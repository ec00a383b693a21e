//! What systemd is told of this process (`sd_notify`): ready, reloading, stopping, succeeded by another. And the sockets that
//! it gives. Without systemd nothing is told to nobody, and nothing is given.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process;

use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use socket2::SockRef;

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

/// The first descriptor that systemd gives.
const FIRST: i32 = 3;
/// More sockets than anybody gives.
const SOCKETS_MOST: i32 = 1024;

/// The sockets that systemd listens on for this process (socket activation: `LISTEN_PID`, `LISTEN_FDS`); none without it.
///
/// Each is a descriptor of this process's own: systemd's stay open, too, as systemd's sockets do anyway.
///
/// # Errors
/// Something was given that is no listening TCP socket, or cannot be had.
pub fn sockets() -> Result<Vec<TcpListener>, String> {
    let number = |name: &str| env::var_os(name)?.to_str()?.parse().ok();
    // Another process's are passed on in the environment, too.
    if number("LISTEN_PID") != i32::try_from(process::id()).ok() {
        return Ok(Vec::new());
    }
    let count = number("LISTEN_FDS").unwrap_or(0).min(SOCKETS_MOST);
    let given = (FIRST..FIRST + count).map(|descriptor| {
        own(descriptor).map_err(|error| {
            format!(
                "LISTEN_FDS: descriptor {descriptor}: {error}; the socket unit must name TCP listeners (ListenStream=)"
            )
        })
    });
    given.collect()
}

/// A descriptor of our own for what `descriptor` is. Asked of the system as of another process, because a bare number proves
/// nothing.
fn own(descriptor: i32) -> io::Result<TcpListener> {
    let ourselves = pidfd_open(getpid(), PidfdFlags::empty())?;
    let socket = TcpListener::from(pidfd_getfd(
        ourselves,
        descriptor,
        PidfdGetfdFlags::empty(),
    )?);
    socket.local_addr()?;
    if !SockRef::from(&socket).is_listener()? {
        return Err(io::Error::other("it does not listen"));
    }
    Ok(socket)
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
        let name = format!("hotwarm-supervisor-{}", process::id());
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

    #[test]
    fn only_what_listens_becomes_a_listener() {
        use std::os::fd::AsRawFd;
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = own(listener.as_raw_fd()).unwrap();
        assert_eq!(ours.local_addr().unwrap(), listener.local_addr().unwrap());
        let client = std::net::TcpStream::connect(ours.local_addr().unwrap()).unwrap();
        ours.accept().unwrap();
        assert!(own(client.as_raw_fd()).is_err());
        assert!(own(9999).is_err());
    }
}
