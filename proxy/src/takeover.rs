//! One process gives its listening sockets, and the right to decide, to the next one: what they say to each other over a Unix
//! socket in the `state_dir`, and the rule that makes it safe.
//!
//! The new one asks and is lent every listening socket. When it is `ready`, the former one ends its control plane, lets go of
//! the folder, and says `yours`. When the new one works, it says `done`; the former one says `agreed`, accepts nobody any more, and
//! finishes what it has. Until `agreed` a connection that ends means that nothing has happened. After it, the connection stays
//! until the former one has ended, so that the new one knows of it, and can have it send no more requests to a service (`close`)
//! before that service's epoch ends.

mod talk;

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Error, ErrorKind};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use self::talk::Talk;

/// The socket's name in the folder.
const SOCKET: &str = "takeover.sock";
/// A new process may take so long over its listeners and certificates.
const READY_WITHIN: Duration = Duration::from_secs(10);
/// The control plane may take so long to end or to begin.
pub const WORK_WITHIN: Duration = Duration::from_secs(10);
/// The former process answers at once.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);

/// Listens for processes that want to take over.
///
/// # Errors
/// What the system says; a path of more than 107 bytes cannot be had.
pub fn listen(folder: &Path) -> io::Result<UnixListener> {
    let (path, beside) = (folder.join(SOCKET), folder.join("takeover.new"));
    match std::fs::remove_file(&beside) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => (),
    }
    let listener = UnixListener::bind(&beside)?;
    std::fs::set_permissions(&beside, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(beside, path)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// The process before this one, which gave it its sockets.
pub struct Predecessor {
    talk: Mutex<Talk>,
    agreed: AtomicBool,
    gone: AtomicBool,
    released: Mutex<BTreeMap<String, u64>>,
}

impl fmt::Debug for Predecessor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Predecessor")
            .field("gone", &self.gone)
            .finish_non_exhaustive()
    }
}

impl Predecessor {
    /// Asks whoever runs with this folder for its sockets. Blocks, for seconds at most.
    ///
    /// # Errors
    /// Nobody runs there, or it refuses; in words.
    pub fn ask(folder: &Path) -> Result<(Self, Vec<TcpListener>), String> {
        let path = folder.join(SOCKET);
        let stream = UnixStream::connect(&path).map_err(|error| {
            format!(
                "take over: {}: {error}; is a hotwarm with this state_dir running? Without one, start without --takeover",
                path.display()
            )
        })?;
        let talk = Talk::new(stream).map_err(broken)?;
        let mut sockets = Vec::new();
        loop {
            let (word, socket) = talk.hear_with_socket(WORK_WITHIN).map_err(broken)?;
            match (word.as_str(), socket) {
                ("socket", Some(socket)) => sockets.push(TcpListener::from(socket)),
                ("all", None) => break,
                _ => return Err(refused(&word)),
            }
        }
        let former = Self {
            talk: Mutex::new(talk),
            agreed: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            released: Mutex::default(),
        };
        Ok((former, sockets))
    }

    /// Everything that could fail is done; waits for the right to decide. Blocks, for seconds at most.
    ///
    /// # Errors
    /// It refuses, or is gone; in words.
    pub fn succeed(&self) -> Result<(), String> {
        self.expect("ready", "yours")
    }

    /// This process works; the former one ends now. Blocks, for seconds at most.
    ///
    /// # Errors
    /// It does not agree, and goes on itself: this process must end at once.
    pub fn done(&self) -> Result<(), String> {
        self.expect("done", "agreed")?;
        self.agreed.store(true, SeqCst);
        Ok(())
    }

    fn expect(&self, say: &str, hear: &str) -> Result<(), String> {
        let talk = self.talk.lock().map_err(|_| broken("it panicked"))?;
        talk.say(say).map_err(broken)?;
        let word = talk.hear(WORK_WITHIN).map_err(broken)?;
        if word == hear {
            Ok(())
        } else {
            Err(refused(&word))
        }
    }

