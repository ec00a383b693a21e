//! Admission: a request goes to the node that may take it, or waits until there is one. Bounded in time, number and memory.
//!
//! While a request is held its body is not read, so that a thousand held uploads cost a thousand heads.
//!
//! When the service's settings change, whoever is held moves on to where the new ones send it.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use http::Method;
use shared::clock;
use tokio::sync::watch;
use tower::{Layer, Service};

use super::balance::{Balance, Tries};
use super::breaker::Breakers;
use crate::config;
use crate::exchange::{Fault, Head, Request, Response, Trail, Unavailable};
use crate::logic::nodes::NodeSet;
use crate::logic::pace::Pace;
use crate::logic::shed::Pressure;
use crate::logic::tier::{Tiers, Worth};
use crate::metrics::local::ServiceNumbers;
use crate::steer::{Admission, Class, Held, Lane, Ticket, View};

/// A waiting request that nothing has woken looks again after this long whether it may go.
const PACE_LOOK: Duration = Duration::from_millis(50);

/// A request that may go to a node.
#[derive(Debug)]
pub struct Admitted {
    /// The request.
    pub request: Request,
    /// Where to, and in which epoch.
    pub ticket: Ticket,
}

/// One worker's way to be admitted to one service.
#[derive(Debug)]
pub struct Desk {
    lane: Rc<Lane>,
    limits: config::Hold,
    breakers: Arc<Breakers>,
    balance: Option<Balance>,
    shedding: Option<Shedding>,
    numbers: Rc<ServiceNumbers>,
    pace: Pace,
}

/// What is refused first under overload.
#[derive(Debug)]
pub struct Shedding {
    /// What routes are worth.
    pub tiers: Arc<Tiers>,
    /// Connections that this worker may have, by node.
    pub rooms: Box<[u64]>,
}

/// A request that comes again.
#[derive(Clone, Copy, Debug)]
pub struct Again {
    /// Whether it may write.
    pub class: Class,
    /// How much memory it takes, in bytes.
    pub bytes: usize,
    /// The view it was admitted by before.
    pub former: u64,
    /// Where it was tried.
    pub tries: Tries,
}

/// What a request that is tried again has to wait for.
#[derive(Clone, Copy, Debug)]
pub enum Until {
    /// Nothing: whoever is the target now.
    Now,
    /// A new view, or this moment.
    Moment(Instant),
}

impl Desk {
    /// One worker's desk; with `balance` if all nodes take requests.
    #[must_use]
    pub fn new(
        lane: Rc<Lane>,
        limits: config::Hold,
        breakers: Arc<Breakers>,
        balance: Option<Balance>,
        numbers: Rc<ServiceNumbers>,
    ) -> Self {
        Self {
            lane,
            limits,
            breakers,
            balance,
            shedding: None,
            numbers,
            pace: Pace::default(),
        }
    }

    /// With routes that are refused under overload.
    #[must_use]
    pub fn shedding(self, shedding: Option<Shedding>) -> Self {
        Self { shedding, ..self }
    }

    /// Refuses a request that can be done without, if there is too much to do.
    fn shed(&self, trail: &Trail) -> Option<Fault> {
        let shedding = self.shedding.as_ref()?;
        let worth = shedding.tiers.find(trail.head()?.target()).worth;
        if worth == Worth::Core {
            return None;
        }
        let view = self.lane.view();
        let takes = match &view.members {
            Some(members) => members.takes,
            None => view.target.map_or(NodeSet::NONE, NodeSet::only),
        };
        let rooms = takes
            .iter()
            .filter_map(|node| shedding.rooms.get(node.index()));
        let pressure = Pressure {
            held: self.lane.steering().held(),
            held_most: self.limits.max_requests,
            under_way: self.lane.pulse().waiting,
            // Where nobody takes requests there is no room to run out of.
            room: if takes.is_empty() {
                u64::MAX
            } else {
                rooms.sum()
            },
        };
        pressure.is_overload().then(|| {
            self.numbers.shed();
            Fault::Unavailable(Unavailable::Shed)
        })
    }

    /// The worker's access to the service's steering.
    #[must_use]
    pub const fn lane(&self) -> &Rc<Lane> {
        &self.lane
    }

    /// The service's breakers.
    #[must_use]
    pub const fn breakers(&self) -> &Arc<Breakers> {
        &self.breakers
    }

    /// How requests are spread over nodes, if there is no primary that has them all.
    #[must_use]
    pub const fn balance(&self) -> Option<&Balance> {
        self.balance.as_ref()
    }

    fn admit(&self, class: Class, trail: &Trail, tries: Tries) -> Admission {
        match &self.balance {
            None => self.lane.admit(class),
            Some(balance) => balance.admit(class, trail, tries),
        }
    }

    /// The longest wait.
    #[must_use]
    pub const fn max_wait(&self) -> Duration {
        self.limits.max_wait
    }

