//! Where requests go: the control plane's word to the workers, and theirs to it. One [`Steering`] a service.
//!
//! The control plane publishes an immutable [`View`]; workers admit requests against it without a lock. Admission and
//! draining are a store-then-load pair on each side (the worker counts itself in, then looks at the turn; the control plane
//! publishes a turn, then looks at the counts), so that once a closing view is published, every request that slipped in
//! before it is seen in [`Steering::in_flight`], and none can slip in after.
//!
//! A service whose settings change gets an heir: a [`Steering`] with other nodes over the same counts and the same view. Requests
//! that came before stay with the old one, which reads the heir's views by the names of its own nodes; so no change of primary,
//! of the gate or of the epoch escapes them, and they are waited for as everybody else is.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{
    AtomicU64,
    Ordering::{Relaxed, SeqCst},
};

use arc_swap::{ArcSwap, Cache};
use shared::model::{Epoch, Positions};
use tokio::sync::{Notify, mpsc, watch};

use crate::logic::NodeId;
pub use crate::logic::failover::Gate;
pub use crate::logic::fleet::Members;
use crate::logic::nodes::NodeSet;
use crate::logic::stall::Pulse;

/// How many words of the workers may wait for the control plane; what comes on top is dropped, because each word is
/// either repeated by the next request or found out by the probes.
const SIGNS_MOST: usize = 1024;

/// How the last change of primary ended, for requests that were lost inside the former one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// The epoch that ended.
    pub left: Epoch,
    /// Where the former primary stood when it could no longer write; `None` when it could not be asked.
    pub last: Option<Positions>,
}

/// The state that requests are steered by. Immutable; replaced whole.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Grows with every publication; set by [`Steering::publish`].
    pub turn: u64,
    /// The term in force.
    pub epoch: Epoch,
    /// Who takes requests; `None`: they are held.
    pub target: Option<NodeId>,
    /// Who may take safe requests while there is no target.
    pub reads: Option<NodeId>,
    /// Who may take requests of a service that has no primary (`hot-hot`); it never has a target.
    pub members: Option<Members>,
    /// Whose tunnels go on though there is no target for the moment: its role is in doubt, not lost.
    pub doubted: Option<NodeId>,
    /// What gated responses wait for.
    pub gate: Gate,
    /// How the last change of primary ended.
    pub settled: Option<Settled>,
    /// The phase, as users see it.
    pub phase: &'static str,
    /// Why requests are held, in a few words for the client.
    pub why: Option<Arc<str>>,
    /// Which settings of the service the nodes' ids belong to; set by [`Steering::publish`].
    pub settings: u64,
    /// The nodes' names in the order of their ids; set by [`Steering::publish`].
    pub names: Arc<[Box<str>]>,
}

impl View {
    /// Who takes requests of this class.
    #[must_use]
    pub fn taker(&self, class: Class) -> Option<NodeId> {
        self.target.or(match class {
            Class::Safe => self.reads,
            Class::Write => None,
        })
    }

    /// Whether there is somebody who takes requests of this class.
    #[must_use]
    pub fn is_open(&self, class: Class) -> bool {
        let members = self.members.as_ref();
        self.taker(class).is_some() || members.is_some_and(|members| !members.takes.is_empty())
    }

    /// Whether a tunnel to `node` that was opened in `epoch` may go on. A member has no role to lose.
    #[must_use]
    pub fn keeps(&self, node: NodeId, epoch: Epoch) -> bool {
        self.members.is_some() || self.epoch == epoch && self.target.or(self.doubted) == Some(node)
    }

    /// The same with the ids of other settings, whose nodes have these names. Who has none there is nobody.
    fn translated(&self, names: &[Box<str>]) -> Self {
        let translate = |node: NodeId| {
            let name = self.names.get(node.index())?;
            let place = names.iter().position(|other| other == name)?;
            u8::try_from(place).ok().map(NodeId)
        };
        Self {
            target: self.target.and_then(translate),
            reads: self.reads.and_then(translate),
            doubted: self.doubted.and_then(translate),
            members: self.members.as_ref().map(|members| Members {
                takes: members.takes.iter().filter_map(translate).collect(),
                keeps: members.keeps.iter().filter_map(translate).collect(),
                weights: names
                    .iter()
                    .map(|name| self.weight(members, name))
                    .collect(),
            }),
            ..self.clone()
        }
    }

