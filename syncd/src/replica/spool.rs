//! What arrives for a standby goes to its log first: appended, synced in groups, and only then acknowledged.

use std::sync::mpsc::Sender;

use shared::model::Position;
use tokio::sync::{mpsc, watch};

use super::{Command, Shared};
use crate::wire::increment::Increment;

/// At most so many batches are synced at once.
const GROUP: usize = 32;

pub(super) fn run(
    mut batches: mpsc::Receiver<Vec<Increment>>,
    shared: &Shared,
    spooled: &watch::Sender<Result<Option<Position>, String>>,
    keeper: &Sender<Command>,
) {
    let syncer = shared.log().syncer();
    let mut group = Vec::new();
    while batches.blocking_recv_many(&mut group, GROUP) > 0 {
        let mut failure = None;
        for increment in group.drain(..).flatten() {
            // After a failure the rest of the group does not continue the log; the session is over and begins anew.
            if failure.is_none() {
                failure = append(shared, &increment).err();
            }
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
        if keeper.send(Command::Spooled).is_err() {
            return;
        }
    }
}

fn append(shared: &Shared, increment: &Increment) -> Result<(), String> {
    let mut log = shared.log();
    // Sent twice after a reconnect: it is there already.
    if log
        .end()
        .is_some_and(|end| increment.position.seq <= end.position.seq)
    {
        return Ok(());
    }
    log.append(increment, None)
        .map_err(|error| error.to_string())
}
