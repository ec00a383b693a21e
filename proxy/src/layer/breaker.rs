//! The circuit breaker's skin: one authoritative breaker per node in the whole process, and nothing written in common on the
//! usual path.
//!
//! A success is a store into the worker's own memory. A failure takes the lock, adds up everybody's successes first, and is
//! judged at once. Whether requests go through freely is one flag that all workers read.
//!
//! A breaker is there to send requests elsewhere. Where there is no elsewhere, because the service has a single node or all of
//! its nodes are in trouble, it lets everything through: an answer that is probably an error beats none.

use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use shared::clock;
use shared::metrics::IntGauge;
use tokio::sync::watch;
use tower::{Layer, Service};

use crate::exchange::{Attempt, Cause, Fault, Reach, Response, UpstreamFault};
use crate::logic::NodeId;
use crate::logic::breaker::{Admission, Breaker as Machine, BreakerLimits, Change, Phase, Ticket};
use crate::logic::nodes::NodeSet;
use crate::logic::outcome::{Outcome, judge};
use crate::steer::{Sign, Steering};

/// The breakers of one service, shared by its workers.
pub struct Breakers {
    nodes: Vec<Node>,
    successes: Box<[Tally]>,
    /// One bit a node: whether it would refuse the next request.
    broken: AtomicU64,
    changed: watch::Sender<u64>,
    steering: Arc<Steering>,
}

struct Node {
    /// Whether requests must ask; read by all, written when the phase changes.
    shut: AtomicBool,
    hoped: AtomicU64,
    machine: Mutex<Judged>,
    shown: IntGauge,
}

struct Judged {
    breaker: Machine,
    /// Successes of all workers that the breaker knows of.
    counted: u64,
}

/// One worker's successes, node by node, on cache lines of its own.
#[repr(align(128))]
struct Tally(Vec<AtomicU64>);

impl fmt::Debug for Breakers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let phases: Vec<_> = (0..self.nodes.len()).map(|at| self.phase_at(at)).collect();
        f.debug_tuple("Breakers").field(&phases).finish()
    }
}

impl Breakers {
    /// All closed. `shown` are the nodes' gauges, in the order of their ids; `lanes` is the number of workers.
    #[must_use]
    pub fn new(
        limits: BreakerLimits,
        shown: Vec<IntGauge>,
        lanes: usize,
        steering: Arc<Steering>,
    ) -> Arc<Self> {
        let now = clock::now();
        let tally = |_| Tally(shown.iter().map(|_| AtomicU64::new(0)).collect());
        let successes = (0..lanes).map(tally).collect();
        let node = |shown: IntGauge| {
            shown.set(0);
            Node {
                shut: AtomicBool::new(false),
                hoped: AtomicU64::new(0),
                machine: Mutex::new(Judged {
                    breaker: Machine::new(limits, now),
                    counted: 0,
                }),
                shown,
            }
        };
        Arc::new(Self {
            successes,
            nodes: shown.into_iter().map(node).collect(),
            broken: AtomicU64::new(0),
            changed: watch::channel(0).0,
            steering,
        })
    }

    /// What happens to the next request for `node`.
    #[must_use]
    pub fn phase(&self, node: NodeId) -> Phase {
        self.phase_at(node.index())
    }

    /// Nodes whose breaker lets nothing more through at this moment.
    #[must_use]
    pub fn broken(&self) -> NodeSet {
        NodeSet::from_bits(self.broken.load(Relaxed))
    }

    /// How many requests of freely admitted ones `node` has answered well since the start.
    #[must_use]
    pub fn successes(&self, node: NodeId) -> u64 {
        let counts = self.successes.iter();
        counts
            .map(|tally| tally.0[node.index()].load(Relaxed))
            .sum()
    }

    /// Hears of every change of any of them.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// The control plane sends requests to `node` anew, by the view `turn`: it is worth trying. Once a view.
    pub fn hope(&self, node: NodeId, turn: u64) {
        let at = &self.nodes[node.index()];
        if at.shut.load(Relaxed) && at.hoped.fetch_max(turn, SeqCst) < turn {
            let mut judged = self.lock(node);
            judged.breaker.handle_hope();
            self.publish(node, &judged);
        }
    }

    /// Adds up what workers counted, and notices when an open breaker's time is over. A few times a second, by any worker.
    ///
    /// While nobody sends requests to a node its breaker could never close, and whoever judges by it would never trust it
    /// again; so the end of the time is told as the end of the trouble.
    pub fn tick(&self, now: Instant) {
        let target = self.steering.view().target;
        let ids = (0..self.nodes.len()).filter_map(|at| u8::try_from(at).ok());
        for node in ids.map(NodeId) {
            let mut judged = self.lock(node);
            self.count(node, &mut judged, now);
            if judged.breaker.are_trials_stuck(now) {
                self.broken.fetch_and(!NodeSet::only(node).bits(), Relaxed);
            }
            let over = matches!(judged.breaker.phase(), Phase::Refuse(until) if until <= now);
            if over && target != Some(node) {
                judged.breaker.handle_hope();
                self.publish(node, &judged);
                self.steering.tell(Sign::Mended(node));
            }
        }
    }

