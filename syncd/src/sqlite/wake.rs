//! Sleeping until something is written to the log: inotify wakes from idleness, a kick wakes at once, truth is always the wal-index.
//!
//! A watch costs the writing application up to a third of its CPU at a thousand commits a second, so it fires once and is armed only
//! when nothing has been committed for a while.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::inotify;

/// Wakes the thread that waits for commits, from any thread. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Kick(Arc<OwnedFd>);

impl Kick {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(eventfd(
            0,
            EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK,
        )?)))
    }

    /// Wakes it. Kicks before it sleeps are not lost; several count as one.
    pub fn kick(&self) {
        // The counter can only be full if it is already readable.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    fn clear(&self) {
        let _ = rustix::io::read(&self.0, &mut [0_u8; 8]);
    }
}

/// What ended a sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Woken {
    Kicked,
    Written,
    Timeout,
}

/// A watch on one log file.
#[derive(Debug)]
pub(super) struct Watch {
    inotify: Option<OwnedFd>,
    armed: bool,
}

impl Watch {
    /// A watch on nothing yet.
    pub(super) fn new() -> Self {
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        Self {
            inotify: inotify::init(flags).ok(),
            armed: false,
        }
    }

    /// The next write to `log` will end a sleep; the caller looks once more before it sleeps. False if the system does not let us watch.
    pub(super) fn arm(&mut self, log: &Path) -> bool {
        if !self.armed
            && let Some(inotify) = &self.inotify
        {
            let flags = inotify::WatchFlags::MODIFY | inotify::WatchFlags::ONESHOT;
            self.armed = inotify::add_watch(inotify, log, flags).is_ok();
        }
        self.armed
    }

    /// Sleeps until a write to the watched log, a kick, or for `most`.
    pub(super) fn sleep(&mut self, kick: &Kick, most: Duration) -> Woken {
        let mut fds = vec![PollFd::from_borrowed_fd(kick.0.as_fd(), PollFlags::IN)];
        let watched = self.inotify.as_ref().filter(|_| self.armed);
        fds.extend(watched.map(|inotify| PollFd::from_borrowed_fd(inotify.as_fd(), PollFlags::IN)));
        let most = Timespec {
            tv_sec: i64::try_from(most.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: most.subsec_nanos().into(),
        };
        // An interrupted wait is a short one; whoever waits looks again anyway.
        let _ = poll(&mut fds, Some(&most));
        let is_ready = |at: usize| {
            fds.get(at)
                .is_some_and(|fd: &PollFd<'_>| !fd.revents().is_empty())
        };
        let (kicked, written) = (is_ready(0), is_ready(1));
        if kicked {
            kick.clear();
        }
        if written && let Some(inotify) = &self.inotify {
            self.armed = false;
            let mut buffer = [std::mem::MaybeUninit::uninit(); 512];
            let mut events = inotify::Reader::new(inotify, &mut buffer);
            while events.next().is_ok() {}
        }
        match (written, kicked) {
            (true, _) => Woken::Written,
            (false, true) => Woken::Kicked,
            (false, false) => Woken::Timeout,
        }
    }
}