    fn weight(&self, members: &Members, name: &str) -> u32 {
        let place = self.names.iter().position(|other| **other == *name);
        let weight = place.and_then(|place| members.weights.get(place));
        weight.copied().unwrap_or_default()
    }

    /// The same with nobody who takes requests.
    fn closed(&self) -> Self {
        Self {
            target: None,
            reads: None,
            doubted: None,
            members: None,
            ..self.clone()
        }
    }
}

/// The newest position of the primary that this process has heard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// The term in which it was heard.
    pub epoch: Epoch,
    /// The position.
    pub position: Positions,
}

/// Standbys that may answer requests that change nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Readers {
    /// The term in which they are standbys: what is said here holds for admissions in that term only.
    pub epoch: Epoch,
    /// Those that are up and close enough to the primary.
    pub fit: NodeSet,
    /// What their readers see at least, by the nodes' places; empty where nothing is replicated.
    pub applied: Vec<Positions>,
}

/// What a worker tells the control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// A connection to the node was refused, or could not be made.
    Refused(NodeId),
    /// A request in flight on the node was lost with its connection.
    Lost(NodeId),
    /// The node's breaker opened.
    Broke(NodeId),
    /// The node's breaker closed again.
    Mended(NodeId),
    /// A gated response of this epoch has waited for its barrier as long as it may.
    AckTimeout(Epoch),
}

/// What one worker counts. Alone on its cache lines, because every request writes to it.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Tally {
    safe: AtomicU64,
    writes: AtomicU64,
    released: AtomicU64,
    answered: AtomicU64,
    withheld: AtomicU64,
}

/// One worker's requests under way, node by node; empty if the primary has them all.
type Load = Box<[AtomicU64]>;

fn no_load(lanes: usize, nodes: usize) -> Box<[Load]> {
    let load = |_| (0..nodes).map(|_| AtomicU64::new(0)).collect();
    (0..lanes).map(load).collect()
}

/// What a service keeps when its settings change.
struct Core {
    view: Arc<ArcSwap<View>>,
    turn: AtomicU64,
    floor: AtomicU64,
    changed: watch::Sender<u64>,
    known: Arc<ArcSwap<Known>>,
    tallies: Box<[Tally]>,
    held: AtomicU64,
    held_bytes: AtomicU64,
    /// Which settings are in force.
    settings: AtomicU64,
    /// To the control task of those.
    signs: ArcSwap<mpsc::Sender<Sign>>,
}

/// One service's steering, shared by its control task and all workers.
pub struct Steering {
    core: Arc<Core>,
    settings: u64,
    names: OnceLock<Arc<[Box<str>]>>,
    /// By worker. The nodes are these settings'.
    loads: Box<[Load]>,
    /// The nodes are these settings'.
    readers: Arc<ArcSwap<Readers>>,
    signs: mpsc::Sender<Sign>,
}

impl fmt::Debug for Steering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Steering")
            .field("view", &self.core.view.load())
            .finish_non_exhaustive()
    }
}

impl Steering {
    /// Begins as `first` says. `lanes` is the number of workers; the receiver is the control task's. Whether the service has
    /// members is decided here for good.
    #[must_use]
    pub fn new(lanes: usize, first: View) -> (Arc<Self>, mpsc::Receiver<Sign>) {
        let members = first.members.as_ref();
        let nodes = members.map_or(0, |members| members.weights.len());
        Self::counting(lanes, nodes, first)
    }

    /// The same, with requests counted at each of `nodes` (0: not one by one).
    #[must_use]
    pub fn counting(lanes: usize, nodes: usize, first: View) -> (Arc<Self>, mpsc::Receiver<Sign>) {
        let (signs, heard) = mpsc::channel(SIGNS_MOST);
        let core = Core {
            turn: AtomicU64::new(first.turn),
            floor: AtomicU64::new(0),
            changed: watch::channel(first.turn).0,
            view: Arc::new(ArcSwap::from_pointee(first)),
            known: Arc::default(),
            tallies: (0..lanes).map(|_| Tally::default()).collect(),
            held: AtomicU64::new(0),
            held_bytes: AtomicU64::new(0),
            settings: AtomicU64::new(0),
            signs: ArcSwap::from_pointee(signs.clone()),
        };
        let steering = Self {
            core: Arc::new(core),
            settings: 0,
            names: OnceLock::new(),
            loads: no_load(lanes, nodes),
            readers: Arc::default(),
            signs,
        };
        (Arc::new(steering), heard)
    }

