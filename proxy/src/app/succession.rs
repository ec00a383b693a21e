//! Another process takes over: it is lent the sockets, then given the right to decide, and only when it works does this one end.
//!
//! What it says is heard in threads of its own, because its words may be long in coming.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use shared::clock;
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use super::App;
use super::services::Frozen;
use crate::supervisor::{self, State};
use crate::takeover::{self, Successor, WORK_WITHIN};
use crate::worker::Workers;

/// A process that has gone may not have let go of the folder yet.
const RELEASE_WITHIN: Duration = Duration::from_secs(2);
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// After the next process has begun, it speaks when it has something to say.
const EVER: Duration = Duration::from_secs(365 * 24 * 3600);
/// Rest when nobody can be accepted.
const REST: Duration = Duration::from_millis(100);

/// The process that would be the next, if there is one.
pub(super) struct Next {
    door: Option<UnixListener>,
    /// Of the one that is getting ready.
    ready: Option<mpsc::Receiver<Successor>>,
}

/// What comes of waiting for one.
pub(super) enum Word {
    /// It asks.
    Asks(Successor),
    /// It has bound everything and read everything.
    Ready(Successor),
}

/// It goes on instead of this process.
pub(super) struct Succession {
    successor: Arc<Successor>,
    frozen: Vec<Frozen>,
}

impl Next {
    /// Listens for it. If that cannot be, everything else works.
    pub(super) fn listen(folder: &Path) -> Self {
        let door = takeover::listen(folder).and_then(UnixListener::from_std);
        if let Err(error) = &door {
            let folder = folder.display();
            tracing::warn!(%error, %folder, "another process will not be able to take over");
        }
        Self {
            door: door.ok(),
            ready: None,
        }
    }

    /// Waits for its next word.
    pub(super) async fn word(&mut self) -> Word {
        loop {
            let ready = async {
                match &mut self.ready {
                    Some(ready) => ready.recv().await,
                    None => std::future::pending().await,
                }
            };
            let asks = async {
                match &self.door {
                    Some(door) => door.accept().await.and_then(|(stream, _)| {
                        let peer = stream.peer_cred()?;
                        Successor::new(stream.into_std()?, peer.uid(), peer.pid())
                    }),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                ready = ready => match ready {
                    Some(successor) => return Word::Ready(successor),
                    // It did not come so far.
                    None => self.ready = None,
                },
                asks = asks => match asks {
                    Ok(successor) => return Word::Asks(successor),
                    Err(error) => {
                        tracing::warn!(%error, "somebody wanted to take over");
                        clock::sleep(REST).await;
                    }
                },
            }
        }
    }
}

impl App {
    /// Does what the other process asks for. If it goes on instead of this one, this one must end.
    pub(super) async fn answer(&mut self, word: Word, next: &mut Next) -> Option<Succession> {
        match word {
            Word::Asks(successor) => {
                match self.lend(next).await {
                    Ok(sockets) => next.ready = Some(prepare(successor, sockets)),
                    Err(why) => refuse(&successor, &why),
                }
                None
            }
            Word::Ready(successor) => {
                next.ready = None;
                self.give_way(Arc::new(successor)).await
            }
        }
    }

    async fn lend(&self, next: &Next) -> Result<Vec<OwnedFd>, String> {
        if next.ready.is_some() {
            return Err("another one is taking over at this moment".to_owned());
        }
        if let Some(why) = self.services.not_ready() {
            return Err(why);
        }
        let lent = self.workers.lend().await;
        let mut sockets = lent.map_err(|error| error.to_string())?;
        let admin = self.admin.as_fd().try_clone_to_owned();
        sockets.push(admin.map_err(|error| error.to_string())?);
        Ok(sockets)
    }

    async fn give_way(&mut self, successor: Arc<Successor>) -> Option<Succession> {
        let frozen = match self.services.give_up().await {
            Ok(frozen) => frozen,
            Err(why) => {
                refuse(&successor, &why);
                return None;
            }
        };
        let (frozen, agreed) = watch_over(&successor, frozen).await;
        if let Err(error) = agreed {
            tracing::error!(%error, "another process began to take over and failed; this one goes on");
            // It must hear of it before the folder is waited for.
            drop(successor);
            self.go_on().await;
            return None;
        }
        tracing::info!(pid = successor.pid, "another process has taken over");
        supervisor::tell(successor.pid.map_or(State::Stopping, State::Succeeded));
        Some(Succession { successor, frozen })
    }

    /// Decides again.
    async fn go_on(&mut self) {
        let until = clock::now() + RELEASE_WITHIN;
        while !self.services.take_up() {
            if clock::now() > until {
                // It is tried again at every sweep.
                tracing::error!(
                    "the other process holds the state_dir; nobody decides here until it has ended"
                );
                return;
            }
            clock::sleep(LOOK_EVERY).await;
        }
        self.services.sweep().await;
    }
}

fn refuse(successor: &Successor, why: &str) {
    tracing::warn!(why, "another process may not take over");
    successor.refuse(why);
}

/// Lends it the sockets, and has it say when it is ready.
fn prepare(successor: Successor, sockets: Vec<OwnedFd>) -> mpsc::Receiver<Successor> {
    let (tell, told) = mpsc::channel(1);
    std::thread::spawn(move || match successor.lend(&sockets) {
        Ok(()) => drop(tell.try_send(successor)),
        Err(error) => {
            tracing::warn!(%error, "another process wanted to take over and did not; nothing has changed");
        }
    });
    told
}

/// Gives it the right to decide, and waits until it works.
async fn watch_over(
    successor: &Arc<Successor>,
    frozen: Vec<Frozen>,
) -> (Vec<Frozen>, std::io::Result<()>) {
    let successor = Arc::clone(successor);
    let watching = spawn_blocking(move || {
        let agreed = begin(&successor, &frozen);
        (frozen, agreed)
    });
    let failed = |error| (Vec::new(), Err(std::io::Error::other(error)));
    watching.await.unwrap_or_else(failed)
}

fn begin(successor: &Successor, frozen: &[Frozen]) -> std::io::Result<()> {
    successor.give()?;
    loop {
        match successor.next(WORK_WITHIN)? {
            takeover::Word::Done => return successor.agree(),
            takeover::Word::Close(service) => close(successor, frozen, &service)?,
        }
    }
}

fn close(successor: &Successor, frozen: &[Frozen], service: &str) -> std::io::Result<()> {
    let released = frozen.iter().filter(|one| one.is(service));
    let released = released.map(Frozen::close).sum();
    successor.closed(service, released)
}

impl Succession {
    /// From now on this process only finishes what it has, and obeys.
    pub(super) async fn begin(self, workers: &Workers) {
        if let Err(error) = workers.bequeath().await {
            tracing::error!(%error, "some connections may be reset");
        }
        // Not waited for: it ends with the program, which is how the other one knows.
        std::thread::spawn(move || {
            while let Ok(takeover::Word::Close(service)) = self.successor.next(EVER) {
                if close(&self.successor, &self.frozen, &service).is_err() {
                    break;
                }
            }
            // Nobody is there to say when an epoch ends.
            for one in &self.frozen {
                one.close();
            }
            // The other one must not take it for the end of this process while it ends otherwise.
            loop {
                std::thread::park();
            }
        });
    }
}