    /// Has it send no more requests to `service`. Blocks, for seconds at most.
    ///
    /// # Errors
    /// It does not answer, and may go on sending.
    pub fn close(&self, service: &str) -> io::Result<()> {
        let result = self.try_close(service);
        if result.is_err() && self.is_gone() {
            return Ok(());
        }
        result.map_err(|error| {
            Error::new(
                error.kind(),
                format!("the process before this one still sends requests to it and does not answer: {error}; end it"),
            )
        })
    }

    fn try_close(&self, service: &str) -> io::Result<()> {
        let talk = self.talk.lock().map_err(|_| Error::other("it panicked"))?;
        talk.say(&format!("close {service}"))?;
        let word = loop {
            let word = talk.hear(CLOSE_WITHIN)?;
            // Of an answer that came too late the last time.
            if word.split(' ').nth(2) == Some(service) {
                break word;
            }
        };
        let mut words = word.split(' ');
        let released = words.nth(1).and_then(|count| count.parse().ok());
        let released = released.ok_or_else(|| Error::other(word.clone()))?;
        if let Ok(mut all) = self.released.lock() {
            all.insert(service.to_owned(), released);
        }
        Ok(())
    }

    /// How many responses to writes it had released since its last look at the primary, when it was closed.
    #[must_use]
    pub fn released(&self, service: &str) -> u64 {
        let all = self.released.lock().ok();
        all.and_then(|all| all.get(service).copied())
            .unwrap_or_default()
    }

    /// Whether it has ended, with every request of its own.
    pub fn is_gone(&self) -> bool {
        if !self.gone.load(SeqCst)
            && self.agreed.load(SeqCst)
            && let Ok(talk) = self.talk.try_lock()
            && talk.is_over()
        {
            self.gone.store(true, SeqCst);
        }
        self.gone.load(SeqCst)
    }
}

fn broken(error: impl fmt::Display) -> String {
    format!(
        "take over: the running hotwarm does not speak to this one: {error}; it goes on as before"
    )
}

fn refused(word: &str) -> String {
    let why = word.strip_prefix("no ").unwrap_or(word);
    format!("take over: the running hotwarm refuses: {why}; it goes on as before")
}

/// The process that takes over.
#[derive(Debug)]
pub struct Successor {
    talk: Talk,
    /// Its number.
    pub pid: Option<i32>,
}

/// What it says after the right to decide is its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    /// It works.
    Done,
    /// This service must get no more requests.
    Close(String),
}

impl Successor {
    /// Whoever has connected: a process of this user and number, as the system says.
    ///
    /// # Errors
    /// It is another user's, or gone.
    pub fn new(stream: UnixStream, user: u32, pid: Option<i32>) -> io::Result<Self> {
        let ours = rustix::process::geteuid();
        if user != ours.as_raw() && user != 0 {
            return Err(Error::new(
                ErrorKind::PermissionDenied,
                format!("user {user} may not"),
            ));
        }
        stream.set_nonblocking(false)?;
        Ok(Self {
            talk: Talk::new(stream)?,
            // A process of another namespace has no number here.
            pid: pid.filter(|pid| *pid > 0),
        })
    }

    /// Lends it these, and waits until it is ready. Blocks, for seconds at most.
    ///
    /// # Errors
    /// It does not come so far.
    pub fn lend(&self, sockets: &[OwnedFd]) -> io::Result<()> {
        for socket in sockets {
            self.talk.say_with_socket("socket", socket)?;
        }
        self.talk.say("all")?;
        match self.talk.hear(READY_WITHIN)? {
            word if word == "ready" => Ok(()),
            other => Err(Error::other(format!("it says {other}"))),
        }
    }

    /// Does not let it take over.
    pub fn refuse(&self, why: &str) {
        // It may have gone.
        let _ = self.talk.say(&format!("no {why}"));
    }

    /// The right to decide is its own.
    ///
    /// # Errors
    /// It is gone.
    pub fn give(&self) -> io::Result<()> {
        self.talk.say("yours")
    }

