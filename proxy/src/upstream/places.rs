//! How many connections a node has at once, over all workers, and whose turn it is when there are no more.
//!
//! The count is shared by the workers and touched when a connection is made or closed, never while it is used. Each worker has
//! a queue of its own for those who wait, in the order of their arrival; and a worker whose queue began earlier goes first, so
//! that it does not matter by which of them a request came in. For nodes that speak HTTP/2 a place is one request.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::time::Instant;

use shared::clock;
use tokio::sync::Notify;

/// By how much longer another worker's requests must have waited to go first, in milliseconds: a connection that changes
/// hands is made anew, so that turns must not be taken too strictly.
const SLACK: u64 = 50;
/// Nobody waits.
const NOBODY: u64 = u64::MAX;

/// A node's places.
#[derive(Debug)]
pub struct Cap {
    most: usize,
    most_waiting: usize,
    open: AtomicUsize,
    waiting: AtomicUsize,
    /// Since when each worker's queue has somebody in it, in milliseconds.
    since: Box<[AtomicU64]>,
    news: Notify,
    began: Instant,
}

impl Cap {
    /// `most` places, `most_waiting` requests that wait for one, `lanes` workers.
    #[must_use]
    pub fn new(most: usize, most_waiting: usize, lanes: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            most_waiting,
            open: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            since: (0..lanes).map(|_| AtomicU64::new(NOBODY)).collect(),
            news: Notify::new(),
            began: clock::now(),
        })
    }

    /// How many places are taken, over all workers.
    #[must_use]
    pub fn open(&self) -> usize {
        self.open.load(SeqCst)
    }

    /// How many requests wait for one, over all workers.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.load(SeqCst)
    }

    /// Whether none is free.
    pub(super) fn is_full(&self) -> bool {
        self.open() >= self.most
    }

    /// Something has changed for those who wait.
    pub(super) const fn news(&self) -> &Notify {
        &self.news
    }

    /// A place, if there is one, whoever waits; `mine` counts those of one worker.
    pub(super) fn claim(self: &Arc<Self>, mine: &Rc<Cell<usize>>) -> Option<Claim> {
        let free = |open: usize| (open < self.most).then_some(open + 1);
        let taken = self.open.fetch_update(SeqCst, SeqCst, free);
        taken.is_ok().then(|| {
            mine.set(mine.get() + 1);
            Claim {
                cap: Arc::clone(self),
                mine: Rc::clone(mine),
            }
        })
    }

    /// Counts one who waits, unless there are too many.
    pub(super) fn line_up(self: &Arc<Self>) -> Option<Lined> {
        let room = |waiting: usize| (waiting < self.most_waiting).then_some(waiting + 1);
        let counted = self.waiting.fetch_update(SeqCst, SeqCst, room);
        counted.is_ok().then(|| Lined(Arc::clone(self)))
    }

    /// The time that arrivals are compared by, in milliseconds.
    pub(super) fn now(&self) -> u64 {
        let passed = clock::now().saturating_duration_since(self.began);
        u64::try_from(passed.as_millis()).unwrap_or(NOBODY - 1)
    }

    /// Shows when the first of this worker's queue arrived; `None` when nobody waits there.
    pub(super) fn show(&self, lane: usize, first: Option<u64>) {
        let first = first.unwrap_or(NOBODY);
        if self.since[lane].swap(first, SeqCst) != first {
            self.news.notify_waiters();
        }
    }

    /// Whether somebody has waited for so much longer at another worker that this one has to stand back.
    pub(super) fn is_others_turn(&self, lane: usize) -> bool {
        let own = self.since[lane].load(SeqCst);
        let others = self.since.iter().enumerate().filter(|(n, _)| *n != lane);
        let first = others.map(|(_, since)| since.load(SeqCst)).min();
        first.is_some_and(|first| first.saturating_add(SLACK) < own)
    }
}

/// A place that is taken for as long as this lives.
#[derive(Debug)]
pub struct Claim {
    cap: Arc<Cap>,
    mine: Rc<Cell<usize>>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.mine.set(self.mine.get().saturating_sub(1));
        self.cap.open.fetch_sub(1, SeqCst);
        if self.cap.waiting() > 0 {
            self.cap.news.notify_waiters();
        }
    }
}

/// Counts as waiting for as long as it lives.
#[derive(Debug)]
pub(super) struct Lined(Arc<Cap>);

impl Drop for Lined {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_over_all_workers_and_come_back() {
        let cap = Cap::new(2, 1, 2);
        let (one, other) = (Rc::default(), Rc::default());
        let first = cap.claim(&one);
        let second = cap.claim(&other);
        assert!(first.is_some() && second.is_some() && cap.claim(&one).is_none());
        assert_eq!((cap.open(), one.get(), other.get()), (2, 1, 1));
        drop(first);
        assert_eq!((cap.open(), one.get()), (1, 0));
        assert!(cap.claim(&other).is_some());
        let lined = cap.line_up();
        assert!(lined.is_some() && cap.line_up().is_none());
        drop(lined);
        assert!(cap.line_up().is_some() && cap.waiting() == 0);
    }

    #[test]
    fn the_worker_whose_queue_began_clearly_earlier_goes_first() {
        let cap = Cap::new(1, 9, 2);
        assert!(!cap.is_others_turn(0));
        cap.show(1, Some(100));
        assert!(cap.is_others_turn(0), "nobody waits here");
        cap.show(0, Some(100 + SLACK));
        assert!(!cap.is_others_turn(0) && !cap.is_others_turn(1));
        cap.show(0, Some(101 + SLACK));
        assert!(cap.is_others_turn(0) && !cap.is_others_turn(1));
        cap.show(1, None);
        assert!(!cap.is_others_turn(0));
    }
}
