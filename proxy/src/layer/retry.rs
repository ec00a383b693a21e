//! Trying again, only when that is safe; see `logic::retry` for when it is.
//!
//! The first attempt is polled in place. Everything after a failure is a task of patience and runs in one boxed future: tell
//! the control plane what was seen, decide, be admitted anew (perhaps to another node, perhaps after a hold), try.
//!
//! A write that was lost inside a node that then lost its role is made again in one case: the node's process died with it, and
//! the node, fenced, reports the very position that was known before the write was sent. Then nothing was committed in
//! between, and nothing will be: a fence ends, so whoever still works on a request could carry it out later. A write that we
//! gave up ourselves is therefore never made again, whatever is proved.

use std::cell::RefCell;
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use shared::clock;
use tower::{Layer, Service};

use super::balance::Tries;
use super::hold::{Admitted, Again, Desk, Seat, Until};
use crate::config;
use crate::exchange::{
    Attempt, Body, Cause, Deadlines, Fault, Head, Reach, Replay, Request, Response, Trail, Tried,
    Upload, UpstreamFault,
};
use crate::logic::NodeId;
use crate::logic::outcome::{Outcome, judge};
use crate::logic::retry::{Budget, Class, Facts, Next, decide, pause};
use crate::metrics::local::ServiceNumbers;
use crate::steer::{Class as Kind, Known, Settled, Sign, Ticket, View};

/// However often things go wrong, a request ends. Far above what attempts, budget and hold allow.
const TRIES_EVER: u32 = 1000;
/// From one knock at a silent node to the next.
const KNOCK_EVERY: Duration = Duration::from_millis(25);
/// So many answered knocks in a row mean that the node lives, and that nobody will take over.
const KNOCKS_ANSWERED: u32 = 3;

/// A response, and the admission under which it was given.
#[derive(Debug)]
pub struct Answered {
    /// The response.
    pub response: Response,
    /// Still in flight until it is released.
    pub ticket: Ticket,
}

/// Asks whether something accepts connections at a node; `None` when that is not certain.
pub type Knock = Rc<dyn Fn(NodeId) -> Pin<Box<dyn Future<Output = Option<bool>>>>>;

/// What may be tried again, and with what.
pub struct Rules {
    /// What the operator decided.
    pub retry: config::Retry,
    /// Whether nodes have positions to prove anything by.
    pub replicated: bool,
    /// Where requests are admitted.
    pub desk: Rc<Desk>,
    /// The worker's deadlines.
    pub deadlines: Deadlines,
    /// The service's numbers.
    pub numbers: Rc<ServiceNumbers>,
    /// How to knock.
    pub knock: Knock,
}

impl fmt::Debug for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rules")
            .field("retry", &self.retry)
            .finish_non_exhaustive()
    }
}

/// Puts a [`Retry`] around a service.
#[derive(Debug)]
pub struct RetryLayer(Rc<Rules>);

impl RetryLayer {
    /// By these rules.
    #[must_use]
    pub fn new(rules: Rules) -> Self {
        Self(Rc::new(rules))
    }
}

impl<S> Layer<S> for RetryLayer {
    type Service = Retry<S>;

    fn layer(&self, inner: S) -> Retry<S> {
        Retry(Rc::new(Shared {
            budget: RefCell::new(Budget::new(self.0.retry.budget, clock::now())),
            rules: Rc::clone(&self.0),
            inner: RefCell::new(inner),
        }))
    }
}

/// Makes attempts until one is answered, or none may follow.
#[derive(Debug)]
pub struct Retry<S>(Rc<Shared<S>>);

impl<S> Clone for Retry<S> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

#[derive(Debug)]
struct Shared<S> {
    rules: Rc<Rules>,
    budget: RefCell<Budget>,
    inner: RefCell<S>,
}

/// A request between its attempts.
#[derive(Debug)]
struct Journey {
    head: Rc<Head>,
    replay: Option<Rc<RefCell<Replay>>>,
    trail: Rc<Trail>,
    kind: Kind,
    /// Given back while the request waits: it is not in flight then.
    ticket: Option<Ticket>,
    at: Place,
    /// The position of the primary before the present attempt was made.
    known: Option<Arc<Known>>,
    began: Instant,
    first_failed: Option<Instant>,
    /// Where it was tried.
    tried: Tries,
    /// What failed first-hand, for when a breaker only repeats it.
    reason: Option<UpstreamFault>,
    /// Attempts of this epoch that may have been processed.
    tries: u32,
    all_tries: u32,
}