    /// What it says next; blocks until then, at most `within`.
    ///
    /// # Errors
    /// It is gone, or says nothing.
    pub fn next(&self, within: Duration) -> io::Result<Word> {
        let word = self.talk.hear(within)?;
        match word.strip_prefix("close ") {
            Some(service) => Ok(Word::Close(service.to_owned())),
            None if word == "done" => Ok(Word::Done),
            None => Err(Error::other(format!("it says {word}"))),
        }
    }

    /// This process ends.
    ///
    /// # Errors
    /// It is gone.
    pub fn agree(&self) -> io::Result<()> {
        self.talk.say("agreed")
    }

    /// No more requests are sent to `service`; so many responses to writes were released that nobody has reported.
    ///
    /// # Errors
    /// It is gone.
    pub fn closed(&self, service: &str, released: u64) -> io::Result<()> {
        self.talk.say(&format!("closed {released} {service}"))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    fn ourselves() -> u32 {
        rustix::process::geteuid().as_raw()
    }

    #[test]
    fn another_user_may_not_take_over_and_root_may() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let stranger = Successor::new(ours, ourselves() + 1, Some(7)).unwrap_err();
        assert_eq!(stranger.kind(), ErrorKind::PermissionDenied);
        let root = Successor::new(theirs, 0, Some(0)).unwrap();
        assert_eq!(root.pid, None);
    }

    fn pair() -> (Predecessor, Successor) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let former = Predecessor {
            talk: Mutex::new(Talk::new(ours).unwrap()),
            agreed: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            released: Mutex::default(),
        };
        (former, Successor::new(theirs, ourselves(), None).unwrap())
    }

    #[test]
    fn a_former_process_that_has_not_agreed_is_not_gone_when_it_is_silent() {
        let (former, next) = pair();
        drop(next);
        assert!(!former.is_gone());
        assert!(former.close("shop").is_err());
        assert!(former.done().is_err());
    }

    #[test]
    fn after_it_has_agreed_its_end_is_noticed_and_closing_counts_what_it_released() {
        let (former, next) = pair();
        let other = std::thread::spawn(move || {
            assert_eq!(next.next(WORK_WITHIN).unwrap(), Word::Done);
            next.agree().unwrap();
            assert_eq!(next.next(WORK_WITHIN).unwrap(), Word::Close("shop".into()));
            next.closed("shop", 7).unwrap();
            next
        });
        former.done().unwrap();
        former.close("shop").unwrap();
        assert_eq!((former.released("shop"), former.released("other")), (7, 0));
        let next = other.join().unwrap();
        assert!(!former.is_gone());
        drop(next);
        assert!(former.is_gone());
        former.close("other").unwrap();
    }

    #[test]
    fn sockets_arrive_and_accept() {
        let folder = std::env::temp_dir().join(format!("hotwarm-lend-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        assert!(Predecessor::ask(&folder).unwrap_err().contains("running?"));
        let door = listen(&folder).unwrap();
        door.set_nonblocking(false).unwrap();
        let lent: Vec<_> = (0..3)
            .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
            .collect();
        let addresses: Vec<_> = lent.iter().map(|one| one.local_addr().unwrap()).collect();
        let other = std::thread::spawn(move || {
            let next = door.accept().unwrap().0;
            let next = Successor::new(next, ourselves(), None).unwrap();
            let lent: Vec<OwnedFd> = lent.into_iter().map(OwnedFd::from).collect();
            next.lend(&lent).unwrap();
            next.refuse("not now");
        });
        let (former, sockets) = Predecessor::ask(&folder).unwrap();
        assert!(former.succeed().unwrap_err().contains("not now"));
        other.join().unwrap();
        for (socket, address) in sockets.iter().zip(addresses) {
            let mut client = std::net::TcpStream::connect(address).unwrap();
            client.write_all(b"x").unwrap();
            socket.accept().unwrap().0.read_exact(&mut [0]).unwrap();
        }
        assert_eq!(sockets.len(), 3);
        std::fs::remove_dir_all(folder).unwrap();
    }
}
