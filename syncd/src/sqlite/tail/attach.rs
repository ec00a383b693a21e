//! Beginning to capture: proving, if it can be proved, that what is captured goes on from where a former process stopped.

use std::collections::VecDeque;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use shared::clock;
use shared::model::Position;

use super::frames::{Chain, Stretch};
use super::large::Large;
use super::{BODIES, CaptureError, Continuity, Lost, Tail};
use crate::sqlite::database::{Database, at};
use crate::sqlite::failure::Failure;
use crate::sqlite::heal::Healing;
use crate::sqlite::leash::{At, Turn};
use crate::sqlite::mark::Mark;
use crate::sqlite::wake::Watch;
use crate::sqlite::wal::{Committed, FRAME_HEADER, Frame, Index, frame_offset};

/// How long to wait for a checkpoint of the application's, and for a header that is being written.
const ATTACH_WITHIN: Duration = Duration::from_millis(100);

/// Where to begin reading.
struct Start {
    frame: u32,
    continuity: Continuity,
    /// Everything up to here comes as one increment after the content with this checksum.
    gap: Option<(u32, u64)>,
}

impl Tail {
    /// Begins to capture. `resume` is the mark of the last increment that was logged; with it, what was committed since comes first.
    /// Unless the page hashes are known already, the whole content is read once, at about 2 GB a second.
    ///
    /// The new tail stands at no position: call [`Tail::stand_at`] before [`Tail::poll`].
    ///
    /// # Errors
    /// [`CaptureError::CheckpointLock`] and [`CaptureError::Unreadable`] may pass.
    pub fn attach(
        database: &mut Database,
        resume: Option<&Mark>,
    ) -> Result<(Self, Continuity), CaptureError> {
        if database.is_replaced() {
            return Err(CaptureError::Replaced);
        }
        // A checkpoint of ours would change the file while it is read, and could take the log further than what is captured.
        let leash = Arc::clone(&database.leash);
        let turn = leash.turn();
        if !database.hold_checkpoints(ATTACH_WITHIN)? {
            return Err(CaptureError::CheckpointLock);
        }
        let attached = begin(database, resume, &turn);
        if attached.is_err() {
            database.unguard_log();
            leash.set_captured(None);
            database.let_checkpoints_go(&turn);
        }
        attached
    }
}

fn begin(
    database: &mut Database,
    resume: Option<&Mark>,
    turn: &Turn<'_>,
) -> Result<(Tail, Continuity), CaptureError> {
    let (index, committed) = stable_index(database, turn)?;
    if committed.frame > 0 && committed.page_size != database.page_size() {
        return Err(Lost::PageSize.into());
    }
    let start = if database.sums_at() == Some(at(&committed)) {
        known(database, &committed, resume)
    } else {
        prove(database, &index, &committed, resume)?
    };
    let chain = chain_at(database, &committed, start.frame, resume)?;
    let now = clock::now();
    let mut tail = Tail {
        position: Position::default(),
        salts: committed.salts,
        frame: start.frame,
        limit: start.frame,
        chain,
        past: VecDeque::new(),
        stretch: Stretch::default(),
        large: None,
        unsealed: 0,
        bodies: BytesMut::with_capacity(BODIES),
        watch: Watch::new(),
        busy_until: now,
        eager_until: now,
        replaced_at: now,
        unreadable_since: None,
    };
    let here = tail.here();
    if let Some((last, pre)) = start.gap {
        database.set_sums_at(None);
        tail.chain.expect_at(committed.frame, committed.checksum);
        let large = Large::of_gap(database, &mut tail.chain, start.frame + 1, last, pre)?;
        tail.large = Some(large);
    } else {
        database.set_sums_at(Some(here));
    }
    database.leash.set_backfilled(At {
        salts: committed.salts,
        frame: index.backfilled,
    });
    database.leash.set_captured(Some(here));
    if index.backfilled <= start.frame {
        database.unguard_log();
    }
    Ok((tail, start.continuity))
}

/// Guards the log and reads the index, so that what it says stays in the log.
fn stable_index(
    database: &mut Database,
    turn: &Turn<'_>,
) -> Result<(Index, Committed), CaptureError> {
    let until = clock::now() + ATTACH_WITHIN;
    database.unguard_log();
    loop {
        let guarded = database.guard_log()?;
        let index = database.index()?;
        if guarded && let Some(committed) = index.committed {
            return Ok((index, committed));
        }
        if index.committed.is_none() && may_wait(until) {
            match database.heal(turn)? {
                Healing::LockLost => return Err(CaptureError::CheckpointLock),
                Healing::InUse | Healing::Healed => (),
            }
        }
        if !may_wait(until) {
            return Err(CaptureError::Unreadable);
        }
        clock::pause_thread(Duration::from_micros(200));
    }
}

