//! Deadlines without a timer each: one ticker per worker looks at a small slab ten times a second.
//!
//! Deadlines are coarse on purpose (late by up to [`TICK`], never early): a request costs two moves in a vector instead of
//! an entry in a timer wheel. Every waiting future of a request registers its waker here, so this is also the way to wake
//! all of them at once when the world changes.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;
use std::task::{Context, Waker};
use std::time::Duration;

/// How often deadlines are looked at.
pub const TICK: Duration = Duration::from_millis(100);

/// One worker's deadlines. Cheap to clone.
#[derive(Clone, Default)]
pub struct Deadlines(Rc<Inner>);

#[derive(Default)]
struct Inner {
    tick: Cell<u32>,
    slab: RefCell<Slab>,
}

#[derive(Default)]
struct Slab {
    slots: Vec<Slot>,
    free: Vec<usize>,
}

struct Slot {
    due: u32,
    waker: Option<Waker>,
}

impl fmt::Debug for Deadlines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Deadlines").field(&self.0.tick).finish()
    }
}

impl Deadlines {
    /// A deadline `after` from now.
    pub fn after(&self, after: Duration) -> Deadline {
        let due = self.due(after);
        let mut slab = self.0.slab.borrow_mut();
        let slot = slab.free.pop().unwrap_or(slab.slots.len());
        let entry = Slot { due, waker: None };
        match slab.slots.get_mut(slot) {
            Some(free) => *free = entry,
            None => slab.slots.push(entry),
        }
        Deadline {
            all: self.clone(),
            slot,
        }
    }

    /// Lets [`TICK`] pass: wakes whoever waits for a deadline that is over. Called by the worker's ticker alone.
    pub fn tick(&self) {
        let now = self.0.tick.get().saturating_add(1);
        self.0.tick.set(now);
        self.wake(|slot| slot.due <= now);
    }

    /// Wakes everybody who waits, so that each looks again at what it waits for.
    pub fn wake_all(&self) {
        self.wake(|_| true);
    }

    /// How many ticks have passed.
    #[must_use]
    pub fn ticks(&self) -> u32 {
        self.0.tick.get()
    }

    fn wake(&self, is_due: impl Fn(&Slot) -> bool) {
        // Taken out first: waking may run code that comes back here.
        let mut due: Vec<Waker> = Vec::new();
        {
            let mut slab = self.0.slab.borrow_mut();
            let waiting = slab.slots.iter_mut().filter(|slot| is_due(slot));
            due.extend(waiting.filter_map(|slot| slot.waker.take()));
        }
        due.into_iter().for_each(Waker::wake);
    }

    fn due(&self, after: Duration) -> u32 {
        let ticks = after.as_millis().div_ceil(TICK.as_millis()) + 1;
        let ticks = u32::try_from(ticks).unwrap_or(u32::MAX);
        self.0.tick.get().saturating_add(ticks)
    }
}

/// One deadline, and a place to be woken at.
#[must_use]
pub struct Deadline {
    all: Deadlines,
    slot: usize,
}

impl fmt::Debug for Deadline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Deadline").field(&self.slot).finish()
    }
}

impl Deadline {
    /// Whether it has passed; if not, the task is woken when it does, or by [`Deadlines::wake_all`].
    pub fn has_passed(&self, context: &Context<'_>) -> bool {
        let mut slab = self.all.0.slab.borrow_mut();
        let slot = &mut slab.slots[self.slot];
        if slot.due <= self.all.0.tick.get() {
            return true;
        }
        let known = slot
            .waker
            .as_ref()
            .is_some_and(|waker| waker.will_wake(context.waker()));
        if !known {
            let former = slot.waker.replace(context.waker().clone());
            drop(slab);
            // The last waker of a task may drop what that task leaves behind, deadlines among it.
            drop(former);
        }
        false
    }

    /// Moves it to `after` from now.
    pub fn move_to(&self, after: Duration) {
        let due = self.all.due(after);
        self.all.0.slab.borrow_mut().slots[self.slot].due = due;
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        let mut slab = self.all.0.slab.borrow_mut();
        let slot = &mut slab.slots[self.slot];
        slot.due = u32::MAX;
        let waker = slot.waker.take();
        slab.free.push(self.slot);
        drop(slab);
        drop(waker);
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
    fn a_deadline_is_never_early_and_at_most_a_tick_late() {
        let deadlines = Deadlines::default();
        let bell = Arc::new(Bell::default());
        let waker = Arc::clone(&bell).into();
        let context = Context::from_waker(&waker);
        let deadline = deadlines.after(TICK * 3);
        for _ in 0..3 {
            deadlines.tick();
            assert!(!deadline.has_passed(&context));
        }
        assert_eq!(bell.0.load(SeqCst), 0);
        deadlines.tick();
        assert_eq!(bell.0.load(SeqCst), 1);
        assert!(deadline.has_passed(&context));
        deadline.move_to(TICK);
        assert!(!deadline.has_passed(&context));
    }

    #[test]
    fn everybody_who_waits_can_be_woken_at_once_and_places_are_used_again() {
        let deadlines = Deadlines::default();
        let bell = Arc::new(Bell::default());
        let waker = Arc::clone(&bell).into();
        let context = Context::from_waker(&waker);
        let waiting: Vec<_> = (0..10).map(|_| deadlines.after(TICK * 100)).collect();
        for deadline in &waiting {
            assert!(!deadline.has_passed(&context));
        }
        deadlines.wake_all();
        assert_eq!(bell.0.load(SeqCst), 10);
        drop(waiting);
        let again: Vec<_> = (0..10).map(|_| deadlines.after(TICK)).collect();
        assert!(again.iter().all(|deadline| deadline.slot < 10));
    }
}