    fn phase_at(&self, at: usize) -> Phase {
        let judged = self.nodes[at].machine.lock();
        judged
            .unwrap_or_else(PoisonError::into_inner)
            .breaker
            .phase()
    }

    fn lock(&self, node: NodeId) -> MutexGuard<'_, Judged> {
        // A worker that panicked while it counted leaves numbers, not a broken invariant.
        let judged = self.nodes[node.index()].machine.lock();
        judged.unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, node: NodeId, judged: &mut Judged, now: Instant) {
        let all = self.successes(node);
        judged
            .breaker
            .handle_successes(now, u64::wrapping_sub(all, judged.counted));
        judged.counted = all;
    }

    fn admit(&self, node: NodeId, now: Instant) -> Admission {
        let mut judged = self.lock(node);
        let admission = judged.breaker.admit(now);
        self.publish(node, &judged);
        if matches!(admission, Admission::Refused(_)) && self.is_last(node) {
            return Admission::Free;
        }
        admission
    }

    /// Whether there is no better node than this one, however bad it is.
    fn is_last(&self, node: NodeId) -> bool {
        if self.nodes.len() == 1 {
            return true;
        }
        let view = self.steering.view();
        view.members.as_ref().is_some_and(|members| {
            members.takes.has(node) && members.takes.except(self.broken()).is_empty()
        })
    }

    fn failed(&self, node: NodeId) {
        let now = clock::now();
        let mut judged = self.lock(node);
        self.count(node, &mut judged, now);
        let change = judged.breaker.handle_failure(now);
        self.announce(node, change, &judged);
    }

    fn settle(&self, node: NodeId, ticket: Ticket, outcome: Outcome) {
        let mut judged = self.lock(node);
        let change = judged.breaker.settle(clock::now(), ticket, outcome);
        self.publish(node, &judged);
        self.announce(node, change, &judged);
    }

    fn give_back(&self, node: NodeId, ticket: Ticket) {
        let mut judged = self.lock(node);
        judged.breaker.give_back(ticket);
        self.publish(node, &judged);
        drop(judged);
        self.changed.send_modify(|changes| *changes += 1);
    }

    fn announce(&self, node: NodeId, change: Option<Change>, judged: &Judged) {
        let Some(change) = change else {
            return;
        };
        self.publish(node, judged);
        self.steering.tell(match change {
            Change::Opened => Sign::Broke(node),
            Change::Closed => Sign::Mended(node),
        });
    }

    /// Shows the phase to everybody. Under the lock, so that the last to show it is the last to have changed it.
    fn publish(&self, node: NodeId, judged: &Judged) {
        let phase = judged.breaker.phase();
        let at = &self.nodes[node.index()];
        at.shut.store(phase != Phase::Admit, SeqCst);
        let bit = NodeSet::only(node).bits();
        if judged.breaker.is_shut() {
            self.broken.fetch_or(bit, Relaxed);
        } else {
            self.broken.fetch_and(!bit, Relaxed);
        }
        let shown = match phase {
            Phase::Admit => 0,
            Phase::Try => 1,
            Phase::Refuse(_) => 2,
        };
        if at.shown.get() != shown {
            at.shown.set(shown);
            self.changed.send_modify(|changes| *changes += 1);
        }
    }

    fn succeeded(&self, lane: usize, node: NodeId) {
        // Only this worker writes here, so that a load and a store are an addition.
        let own = &self.successes[lane].0[node.index()];
        own.store(own.load(Relaxed).wrapping_add(1), Relaxed);
    }
}

/// Puts a [`Breaker`] around a service.
#[derive(Clone, Debug)]
pub struct BreakerLayer {
    breakers: Arc<Breakers>,
    lane: usize,
}

impl BreakerLayer {
    /// For worker `lane`.
    #[must_use]
    pub const fn new(breakers: Arc<Breakers>, lane: usize) -> Self {
        Self { breakers, lane }
    }
}

impl<S> Layer<S> for BreakerLayer {
    type Service = Breaker<S>;

    fn layer(&self, inner: S) -> Breaker<S> {
        Breaker {
            inner,
            shared: Rc::new(self.clone()),
        }
    }
}

/// Lets attempts through to nodes that are not in trouble.
#[derive(Clone, Debug)]
pub struct Breaker<S> {
    inner: S,
    shared: Rc<BreakerLayer>,
}

