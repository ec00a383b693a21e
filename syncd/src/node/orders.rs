//! The arbiter's orders: decided by `logic::station`, put on disk, and only then in force.

use std::sync::Arc;
use std::time::Duration;

use shared::api::{Follow, Lead, Led, Refusal, Refused, Seal, Sealed};
use shared::model::{Epoch, Role};

use super::Node;
use super::barrier::join_all;
use crate::hook;
use crate::logic::gate::Gate;
use crate::logic::station::{Decision, Standing};
use crate::replica::Wanted;

/// How long a source may take to begin leading, beyond which the order fails and is repeated.
const LEAD_WITHIN: Duration = Duration::from_secs(60);

impl Node {
    /// Promise, for a standby; fence, for a primary.
    ///
    /// # Errors
    /// The order is out of date, or cannot be remembered.
    pub async fn seal(self: &Arc<Self>, order: Seal) -> Result<Sealed, Refusal> {
        self.to_its_end(|node| async move { node.obey_seal(order).await })
            .await
    }

    /// Takes writes in the order's epoch.
    ///
    /// # Errors
    /// The order is out of date, this node lacks what it must have, or a source cannot lead.
    pub async fn lead(self: &Arc<Self>, order: Lead) -> Result<Led, Refusal> {
        self.to_its_end(|node| async move { node.obey_lead(order).await })
            .await
    }

    /// Follows the order's primary.
    ///
    /// # Errors
    /// The order is out of date, or cannot be remembered.
    pub async fn follow(self: &Arc<Self>, order: Follow) -> Result<Led, Refusal> {
        self.to_its_end(|node| async move { node.obey_follow(order).await })
            .await
    }

    /// An order whose caller hangs up is carried out all the same: half of one, on disk but not in force, would be contradicted
    /// by the next.
    async fn to_its_end<T, F>(
        self: &Arc<Self>,
        obey: impl FnOnce(Arc<Self>) -> F,
    ) -> Result<T, Refusal>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Refusal>> + Send + 'static,
    {
        let obeyed = tokio::spawn(obey(Arc::clone(self))).await;
        obeyed.unwrap_or_else(|error| Err(self.refuse(Refused::Failed, error.to_string())))
    }

    async fn obey_seal(&self, order: Seal) -> Result<Sealed, Refusal> {
        let _one = self.orders.lock().await;
        let decision = self.inner().station.handle_seal(order.cluster, order.epoch);
        let decision = decision.map_err(|why| self.refusal(why))?;
        let news = decision.standing.is_some();
        self.persist(&decision).await?;
        self.put_in_force(decision);
        if news {
            let led = self.inner().station.has_led();
            tracing::info!(epoch = order.epoch.0, led, "sealed");
            self.replicas
                .iter()
                .for_each(|replica| replica.want(Wanted::Seal { led }));
        }
        let within = Duration::from_millis(order.within_ms);
        self.settle(within).await;
        let sealed = self.sealed(order.epoch);
        if news && sealed.fenced {
            self.run_hook(self.hooks.fenced.clone(), order.epoch, Role::Fenced);
        }
        Ok(sealed)
    }

    async fn settle(&self, within: Duration) {
        let waits = self.replicas.iter().map(|replica| replica.settle(within));
        // A thread that is gone is seen on its board, and by whoever runs the program.
        let _ = join_all(waits.map(Box::pin).collect()).await;
    }

    fn sealed(&self, epoch: Epoch) -> Sealed {
        let boards = self.boards();
        Sealed {
            epoch,
            fenced: boards.are_fenced(),
            proved: boards.are_proved(),
            durable: boards.durable(),
            heard: self.heard(&boards),
        }
    }

    async fn obey_lead(&self, order: Lead) -> Result<Led, Refusal> {
        let _one = self.orders.lock().await;
        let decision = self
            .inner()
            .station
            .handle_lead(order.clone())
            .map_err(|why| self.refusal(why))?;
        if decision.standing.is_none() {
            return Ok(Led {
                position: self.boards().tip(),
            });
        }
        let begins = self
            .inner()
            .station
            .leads()
            .is_none_or(|lead| lead.epoch != order.epoch);
        let durable = self.boards().durable();
        if begins && !durable.covers(&order.at_least) {
            let message = format!("this node stands at {durable}, short of {}", order.at_least);
            return Err(self.refuse(Refused::Behind, message));
        }
        self.persist(&decision).await?;
        let wanted = Wanted::Lead {
            epoch: order.epoch,
            durable: order.durable,
        };
        self.replicas
            .iter()
            .for_each(|replica| replica.want(wanted));
        for replica in &self.replicas {
            let led = tokio::time::timeout(LEAD_WITHIN, replica.led()).await;
            let failed = |why: String| {
                self.refuse(
                    Refused::Failed,
                    format!("source \"{}\" cannot lead: {why}", replica.name()),
                )
            };
            led.map_err(|_| failed("it took too long".to_owned()))?
                .map_err(|error| failed(error.to_string()))?;
        }
        if begins {
            self.run_hook_to_its_end(self.hooks.promoted.clone(), order.epoch, Role::Primary)
                .await;
            tracing::info!(epoch = order.epoch.0, position = %self.boards().tip(), "leading");
        }
        self.put_in_force(decision);
        self.sample_for_gate(&order).await;
        Ok(Led {
            position: self.boards().tip(),
        })
    }

