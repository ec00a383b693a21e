//! The control plane's driver: one task a service. It hands probes, reports, signs, orders and the clock to the machine that
//! decides (`logic::failover`), and carries out what comes back, in order. Where every node is active there is nothing to
//! decide but who can take requests (`logic::fleet`).

mod chronicle;
mod crew;
mod driver;
mod report;
mod view;

use std::sync::Arc;
use std::time::Duration;

use shared::drain;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

pub use self::chronicle::{Chronicle, Entry};
pub use self::view::{LastFailover, NodeView, ServiceView};
use crate::arbiter::Place;
use crate::logic::NodeId;
use crate::logic::failover::{Failover, Order, Record, Rules};
use crate::metrics::Metrics;
use crate::steer::Sign;
use crate::worker::ServiceHandle;

/// How many operators' orders may wait.
const ORDERS_MOST: usize = 16;

/// An operator's order, and where its answer goes.
#[derive(Debug)]
pub struct Ordered {
    /// What is asked for.
    pub order: Order,
    /// Its end, in words.
    pub answer: oneshot::Sender<Result<Done, String>>,
}

/// A completed order.
#[derive(Clone, Debug, PartialEq)]
pub struct Done {
    /// In words.
    pub message: String,
    /// For how long nobody took requests, in milliseconds.
    pub unavailable_ms: Option<f64>,
}

/// One service, for everybody who only wants to look or to ask.
#[derive(Clone, Debug)]
pub struct Control {
    /// How it stands.
    pub view: watch::Receiver<Arc<ServiceView>>,
    orders: mpsc::Sender<Ordered>,
    names: Arc<[Arc<str>]>,
}

impl Control {
    /// The node of that name.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<NodeId> {
        let place = self.names.iter().position(|node| **node == *name)?;
        u8::try_from(place).ok().map(NodeId)
    }

    /// Asks for something, and waits until it is done or refused.
    ///
    /// # Errors
    /// Why not.
    pub async fn order(&self, order: Order) -> Result<Done, String> {
        let (answer, done) = oneshot::channel();
        let gone = || "the control plane has ended".to_owned();
        self.orders
            .send(Ordered { order, answer })
            .await
            .map_err(|_| gone())?;
        done.await.unwrap_or_else(|_| Err(gone()))
    }
}

/// What a service's driver is made of.
#[derive(Debug)]
pub struct Parts {
    /// The service, and what steers its requests.
    pub handle: ServiceHandle,
    /// What the workers say.
    pub signs: mpsc::Receiver<Sign>,
    /// Where its record is kept.
    pub place: Place,
    /// Where events are told.
    pub chronicle: Chronicle,
    /// All numbers.
    pub metrics: Metrics,
    /// What the service's driver by other settings has left, if there was one.
    pub former: Option<Left>,
}

impl Parts {
    /// The nodes that an operator has taken out.
    fn kept_out(&self) -> Vec<NodeId> {
        let out = |node: &&crate::config::Node| {
            let former = self.former.as_ref();
            former.is_some_and(|left| left.draining.contains(&node.name))
        };
        let nodes = self.handle.service().nodes.iter();
        nodes.filter(out).map(|node| node.id).collect()
    }
}

/// What a driver leaves to the next one of its service.
#[derive(Debug)]
pub struct Left {
    signs: mpsc::Receiver<Sign>,
    last_failover: Option<LastFailover>,
    draining: Vec<Arc<str>>,
    unreported: u64,
}

impl Left {
    /// The workers' words, for a driver by the same settings.
    pub fn signs(&mut self) -> mpsc::Receiver<Sign> {
        std::mem::replace(&mut self.signs, mpsc::channel(1).1)
    }

    /// Responses that were released and that the primary's last report may not have known of.
    #[must_use]
    pub const fn unreported(&self) -> u64 {
        self.unreported
    }

    /// They are not needed after all.
    pub fn give_back(&mut self, signs: mpsc::Receiver<Sign>) {
        self.signs = signs;
    }
}

/// A driver at work.
#[derive(Debug)]
pub struct Driving {
    end: drain::Signal,
    task: JoinHandle<Left>,
}