impl<S> Service<Attempt> for Breaker<S>
where
    S: Service<Attempt, Response = Response, Error = Fault>,
    S::Future: Unpin,
{
    type Response = Response;
    type Error = Fault;
    type Future = Judging<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, attempt: Attempt) -> Judging<S::Future> {
        let node = attempt.node;
        let breakers = &self.shared.breakers;
        let mut trial = None;
        if breakers.nodes[node.index()].shut.load(Relaxed) {
            match breakers.admit(node, attempt.began) {
                Admission::Free => (),
                Admission::Trial(ticket) => trial = Some(ticket),
                Admission::Refused(until) => return Judging(State::Refused(node, until)),
            }
        }
        let verdict = Verdict {
            shared: Rc::clone(&self.shared),
            node,
            trial,
        };
        Judging(State::Trying(self.inner.call(attempt), verdict))
    }
}

/// Who must hear how an attempt ended. Dropped before that, it says nothing about the node.
#[derive(Debug)]
struct Verdict {
    shared: Rc<BreakerLayer>,
    node: NodeId,
    trial: Option<Ticket>,
}

impl Verdict {
    fn tell(&mut self, result: &Result<Response, Fault>) {
        let outcome = match result {
            Ok(response) => judge(response.status),
            Err(Fault::Upstream(fault)) if fault.blames_node() => Outcome::Bad,
            // The client's fault, or ours: a trial's ticket goes back.
            Err(_) => return,
        };
        let BreakerLayer { breakers, lane } = &*self.shared;
        match (self.trial.take(), outcome) {
            (Some(ticket), outcome) => breakers.settle(self.node, ticket, outcome),
            (None, Outcome::Good) => breakers.succeeded(*lane, self.node),
            (None, Outcome::Bad) => breakers.failed(self.node),
        }
    }
}

impl Drop for Verdict {
    fn drop(&mut self) {
        if let Some(ticket) = self.trial.take() {
            self.shared.breakers.give_back(self.node, ticket);
        }
    }
}

/// An attempt that is judged by its end.
#[must_use]
pub struct Judging<F>(State<F>);

enum State<F> {
    Refused(NodeId, Instant),
    Trying(F, Verdict),
}

impl<F> fmt::Debug for Judging<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Judging").finish_non_exhaustive()
    }
}

