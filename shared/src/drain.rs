//! Telling every task to finish, and knowing when all have.
//!
//! Each task holds a [`Watch`]; the one [`Signal`] tells them all and then waits until the last watch is dropped.

use std::time::Duration;

use tokio::sync::{mpsc, watch};

/// The side that says "finish now".
#[derive(Debug)]
pub struct Signal {
    begin: watch::Sender<bool>,
    all_gone: mpsc::Receiver<()>,
}

/// The side that hears it. Holding one keeps the program alive until the grace is over.
#[derive(Clone, Debug)]
pub struct Watch {
    begin: watch::Receiver<bool>,
    _alive: mpsc::Sender<()>,
}

/// Returns a connected pair.
#[must_use]
pub fn channel() -> (Signal, Watch) {
    let (begin, heard) = watch::channel(false);
    let (alive, all_gone) = mpsc::channel(1);
    (
        Signal { begin, all_gone },
        Watch {
            begin: heard,
            _alive: alive,
        },
    )
}

impl Signal {
    /// Says "finish now" without waiting.
    pub fn begin(&self) {
        self.begin.send_replace(true);
    }

    /// Says "finish now" and waits until every watch is dropped, at most `grace`. Returns whether all were.
    pub async fn drain(mut self, grace: Duration) -> bool {
        self.begin();
        tokio::time::timeout(grace, self.all_gone.recv())
            .await
            .is_ok()
    }
}

impl Watch {
    /// Waits until the signal was given (or its owner is gone).
    pub async fn begun(&mut self) {
        let _ = self.begin.wait_for(|begun| *begun).await;
    }

    /// Whether the signal was given.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        *self.begin.borrow()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_waits_for_the_last_watch() {
        let (signal, watch) = channel();
        let mut second = watch.clone();
        let task = tokio::spawn(async move {
            second.begun().await;
            drop(second);
        });
        drop(watch);
        assert!(signal.drain(Duration::from_secs(5)).await);
        task.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn it_does_not_wait_longer_than_the_grace() {
        let (signal, _held) = channel();
        assert!(!signal.drain(Duration::from_secs(5)).await);
    }
}
