//! What arrives for a standby goes to its log first: appended, synced in groups, and only then acknowledged.

use std::sync::mpsc::Sender;

use shared::model::Position;
use tokio::sync::{mpsc, watch};

use super::{Command, Shared};
use crate::log::LogError;
use crate::wire::increment::Increment;

/// At most so many batches are synced at once.
const GROUP: usize = 32;

/// Increments of one session.
#[derive(Debug)]
pub(super) struct Batch {
    /// The turn that the session was given. When it is over, nothing of the session is appended any more.
    pub(super) turn: u64,
    pub(super) increments: Vec<Increment>,
}

pub(super) fn run(
    mut batches: mpsc::Receiver<Batch>,
    shared: &Shared,
    spooled: &watch::Sender<Result<Option<Position>, String>>,
    keeper: &Sender<Command>,
) {
    let syncer = shared.log().syncer();
    let mut group = Vec::new();
    // What comes after an increment that failed does not continue the log, until the session notices and begins anew.
    let mut failed_turn = None;
    while batches.blocking_recv_many(&mut group, GROUP) > 0 {
        // Held until the group is on disk and known to be: when a turn ends, all that may ever be acknowledged of it is known.
        let turn = shared.turn();
        let mut failure = None;
        let mut is_idle = true;
        for batch in group.drain(..) {
            if batch.turn != *turn || failed_turn == Some(batch.turn) {
                continue;
            }
            is_idle = false;
            let mut increments = batch.increments.iter();
            if let Err(error) = increments.try_for_each(|one| append(shared, one)) {
                failed_turn = Some(batch.turn);
                failure = Some(error.to_string());
            }
        }
        if is_idle {
            continue;
        }
        let result = match (syncer.sync(), failure) {
            (Err(error), _) => Err(error.to_string()),
            (Ok(_), Some(failure)) => Err(failure),
            (Ok(end), None) => Ok(end.map(|end| end.position)),
        };
        if let Ok(position) = &result {
            shared.set_synced(*position);
        }
        let _ = spooled.send_replace(result);
        drop(turn);
        if keeper.send(Command::Spooled).is_err() {
            return;
        }
    }
}

fn append(shared: &Shared, increment: &Increment) -> Result<(), LogError> {
    let mut log = shared.log();
    // Sent twice after a reconnect: it is there already.
    if log
        .end()
        .is_some_and(|end| increment.position.seq <= end.position.seq)
    {
        return Ok(());
    }
    log.append(increment, None)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc as std_mpsc};

    use super::*;
    use crate::log::{Limits, Log, Point};
    use crate::metrics::Metrics;
    use crate::store::Store;
    use shared::metrics::Registry;

    /// A spool at work on a log that begins after increment 0.
    struct Rig {
        shared: Arc<Shared>,
        batches: mpsc::Sender<Batch>,
        spooled: watch::Receiver<Result<Option<Position>, String>>,
        folder: std::path::PathBuf,
    }

    impl Rig {
        fn new(name: &str) -> Self {
            let folder =
                std::env::temp_dir().join(format!("syncd-spool-{}-{name}", std::process::id()));
            let _ = std::fs::remove_dir_all(&folder);
            let mut log = Log::open(&folder.join("log"), Limits::default()).unwrap();
            log.reset(Point::default()).unwrap();
            let metrics = Metrics::register(&Registry::new()).source("db");
            let store = Store::new(folder.clone());
            let shared = Arc::new(Shared::new("b", "db", store, log, metrics));
            let (batches, received) = mpsc::channel(8);
            let (shown, spooled) = watch::channel(Ok(None));
            let of_spool = Arc::clone(&shared);
            std::thread::spawn(move || {
                let (keeper, _heard) = std_mpsc::channel();
                run(received, &of_spool, &shown, &keeper);
            });
            Self {
                shared,
                batches,
                spooled,
                folder,
            }
        }

        fn send(&self, turn: u64, seqs: impl IntoIterator<Item = u64>) {
            let increments = seqs.into_iter().map(increment).collect();
            let batch = Batch { turn, increments };
            self.batches.try_send(batch).unwrap();
        }

        async fn next(&mut self) -> Result<Option<Position>, String> {
            self.spooled.changed().await.unwrap();
            self.spooled.borrow_and_update().clone()
        }
    }

    impl Drop for Rig {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.folder);
        }
    }

    fn at(seq: u64) -> Position {
        Position {
            seq,
            ..Position::default()
        }
    }

    fn increment(seq: u64) -> Increment {
        Increment {
            position: at(seq),
            pre: seq - 1,
            post: seq,
            page_size: 512,
            pages: 1,
            committed_at: 0,
            part: 0,
            last: true,
            body: bytes::Bytes::new(),
        }
    }

    #[tokio::test]
    async fn what_a_session_sent_before_its_turn_was_over_is_appended_and_nothing_after() {
        let mut rig = Rig::new("turns");
        let first = rig.shared.next_turn();
        rig.send(first, 1..=2);
        assert_eq!(rig.next().await, Ok(Some(at(2))));
        let second = rig.shared.next_turn();
        rig.send(first, 3..=4);
        rig.send(second, [3]);
        assert_eq!(rig.next().await, Ok(Some(at(3))));
        assert_eq!(rig.shared.synced(), Some(at(3)));
        assert_eq!(rig.shared.log().end().unwrap().position, at(3));
    }

    #[tokio::test]
    async fn a_failure_is_told_once_and_the_rest_of_its_session_is_passed_over() {
        let mut rig = Rig::new("failure");
        let first = rig.shared.next_turn();
        rig.send(first, [1, 3]);
        let told = rig.next().await.unwrap_err();
        assert!(told.contains("does not continue the log"), "{told}");
        rig.send(first, [2, 3]);
        let second = rig.shared.next_turn();
        rig.send(second, [2]);
        assert_eq!(rig.next().await, Ok(Some(at(2))));
        assert_eq!(rig.shared.log().end().unwrap().position, at(2));
    }
}
