//! Tunnels are bounded and counted, and end with their node's role: what passes through one is not seen, may write, and must
//! not reach a node that has lost the role.
//!
//! A tunnel is not in flight as a request is: it does not hold up a switchover, it is cut by it.

use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use shared::metrics::IntGauge;
use shared::model::Epoch;
use tower::{Layer, Service};

use super::hold::Admitted;
use super::retry::Answered;
use crate::config;
use crate::exchange::{Body, Bond, Cause, Fault, Leash, Reach, Trail, UpstreamFault};
use crate::logic::NodeId;
use crate::steer::Lane;

/// What tunnels of one service depend on.
pub struct Rules {
    /// What the operator decided.
    pub service: Arc<config::Service>,
    /// The worker's access to the service's steering.
    pub lane: Rc<Lane>,
    /// How many there are to each node, over all workers.
    pub open: Vec<IntGauge>,
}

impl fmt::Debug for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rules").finish_non_exhaustive()
    }
}

impl Rules {
    fn has_room(&self, node: NodeId) -> bool {
        let most = self.service.nodes[node.index()].max_tunnels;
        self.open[node.index()].get() < i64::try_from(most).unwrap_or(i64::MAX)
    }

    fn bind(&self, answered: &mut Answered, trail: Rc<Trail>) {
        let ticket = &answered.ticket;
        if let Body::Tunnel(tunnel) = &mut answered.response.body {
            let open = self.open[ticket.node().index()].clone();
            open.inc();
            tunnel.bond = Some(Bond {
                idle: self.service.timeouts.tunnel_idle,
                trail,
                leash: Box::new(Role {
                    lane: Rc::clone(&self.lane),
                    node: ticket.node(),
                    epoch: ticket.epoch(),
                    open,
                }),
            });
        }
    }
}

/// The role that a node had when a tunnel to it was opened. Counts as open until it is dropped.
struct Role {
    lane: Rc<Lane>,
    node: NodeId,
    epoch: Epoch,
    open: IntGauge,
}

impl Leash for Role {
    fn holds(&self) -> bool {
        self.lane.keeps(self.node, self.epoch)
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        self.open.dec();
    }
}

/// Puts a [`Tunnels`] around a service.
#[derive(Clone, Debug)]
pub struct TunnelLayer(Rc<Rules>);

impl TunnelLayer {
    /// By these rules.
    #[must_use]
    pub fn new(rules: Rules) -> Self {
        Self(Rc::new(rules))
    }
}

impl<S> Layer<S> for TunnelLayer {
    type Service = Tunnels<S>;

    fn layer(&self, inner: S) -> Tunnels<S> {
        Tunnels {
            inner,
            rules: Rc::clone(&self.0),
        }
    }
}

/// Binds what is opened to what it depends on.
#[derive(Clone, Debug)]
pub struct Tunnels<S> {
    inner: S,
    rules: Rc<Rules>,
}

impl<S> Service<Admitted> for Tunnels<S>
where
    S: Service<Admitted, Response = Answered, Error = Fault>,
    S::Future: Unpin,
{
    type Response = Answered;
    type Error = Fault;
    type Future = Opening<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, admitted: Admitted) -> Opening<S::Future> {
        if admitted.request.head.upgrade.is_none() {
            return Opening(State::Plain(self.inner.call(admitted)));
        }
        let node = admitted.ticket.node();
        if !self.rules.has_room(node) {
            return Opening(State::Full(node));
        }
        let trail = Rc::clone(&admitted.request.trail);
        let call = self.inner.call(admitted);
        Opening(State::Asking(call, Rc::clone(&self.rules), trail))
    }
}

/// A request that may open a tunnel.
#[must_use]
pub struct Opening<F>(State<F>);

enum State<F> {
    /// It does not ask for one.
    Plain(F),
    /// It does.
    Asking(F, Rc<Rules>, Rc<Trail>),
    /// It does, and there are as many as there may be.
    Full(NodeId),
}

impl<F> fmt::Debug for Opening<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opening").finish_non_exhaustive()
    }
}

impl<F> Future for Opening<F>
where
    F: Future<Output = Result<Answered, Fault>> + Unpin,
{
    type Output = Result<Answered, Fault>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.get_mut().0 {
            State::Plain(call) => Pin::new(call).poll(context),
            State::Asking(call, rules, trail) => {
                let mut answered = ready!(Pin::new(call).poll(context))?;
                rules.bind(&mut answered, Rc::clone(trail));
                Poll::Ready(Ok(answered))
            }
            State::Full(node) => Poll::Ready(Err(UpstreamFault {
                node: *node,
                reach: Reach::Connect,
                cause: Cause::Full,
            }
            .into())),
        }
    }
}