/// Where an attempt went, and on whose word.
#[derive(Clone, Copy, Debug)]
struct Place {
    node: NodeId,
    epoch: shared::model::Epoch,
    turn: u64,
}

impl Place {
    const fn of(ticket: &Ticket) -> Self {
        Self {
            node: ticket.node(),
            epoch: ticket.epoch(),
            turn: ticket.turn(),
        }
    }
}

impl Journey {
    fn is_abandoned(&self) -> bool {
        self.ticket.as_ref().is_some_and(Ticket::is_abandoned)
    }

    fn abandoned(&self) -> Fault {
        let reach = if self.trail.is_sent() {
            Reach::Sent
        } else {
            Reach::Connect
        };
        Fault::Upstream(UpstreamFault {
            node: self.at.node,
            reach,
            cause: Cause::Abandoned,
        })
    }

    fn is_replayable(&self) -> bool {
        let replay = self.replay.as_ref();
        replay.is_none_or(|replay| replay.borrow().is_replayable())
    }

    /// Memory that is taken while it waits.
    fn size(&self) -> usize {
        let kept = self
            .replay
            .as_ref()
            .map_or(0, |replay| replay.borrow().kept());
        self.head.size() + kept
    }

    fn attempt(&mut self, began: Instant, fresh: bool) -> Attempt {
        self.began = began;
        self.trail.admitted(self.at.node, self.at.epoch);
        Attempt {
            head: Rc::clone(&self.head),
            upload: self
                .replay
                .as_ref()
                .map_or_else(Upload::none, |replay| Upload::new(Rc::clone(replay))),
            node: self.at.node,
            began,
            fresh,
            trail: Rc::clone(&self.trail),
        }
    }

    /// An answer came.
    fn answered(&mut self, now: Instant, result: &'static str) -> Duration {
        self.tried(now, result, "", true)
    }

    fn tried(
        &mut self,
        now: Instant,
        result: &'static str,
        error: &'static str,
        sent: bool,
    ) -> Duration {
        self.tried.add(self.at.node);
        let took = now.saturating_duration_since(self.began);
        self.trail.tried(Tried {
            node: self.at.node,
            result,
            error,
            sent,
            took,
        });
        took
    }
}

impl<S> Service<Admitted> for Retry<S>
where
    S: Service<Attempt, Response = Response, Error = Fault> + 'static,
    S::Future: Unpin + 'static,
{
    type Response = Answered;
    type Error = Fault;
    type Future = Retrying<S>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, admitted: Admitted) -> Retrying<S> {
        let Admitted { request, ticket } = admitted;
        let Request {
            head, body, trail, ..
        } = request;
        let rules = &self.0.rules;
        let now = if trail.held().is_zero() {
            trail.began
        } else {
            clock::now()
        };
        self.0.budget.borrow_mut().deposit(now);
        let replay = match body {
            Body::Empty | Body::Tunnel(_) => None,
            Body::Full(_) | Body::Stream(_) => Some(Replay::new(
                body,
                rules.retry.max_body,
                &rules.deadlines,
                &trail,
            )),
        };
        let mut journey = Journey {
            head,
            replay,
            trail,
            kind: ticket.class(),
            at: Place::of(&ticket),
            known: rules.known(&ticket),
            ticket: Some(ticket),
            began: now,
            first_failed: None,
            tried: Tries::default(),
            reason: None,
            tries: 0,
            all_tries: 0,
        };
        let attempt = journey.attempt(now, false);
        let call = self.0.inner.borrow_mut().call(attempt);
        Retrying(State::First(call, Some(journey), Rc::clone(&self.0)))
    }
}

type Mending = Pin<Box<dyn Future<Output = Result<Answered, Fault>>>>;

/// A request and its attempts.
#[must_use]
pub struct Retrying<S: Service<Attempt>>(State<S>);

enum State<S: Service<Attempt>> {
    /// The first attempt, and what later ones need.
    First(S::Future, Option<Journey>, Rc<Shared<S>>),
    /// All later ones.
    Later(Mending),
}

impl<S: Service<Attempt>> fmt::Debug for Retrying<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Retrying").finish_non_exhaustive()
    }
}

