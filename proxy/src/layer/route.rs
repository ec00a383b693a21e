//! Which service a request goes to.

use std::rc::Rc;
use std::task::{Context, Poll};

use tower::Service;

use super::checked::Checked;
use crate::exchange::{Fault, Request, Response};
use crate::logic::route::Table;

/// Finds the service by the request's host.
#[derive(Clone, Debug)]
pub struct Route<S> {
    table: Rc<Table>,
    services: Vec<S>,
}

impl<S> Route<S> {
    /// `services` in the order that the table's numbers mean.
    #[must_use]
    pub const fn new(table: Rc<Table>, services: Vec<S>) -> Self {
        Self { table, services }
    }
}

impl<S> Service<Request> for Route<S>
where
    S: Service<Request, Response = Response, Error = Fault>,
    S::Future: Unpin,
{
    type Response = Response;
    type Error = Fault;
    type Future = Checked<S::Future>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Checked<S::Future> {
        let found = self.table.find(request.head.host());
        match found.and_then(|found| Some((found, self.services.get_mut(found)?))) {
            Some((found, service)) => {
                request.trail.routed(found);
                Checked::kept(service.call(request))
            }
            None => {
                request.freeze();
                Checked::refused(Fault::NoService)
            }
        }
    }
}