    /// The steering of the same service by other settings, with requests counted at each of `nodes` (0: not one by one). What it
    /// admits waits until its control task takes it up.
    #[must_use]
    pub fn heir(&self, nodes: usize) -> (Arc<Self>, mpsc::Receiver<Sign>) {
        let (signs, heard) = mpsc::channel(SIGNS_MOST);
        let heir = Self {
            core: Arc::clone(&self.core),
            settings: self.settings + 1,
            names: OnceLock::new(),
            loads: no_load(self.core.tallies.len(), nodes),
            readers: Arc::default(),
            signs,
        };
        (Arc::new(heir), heard)
    }

    /// Says what the nodes are called, in the order of their ids. Once, before anything is published.
    pub fn name_nodes<'n>(&self, names: impl Iterator<Item = &'n str>) {
        let _ = self.names.set(names.map(Into::into).collect());
    }

    /// Puts these settings in force. Only a service's control task calls this, when it begins and no other is left.
    pub fn take_up(&self) {
        self.core.signs.store(Arc::new(self.signs.clone()));
        self.core.settings.store(self.settings, SeqCst);
    }

    /// Whether it is the same service's, by these or other settings.
    #[must_use]
    pub fn is_kin(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.core, &other.core)
    }

    /// Whether other settings are in force by now.
    #[must_use]
    pub fn has_heir(&self) -> bool {
        self.core.settings.load(SeqCst) > self.settings
    }

    /// Puts `view` in force for every request admitted from now on. Only the service's control task calls this.
    pub fn publish(&self, view: View) {
        let turn = self.core.turn.load(SeqCst) + 1;
        let names = self.names.get().cloned().unwrap_or_default();
        // Who led when the settings changed is in doubt until their driver has heard of it, and has lost nothing.
        let before = self.core.view.load();
        let begins = view.phase == "starting" && before.epoch == view.epoch;
        let led = begins.then(|| before.translated(&names));
        let led = led.and_then(|led| led.target.or(led.doubted));
        self.core.view.store(Arc::new(View {
            turn,
            settings: self.settings,
            doubted: view.doubted.or(led),
            names,
            ..view
        }));
        self.core.turn.store(turn, SeqCst);
        self.core.changed.send_replace(turn);
    }

    /// A view as these settings see it.
    fn own(&self, view: &Arc<View>) -> Arc<View> {
        if view.settings == self.settings {
            Arc::clone(view)
        } else if view.settings > self.settings {
            Arc::new(view.translated(self.names.get().map_or(&[], |names| names)))
        } else {
            Arc::new(view.closed())
        }
    }

    /// Gives up every request that was admitted in an epoch below `epoch` and is still in flight: workers see it at their
    /// next look, and are woken by the change of view that goes with it.
    pub fn abandon_below(&self, epoch: Epoch) {
        self.core.floor.fetch_max(epoch.0, SeqCst);
    }

    /// Whether a request admitted in `epoch` has been given up.
    #[must_use]
    pub fn is_abandoned(&self, epoch: Epoch) -> bool {
        epoch.0 < self.core.floor.load(SeqCst)
    }

    /// The view in force.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        self.own(&self.core.view.load())
    }

    /// Hears of every change of view. [`watch::Receiver::changed`] then [`Steering::view`].
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.core.changed.subscribe()
    }

    /// Requests under way that the present or a former target has and whose response is not released yet: safe ones, and
    /// those that may write.
    #[must_use]
    pub fn in_flight(&self) -> (u64, u64) {
        (
            self.sum(|tally| &tally.safe),
            self.sum(|tally| &tally.writes),
        )
    }

    /// Requests under way at one of several members.
    #[must_use]
    pub fn in_flight_at(&self, node: NodeId) -> u64 {
        let counts = self.loads.iter().filter_map(|load| load.get(node.index()));
        counts.map(|count| count.load(Relaxed)).sum()
    }

    /// Responses to possibly writing requests released since the start: what an asynchronous failover may have lost is at
    /// most the growth of this since the primary's position was last asked for.
    #[must_use]
    pub fn released(&self) -> u64 {
        self.sum(|tally| &tally.released)
    }

    fn sum(&self, count: fn(&Tally) -> &AtomicU64) -> u64 {
        self.core
            .tallies
            .iter()
            .map(|tally| count(tally).load(SeqCst))
            .sum()
    }

    /// Whether the target answers: requests that wait for it, and responses that have begun.
    #[must_use]
    pub fn pulse(&self) -> Pulse {
        let (safe, writes) = self.in_flight();
        Pulse {
            waiting: (safe + writes).saturating_sub(self.sum(|tally| &tally.withheld)),
            answered: self.sum(|tally| &tally.answered),
        }
    }

    /// Requests held at this moment.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.core.held.load(SeqCst)
    }

    /// The newest position heard of the primary.
    #[must_use]
    pub fn known(&self) -> Arc<Known> {
        self.core.known.load_full()
    }

    /// Remembers a position heard of the primary of `epoch`; older ones than known are ignored.
    pub fn learn(&self, epoch: Epoch, position: &Positions) {
        self.core.known.rcu(|known| {
            let newer = epoch > known.epoch
                || (epoch == known.epoch
                    && *position != known.position
                    && position.behind(&known.position) == 0);
            if newer {
                Arc::new(Known {
                    epoch,
                    position: position.clone(),
                })
            } else {
                Arc::clone(known)
            }
        });
    }

    /// Standbys that may answer requests that change nothing, as of now. Only the service's control task calls this.
    pub fn let_read(&self, readers: Readers) {
        self.readers.store(Arc::new(readers));
    }

    /// Tells the control task something. What former settings say of nodes is of no use to it.
    pub fn tell(&self, sign: Sign) {
        if !self.has_heir() || matches!(sign, Sign::AckTimeout(_)) {
            // A full queue means that the same is being said a thousand times over.
            let _ = self.core.signs.load().try_send(sign);
        }
    }

    /// Worker `lane`'s own access to this steering.
    #[must_use]
    pub fn lane(self: &Arc<Self>, lane: usize) -> Rc<Lane> {
        Rc::new(Lane {
            steering: Arc::clone(self),
            lane,
            view: RefCell::new(Cache::new(Arc::clone(&self.core.view))),
            foreign: RefCell::default(),
            known: RefCell::new(Cache::new(Arc::clone(&self.core.known))),
            readers: RefCell::new(Cache::new(Arc::clone(&self.readers))),
            queued: Cell::new(0),
            eased: Notify::new(),
        })
    }
}