impl<S> Future for Retrying<S>
where
    S: Service<Attempt, Response = Response, Error = Fault> + 'static,
    S::Future: Unpin + 'static,
{
    type Output = Result<Answered, Fault>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Self(state) = self.get_mut();
        loop {
            let (call, journey, shared) = match state {
                State::Later(mending) => return mending.as_mut().poll(context),
                State::First(call, journey, shared) => (call, journey, shared),
            };
            let result = match journey {
                None => return Poll::Pending,
                Some(journey) if journey.is_abandoned() => Err(journey.abandoned()),
                Some(_) => ready!(Pin::new(call).poll(context)),
            };
            let Some(mut journey) = journey.take() else {
                return Poll::Pending;
            };
            match shared.rules.look(&mut journey, &shared.budget, result) {
                Step::Done(answered) => return Poll::Ready(answered),
                // Drops the failed attempt, and with it its connection.
                step @ (Step::Again(..) | Step::Outlive(..)) => {
                    *state = State::Later(Box::pin(Rc::clone(shared).mend(journey, step)));
                }
            }
        }
    }
}

/// What follows from an attempt's end.
enum Step {
    /// Nothing.
    Done(Result<Answered, Fault>),
    /// Another attempt, once this is over.
    Again(Class, Until, Fault),
    /// Another attempt if the node loses its role; with proof, if so asked.
    Outlive(Fault, Proof),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proof {
    Needed,
    NotNeeded,
}

impl Rules {
    fn known(&self, ticket: &Ticket) -> Option<Arc<Known>> {
        (self.replicated && ticket.class() == Kind::Write).then(|| self.desk.lane().known())
    }

    fn is_repeatable(&self, head: &Head) -> bool {
        let method = head.certain_method();
        method.is_some_and(|method| self.retry.methods.contains(method))
    }

    /// Judges an attempt by its end.
    fn look(
        &self,
        journey: &mut Journey,
        budget: &RefCell<Budget>,
        result: Result<Response, Fault>,
    ) -> Step {
        let now = clock::now();
        match result {
            Err(Fault::Upstream(failure)) => self.look_failure(journey, budget, failure, now),
            Err(fault) => Step::Done(Err(fault)),
            Ok(response) if self.may_do_better(journey, budget, &response, now) => {
                let took = journey.answered(now, "status");
                self.numbers.answered(journey.at.node, took);
                self.settle(journey.at.node, now, None);
                let fault = Fault::Upstream(UpstreamFault {
                    node: journey.at.node,
                    reach: Reach::Body,
                    cause: Cause::Closed,
                });
                Step::Again(Class::MaybeProcessed, Until::Now, fault)
            }
            Ok(response) => {
                let took = journey.answered(now, "ok");
                self.numbers.answered(journey.at.node, took);
                let good = judge(response.status) == Outcome::Good;
                self.settle(journey.at.node, now, good.then_some(took));
                Step::Done(match journey.ticket.take() {
                    Some(ticket) => Ok(Answered { response, ticket }),
                    None => Err(journey.abandoned()),
                })
            }
        }
    }

    fn settle(&self, node: NodeId, now: Instant, took: Option<Duration>) {
        if let Some(balance) = self.desk.balance() {
            balance.settle(node, now, took);
        }
    }

    /// Whether there is a sound node where the request was not tried yet.
    fn has_another(&self, journey: &Journey) -> bool {
        let balance = self.desk.balance();
        balance.is_some_and(|balance| balance.has_another(journey.tried))
    }

    /// Whether an answer is one that the operator wants to be tried again, and may be.
    fn may_do_better(
        &self,
        journey: &mut Journey,
        budget: &RefCell<Budget>,
        response: &Response,
        now: Instant,
    ) -> bool {
        if !self.retry.statuses.contains(&response.status.as_u16()) {
            return false;
        }
        journey.tries += 1;
        let facts = self.facts(journey);
        decide(Class::MaybeProcessed, facts) == Next::Spend && budget.borrow_mut().withdraw(now)
    }

    fn facts(&self, journey: &Journey) -> Facts {
        Facts {
            repeatable: self.is_repeatable(&journey.head),
            replayable: journey.is_replayable(),
            tries: journey.tries,
            most: self.retry.attempts,
        }
    }

