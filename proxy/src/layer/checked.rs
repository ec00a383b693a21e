//! The future of a layer that looks at a request and lets it go on, or does not.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::StatusCode;

use crate::exchange::{Body, Fault, Response};

/// A request that was looked at.
#[must_use]
pub struct Checked<F>(State<F>);

enum State<F> {
    Refused(Option<Fault>),
    Answered(StatusCode),
    Kept(F),
}

impl<F> Checked<F> {
    /// It goes no further.
    pub const fn refused(fault: Fault) -> Self {
        Self(State::Refused(Some(fault)))
    }

    /// It was for nobody beyond us, and is answered without a body.
    pub const fn answered(status: StatusCode) -> Self {
        Self(State::Answered(status))
    }

    /// It goes on.
    pub const fn kept(call: F) -> Self {
        Self(State::Kept(call))
    }
}

impl<F> fmt::Debug for Checked<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checked").finish_non_exhaustive()
    }
}

impl<F> Future for Checked<F>
where
    F: Future<Output = Result<Response, Fault>> + Unpin,
{
    type Output = Result<Response, Fault>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.get_mut().0 {
            State::Kept(call) => Pin::new(call).poll(context),
            State::Refused(fault) => match fault.take() {
                Some(fault) => Poll::Ready(Err(fault)),
                None => Poll::Pending,
            },
            State::Answered(status) => Poll::Ready(Ok(Response::new(*status, Body::Empty))),
        }
    }
}