/// One worker's access to a service's steering. Not shared between threads.
pub struct Lane {
    steering: Arc<Steering>,
    lane: usize,
    view: RefCell<Cache<Arc<ArcSwap<View>>, Arc<View>>>,
    /// The last view of other settings, as these see it.
    foreign: RefCell<Arc<View>>,
    known: RefCell<Cache<Arc<ArcSwap<Known>>, Arc<Known>>>,
    readers: RefCell<Cache<Arc<ArcSwap<Readers>>, Arc<Readers>>>,
    queued: Cell<usize>,
    eased: Notify,
}

impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lane")
            .field("lane", &self.lane)
            .finish_non_exhaustive()
    }
}

/// Whether a request may change something, judged by its method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// GET, HEAD, OPTIONS (RFC 9110 §9.2.1).
    Safe,
    /// Everything else.
    Write,
}

/// A request's admission.
#[derive(Debug)]
pub enum Admission {
    /// It may go to this node, in this epoch.
    Go(Ticket),
    /// Nobody may take it now. `turn` is the view that says so: wait for [`Steering::changes`] to pass it.
    Hold {
        /// The view that was looked at.
        view: Arc<View>,
    },
}

impl Lane {
    /// The steering behind it.
    #[must_use]
    pub const fn steering(&self) -> &Arc<Steering> {
        &self.steering
    }

