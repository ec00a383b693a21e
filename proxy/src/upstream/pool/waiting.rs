//! Those who wait for a place, first come first served, and what makes places free.
//!
//! A connection that is given back goes to the first in the queue at once. Places that become free are dealt out by a task of
//! each worker, which hears of them from wherever they are; a worker where nobody waits closes idle connections then.
//!
//! A request that was given up before it was answered keeps its place until its node has noticed: half of the connection is
//! closed, and the other half says when. So what a node that hangs finds in its queues when it wakes is never more than it may
//! have at once.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Weak;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::{Counted, Pool, Wanted};
use crate::exchange::{Cause, TICK, UpstreamFault};
use crate::upstream::client::Connection;
use crate::upstream::places::{Claim, Lined};

/// How long an abandoned request may keep its place: a node may be gone without a word.
const LINGER_MOST: Duration = Duration::from_secs(60);

/// What somebody who waited is given.
pub(super) enum Waited {
    /// A connection that was in use a moment ago.
    Idle(Connection<Counted>),
    /// A place for a new one.
    Place(Claim),
}

/// One worker's queue at one node.
#[derive(Debug, Default)]
pub(super) struct Queue(RefCell<VecDeque<Waiter>>);

#[derive(Debug)]
struct Waiter {
    wanted: Wanted,
    /// When it came, by the clock of the node's places.
    since: u64,
    tell: oneshot::Sender<Waited>,
}

impl std::fmt::Debug for Waited {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Idle(_) => "Idle",
            Self::Place(_) => "Place",
        })
    }
}

impl Queue {
    /// Forgets those who went away; says what the first of the others wants, and since when.
    fn first(&self) -> Option<(Wanted, u64)> {
        let mut queue = self.0.borrow_mut();
        while queue.front().is_some_and(|waiter| waiter.tell.is_closed()) {
            queue.pop_front();
        }
        queue.front().map(|waiter| (waiter.wanted, waiter.since))
    }

    fn pop(&self) -> Option<Waiter> {
        self.0.borrow_mut().pop_front()
    }

    /// Forgets those who went away, when they may be the most.
    fn tidy(&self, waiting: usize) {
        let mut queue = self.0.borrow_mut();
        if queue.len() > 2 * waiting {
            queue.retain(|waiter| !waiter.tell.is_closed());
        }
    }
}

/// Waits in the queue for as long as it lives.
struct Standing<'p>(
    &'p Pool,
    #[expect(dead_code, reason = "it is counted")] Lined,
);

impl Drop for Standing<'_> {
    fn drop(&mut self) {
        self.0.show_first();
    }
}

impl Pool {
    /// Waits for a place, or for a connection that will do.
    pub(super) async fn wait(&self, wanted: Wanted) -> Result<Waited, UpstreamFault> {
        let cap = &self.limits.cap;
        let full = || self.fault(Cause::Full);
        let lined = cap.line_up().ok_or_else(full)?;
        self.queue.tidy(cap.waiting());
        let (tell, told) = oneshot::channel();
        self.queue.0.borrow_mut().push_back(Waiter {
            wanted,
            since: cap.now(),
            tell,
        });
        let standing = Standing(self, lined);
        self.show_first();
        let waited = timeout(self.limits.wait, told).await;
        drop(standing);
        waited.map_err(|_| full())?.map_err(|_| full())
    }

    fn show_first(&self) {
        let first = self.queue.first().map(|(_, since)| since);
        self.limits.cap.show(self.limits.lane, first);
    }

    /// Gives a connection to whoever is first, here or elsewhere.
    pub(super) fn pass_on(&self, connection: Connection<Counted>) {
        if self.limits.cap.is_others_turn(self.limits.lane) {
            return;
        }
        match self.queue.first() {
            None => self.idle.borrow_mut().push(connection),
            // Its place becomes free, and with it a new one can be made.
            Some((Wanted::Fresh, _)) => (),
            Some((Wanted::Any | Wanted::Recent, _)) => {
                self.give(Waited::Idle(connection));
            }
        }
    }

    fn give(&self, what: Waited) {
        if let Some(waiter) = self.queue.pop() {
            // Whoever has gone leaves it, and so gives back its place.
            let _ = waiter.tell.send(what);
        }
        self.show_first();
    }

    /// Deals out what is free. Where nobody waits, makes room for those who do elsewhere.
    fn settle(&self) {
        let cap = &self.limits.cap;
        while let Some((wanted, _)) = self.queue.first() {
            if cap.is_others_turn(self.limits.lane) {
                return;
            }
            if let Some(claim) = cap.claim(&self.taken) {
                self.give(Waited::Place(claim));
            } else if let Some(connection) = self.take(wanted) {
                self.give(Waited::Idle(connection));
            } else if !self.close_oldest() {
                return;
            }
        }
        while cap.waiting() > 0 && cap.is_full() && self.close_oldest() {}
    }
}

/// Deals out a pool's places, and looks after what it abandoned, for as long as it lives.
pub(super) async fn steward(pool: Weak<Pool>) {
    let Some(cap) = pool.upgrade().map(|pool| Arc::clone(&pool.limits.cap)) else {
        return;
    };
    loop {
        // Heard from here on, so that nothing is missed while it looks.
        let mut news = std::pin::pin!(cap.news().notified());
        news.as_mut().enable();
        match pool.upgrade() {
            Some(pool) => pool.settle(),
            None => return,
        }
        poll_fn(|context| {
            let noticed = pool
                .upgrade()
                .is_none_or(|pool| pool.poll_abandoned(context));
            if noticed {
                return Poll::Ready(());
            }
            news.as_mut().poll(context)
        })
        .await;
    }
}

/// A connection whose request was given up.
#[derive(Debug)]
pub(super) struct Abandoned {
    socket: Counted,
    /// The tick at which that was.
    since: u32,
}

impl Pool {
    /// Closes half of a connection; the rest, and its place, when the node has noticed.
    pub(super) fn leave(&self, socket: Counted) {
        if socket.link.end().is_ok() {
            let since = self.terms.deadlines.ticks();
            let mut abandoned = self.abandoned.borrow_mut();
            abandoned.push(Abandoned { socket, since });
            // The steward looks after it from now on.
            self.limits.cap.news().notify_waiters();
        }
    }

    /// Gives up connections whose nodes have noticed, or never will; says whether there were any.
    pub(super) fn poll_abandoned(&self, context: &mut Context<'_>) -> bool {
        let now = self.terms.deadlines.ticks();
        // Dropped after the borrow is over: that is news.
        let gone: Vec<_> = self
            .abandoned
            .borrow_mut()
            .extract_if(.., |Abandoned { socket, since }| {
                let mut byte = [0];
                let mut buffer = ReadBuf::new(&mut byte);
                let read = Pin::new(socket).poll_read(context, &mut buffer);
                read.is_ready() || TICK * now.saturating_sub(*since) > LINGER_MOST
            })
            .collect();
        !gone.is_empty()
    }
}
