//! The durability gate: the response to a write waits until a standby has the write on disk.
//!
//! What is asked is bound to the epoch in which the request was admitted; if that has ended, the client is never told that
//! the write succeeded. Whether a response must wait is decided by the view in force when it is there to be released, not by
//! the one when the request came: a standby may have become required in between, and it may lack this write.
//!
//! A gated request runs in a task of its own: the client going away must not change what is known about the write.

use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use http::Method;
use shared::clock;
use shared::model::{Epoch, Positions};
use tokio::task::{JoinHandle, spawn_local};
use tower::{Layer, Service};

use super::hold::Admitted;
use super::retry::Answered;
use crate::exchange::{Fault, Head, Response, Trail, Unconfirmed};
use crate::logic::NodeId;
use crate::logic::seen::Seen;
use crate::metrics::local::ServiceNumbers;
use crate::steer::{Gate as Opening, Lane, Sign, Ticket};

/// Rest before a barrier that was not passed is asked for again.
const ASK_AGAIN: Duration = Duration::from_millis(20);

/// A response that need not wait for a standby waits this long for the position that its client is told, at most.
const TELL_WITHIN: Duration = Duration::from_millis(250);

/// What came of asking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Everything that was committed is safe; up to here.
    Passed(Positions),
    /// The epoch has ended.
    Stale,
    /// Not yet; ask again.
    NotYet,
}

/// Asks the node's `syncd` for a barrier in an epoch.
pub type Ask = Rc<dyn Fn(NodeId, Epoch) -> Pin<Box<dyn Future<Output = Answer>>>>;

/// What is gated, and how long it may take.
#[derive(Clone)]
pub struct Rules {
    /// The known methods whose responses wait; none without a standby to wait for.
    pub methods: Vec<Method>,
    /// How long they wait.
    pub within: Duration,
    /// Whether they may be released without a standby, once that is on record.
    pub degrade: bool,
    /// Whether clients are told where the data stood after their writes.
    pub tells: bool,
    /// How to ask.
    pub ask: Ask,
    /// The worker's access to the service's steering.
    pub lane: Rc<Lane>,
    /// The service's numbers.
    pub numbers: Rc<ServiceNumbers>,
}

impl fmt::Debug for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rules")
            .field("methods", &self.methods)
            .finish_non_exhaustive()
    }
}

/// How a response stands at this moment.
enum Standing {
    Free,
    Waits,
    Outdated,
}

impl Rules {
    /// Whether the response to a request of this method waits. Of one that nobody has named only the application knows
    /// whether it writes (WebDAV's do, and `post` is POST to many), so it counts as a write.
    fn waits(&self, head: &Head) -> bool {
        use Method as M;
        let Some(method) = head.certain_method() else {
            return !self.methods.is_empty();
        };
        let named = matches!(
            *method,
            M::GET | M::HEAD | M::OPTIONS | M::POST | M::PUT | M::PATCH | M::DELETE
        );
        self.methods.contains(method) || !named && !self.methods.is_empty()
    }

    fn standing(&self, ticket: &Ticket) -> Standing {
        let view = self.lane.current();
        if ticket.is_abandoned() || view.epoch != ticket.epoch() {
            return Standing::Outdated;
        }
        match view.gate {
            Opening::Off | Opening::Open => Standing::Free,
            Opening::Barrier => Standing::Waits,
        }
    }

    /// Waits until the response may be released.
    async fn confirm(&self, ticket: &Ticket) -> Result<Option<Positions>, Unconfirmed> {
        let began = clock::now();
        let mut patience = Patience {
            rules: self,
            epoch: ticket.epoch(),
            until: began + self.within,
            told: false,
        };
        let mut changes = self.lane.steering().changes();
        let mut asking = (self.ask)(ticket.node(), ticket.epoch());
        loop {
            match self.standing(ticket) {
                Standing::Free => {
                    if patience.told {
                        self.numbers.degraded();
                    }
                    return Ok(None);
                }
                Standing::Outdated => return Err(Unconfirmed::Outdated),
                Standing::Waits => (),
            }
            tokio::select! {
                answer = &mut asking => match answer {
                    Answer::Passed(position) => {
                        self.lane.steering().learn(ticket.epoch(), &position);
                        return Ok(Some(position));
                    }
                    Answer::Stale => return Err(Unconfirmed::Outdated),
                    Answer::NotYet => asking = self.ask_again(ticket.node(), ticket.epoch()),
                },
                _ = changes.changed() => (),
                () = clock::sleep_until(patience.until) => patience.end()?,
            }
        }
    }

    fn ask_again(&self, node: NodeId, epoch: Epoch) -> Pin<Box<dyn Future<Output = Answer>>> {
        let ask = Rc::clone(&self.ask);
        Box::pin(async move {
            clock::sleep(ASK_AGAIN).await;
            ask(node, epoch).await
        })
    }

