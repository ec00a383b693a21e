//! How much of all responses together waits in the library for the client to read it.
//!
//! Windows are the client's to open, as wide as it likes; memory is ours.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Waker};

use bytes::{Buf, Bytes};

/// Where streams stop to hand over, in bytes of bodies.
const QUEUED_MOST: usize = 256 << 10;

/// One connection's.
#[derive(Debug, Default)]
pub(super) struct Flow {
    queued: Cell<usize>,
    waiting: RefCell<Vec<Waker>>,
}

impl Flow {
    /// Whether more may be handed over; if not, the task is woken when it may.
    pub(super) fn has_room(&self, context: &Context<'_>) -> bool {
        if self.queued.get() < QUEUED_MOST {
            return true;
        }
        let mut waiting = self.waiting.borrow_mut();
        if !waiting.iter().any(|waker| waker.will_wake(context.waker())) {
            waiting.push(context.waker().clone());
        }
        false
    }

    fn left(&self, bytes: usize) {
        let queued = self.queued.get().saturating_sub(bytes);
        self.queued.set(queued);
    }

    /// Wakes whoever waits, if there is room again. Outside of the library, which must not be asked anything while it writes.
    pub(super) fn wake(&self) {
        if self.queued.get() < QUEUED_MOST / 2 && !self.waiting.borrow().is_empty() {
            let waiting = self.waiting.take();
            waiting.into_iter().for_each(Waker::wake);
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

    #[test]
    fn what_is_written_or_given_up_makes_room() {
        let flow = Rc::new(Flow::default());
        let context = Context::from_waker(Waker::noop());
        let mut one = Piece::new(vec![0; QUEUED_MOST - 1].into(), &flow);
        assert!(flow.has_room(&context));
        let other = Piece::new(vec![0; 10].into(), &flow);
        assert!(!flow.has_room(&context));
        one.advance(10);
        assert!(flow.has_room(&context));
        drop((one, other));
        assert_eq!(flow.queued.get(), 0);
    }
}
