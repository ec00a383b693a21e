//! The node as a whole: orders in, reports out. Each of its rooms adds one side of it; this one has the state that they share.

mod barrier;
mod boards;
mod orders;
mod peers;
mod report;
mod upstream;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use shared::api::{Refusal, Refused};
use shared::model::Epoch;
use shared::rng::Rng;
use tokio::sync::watch;

use self::boards::Boards;
use self::peers::Peers;
use self::upstream::Upstreams;
use crate::config::{Hooks, Settings};
use crate::logic::gate::Gate;
use crate::logic::station::{Disobedience, Held, Standing, Station};
use crate::metrics::Metrics;
use crate::replica::{Replica, Wanted};
use crate::store::Store;

/// This node.
#[derive(Debug)]
pub struct Node {
    name: String,
    run: u64,
    store: Store,
    hooks: Hooks,
    replicas: Vec<Replica>,
    metrics: Metrics,
    orders: tokio::sync::Mutex<()>,
    inner: Mutex<Inner>,
    /// Changes whenever something that is reported may have changed.
    changed: watch::Sender<u64>,
    /// Changes with every order obeyed.
    standing: watch::Sender<(Epoch, Standing)>,
}

#[derive(Debug)]
struct Inner {
    station: Station,
    gate: Option<Gate>,
    /// Standbys of this epoch.
    peers: Peers,
    /// What is heard of the primary of this epoch.
    upstream: Upstreams,
}

impl Node {
    /// Boots with what is on disk.
    #[must_use]
    pub fn new(
        settings: &Settings,
        held: Held,
        store: Store,
        replicas: Vec<Replica>,
        metrics: Metrics,
    ) -> Arc<Self> {
        let station = Station::new(settings.node.clone(), held);
        let standing = (station.held().epoch, station.standing().clone());
        let inner = Inner {
            station,
            gate: None,
            peers: Peers::default(),
            upstream: Upstreams::new(),
        };
        Arc::new(Self {
            name: settings.node.clone(),
            run: Rng::new().u64(..),
            store,
            hooks: settings.hooks.clone(),
            replicas,
            metrics,
            orders: tokio::sync::Mutex::new(()),
            inner: Mutex::new(inner),
            changed: watch::channel(0).0,
            standing: watch::channel(standing).0,
        })
    }

    /// What a source does before the first order, given what is on disk.
    #[must_use]
    pub fn wanted_at_boot(name: &str, held: &Held) -> Wanted {
        match &held.cluster {
            None => Wanted::Free,
            Some(_) => Wanted::Seal {
                led: held.last.as_ref().is_some_and(|last| last.name == name),
            },
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its sources.
    #[must_use]
    pub fn replicas(&self) -> &[Replica] {
        &self.replicas
    }

    /// Hears of every order obeyed.
    #[must_use]
    pub fn standings(&self) -> watch::Receiver<(Epoch, Standing)> {
        self.standing.subscribe()
    }

    /// Hears of every change that a report would show.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// The cluster and epoch it has seen, and whom it last followed.
    #[must_use]
    pub fn held(&self) -> Held {
        self.inner().station.held().clone()
    }

    /// Something that is reported may have changed.
    pub fn touch(&self) {
        self.changed.send_modify(|turn| *turn += 1);
    }

    fn boards(&self) -> Boards {
        let named = |replica: &Replica| (replica.name().to_owned(), replica.board());
        Boards(self.replicas.iter().map(named).collect())
    }

    fn refusal(&self, why: Disobedience) -> Refusal {
        let message = match why.refused {
            Refused::StaleEpoch => format!(
                "the order is out of date: node \"{}\" has seen epoch {}",
                self.name, why.epoch
            ),
            Refused::OtherCluster => format!(
                "node \"{}\" belongs to another cluster; to let it join this one, give it an empty state_dir",
                self.name
            ),
            Refused::NotPrimary => format!(
                "node \"{}\" is not one to follow in epoch {}",
                self.name, why.epoch
            ),
            Refused::Behind | Refused::Timeout | Refused::Failed => "it cannot be done".to_owned(),
        };
        Refusal {
            epoch: why.epoch,
            error: why.refused,
            message,
        }
    }

    fn refuse(&self, error: Refused, message: String) -> Refusal {
        Refusal {
            epoch: self.inner().station.held().epoch,
            error,
            message,
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logic::station::Leader;
    use shared::model::ClusterId;

    #[test]
    fn only_a_node_without_a_cluster_leaves_its_application_alone_at_boot() {
        let mut held = Held::default();
        assert_eq!(Node::wanted_at_boot("a", &held), Wanted::Free);
        held.cluster = Some(ClusterId(1));
        let sealed = |led| Wanted::Seal { led };
        assert_eq!(Node::wanted_at_boot("a", &held), sealed(false));
        held.last = Some(Leader {
            name: "a".into(),
            url: String::new(),
        });
        assert_eq!(Node::wanted_at_boot("a", &held), sealed(true));
        assert_eq!(Node::wanted_at_boot("b", &held), sealed(false));
    }
}