    /// The view in force, without touching the shared reference count when it is the one seen last.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        let mut cache = self.view.borrow_mut();
        Arc::clone(self.own(cache.load(), &mut self.foreign.borrow_mut()))
    }

    fn own<'v>(&self, view: &'v Arc<View>, foreign: &'v mut Arc<View>) -> &'v Arc<View> {
        if view.settings == self.steering.settings {
            return view;
        }
        if foreign.turn != view.turn || foreign.settings != view.settings {
            *foreign = self.steering.own(view);
        }
        foreign
    }

    /// Waits until other settings are in force.
    pub async fn inherited(&self) {
        let mut changes = self.steering.changes();
        while !self.steering.has_heir() {
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// The view in force at this instant: what was published before this call is seen.
    #[must_use]
    pub fn current(&self) -> Arc<View> {
        // The view is stored before its turn, so that whoever has seen the turn sees the view.
        let _ = self.steering.core.turn.load(SeqCst);
        self.view()
    }

    /// Whether a tunnel to `node` that was opened in `epoch` may go on.
    #[must_use]
    pub fn keeps(&self, node: NodeId, epoch: Epoch) -> bool {
        // A load instead of a count: this is asked for every message.
        let _ = self.steering.core.turn.load(SeqCst);
        let (mut cache, mut foreign) = (self.view.borrow_mut(), self.foreign.borrow_mut());
        let view = self.own(cache.load(), &mut foreign);
        let keeps = view.keeps(node, epoch);
        keeps && !self.steering.is_abandoned(epoch)
    }

    /// The newest position heard of the primary, without touching the shared count when it is the one seen last.
    #[must_use]
    pub fn known(&self) -> Arc<Known> {
        Arc::clone(self.known.borrow_mut().load())
    }

    /// Standbys that may answer requests that change nothing.
    #[must_use]
    pub fn readers(&self) -> Arc<Readers> {
        // What former settings were told of standbys is not kept up to date any more.
        if self.steering.has_heir() {
            return Arc::default();
        }
        Arc::clone(self.readers.borrow_mut().load())
    }

    /// This worker's requests that wait for a response, and how many responses it has had.
    #[must_use]
    pub fn pulse(&self) -> Pulse {
        let tally = &self.steering.core.tallies[self.lane];
        let in_flight = tally.safe.load(Relaxed) + tally.writes.load(Relaxed);
        Pulse {
            waiting: in_flight.saturating_sub(tally.withheld.load(Relaxed)),
            answered: tally.answered.load(Relaxed),
        }
    }

    /// Waits until one of this worker's requests has had its response, or failed. Those who wait are woken one at a time, the
    /// first first.
    pub async fn eased(&self) {
        self.queued.set(self.queued.get() + 1);
        let _queued = Queued(&self.queued);
        self.eased.notified().await;
    }

    fn ease(&self) {
        if self.queued.get() > 0 {
            self.eased.notify_one();
        }
    }

    /// This worker's requests under way at a member.
    #[must_use]
    pub fn load(&self, node: NodeId) -> u64 {
        let counts = &self.steering.loads[self.lane];
        counts
            .get(node.index())
            .map_or(0, |count| count.load(Relaxed))
    }

    /// Admits a request against the view in force.
    pub fn admit(self: &Rc<Self>, class: Class) -> Admission {
        self.admit_by(class, |view| view.taker(class))
    }

    /// Admits a request to the node that `choose` finds in the view in force.
    pub fn admit_by(
        self: &Rc<Self>,
        class: Class,
        choose: impl FnOnce(&View) -> Option<NodeId>,
    ) -> Admission {
        let mut ticket = self.count_in(class);
        let turn = self.steering.core.turn.load(SeqCst);
        let (mut cache, mut foreign) = (self.view.borrow_mut(), self.foreign.borrow_mut());
        let view = self.own(cache.load(), &mut foreign);
        // A view newer than the turn is being published this instant; it is as good as in force.
        match choose(view) {
            Some(node) if view.turn >= turn => {
                ticket.node = node;
                ticket.epoch = view.epoch;
                ticket.turn = view.turn;
                ticket.settle_in(view.members.is_some() || view.target == Some(node));
                Admission::Go(ticket)
            }
            _ => Admission::Hold {
                view: Arc::clone(view),
            },
        }
    }

    /// Counts a request that takes `bytes` of memory as held until the guard is dropped; `None` when `most` are held
    /// already, or when they take more than `most_bytes` together.
    #[must_use]
    pub fn hold(&self, most: u64, bytes: u64, most_bytes: u64) -> Option<Held> {
        let held = Held(Arc::clone(&self.steering), bytes);
        let others = self.steering.core.held.fetch_add(1, SeqCst);
        let other_bytes = self.steering.core.held_bytes.fetch_add(bytes, SeqCst);
        (others < most && other_bytes.saturating_add(bytes) <= most_bytes).then_some(held)
    }

    fn count_in(self: &Rc<Self>, class: Class) -> Ticket {
        let ticket = Ticket {
            lane: Rc::clone(self),
            class,
            node: NodeId(0),
            epoch: Epoch(0),
            turn: 0,
            withheld: false,
            settled: false,
            elsewhere: false,
        };
        ticket.count().fetch_add(1, SeqCst);
        ticket
    }
}

struct Queued<'q>(&'q Cell<usize>);

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// A held request's place in the count.
#[derive(Debug)]
pub struct Held(Arc<Steering>, u64);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.core.held.fetch_sub(1, SeqCst);
        self.0.core.held_bytes.fetch_sub(self.1, SeqCst);
    }
}