    fn look_failure(
        &self,
        journey: &mut Journey,
        budget: &RefCell<Budget>,
        failure: UpstreamFault,
        now: Instant,
    ) -> Step {
        let class = failure.class();
        let sent = class == Class::MaybeProcessed;
        journey.tried(now, class.as_str(), failure.cause.word(), sent);
        journey.all_tries += 1;
        // One that ended because its node lost its role says nothing about the request: it is not among its attempts.
        journey.tries += u32::from(sent && failure.cause != Cause::Abandoned);
        self.tell(&failure);
        if failure.blames_node() {
            self.settle(failure.node, now, None);
        }
        let first = *journey.first_failed.get_or_insert(now);
        let late = now.saturating_duration_since(first) >= self.desk.max_wait();
        let facts = self.facts(journey);
        let abandoned = failure.cause == Cause::Abandoned;
        let (is_loss, is_dropped) = (failure.is_loss(), failure.is_dropped());
        let until = if self.has_another(journey) {
            Some(Until::Now)
        } else {
            until(&failure, journey.all_tries, now)
        };
        // Only a primary can lose that role.
        let balance = self.desk.balance();
        let has_primary = balance.is_none_or(|balance| balance.is_primary(journey.at.node));
        let fault = Fault::Upstream(match (&failure.cause, &journey.reason) {
            (Cause::Broken(_), Some(reason)) => reason.clone(),
            (Cause::Broken(_), None) => failure,
            _ => journey.reason.insert(failure).clone(),
        });
        if late || journey.all_tries >= TRIES_EVER {
            return Step::Done(Err(fault));
        }
        match (decide(class, facts), until) {
            (Next::Again, Some(until)) => Step::Again(class, until, fault),
            // The node changed, not the luck: nothing is spent.
            (Next::Spend, _) if abandoned => Step::Again(class, Until::Now, fault),
            (Next::Spend, Some(until)) if budget.borrow_mut().withdraw(now) => {
                Step::Again(class, until, fault)
            }
            (Next::Spend | Next::GiveUp, _)
                if has_primary && facts.repeatable && facts.replayable && is_loss =>
            {
                Step::Outlive(fault, Proof::NotNeeded)
            }
            (Next::Prove, _) if is_dropped && journey.known.is_some() => {
                Step::Outlive(fault, Proof::Needed)
            }
            (Next::Again | Next::Spend | Next::Prove | Next::GiveUp, _) => Step::Done(Err(fault)),
        }
    }

    /// Tells the control plane what it would otherwise only hear from its probes.
    fn tell(&self, failure: &UpstreamFault) {
        let unreachable = matches!(
            failure.cause,
            Cause::Refused | Cause::ConnectTimeout | Cause::Io(_)
        );
        let steering = self.desk.lane().steering();
        match failure.reach {
            Reach::Connect if unreachable => steering.tell(Sign::Refused(failure.node)),
            Reach::Sent | Reach::Head if failure.is_loss() => {
                steering.tell(Sign::Lost(failure.node));
            }
            Reach::Connect
            | Reach::Unsent
            | Reach::Declined
            | Reach::Sent
            | Reach::Head
            | Reach::Body => (),
        }
    }

    /// Waits whether the node that lost a request loses its role, too. The request may then be made again.
    async fn outlive(
        &self,
        journey: &mut Journey,
        fault: Fault,
        proof: Proof,
    ) -> Result<Ticket, Fault> {
        journey.ticket = None;
        let (at, trail) = (journey.at, Rc::clone(&journey.trail));
        let Ok(seat) = self.desk.sit_down(&trail, journey.size()) else {
            return Err(fault);
        };
        let mut knocking = Knocking::new(self, at.node);
        if !self.is_replaced(at, &seat, &mut knocking).await {
            return Err(fault);
        }
        if proof == Proof::Needed {
            let proved = is_proved(&self.desk.lane().current(), at, journey.known.as_deref());
            if !proved || !knocking.is_dead().await {
                return Err(fault);
            }
            trail.tried_after_all(Class::KnownUnprocessed.as_str());
            self.numbers.proved();
        } else {
            self.numbers.retried(Class::MaybeProcessed);
        }
        let admitted = seat.admit(journey.kind, at.turn, journey.tried).await;
        admitted.map_err(|_| fault)
    }

    /// Whether another epoch began in which requests are taken. False as soon as it is certain that none will.
    async fn is_replaced(&self, at: Place, seat: &Seat<'_>, knocking: &mut Knocking<'_>) -> bool {
        let lane = self.desk.lane();
        let mut changes = lane.steering().changes();
        let mut closed = false;
        loop {
            let view = lane.current();
            let open = view.epoch == at.epoch && view.target == Some(at.node);
            if view.epoch > at.epoch && view.target.is_some() {
                return true;
            }
            if open && closed {
                return false;
            }
            closed |= !open;
            tokio::select! {
                _ = changes.changed() => (),
                () = clock::sleep_until(seat.until()) => return false,
                lives = knocking.knock(), if open && !lane.steering().is_abandoned(at.epoch) => {
                    if lives {
                        return false;
                    }
                }
            }
        }
    }
}

/// Finds out whether a node that lost a request is still there, when nobody says so.
struct Knocking<'r> {
    rules: &'r Rules,
    node: NodeId,
    answered: u32,
    refused: bool,
    next: Instant,
}

