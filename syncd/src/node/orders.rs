//! The arbiter's orders: decided by `logic::station`, put on disk, and only then in force.

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
    pub async fn seal(&self, order: Seal) -> Result<Sealed, Refusal> {
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

    /// Takes writes in the order's epoch.
    ///
    /// # Errors
    /// The order is out of date, this node lacks what it must have, or a source cannot lead.
    pub async fn lead(&self, order: Lead) -> Result<Led, Refusal> {
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

    /// Follows the order's primary.
    ///
    /// # Errors
    /// The order is out of date, or cannot be remembered.
    pub async fn follow(&self, order: Follow) -> Result<Led, Refusal> {
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