    async fn obey_follow(&self, order: Follow) -> Result<Led, Refusal> {
        let _one = self.orders.lock().await;
        let decision = self
            .inner()
            .station
            .handle_follow(order.clone())
            .map_err(|why| self.refusal(why))?;
        if decision.standing.is_some() {
            self.persist(&decision).await?;
            tracing::info!(epoch = order.epoch.0, primary = order.primary, "following");
            self.replicas
                .iter()
                .for_each(|replica| replica.want(Wanted::Follow));
            self.put_in_force(decision);
        }
        Ok(Led {
            position: self.boards().durable(),
        })
    }

    async fn persist(&self, decision: &Decision) -> Result<(), Refusal> {
        let Some(held) = decision.persist.clone() else {
            return Ok(());
        };
        let (store, name) = (self.store.clone(), self.name.clone());
        let saved = tokio::task::spawn_blocking(move || store.save_held(&name, &held)).await;
        let why = match saved {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        tracing::error!(
            why,
            "an order cannot be obeyed because it cannot be remembered"
        );
        Err(self.refuse(Refused::Failed, why))
    }

    fn put_in_force(&self, decision: Decision) {
        let mut inner = self.inner();
        let before = inner.station.held().epoch;
        inner.station.commit(decision);
        let epoch = inner.station.held().epoch;
        if epoch != before {
            inner.peers.clear();
            inner.upstream.clear();
        }
        let standing = inner.station.standing().clone();
        match &standing {
            Standing::Leading(lead) => match &mut inner.gate {
                Some(gate) if gate.epoch() == lead.epoch => gate.handle_lead(lead),
                gate => *gate = Some(Gate::new(lead)),
            },
            Standing::Free | Standing::Sealed | Standing::Following(_) => inner.gate = None,
        }
        drop(inner);
        self.standing.send_if_modified(|shown| {
            let news = (epoch, standing);
            let changed = *shown != news;
            *shown = news;
            changed
        });
        self.touch();
    }

    fn run_hook(&self, command: Option<String>, epoch: Epoch, role: Role) {
        if let Some(command) = command {
            let (node, within) = (self.name.clone(), self.hooks.timeout);
            tokio::spawn(async move { hook::run(&command, &node, epoch, role, within).await });
        }
    }

    async fn run_hook_to_its_end(&self, command: Option<String>, epoch: Epoch, role: Role) {
        if let Some(command) = command {
            hook::run(&command, &self.name, epoch, role, self.hooks.timeout).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logic::station::Held;
    use crate::metrics::Metrics;
    use crate::store::Store;
    use shared::model::ClusterId;
    use std::fs;
    use std::pin::pin;
    use std::task::{Context, Waker};

    fn node(name: &str) -> Arc<Node> {
        let folder =
            std::env::temp_dir().join(format!("syncd-orders-{}-{name}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let file = folder.join("syncd.toml");
        let text = format!(
            "node = \"a\"\nlisten = \"127.0.0.1:7001\"\nstate_dir = \"{0}/state\"\n\
             [[source]]\nname = \"db\"\nkind = \"sqlite\"\npath = \"{0}/app.db\"\n",
            folder.display()
        );
        fs::write(&file, text).unwrap();
        let settings = crate::config::load(&file).unwrap();
        let store = Store::new(folder.join("state"));
        let metrics = Metrics::register(&shared::metrics::Registry::new());
        Node::new(&settings, Held::default(), store, Vec::new(), metrics)
    }

    fn seal(epoch: u64) -> Seal {
        Seal {
            cluster: ClusterId(7),
            epoch: Epoch(epoch),
            within_ms: 0,
        }
    }

    #[tokio::test]
    async fn an_order_whose_caller_hangs_up_is_obeyed_before_the_next() {
        let node = node("hung-up");
        {
            let mut order = pin!(node.seal(seal(5)));
            let mut context = Context::from_waker(Waker::noop());
            assert!(order.as_mut().poll(&mut context).is_pending());
        }
        let mut standings = node.standings();
        let obeyed = standings.wait_for(|(epoch, _)| *epoch == Epoch(5));
        tokio::time::timeout(Duration::from_secs(20), obeyed)
            .await
            .unwrap()
            .unwrap();
        node.seal(seal(6)).await.unwrap();
        let held = node.store.load_held("a").unwrap();
        assert_eq!((held.epoch, node.held().epoch), (Epoch(6), Epoch(6)));
    }
}