    /// Counts a request as waiting.
    ///
    /// # Errors
    /// Too many wait already, or this one has waited as long as it may.
    pub fn sit_down<'d>(&'d self, trail: &'d Trail, bytes: usize) -> Result<Seat<'d>, Fault> {
        let left = self.limits.max_wait.saturating_sub(trail.held());
        if left.is_zero() {
            return Err(self.waited(trail, &self.lane.view()));
        }
        let config::Hold {
            max_requests,
            max_bytes,
            ..
        } = self.limits;
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let held = self.lane.hold(max_requests, bytes, max_bytes);
        let too_many = || {
            let why = self.lane.view().why.clone();
            Fault::Unavailable(Unavailable::TooMany { why })
        };
        let since = clock::now();
        Ok(Seat {
            desk: self,
            trail,
            since,
            until: since + left,
            _held: held.ok_or_else(too_many)?,
        })
    }

    /// Admits a request that comes again; see [`Until`].
    ///
    /// # Errors
    /// Nobody took it in time, or too many wait already.
    pub async fn readmit(
        &self,
        trail: &Trail,
        again: Again,
        until: Until,
    ) -> Result<Ticket, Fault> {
        let Again {
            class,
            bytes,
            former,
            tries,
        } = again;
        let moment = match until {
            Until::Now => match self.admit(class, trail, tries) {
                Admission::Go(ticket) => return Ok(self.hopeful(ticket, former)),
                Admission::Hold { .. } => None,
            },
            Until::Moment(moment) => Some(moment),
        };
        let seat = self.sit_down(trail, bytes)?;
        if let Some(moment) = moment {
            let mut changes = self.lane.steering().changes();
            let mut mended = self.breakers.changes();
            if self.lane.current().turn == former {
                seat.wait(&mut changes, &mut mended, moment).await;
            }
        }
        seat.admit(class, former, tries).await
    }

    /// A node that the control plane sends requests to anew is one that it has reason to believe in.
    fn hopeful(&self, ticket: Ticket, former: u64) -> Ticket {
        let has_primary = self.balance.as_ref().is_none_or(Balance::has_primary);
        if ticket.turn() > former && has_primary {
            self.breakers.hope(ticket.node(), ticket.turn());
        }
        ticket
    }

    fn waited(&self, trail: &Trail, view: &View) -> Fault {
        Fault::Unavailable(Unavailable::Waited {
            waited: trail.held().max(self.limits.max_wait),
            why: view.why.clone(),
        })
    }
}

/// A waiting request. Its time counts until this is dropped.
#[derive(Debug)]
pub struct Seat<'d> {
    desk: &'d Desk,
    trail: &'d Trail,
    since: Instant,
    until: Instant,
    _held: Held,
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        let took = clock::now().saturating_duration_since(self.since);
        self.trail.held_for(took);
        self.desk.numbers.held(took);
    }
}

impl Seat<'_> {
    /// When it has waited as long as it may.
    #[must_use]
    pub const fn until(&self) -> Instant {
        self.until
    }

    /// What to tell when it has waited in vain.
    #[must_use]
    pub fn in_vain(&self, view: &View) -> Fault {
        self.desk.waited(self.trail, view)
    }

    /// Waits until a view admits the request; `former` is the one that was looked at before.
    ///
    /// # Errors
    /// None did in time.
    pub async fn admit(&self, class: Class, former: u64, tries: Tries) -> Result<Ticket, Fault> {
        let lane = &self.desk.lane;
        let mut changes = lane.steering().changes();
        loop {
            let (view, now) = (lane.current(), clock::now());
            // Its time is up only while nobody takes it: somebody does, so at its end it goes at any pace.
            if view.is_open(class)
                && now < self.until
                && !self.desk.pace.admits(view.turn, lane.pulse(), now)
            {
                tokio::select! {
                    _ = changes.changed() => (),
                    () = lane.eased() => (),
                    () = clock::sleep_until(self.until.min(now + PACE_LOOK)) => (),
                }
                continue;
            }
            match self.desk.admit(class, self.trail, tries) {
                Admission::Go(ticket) => return Ok(self.desk.hopeful(ticket, former)),
                Admission::Hold { view } => {
                    if clock::now() >= self.until {
                        return Err(self.in_vain(&view));
                    }
                }
            }
            tokio::select! {
                _ = changes.changed() => (),
                () = clock::sleep_until(self.until) => (),
            }
        }
    }

    /// Waits for a new view, a change of a breaker, or `moment`, whichever is first.
    async fn wait(
        &self,
        changes: &mut watch::Receiver<u64>,
        mended: &mut watch::Receiver<u64>,
        moment: Instant,
    ) {
        tokio::select! {
            _ = changes.changed() => (),
            _ = mended.changed() => (),
            () = clock::sleep_until(moment.min(self.until)) => (),
        }
    }
}

/// Safe methods may go where nothing may be written. What passes through a tunnel may write.
#[must_use]
pub fn class(head: &Head) -> Class {
    let method = head.certain_method();
    let is_safe = matches!(
        method,
        Some(&Method::GET | &Method::HEAD | &Method::OPTIONS)
    );
    if is_safe && head.upgrade.is_none() {
        Class::Safe
    } else {
        Class::Write
    }
}