/// One admitted request. It counts as in flight until this is dropped: when its response is released, or it has failed.
#[derive(Debug)]
#[must_use]
pub struct Ticket {
    lane: Rc<Lane>,
    class: Class,
    node: NodeId,
    epoch: Epoch,
    turn: u64,
    withheld: bool,
    /// It counts at its node.
    settled: bool,
    /// It is at a standby: nothing that the primary is judged by.
    elsewhere: bool,
}

impl Ticket {
    /// Where it may go.
    pub const fn node(&self) -> NodeId {
        self.node
    }

    /// The epoch it was admitted in.
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The view it was admitted against.
    pub const fn turn(&self) -> u64 {
        self.turn
    }

    /// Whether it may write, judged by its method.
    pub const fn class(&self) -> Class {
        self.class
    }

    /// Whether it has been given up by a change of primary.
    #[must_use]
    pub fn is_abandoned(&self) -> bool {
        self.lane.steering.is_abandoned(self.epoch)
    }

    /// The response has begun, and is withheld until it may be released.
    pub fn withhold(&mut self) {
        if !self.elsewhere && !std::mem::replace(&mut self.withheld, true) {
            self.tally().answered.fetch_add(1, SeqCst);
            self.tally().withheld.fetch_add(1, SeqCst);
            self.lane.ease();
        }
    }

    /// The response goes to the client: counts it among the released ones if it may have written.
    pub fn release(self) {
        if !self.withheld && !self.elsewhere {
            self.tally().answered.fetch_add(1, SeqCst);
        }
        if self.class == Class::Write {
            self.tally().released.fetch_add(1, SeqCst);
        }
    }

    /// Counts itself in at its node, if nodes are counted. Only this worker writes there.
    fn settle_in(&mut self, is_hot: bool) {
        if !is_hot {
            self.elsewhere = true;
            self.count().fetch_sub(1, SeqCst);
        }
        if let Some(count) = self.load() {
            count.store(count.load(Relaxed) + 1, Relaxed);
            self.settled = true;
        }
    }

    /// Where it counts at its node.
    fn load(&self) -> Option<&AtomicU64> {
        self.lane.steering.loads[self.lane.lane].get(self.node.index())
    }

    fn tally(&self) -> &Tally {
        &self.lane.steering.core.tallies[self.lane.lane]
    }