    async fn release(&self, answered: Answered, trail: &Trail) -> Result<Response, Fault> {
        let Answered {
            response,
            mut ticket,
        } = answered;
        ticket.withhold();
        if matches!(self.standing(&ticket), Standing::Free) {
            if self.tells {
                self.ask_where(&ticket, trail).await;
            }
            ticket.release();
            return Ok(response);
        }
        let began = clock::now();
        let confirmed = self.confirm(&ticket).await;
        let took = clock::now().saturating_duration_since(began);
        trail.gated_for(took);
        self.numbers.acked(took);
        let position = confirmed.map_err(Fault::Unconfirmed)?;
        if let Some(position) = position.filter(|_| self.tells) {
            self.tell(&ticket, trail, position);
        }
        ticket.release();
        Ok(response)
    }
}

impl Rules {
    /// Nothing has to be waited for, but the client shall know where the data stands now. If that cannot be found out soon, it
    /// is told nothing, and reads from the primary.
    async fn ask_where(&self, ticket: &Ticket, trail: &Trail) {
        // A gate that was opened because standbys are away would make the question wait for them.
        if self.lane.current().gate != Opening::Off {
            return;
        }
        let asking = (self.ask)(ticket.node(), ticket.epoch());
        if let Ok(Answer::Passed(position)) = tokio::time::timeout(TELL_WITHIN, asking).await {
            self.lane.steering().learn(ticket.epoch(), &position);
            self.tell(ticket, trail, position);
        }
    }

    /// Of several writes under way at once, the client keeps what it was told last; so each is told the newest that is known.
    fn tell(&self, ticket: &Ticket, trail: &Trail, position: Positions) {
        let epoch = ticket.epoch();
        let known = self.lane.steering().known();
        let newer = known.epoch == epoch && known.position.covers(&position);
        let position = if newer {
            known.position.clone()
        } else {
            position
        };
        trail.saw(Seen { epoch, position });
    }
}

/// How long a response waits, and what happens then.
struct Patience<'r> {
    rules: &'r Rules,
    epoch: Epoch,
    until: Instant,
    told: bool,
}

impl Patience<'_> {
    /// The time is over: the control plane is told, and may open the gate; if it does not, that is all.
    fn end(&mut self) -> Result<(), Unconfirmed> {
        if !self.told {
            self.rules
                .lane
                .steering()
                .tell(Sign::AckTimeout(self.epoch));
        }
        if self.told || !self.rules.degrade {
            return Err(Unconfirmed::Unreplicated);
        }
        self.told = true;
        self.until += self.rules.within;
        Ok(())
    }
}

/// Puts a [`Gate`] around a service.
#[derive(Clone, Debug)]
pub struct GateLayer(Rc<Rules>);

impl GateLayer {
    /// By these rules.
    #[must_use]
    pub fn new(rules: Rules) -> Self {
        Self(Rc::new(rules))
    }
}

impl<S> Layer<S> for GateLayer {
    type Service = Gate<S>;

    fn layer(&self, inner: S) -> Gate<S> {
        Gate {
            inner,
            rules: Rc::clone(&self.0),
        }
    }
}

/// Withholds responses until they are safe.
#[derive(Clone, Debug)]
pub struct Gate<S> {
    inner: S,
    rules: Rc<Rules>,
}

impl<S> Service<Admitted> for Gate<S>
where
    S: Service<Admitted, Response = Answered, Error = Fault>,
    S::Future: Unpin + 'static,
{
    type Response = Response;
    type Error = Fault;
    type Future = Gating<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, admitted: Admitted) -> Gating<S::Future> {
        if !self.rules.waits(&admitted.request.head) {
            let call = self.inner.call(admitted);
            return Gating(State::Free(call));
        }
        let (rules, trail) = (Rc::clone(&self.rules), Rc::clone(&admitted.request.trail));
        let call = self.inner.call(admitted);
        let task = spawn_local(async move {
            let answered = call.await?;
            rules.release(answered, &trail).await
        });
        Gating(State::Gated(task))
    }
}

/// A request whose response may have to wait.
#[must_use]
pub struct Gating<F>(State<F>);

enum State<F> {
    /// It need not.
    Free(F),
    /// It is in a task of its own.
    Gated(JoinHandle<Result<Response, Fault>>),
}

impl<F> fmt::Debug for Gating<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gating").finish_non_exhaustive()
    }
}

impl<F> Future for Gating<F>
where
    F: Future<Output = Result<Answered, Fault>> + Unpin,
{
    type Output = Result<Response, Fault>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.get_mut().0 {
            State::Free(call) => {
                let answered = ready!(Pin::new(call).poll(context))?;
                let Answered { response, ticket } = answered;
                ticket.release();
                Poll::Ready(Ok(response))
            }
            State::Gated(task) => {
                let ended = ready!(Pin::new(task).poll(context));
                // A task that panicked cannot say whether the write is safe.
                Poll::Ready(ended.unwrap_or(Err(Fault::Unconfirmed(Unconfirmed::Unreplicated))))
            }
        }
    }
}