/// Puts a [`Hold`] around a service.
#[derive(Clone, Debug)]
pub struct HoldLayer(Rc<Desk>);

impl HoldLayer {
    /// At this desk.
    #[must_use]
    pub const fn new(desk: Rc<Desk>) -> Self {
        Self(desk)
    }
}

impl<S> Layer<S> for HoldLayer {
    type Service = Hold<S>;

    fn layer(&self, inner: S) -> Hold<S> {
        Hold {
            inner,
            desk: Rc::clone(&self.0),
            heir: Rc::default(),
        }
    }
}

/// Admits requests, or holds them.
#[derive(Clone, Debug)]
pub struct Hold<S> {
    inner: S,
    desk: Rc<Desk>,
    heir: Rc<RefCell<Option<Box<Self>>>>,
}

impl<S> Hold<S> {
    /// Whoever waits here moves on to `heir` when its settings are in force.
    pub fn bequeath(&self, heir: Self) {
        *self.heir.borrow_mut() = Some(Box::new(heir));
    }
}

impl<S> Hold<S>
where
    S: Service<Admitted, Response = Response, Error = Fault> + Clone + Unpin,
    S::Future: Unpin,
{
    fn move_on(&mut self, request: Request) -> State<S> {
        let mut heir = self.heir.borrow().as_deref().cloned();
        heir.as_mut().unwrap_or(self).call(request).0
    }
}

impl<S> Hold<S> {
    fn mark(&self, class: Class, request: &Request) -> Option<Mark> {
        let balance = self.desk.balance.as_ref()?;
        let mark = || (Rc::clone(&self.desk), Rc::clone(&request.trail));
        balance.marks(class).then(mark)
    }
}

impl<S> Service<Request> for Hold<S>
where
    S: Service<Admitted, Response = Response, Error = Fault> + Clone + Unpin,
    S::Future: Unpin,
{
    type Response = Response;
    type Error = Fault;
    type Future = Holding<S>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request) -> Holding<S> {
        let class = class(&request.head);
        if let Some(fault) = self.desk.shed(&request.trail) {
            let refused = Box::pin(std::future::ready(Err(fault)));
            return Holding(State::Waiting(refused, None), None);
        }
        match self.desk.admit(class, &request.trail, Tries::default()) {
            Admission::Go(ticket) => {
                let mark = self.mark(class, &request);
                let call = self.inner.call(Admitted { request, ticket });
                Holding(State::Gone(call), mark)
            }
            Admission::Hold { view } => {
                let mark = self.mark(class, &request);
                let (desk, trail) = (Rc::clone(&self.desk), Rc::clone(&request.trail));
                let bytes = request.head.size();
                // Without an heir there is nowhere to go, whatever else is in force.
                let may_move = self.heir.borrow().is_some() || !desk.lane().steering().has_heir();
                let ticket = Box::pin(async move {
                    let seat = desk.sit_down(&trail, bytes)?;
                    tokio::select! {
                        biased;
                        () = desk.lane().inherited(), if may_move => Ok(None),
                        ticket = seat.admit(class, view.turn, Tries::default()) => ticket.map(Some),
                    }
                });
                Holding(State::Waiting(ticket, Some((request, self.clone()))), mark)
            }
        }
    }
}

/// Ends without a ticket when there is an heir to go to.
type Waiting = Pin<Box<dyn Future<Output = Result<Option<Ticket>, Fault>>>>;

/// A request that waits, or is on its way.
#[must_use]
pub struct Holding<S: Service<Admitted>>(State<S>, Option<Mark>);

/// Whose response is to be marked with its node, and by whom.
type Mark = (Rc<Desk>, Rc<Trail>);

enum State<S: Service<Admitted>> {
    /// For a ticket, to go there.
    Waiting(Waiting, Option<(Request, Hold<S>)>),
    Gone(S::Future),
}

impl<S: Service<Admitted>> std::fmt::Debug for Holding<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Holding").finish_non_exhaustive()
    }
}

impl<S> Future for Holding<S>
where
    S: Service<Admitted, Response = Response, Error = Fault> + Clone + Unpin,
    S::Future: Unpin,
{
    type Output = Result<Response, Fault>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Self(state, mark) = self.get_mut();
        loop {
            match state {
                State::Gone(call) => {
                    let mut result = ready!(Pin::new(call).poll(context));
                    if let (Some((desk, trail)), Ok(response)) = (&*mark, &mut result)
                        && let Some(balance) = &desk.balance
                    {
                        balance.mark(trail, response);
                    }
                    return Poll::Ready(result);
                }
                State::Waiting(ticket, next) => {
                    let ticket = ready!(ticket.as_mut().poll(context))?;
                    let Some((request, mut hold)) = next.take() else {
                        return Poll::Pending;
                    };
                    *state = match ticket {
                        Some(ticket) => State::Gone(hold.inner.call(Admitted { request, ticket })),
                        None => hold.move_on(request),
                    };
                }
            }
        }
    }
}
