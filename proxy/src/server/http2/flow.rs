//! How much of all responses together waits in the library for the client to read it.
//!
//! Windows are the client's to open, as wide as it likes; memory is ours.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Context, Waker};

use bytes::{Buf, Bytes};

/// Where streams stop to hand over, in bytes of bodies.
const QUEUED_MOST: usize = 256 << 10;
/// The largest piece that a stream hands over in its turn, in bytes.
pub(super) const PIECE_MOST: usize = 16 << 10;

/// One connection's.
#[derive(Debug, Default)]
pub(super) struct Flow {
    queued: Cell<usize>,
    moved: Cell<u64>,
    /// Streams that wait for their turns, the first one first.
    waiting: RefCell<VecDeque<Waker>>,
}

/// Whether a stream waits for its turn.
#[derive(Debug, Default)]
pub(super) struct Turn {
    awaited: bool,
}

impl Flow {
    /// Whether a piece may be handed over; if not, the stream stands at the end of the queue and is woken at its turn.
    pub(super) fn has_room(&self, turn: &mut Turn, context: &Context<'_>) -> bool {
        let mut waiting = self.waiting.borrow_mut();
        let mine = |waker: &Waker| waker.will_wake(context.waker());
        let may = if turn.awaited {
            if waiting.iter().any(mine) {
                return false;
            }
            true
        } else {
            waiting.is_empty()
        };
        turn.awaited = !(may && self.queued.get() < QUEUED_MOST);
        if turn.awaited {
            waiting.push_back(context.waker().clone());
        }
        !turn.awaited
    }

    /// How many bytes were written or given up, as a measure of progress.
    pub(super) const fn moved(&self) -> u64 {
        self.moved.get()
    }

    fn left(&self, bytes: usize) {
        let queued = self.queued.get().saturating_sub(bytes);
        self.queued.set(queued);
        self.moved.set(self.moved.get().wrapping_add(bytes as u64));
    }

    /// Wakes as many as there is room for. Outside of the library, which must not be asked anything while it writes.
    pub(super) fn wake(&self) {
        let mut promised = self.queued.get();
        while promised < QUEUED_MOST {
            let next = self.waiting.borrow_mut().pop_front();
            let Some(waker) = next else {
                return;
            };
            waker.wake();
            promised += PIECE_MOST;
        }
    }
}

/// A piece of a body that is counted until it is written.
#[derive(Debug)]
pub(super) struct Piece {
    bytes: Bytes,
    flow: Rc<Flow>,
}

impl Piece {
    pub(super) fn new(bytes: Bytes, flow: &Rc<Flow>) -> Self {
        flow.queued.set(flow.queued.get() + bytes.len());
        let flow = Rc::clone(flow);
        Self { bytes, flow }
    }
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.bytes.len()
    }

    fn chunk(&self) -> &[u8] {
        &self.bytes
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
        self.flow.left(count);
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.flow.left(self.bytes.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
    use std::task::Wake;

    #[derive(Default)]
    struct Bell(AtomicUsize);

    impl Wake for Bell {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, SeqCst);
        }
    }

    #[test]
    fn what_is_written_or_given_up_makes_room() {
        let flow = Rc::new(Flow::default());
        let context = Context::from_waker(Waker::noop());
        let (mut one_s, mut other_s) = (Turn::default(), Turn::default());
        let mut one = Piece::new(vec![0; QUEUED_MOST - 1].into(), &flow);
        assert!(flow.has_room(&mut one_s, &context));
        let other = Piece::new(vec![0; 10].into(), &flow);
        assert!(!flow.has_room(&mut other_s, &context));
        one.advance(10);
        flow.wake();
        assert!(flow.has_room(&mut other_s, &context));
        drop((one, other));
        assert_eq!(
            (flow.queued.get(), flow.moved()),
            (0, QUEUED_MOST as u64 + 9)
        );
    }

    #[test]
    fn streams_take_turns_and_nobody_goes_first_twice() {
        let flow = Rc::new(Flow::default());
        let bells: Vec<_> = (0..3).map(|_| Arc::new(Bell::default())).collect();
        let wakers: Vec<Waker> = bells.iter().map(|bell| Arc::clone(bell).into()).collect();
        let mut turns: Vec<_> = (0..3).map(|_| Turn::default()).collect();
        let mut has_room = |n: usize| {
            let context = Context::from_waker(&wakers[n]);
            flow.has_room(&mut turns[n], &context)
        };
        let rung = || {
            bells
                .iter()
                .map(|bell| bell.0.load(SeqCst))
                .collect::<Vec<_>>()
        };
        let mut full = Piece::new(vec![0; QUEUED_MOST].into(), &flow);
        assert!(!has_room(0) && !has_room(1) && !has_room(2));
        full.advance(1);
        flow.wake();
        assert_eq!(rung(), [1, 0, 0]);
        assert!(has_room(0) && !has_room(0), "the others are before it now");
        full.advance(PIECE_MOST);
        assert!(!has_room(1), "not yet called");
        flow.wake();
        assert_eq!(rung(), [1, 1, 1]);
        assert!(has_room(1) && has_room(2) && !has_room(0));
    }
}