impl Driving {
    /// Ends it. What it was writing is on disk when this returns.
    ///
    /// # Errors
    /// It has not ended `within`; it decides nothing any more, but its last write may still be under way.
    pub async fn end(self, within: Duration) -> Result<Left, JoinHandle<Left>> {
        let Self { end, mut task } = self;
        end.begin();
        match timeout(within, &mut task).await {
            Ok(Ok(left)) => Ok(left),
            // It has panicked, and will not write again.
            Ok(Err(_)) => Ok(Left {
                signs: mpsc::channel(1).1,
                last_failover: None,
                draining: Vec::new(),
                unreported: 0,
            }),
            Err(_) => Err(task),
        }
    }
}

/// Starts the driver of a service from its record, and puts its settings in force. There must be no other one of that service.
#[must_use]
pub fn start(parts: Parts, record: Record) -> (Control, Driving) {
    let service = Arc::clone(parts.handle.service());
    let (orders, ordered) = mpsc::channel(ORDERS_MOST);
    let names: Arc<[Arc<str>]> = service
        .nodes
        .iter()
        .map(|node| Arc::clone(&node.name))
        .collect();
    parts.handle.steering().take_up();
    let (end, drain) = drain::channel();
    if service.is_balanced() {
        let (crew, view) = crew::Crew::new(parts);
        let task = tokio::spawn(crew.run(ordered, drain));
        let control = Control {
            view,
            orders,
            names,
        };
        return (control, Driving { end, task });
    }
    let fresh = shared::model::ClusterId(shared::rng::Rng::new().u64(1..));
    let mut machine = Failover::new(Arc::new(rules(&service)), record, fresh);
    for node in parts.kept_out() {
        machine.keep_out(node);
    }
    let (driver, view) = driver::Driver::new(parts, machine);
    let task = tokio::spawn(driver.run(ordered, drain));
    let control = Control {
        view,
        orders,
        names,
    };
    (control, Driving { end, task })
}

/// The machine's rules from the service's settings.
fn rules(service: &crate::config::Service) -> Rules {
    use std::time::Duration;

    use crate::config::{Durability, Failback, OnAckTimeout, OnTooFarBehind};
    use crate::logic::failover::{self as machine, Member, TooFarBehind};
    let failover = &service.failover;
    let on_timeout = match failover.on_ack_timeout {
        OnAckTimeout::Degrade => machine::OnAckTimeout::Degrade,
        OnAckTimeout::Fail => machine::OnAckTimeout::Fail,
    };
    let gated = failover.durability == Durability::StandbyAck;
    let member = |node: &crate::config::Node| Member {
        name: node.name.to_string(),
        priority: node.priority,
    };
    Rules {
        service: service.name.to_string(),
        members: service.nodes.iter().map(member).collect(),
        replicated: service.is_replicated(),
        auto: failover.auto,
        durability: if gated {
            machine::Durability::StandbyAck {
                count: failover.ack_count,
                on_timeout,
            }
        } else {
            machine::Durability::Async
        },
        max_lag: failover.max_lag,
        max_lag_bytes: failover.max_lag_bytes,
        too_far_behind: match failover.on_too_far_behind {
            OnTooFarBehind::ReadOnly => TooFarBehind::ReadOnly,
            OnTooFarBehind::Wait => TooFarBehind::Wait,
            OnTooFarBehind::Promote => TooFarBehind::Promote,
        },
        failback: failover.failback == Failback::Auto,
        min_interval: failover.min_interval,
        crash_after: service.health.crash_after,
        // A switchover that waits longer than a client would is none: nothing is lost by giving it up.
        drain_within: Duration::from_secs(1),
        // In `standby-ack` the candidate is safe without the former primary's word, so that a dead machine costs a moment
        // only; in `async` its word is the difference between some loss and none, and worth more.
        seal_within: if gated {
            Duration::from_millis(100)
        } else {
            Duration::from_millis(500)
        },
        catch_up_within: Duration::from_secs(2),
        lead_within: Duration::from_secs(2),
        enter_within: failover.ack_timeout,
        rest: Duration::from_millis(100),
        meet_within: Duration::from_secs(3),
        start_within: Duration::from_secs(1),
    }
}