impl<F> Future for Judging<F>
where
    F: Future<Output = Result<Response, Fault>> + Unpin,
{
    type Output = Result<Response, Fault>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.get_mut().0 {
            State::Refused(node, until) => Poll::Ready(Err(UpstreamFault {
                node: *node,
                reach: Reach::Connect,
                cause: Cause::Broken(*until),
            }
            .into())),
            State::Trying(call, verdict) => {
                let result = ready!(Pin::new(call).poll(context));
                verdict.tell(&result);
                Poll::Ready(result)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::{Body, Head, Trail, Upload};
    use crate::steer::{Members, View};
    use std::cell::RefCell;
    use std::collections::VecDeque;
    use std::future::{Ready, ready};
    use std::time::Duration;
    use tokio::sync::mpsc;

    const LIMITS: BreakerLimits = BreakerLimits {
        consecutive_failures: 3,
        error_rate: 0.5,
        min_requests: 100,
        window: Duration::from_secs(10),
        open_for: Duration::from_secs(2),
        half_open_probes: 1,
    };
    const A: NodeId = NodeId(0);

    /// A node that follows a script of statuses; 0 is a lost connection.
    #[derive(Clone)]
    struct Script(Rc<RefCell<VecDeque<u16>>>);

    impl Service<Attempt> for Script {
        type Response = Response;
        type Error = Fault;
        type Future = Ready<Result<Response, Fault>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Fault>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, attempt: Attempt) -> Self::Future {
            ready(match self.0.borrow_mut().pop_front() {
                Some(0) | None => Err(Fault::Upstream(UpstreamFault {
                    node: attempt.node,
                    reach: Reach::Sent,
                    cause: Cause::Closed,
                })),
                Some(status) => {
                    let status = http::StatusCode::from_u16(status).unwrap();
                    Ok(Response::new(status, Body::Empty))
                }
            })
        }
    }

    struct Bench {
        breakers: Arc<Breakers>,
        signs: mpsc::Receiver<Sign>,
        script: Script,
    }

    impl Bench {
        fn new() -> Self {
            let view = View {
                target: Some(A),
                ..View::default()
            };
            let (steering, signs) = Steering::new(2, view);
            let gauge = |name: &str| IntGauge::new(name, "g").unwrap();
            Self {
                breakers: Breakers::new(LIMITS, vec![gauge("a"), gauge("b")], 2, steering),
                signs,
                script: Script(Rc::default()),
            }
        }

        async fn ask(&self, lane: usize, status: u16, began: Instant) -> Result<Response, Fault> {
            self.script.0.borrow_mut().push_back(status);
            let head = Head::plain(http::Method::GET, "/");
            let mut service =
                BreakerLayer::new(Arc::clone(&self.breakers), lane).layer(self.script.clone());
            let answer = service
                .call(Attempt {
                    head: Rc::new(head),
                    upload: Upload::none(),
                    node: A,
                    began,
                    fresh: false,
                    trail: Rc::new(Trail::for_test()),
                })
                .await;
            self.script.0.borrow_mut().clear();
            answer
        }
    }

    #[tokio::test]
    async fn failures_of_all_workers_count_together_and_successes_of_any_interrupt_them() {
        let mut bench = Bench::new();
        let now = clock::now();
        for (lane, status) in [(0, 500), (1, 503), (1, 200), (0, 0), (1, 502)] {
            let _ = bench.ask(lane, status, now).await;
        }
        assert_eq!(bench.breakers.phase(A), Phase::Admit);
        let _ = bench.ask(0, 504, now).await;
        assert!(matches!(bench.breakers.phase(A), Phase::Refuse(_)));
        assert_eq!(bench.signs.try_recv(), Ok(Sign::Broke(A)));
        let refused = bench.ask(1, 200, now).await;
        assert!(
            matches!(refused, Err(Fault::Upstream(fault)) if matches!(fault.cause, Cause::Broken(_)))
        );
        let later = clock::now() + LIMITS.open_for;
        assert!(bench.ask(1, 200, later).await.is_ok());
        assert_eq!(bench.breakers.phase(A), Phase::Admit);
        assert_eq!(bench.signs.try_recv(), Ok(Sign::Mended(A)));
    }

    #[tokio::test]
    async fn the_last_node_is_asked_however_bad_it_is() {
        let mut bench = Bench::new();
        let now = clock::now();
        let members = |takes: &[u8]| View {
            members: Some(Members {
                takes: takes.iter().copied().map(NodeId).collect(),
                ..Members::default()
            }),
            ..View::default()
        };
        bench.breakers.steering.publish(members(&[0, 1]));
        for _ in 0..3 {
            let _ = bench.ask(0, 500, now).await;
        }
        assert_eq!(bench.breakers.broken(), NodeSet::only(A));
        assert!(bench.ask(0, 200, now).await.is_err(), "there is another");
        bench.breakers.steering.publish(members(&[0]));
        assert!(bench.ask(0, 200, now).await.is_ok(), "the other is away");
        let steering = Arc::clone(&bench.breakers.steering);
        let gauge = IntGauge::new("alone", "g").unwrap();
        bench.breakers = Breakers::new(LIMITS, vec![gauge], 2, steering);
        for _ in 0..9 {
            assert!(
                bench.ask(0, 500, now).await.is_ok(),
                "there never was another"
            );
        }
        assert!(
            matches!(bench.breakers.phase(A), Phase::Refuse(_)),
            "it is shown all the same"
        );
    }

    #[tokio::test]
    async fn the_client_s_faults_say_nothing_about_the_node() {
        let bench = Bench::new();
        let now = clock::now();
        for _ in 0..10 {
            let _ = bench.ask(0, 404, now).await;
        }
        assert_eq!(bench.breakers.phase(A), Phase::Admit);
        assert_eq!(bench.breakers.successes[0].0[0].load(Relaxed), 10);
    }

    #[tokio::test]
    async fn a_new_view_is_hope_once_and_time_heals_what_nobody_asks() {
        let mut bench = Bench::new();
        let now = clock::now();
        for _ in 0..3 {
            let _ = bench.ask(0, 500, now).await;
        }
        assert_eq!(bench.signs.try_recv(), Ok(Sign::Broke(A)));
        bench.breakers.hope(A, 5);
        assert_eq!(bench.breakers.phase(A), Phase::Try);
        let _ = bench.ask(0, 500, now).await;
        assert_eq!(bench.signs.try_recv(), Ok(Sign::Broke(A)));
        bench.breakers.hope(A, 5);
        assert!(matches!(bench.breakers.phase(A), Phase::Refuse(_)));
        let later = clock::now() + LIMITS.open_for;
        bench.breakers.tick(later);
        assert!(bench.signs.try_recv().is_err(), "requests will find out");
        bench.breakers.steering.publish(View::default());
        bench.breakers.tick(later);
        assert_eq!(bench.signs.try_recv(), Ok(Sign::Mended(A)));
        assert_eq!(bench.breakers.phase(A), Phase::Try);
    }
}
