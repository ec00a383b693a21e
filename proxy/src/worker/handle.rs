//! What the rest of the house holds of one service's data plane.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use tokio::sync::mpsc;

use crate::config;
use crate::layer::breaker::Breakers;
use crate::logic::NodeId;
use crate::logic::breaker::Phase;
use crate::metrics::Metrics;
use crate::secret::Secret;
use crate::stack::Shared;
use crate::steer::{Sign, Steering};
use crate::upstream::places::Cap;

/// What the data plane needs of one service, and shows of it.
#[derive(Clone, Debug)]
pub struct ServiceHandle(Shared);

impl ServiceHandle {
    /// For `service`, steered by `steering`, which must have one lane per worker (`settings.threads`).
    #[must_use]
    pub fn new(
        service: Arc<config::Service>,
        steering: Arc<Steering>,
        lanes: usize,
        metrics: &Metrics,
    ) -> Self {
        steering.name_nodes(service.nodes.iter().map(|node| &*node.name));
        let gauge = |node: &config::Node| {
            let labels = [&*service.name, &*node.name];
            metrics.breaker_state.with_label_values(&labels)
        };
        let gauges = service.nodes.iter().map(gauge).collect();
        let breakers = Breakers::new(service.breaker, gauges, lanes, Arc::clone(&steering));
        let cap = |node: &config::Node| Cap::new(node.max_connections, node.max_queue, lanes);
        let caps = service.nodes.iter().map(cap).collect();
        Self(Shared {
            caps,
            service,
            steering,
            breakers,
            in_use: Arc::default(),
            secret: Secret::fresh(),
        })
    }

    /// With cookies that other proxies with the same secret, and this one after a restart, know again.
    #[must_use]
    pub fn signed_with(mut self, secret: Secret) -> Self {
        self.0.secret = secret;
        self
    }

    /// The same service by other settings; see [`Steering::heir`]. `lanes` as before.
    #[must_use]
    pub fn heir(
        &self,
        service: Arc<config::Service>,
        lanes: usize,
        metrics: &Metrics,
    ) -> (Self, mpsc::Receiver<Sign>) {
        let nodes = service.counted_nodes();
        let (steering, signs) = self.0.steering.heir(nodes);
        let heir = Self::new(service, steering, lanes, metrics);
        (heir.signed_with(self.0.secret.clone()), signs)
    }

    /// Whether any worker still has it, or requests that came when it had.
    #[must_use]
    pub fn is_in_use(&self) -> bool {
        self.0.in_use.load(SeqCst) > 0
    }

    pub(super) fn shared(&self) -> Shared {
        self.0.clone()
    }

    /// What happens to the next request for `node`.
    #[must_use]
    pub fn breaker(&self, node: NodeId) -> Phase {
        self.0.breakers.phase(node)
    }

    /// How many requests `node` has answered well since the start.
    #[must_use]
    pub fn answers(&self, node: NodeId) -> u64 {
        self.0.breakers.successes(node)
    }

    /// How many requests wait for a place at `node`, over all workers.
    #[must_use]
    pub fn queued(&self, node: NodeId) -> usize {
        self.0.caps[node.index()].waiting()
    }

    /// The service's settings.
    #[must_use]
    pub const fn service(&self) -> &Arc<config::Service> {
        &self.0.service
    }

    /// The service's steering.
    #[must_use]
    pub const fn steering(&self) -> &Arc<Steering> {
        &self.0.steering
    }
}