fn may_wait(until: Instant) -> bool {
    clock::now() < until
}

/// The page hashes are those of the content now: this process has had the database all the time.
fn known(database: &Database, committed: &Committed, resume: Option<&Mark>) -> Start {
    let continuity = match resume {
        None => Continuity::Begun,
        Some(mark) if Some(mark.content) == database.checksum() => Continuity::Kept,
        Some(_) => Continuity::Lost(Lost::Content),
    };
    Start {
        frame: committed.frame,
        continuity,
        gap: None,
    }
}

fn prove(
    database: &mut Database,
    index: &Index,
    committed: &Committed,
    resume: Option<&Mark>,
) -> Result<Start, CaptureError> {
    let mut sums = database.scan_file()?;
    let start = match resume {
        Some(mark) if mark.page_size != database.page_size() => {
            to_frame(database, &mut sums, committed, committed.frame)?;
            lost(committed.frame, Lost::PageSize)
        }
        Some(mark) if is_same_generation(database, committed, mark)? => {
            if index.backfilled <= mark.frame {
                // The file holds nothing newer than the mark: the content at the mark can be rebuilt, and every commit since.
                to_frame(database, &mut sums, committed, mark.frame)?;
                if sums.checksum() == mark.content {
                    kept(mark.frame)
                } else {
                    to_frame(database, &mut sums, committed, committed.frame)?;
                    lost(committed.frame, Lost::Content)
                }
            } else {
                to_frame(database, &mut sums, committed, committed.frame)?;
                Start {
                    gap: (mark.frame < committed.frame).then_some((committed.frame, mark.content)),
                    ..kept(mark.frame)
                }
            }
        }
        Some(mark)
            if index.backfilled == 0 && committed.frame > 0 && sums.checksum() == mark.content =>
        {
            // The log began anew exactly at the mark, and nothing of the new one is in the file yet.
            kept(0)
        }
        Some(mark) => {
            to_frame(database, &mut sums, committed, committed.frame)?;
            if sums.checksum() == mark.content {
                kept(committed.frame)
            } else {
                lost(committed.frame, Lost::Generation)
            }
        }
        None => {
            to_frame(database, &mut sums, committed, committed.frame)?;
            Start {
                continuity: Continuity::Begun,
                ..kept(committed.frame)
            }
        }
    };
    *database.sums() = sums;
    Ok(start)
}

const fn kept(frame: u32) -> Start {
    Start {
        frame,
        continuity: Continuity::Kept,
        gap: None,
    }
}

const fn lost(frame: u32, why: Lost) -> Start {
    Start {
        frame,
        continuity: Continuity::Lost(why),
        gap: None,
    }
}

/// Lays the log up to `frame` over the hashes of the file.
fn to_frame(
    database: &Database,
    sums: &mut crate::wire::checksum::Sums,
    committed: &Committed,
    frame: u32,
) -> Result<(), CaptureError> {
    if frame > 0 {
        if database.scan_log(sums, frame)? > 0 {
            database.leash.want_reset(true);
        }
    } else if committed.frame == 0 && committed.pages > 0 {
        sums.resize(committed.pages);
    } else {
        sums.resize(database.pages_in_file()?);
    }
    Ok(())
}

/// Whether the log still is the one of the mark, and still holds the mark's frame.
fn is_same_generation(
    database: &Database,
    committed: &Committed,
    mark: &Mark,
) -> Result<bool, CaptureError> {
    if mark.salts != committed.salts || mark.frame > committed.frame {
        return Ok(false);
    }
    if mark.frame == 0 {
        return Ok(true);
    }
    let frame = read_frame_header(database, mark.frame)?;
    Ok(frame.salts == mark.salts && frame.checksum == mark.checksum && frame.commit != 0)
}

/// The chain of checksums behind `frame`.
fn chain_at(
    database: &Database,
    committed: &Committed,
    frame: u32,
    resume: Option<&Mark>,
) -> Result<Chain, CaptureError> {
    if committed.frame == 0 {
        return Ok(Chain::nowhere(committed.salts));
    }
    let chain = Chain::begin(database, committed.salts)?;
    Ok(match resume {
        _ if frame == 0 => chain,
        _ if frame == committed.frame => chain.at(committed.checksum),
        Some(mark) => chain.at(mark.checksum),
        None => chain,
    })
}

fn read_frame_header(database: &Database, frame: u32) -> Result<Frame, CaptureError> {
    let mut bytes = [0; FRAME_HEADER];
    let offset = frame_offset(frame, database.page_size());
    match database.log().read_exact_at(&mut bytes, offset) {
        Ok(()) => Ok(Frame::parse(&bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            Err(Lost::Truncated { frame }.into())
        }
        Err(error) => Err(Failure::io("read the log of", database.path())(error).into()),
    }
}
