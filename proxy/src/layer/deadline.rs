//! How long a node may take to begin its response, counted from the last progress of the request's body.
//!
//! This is also where a waiting attempt can be woken from outside: its deadline is a place among the worker's, and all of
//! them are woken when a view changes, so that attempts at a node that lost its role are given up at once (see `retry`).

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use tower::{Layer, Service};

use crate::exchange::{
    Attempt, Cause, Deadline, Deadlines, Fault, Reach, Replay, Response, Trail, UpstreamFault,
};
use crate::logic::NodeId;

/// Puts a [`Bounded`] around a service.
#[derive(Clone, Debug)]
pub struct DeadlineLayer {
    deadlines: Deadlines,
    most: Duration,
}

impl DeadlineLayer {
    /// A response must begin within `most`.
    #[must_use]
    pub const fn new(deadlines: Deadlines, most: Duration) -> Self {
        Self { deadlines, most }
    }
}

impl<S> Layer<S> for DeadlineLayer {
    type Service = Bounded<S>;

    fn layer(&self, inner: S) -> Bounded<S> {
        Bounded {
            inner,
            terms: self.clone(),
        }
    }
}

/// Gives up on nodes that do not answer.
#[derive(Clone, Debug)]
pub struct Bounded<S> {
    inner: S,
    terms: DeadlineLayer,
}

impl<S> Service<Attempt> for Bounded<S>
where
    S: Service<Attempt, Response = Response, Error = Fault>,
    S::Future: Unpin,
{
    type Response = Response;
    type Error = Fault;
    type Future = Waiting<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, attempt: Attempt) -> Waiting<S::Future> {
        let upload = attempt.upload.replay().map(Rc::clone);
        Waiting {
            deadline: self.terms.deadlines.after(self.terms.most),
            most: self.terms.most,
            moved: 0,
            upload,
            node: attempt.node,
            trail: Rc::clone(&attempt.trail),
            call: self.inner.call(attempt),
        }
    }
}

/// An attempt that must be answered in time.
#[derive(Debug)]
#[must_use]
pub struct Waiting<F> {
    call: F,
    deadline: Deadline,
    most: Duration,
    moved: u64,
    upload: Option<Rc<RefCell<Replay>>>,
    node: NodeId,
    trail: Rc<Trail>,
}

impl<F> Future for Waiting<F>
where
    F: Future<Output = Result<Response, Fault>> + Unpin,
{
    type Output = Result<Response, Fault>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        if let Poll::Ready(result) = Pin::new(&mut this.call).poll(context) {
            return Poll::Ready(result);
        }
        if let Some(upload) = &this.upload {
            let moved = upload.borrow().moved();
            if moved != this.moved {
                this.moved = moved;
                this.deadline.move_to(this.most);
            }
        }
        if !this.deadline.has_passed(context) {
            return Poll::Pending;
        }
        let reach = if this.trail.is_sent() {
            Reach::Sent
        } else {
            Reach::Connect
        };
        Poll::Ready(Err(UpstreamFault {
            node: this.node,
            reach,
            cause: Cause::ResponseTimeout,
        }
        .into()))
    }
}
