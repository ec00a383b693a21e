//! Outermost: everything that is answered, or left by its client, is counted and written down once, at its very end.

use std::cell::RefCell;
use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{Method, StatusCode};
use http_body::{Body as HttpBody, Frame, SizeHint};
use shared::clock;
use shared::rng::Rng;
use tower::{Layer, Service};

use super::access_log::Pen;
use super::access_log::line::{Facts, Stamp, combined, json};
use super::forward::new_id;
use crate::config::AccessFormat;
use crate::exchange::{Body, Closer, Fault, Opens, Request, Response, Trail, Tunnel};
use crate::metrics::local::ServiceNumbers;

/// The status in the log when the client left before there was one (nginx's word for it).
const CLIENT_CLOSED: u16 = 499;

/// One worker's eyes.
pub struct Observer {
    log: Rc<Pen>,
    stamp: Stamp,
    services: Vec<Watched>,
    nowhere: Watched,
    rng: Rc<RefCell<Rng>>,
}

/// What is known of one service.
#[derive(Clone, Debug)]
pub struct Watched {
    /// Its name.
    pub name: Box<str>,
    /// Its nodes' names.
    pub nodes: Vec<Box<str>>,
    /// Its numbers.
    pub numbers: Rc<ServiceNumbers>,
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observer").finish_non_exhaustive()
    }
}

impl Observer {
    /// `services` by their place in the configuration; `nowhere` is for requests that found none.
    #[must_use]
    pub fn new(
        log: Rc<Pen>,
        services: Vec<Watched>,
        nowhere: Watched,
        rng: Rc<RefCell<Rng>>,
    ) -> Rc<Self> {
        Rc::new(Self {
            log,
            stamp: Stamp::default(),
            services,
            nowhere,
            rng,
        })
    }

    /// Hands over what is gathered. A few times a second.
    pub fn flush(&self) {
        self.log.flush();
        for watched in self.services.iter().chain([&self.nowhere]) {
            watched.numbers.flush();
        }
    }

    fn finished(&self, trail: &Trail, status: StatusCode, sent: u64) {
        let at = clock::now();
        let took = at.saturating_duration_since(trail.began);
        let watched = trail.service().and_then(|at| self.services.get(at));
        let watched = watched.unwrap_or(&self.nowhere);
        let answered = trail.closer() != Closer::Proxy && status.as_u16() != CLIENT_CLOSED;
        let node = trail.node().0.filter(|_| answered);
        let method = trail.head().map_or(&Method::GET, |head| &head.method);
        watched.numbers.finished(node, method, status, took);
        if let Some(head) = trail.head() {
            watched.numbers.spoken(head.version);
        }
        if !self.log.writes() {
            return;
        }
        let facts = Facts {
            trail,
            status,
            sent,
            at,
            took,
            service: &watched.name,
            nodes: &watched.nodes,
        };
        self.log.add(|format, out| match format {
            AccessFormat::Json => json(out, &self.stamp, &facts),
            AccessFormat::Combined => combined(out, &self.stamp, &facts),
        });
    }
}

/// Puts an [`Observe`] around a service.
#[derive(Clone, Debug)]
pub struct ObserveLayer(Rc<Observer>);

impl ObserveLayer {
    /// With these eyes.
    #[must_use]
    pub const fn new(observer: Rc<Observer>) -> Self {
        Self(observer)
    }
}

impl<S> Layer<S> for ObserveLayer {
    type Service = Observe<S>;

    fn layer(&self, inner: S) -> Observe<S> {
        Observe {
            inner,
            observer: Rc::clone(&self.0),
        }
    }
}

/// Watches every request to its end.
#[derive(Clone, Debug)]
pub struct Observe<S> {
    inner: S,
    observer: Rc<Observer>,
}

impl<S> Service<Request> for Observe<S>
where
    S: Service<Request, Response = Response, Error = Infallible>,
    S::Future: Unpin,
{
    type Response = Response<Observed>;
    type Error = Infallible;
    type Future = Observing<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request) -> Observing<S::Future> {
        let record = Record {
            trail: Rc::clone(&request.trail),
            observer: Rc::clone(&self.observer),
            status: None,
            sent: 0,
        };
        Observing {
            call: self.inner.call(request),
            record: Some(record),
        }
    }
}

/// What must be written down when this is dropped.
struct Record {
    trail: Rc<Trail>,
    observer: Rc<Observer>,
    status: Option<StatusCode>,
    sent: u64,
}

impl Drop for Record {
    fn drop(&mut self) {
        let left = || {
            self.trail.closed_by(Closer::Client);
            StatusCode::from_u16(CLIENT_CLOSED).unwrap_or(StatusCode::BAD_REQUEST)
        };
        let status = self.status.unwrap_or_else(left);
        let sent = self.sent + self.trail.bytes_passed();
        self.observer.finished(&self.trail, status, sent);
    }
}

/// A request under observation.
#[must_use]
pub struct Observing<F> {
    call: F,
    record: Option<Record>,
}

impl<F> fmt::Debug for Observing<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observing").finish_non_exhaustive()
    }
}

impl<F> Future for Observing<F>
where
    F: Future<Output = Result<Response, Infallible>> + Unpin,
{
    type Output = Result<Response<Observed>, Infallible>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let mut response = match ready!(Pin::new(&mut this.call).poll(context)) {
            Ok(response) => response,
            Err(never) => match never {},
        };
        let Some(mut record) = this.record.take() else {
            return Poll::Pending;
        };
        record.status = Some(response.status);
        if record.trail.id().is_none() {
            record
                .trail
                .identify(new_id(&mut record.observer.rng.borrow_mut()));
        }
        if let Some(id) = record.trail.id() {
            response.fields.add("X-Request-Id", id.as_bytes());
        }
        Poll::Ready(Ok(response.map(|body| Observed { body, record })))
    }
}

/// A response's body under observation.
pub struct Observed {
    body: Body,
    record: Record,
}

impl fmt::Debug for Observed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Observed").field(&self.body).finish()
    }
}

impl Opens for Observed {
    fn take_tunnel(&mut self) -> Option<Box<Tunnel>> {
        self.body.take_tunnel()
    }
}

impl HttpBody for Observed {
    type Data = Bytes;
    type Error = Fault;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        let Self { body, record } = self.get_mut();
        let frame = ready!(Pin::new(body).poll_frame(context));
        match &frame {
            Some(Ok(frame)) => {
                record.sent += frame.data_ref().map_or(0, |data| data.len() as u64);
            }
            Some(Err(fault)) => {
                record
                    .trail
                    .closed_by(if matches!(fault, Fault::Upstream(_)) {
                        Closer::Upstream
                    } else {
                        Closer::Proxy
                    });
            }
            None => (),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Observed {
    fn drop(&mut self) {
        if !self.body.is_end_stream() {
            self.record.trail.closed_by(Closer::Client);
        }
    }
}