impl<'r> Knocking<'r> {
    fn new(rules: &'r Rules, node: NodeId) -> Self {
        Self {
            rules,
            node,
            answered: 0,
            refused: false,
            next: clock::now() + KNOCK_EVERY,
        }
    }

    /// Whether the process that had the connection is gone: nobody has listened since. One that listens may be the same.
    async fn is_dead(&self) -> bool {
        self.refused || (self.rules.knock)(self.node).await == Some(false)
    }

    /// Knocks once, when it is time to. True when the node lives.
    async fn knock(&mut self) -> bool {
        clock::sleep_until(self.next).await;
        let heard = (self.rules.knock)(self.node).await;
        self.next = clock::now() + KNOCK_EVERY;
        match heard {
            Some(true) => self.answered += 1,
            Some(false) => {
                (self.answered, self.refused) = (0, true);
                let sign = Sign::Refused(self.node);
                self.rules.desk.lane().steering().tell(sign);
                // It is dead, and whoever decides knows; there is no use in knocking much.
                self.next += KNOCK_EVERY * 10;
            }
            None => (),
        }
        self.answered >= KNOCKS_ANSWERED
    }
}

/// Whether the node that lost a write had committed nothing since before it was sent: its last position, told when it could no
/// longer write, is the one that was known then.
fn is_proved(view: &View, at: Place, known: Option<&Known>) -> bool {
    let (Some(known), Some(Settled { left, last })) = (known, &view.settled) else {
        return false;
    };
    *left == at.epoch
        && known.epoch == at.epoch
        && !known.position.0.is_empty()
        && last.as_ref() == Some(&known.position)
}

/// What a failed attempt has to wait for; `None` when another could only fail the same way.
fn until(failure: &UpstreamFault, tries: u32, now: Instant) -> Option<Until> {
    match failure.cause {
        Cause::Broken(until) => Some(Until::Moment(until)),
        Cause::Full => None,
        Cause::Abandoned => Some(Until::Now),
        Cause::ResponseTimeout if failure.reach == Reach::Connect => None,
        _ if failure.reach == Reach::Unsent => Some(Until::Now),
        Cause::Refused
        | Cause::ConnectTimeout
        | Cause::NameLookup
        | Cause::NotHttp2
        | Cause::Declined
        | Cause::Certificate(_)
        | Cause::Handshake(_)
        | Cause::Closed
        | Cause::Io(_) => Some(Until::Moment(now + pause(tries.saturating_sub(1)))),
        Cause::ResponseTimeout | Cause::IdleTimeout | Cause::Reset(_) | Cause::Malformed(_) => {
            Some(Until::Now)
        }
    }
}

impl<S> Shared<S>
where
    S: Service<Attempt, Response = Response, Error = Fault>,
{
    /// Follows a failed attempt to the request's end.
    async fn mend(self: Rc<Self>, mut journey: Journey, mut step: Step) -> Result<Answered, Fault> {
        loop {
            let ticket = match step {
                Step::Done(answered) => return answered,
                Step::Again(class, until, fault) => {
                    self.rules.numbers.retried(class);
                    self.readmit(&mut journey, until, fault).await?
                }
                Step::Outlive(fault, proof) => {
                    self.rules.outlive(&mut journey, fault, proof).await?
                }
            };
            if ticket.epoch() != journey.at.epoch {
                journey.tries = 0;
            }
            journey.at = Place::of(&ticket);
            journey.known = self.rules.known(&ticket);
            journey.ticket = Some(ticket);
            let result = self.attempt(&mut journey).await;
            step = self.rules.look(&mut journey, &self.budget, result);
        }
    }

    async fn readmit(
        &self,
        journey: &mut Journey,
        until: Until,
        fault: Fault,
    ) -> Result<Ticket, Fault> {
        journey.ticket = None;
        let desk = &self.rules.desk;
        let again = Again {
            class: journey.kind,
            bytes: journey.size(),
            former: journey.at.turn,
            tries: journey.tried,
        };
        match desk.readmit(&journey.trail, again, until).await {
            // It was not held by a view, but by a node that does not answer: that is the better reason.
            Err(Fault::Unavailable(_)) if desk.lane().view().is_open(Kind::Write) => Err(fault),
            admitted => admitted,
        }
    }

    async fn attempt(&self, journey: &mut Journey) -> Result<Response, Fault> {
        let attempt = journey.attempt(clock::now(), true);
        let call = self.inner.borrow_mut().call(attempt);
        let mut call = std::pin::pin!(call);
        poll_fn(|context| {
            if journey.is_abandoned() {
                return Poll::Ready(Err(journey.abandoned()));
            }
            call.as_mut().poll(context)
        })
        .await
    }
}