    fn count(&self) -> &AtomicU64 {
        match self.class {
            Class::Safe => &self.tally().safe,
            Class::Write => &self.tally().writes,
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.withheld {
            self.tally().withheld.fetch_sub(1, SeqCst);
        }
        if self.settled
            && let Some(count) = self.load()
        {
            count.store(count.load(Relaxed).saturating_sub(1), Relaxed);
        }
        if !self.elsewhere {
            self.count().fetch_sub(1, SeqCst);
        }
        self.lane.ease();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::model::Position;

    const A: NodeId = NodeId(0);

    fn open(epoch: u64) -> View {
        View {
            epoch: Epoch(epoch),
            target: Some(A),
            ..View::default()
        }
    }

    fn go(admission: Admission) -> Ticket {
        match admission {
            Admission::Go(ticket) => ticket,
            Admission::Hold { view } => panic!("held by {view:?}"),
        }
    }

    #[test]
    fn a_closing_view_holds_all_that_come_after_and_sees_all_that_came_before() {
        let (steering, _signs) = Steering::new(2, open(1));
        let lane = steering.lane(0);
        let write = go(lane.admit(Class::Write));
        let read = go(steering.lane(1).admit(Class::Safe));
        assert_eq!((write.node(), write.epoch()), (A, Epoch(1)));
        steering.publish(View {
            target: None,
            ..open(1)
        });
        assert!(matches!(lane.admit(Class::Safe), Admission::Hold { .. }));
        assert_eq!(steering.in_flight(), (1, 1));
        drop(read);
        write.release();
        assert_eq!((steering.in_flight(), steering.released()), ((0, 0), 1));
    }

    #[test]
    fn safe_requests_may_go_where_reads_are_allowed() {
        let (steering, _signs) = Steering::new(
            1,
            View {
                target: None,
                reads: Some(NodeId(1)),
                ..open(1)
            },
        );
        let lane = steering.lane(0);
        let read = go(lane.admit(Class::Safe));
        assert_eq!(read.node(), NodeId(1));
        assert_eq!(
            steering.in_flight(),
            (0, 0),
            "the primary is not judged by it"
        );
        read.release();
        assert_eq!(
            (steering.in_flight(), steering.pulse().answered),
            ((0, 0), 0)
        );
        assert!(matches!(lane.admit(Class::Write), Admission::Hold { .. }));
    }

    #[test]
    fn requests_at_members_count_at_their_node_until_they_end() {
        let members = Members {
            takes: [A, NodeId(1)].into_iter().collect(),
            weights: [100, 100].into(),
            ..Members::default()
        };
        let view = View {
            members: Some(members),
            ..View::default()
        };
        assert!(view.is_open(Class::Write) && !View::default().is_open(Class::Safe));
        let (steering, _signs) = Steering::new(2, view);
        let (lane, other) = (steering.lane(0), steering.lane(1));
        let at = |lane: &Rc<Lane>, node| go(lane.admit_by(Class::Write, |_| Some(NodeId(node))));
        let first = at(&lane, 0);
        let second = (at(&lane, 1), at(&other, 1));
        assert_eq!((lane.load(A), lane.load(NodeId(1))), (1, 1));
        assert_eq!(steering.in_flight_at(NodeId(1)), 2);
        drop(second);
        first.release();
        assert_eq!((lane.load(A), steering.in_flight_at(NodeId(1))), (0, 0));
    }

    #[test]
    fn tunnels_outlive_doubt_and_nothing_else() {
        let (steering, _signs) = Steering::new(1, open(1));
        let lane = steering.lane(0);
        let keeps = || (lane.keeps(A, Epoch(1)), lane.keeps(NodeId(1), Epoch(1)));
        assert_eq!(keeps(), (true, false));
        let none = View {
            target: None,
            ..open(1)
        };
        let doubted = View {
            doubted: Some(A),
            ..none.clone()
        };
        steering.publish(doubted);
        assert_eq!(keeps(), (true, false));
        steering.publish(none);
        assert_eq!(keeps(), (false, false));
        steering.publish(open(1));
        assert_eq!(keeps(), (true, false));
        steering.publish(open(2));
        assert_eq!(keeps(), (false, false));
        let members = Some(Members::default());
        steering.publish(View {
            members,
            ..View::default()
        });
        assert_eq!(keeps(), (true, true));
        steering.publish(open(1));
        steering.abandon_below(Epoch(2));
        assert_eq!(keeps(), (false, false));
    }

    #[test]
    fn requests_of_older_epochs_are_given_up() {
        let (steering, _signs) = Steering::new(1, open(1));
        let ticket = go(steering.lane(0).admit(Class::Write));
        assert!(!ticket.is_abandoned());
        steering.abandon_below(Epoch(2));
        assert!(ticket.is_abandoned());
        steering.publish(open(2));
        assert!(!go(steering.lane(0).admit(Class::Write)).is_abandoned());
    }

    #[test]
    fn a_known_position_never_goes_back() {
        let (steering, _signs) = Steering::new(1, open(1));
        let at = |epoch, seq| {
            Positions(
                [(
                    "db".to_owned(),
                    Position {
                        epoch: Epoch(epoch),
                        generation: 0,
                        seq,
                    },
                )]
                .into(),
            )
        };
        steering.learn(Epoch(1), &at(1, 5));
        steering.learn(Epoch(1), &at(1, 4));
        assert_eq!(steering.known().position, at(1, 5));
        steering.learn(Epoch(2), &at(1, 3));
        assert_eq!(
            *steering.known(),
            Known {
                epoch: Epoch(2),
                position: at(1, 3)
            }
        );
    }

    fn named(steering: &Steering, names: &[&str]) {
        steering.name_nodes(names.iter().copied());
    }

    #[test]
    fn requests_of_former_settings_go_where_the_present_ones_say_by_name() {
        let (former, _signs) = Steering::new(1, View::default());
        named(&former, &["a", "b"]);
        former.take_up();
        former.publish(open(1));
        let old = former.lane(0);
        let before = go(old.admit(Class::Write));
        let (heir, _signs) = former.heir(0);
        named(&heir, &["c", "b", "a"]);
        let new = heir.lane(0);
        assert!(
            matches!(new.admit(Class::Safe), Admission::Hold { .. }),
            "not taken up yet"
        );
        assert_eq!(go(old.admit(Class::Safe)).node(), A);
        heir.take_up();
        for (target, known) in [(2, Some(A)), (1, Some(NodeId(1))), (0, None)] {
            let target = NodeId(target);
            heir.publish(View {
                target: Some(target),
                ..open(2)
            });
            assert_eq!(go(new.admit(Class::Write)).node(), target);
            assert_eq!(old.current().target, known);
            assert_eq!(former.view().target, known);
            match old.admit(Class::Write) {
                Admission::Go(ticket) => assert_eq!(Some(ticket.node()), known),
                Admission::Hold { view } => assert_eq!((view.epoch, known), (Epoch(2), None)),
            }
        }
        assert_eq!(heir.in_flight(), (0, 1), "who came before is waited for");
        heir.abandon_below(Epoch(2));
        assert!(before.is_abandoned());
    }

    #[test]
    fn tunnels_outlive_a_change_of_settings_as_long_as_their_node_leads() {
        let (former, _signs) = Steering::new(1, View::default());
        named(&former, &["a", "b"]);
        former.publish(open(1));
        let lane = former.lane(0);
        let (heir, _signs) = former.heir(0);
        named(&heir, &["b", "a"]);
        heir.take_up();
        let starting = View {
            target: None,
            phase: "starting",
            ..open(1)
        };
        for _ in 0..2 {
            heir.publish(starting.clone());
            assert!(lane.keeps(A, Epoch(1)));
        }
        heir.publish(View {
            target: Some(NodeId(1)),
            ..open(1)
        });
        assert!(lane.keeps(A, Epoch(1)));
        heir.publish(open(2));
        assert!(!lane.keeps(A, Epoch(1)));
    }

    #[test]
    fn of_former_settings_only_word_that_concerns_no_node_is_passed_on() {
        let (former, mut first) = Steering::new(1, open(1));
        former.tell(Sign::Lost(A));
        let (heir, mut second) = former.heir(0);
        heir.take_up();
        former.tell(Sign::Lost(A));
        former.tell(Sign::AckTimeout(Epoch(1)));
        heir.tell(Sign::Broke(A));
        assert_eq!(first.try_recv().ok(), Some(Sign::Lost(A)));
        assert!(first.try_recv().is_err());
        assert_eq!(second.try_recv().ok(), Some(Sign::AckTimeout(Epoch(1))));
        assert_eq!(second.try_recv().ok(), Some(Sign::Broke(A)));
    }

    #[test]
    fn the_held_are_counted_and_bounded() {
        let (steering, _signs) = Steering::new(1, View::default());
        let lane = steering.lane(0);
        let first = lane.hold(2, 60, 100).unwrap();
        assert!(lane.hold(1, 0, 100).is_none());
        assert!(lane.hold(2, 41, 100).is_none());
        let second = lane.hold(2, 40, 100).unwrap();
        assert_eq!(steering.held(), 2);
        drop((first, second));
        assert_eq!(steering.held(), 0);
        assert!(lane.hold(1, 100, 100).is_some());
    }
}
