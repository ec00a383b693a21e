//! What the machine wants done is done here.

use std::sync::Arc;
use std::time::Duration;

use shared::api::{Follow, Lead, Led, Seal, Sealed};
use shared::call::CallError;
use shared::model::Epoch;
use shared::{api, clock};

use super::super::Done;
use super::{Driver, Happening};
use crate::logic::NodeId;
use crate::logic::failover::{
    Effect, FollowOrder, Input, LeadOrder, Obeyed, OrderId, SealAnswer, Steer,
};
use crate::steer::{Settled, View};

/// A node is given this long for its application to let go of its write lock before it answers that it has not.
const FENCE_WITHIN: Duration = Duration::from_millis(50);
/// Beyond what the machine waits for, so that its timers decide and not the connection.
const CALL_MARGIN: Duration = Duration::from_secs(1);
/// After this long, safe requests under way do not hold up a switchover any more; they are finished by the old primary.
const SAFE_PATIENCE: Duration = Duration::from_millis(250);
/// In-flight requests are looked at this often while a switchover drains.
const DRAIN_LOOK: Duration = Duration::from_millis(1);

impl Driver {
    pub(super) fn carry_out(&mut self) {
        while let Some(effect) = self.machine.poll_effect() {
            match effect {
                Effect::Persist(record) => self.persist(record),
                Effect::Seal(node, epoch) => self.seal(node, epoch),
                Effect::Lead(node, order) => self.lead(node, order),
                Effect::Follow(node, order) => self.follow(node, order),
                Effect::Steer(steer) => self.publish(steer),
                Effect::Abandon(epoch) => self.steering.abandon_below(epoch),
                Effect::AwaitDrain => self.await_drain(),
                Effect::Alert(node, on) => {
                    self.nodes[node.index()].wanted = on;
                    self.set_alert(node);
                }
                Effect::Tell(event) => self.tell_event(event),
                Effect::Answer(id, result) => self.answer(id, result),
            }
        }
    }

    pub(super) fn set_alert(&self, node: NodeId) {
        let driver = &self.nodes[node.index()];
        let on = driver.wanted || driver.lost;
        driver
            .alert
            .send_if_modified(|alert| std::mem::replace(alert, on) != on);
    }

    fn persist(&mut self, record: crate::logic::failover::Record) {
        let (place, happenings) = (self.place.clone(), self.happenings.0.clone());
        while self.saves.try_join_next().is_some() {}
        self.saves.spawn(async move {
            let saved =
                tokio::task::spawn_blocking(move || place.save(&record).map(|()| record)).await;
            let result = match saved {
                Ok(Ok(record)) => Ok(record),
                Ok(Err(error)) => Err(error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            let _ = happenings
                .send(Happening::Input(Input::Persisted(result)))
                .await;
        });
    }

    fn seal(&self, node: NodeId, epoch: Epoch) {
        let within = CALL_MARGIN + FENCE_WITHIN;
        let path = if self.machine.record().primary == Some(node) {
            "/v1/fence"
        } else {
            "/v1/promise"
        };
        let millis = u64::try_from(FENCE_WITHIN.as_millis()).unwrap_or(u64::MAX);
        let Some(cluster) = self.machine.record().cluster else {
            return;
        };
        let order = Seal {
            cluster,
            epoch,
            within_ms: millis,
        };
        self.call(
            node,
            path,
            order,
            within,
            move |result: Result<Sealed, CallError>| {
                let answer = match result {
                    Ok(sealed) => SealAnswer::Sealed(sealed),
                    Err(CallError::Refused { refusal, .. })
                        if refusal.error == api::Refused::StaleEpoch =>
                    {
                        SealAnswer::Stale(refusal.epoch)
                    }
                    Err(error) => SealAnswer::Failed(error.to_string()),
                };
                Input::Sealed(node, epoch, answer)
            },
        );
    }

    fn lead(&self, node: NodeId, order: LeadOrder) {
        let Some(cluster) = self.machine.record().cluster else {
            return;
        };
        let gated = self.service.is_gated();
        let LeadOrder {
            epoch,
            version,
            required,
            at_least,
        } = order;
        let required = required
            .iter()
            .map(|node| self.service.nodes[node.index()].name.to_string())
            .collect();
        let acks = if gated {
            self.service.failover.ack_count
        } else {
            0
        };
        let order = Lead {
            cluster,
            epoch,
            version,
            required,
            acks,
            durable: gated,
            at_least,
        };
        self.call(
            node,
            "/v1/lead",
            order,
            Duration::from_secs(60),
            move |result| Input::Led(node, epoch, version, obeyed(result)),
        );
    }

    fn follow(&self, node: NodeId, order: FollowOrder) {
        let Some(cluster) = self.machine.record().cluster else {
            return;
        };
        let FollowOrder {
            epoch,
            primary,
            overwrite,
        } = order;
        let url = self.nodes[primary.index()].url.clone();
        let primary = self.service.nodes[primary.index()].name.to_string();
        let order = Follow {
            cluster,
            epoch,
            primary,
            url,
            overwrite,
        };
        self.call(node, "/v1/follow", order, CALL_MARGIN * 2, move |result| {
            Input::Followed(node, epoch, obeyed(result))
        });
    }

    fn call<B, T>(
        &self,
        node: NodeId,
        path: &'static str,
        body: B,
        within: Duration,
        done: impl FnOnce(Result<T, CallError>) -> Input + Send + 'static,
    ) where
        B: serde::Serialize + Send + Sync + 'static,
        T: serde::de::DeserializeOwned + Send,
    {
        let Some(peer) = self.nodes[node.index()].peer.clone() else {
            return;
        };
        let happenings = self.happenings.0.clone();
        tokio::spawn(async move {
            let result = peer.post(path, &body, within).await;
            let _ = happenings.send(Happening::Input(done(result))).await;
        });
    }

    fn await_drain(&self) {
        let (steering, happenings) = (Arc::clone(&self.steering), self.happenings.0.clone());
        let (turn, place) = (steering.view().turn, self.place.clone());
        tokio::spawn(async move {
            let began = clock::now();
            // Ends by itself when the view is another one: the drain was given up, or is over.
            while steering.view().turn == turn {
                let (safe, writes) = steering.in_flight();
                let patient = clock::now() < began + SAFE_PATIENCE;
                if writes == 0 && (safe == 0 || !patient) && place.is_alone() {
                    let _ = happenings.send(Happening::Input(Input::Drained)).await;
                    return;
                }
                clock::sleep(DRAIN_LOOK).await;
            }
        });
    }

    fn publish(&mut self, steer: Steer) {
        let now = clock::now();
        let opens = steer.target.is_some() && self.closed_at.is_some();
        if self
            .steer
            .as_ref()
            .is_none_or(|before| before.epoch != steer.epoch)
        {
            self.stall.reset();
        }
        if steer.target.is_none() && self.closed_at.is_none() {
            self.closed_at = Some(now);
        }
        if opens {
            let outage = self
                .closed_at
                .take()
                .map(|at| now.saturating_duration_since(at));
            self.last_outage = outage;
        }
        let settled = steer
            .settled
            .clone()
            .map(|(left, last)| Settled { left, last });
        self.steering.publish(View {
            turn: 0,
            epoch: steer.epoch,
            target: steer.target,
            reads: steer.reads,
            members: None,
            doubted: steer.doubted,
            gate: steer.gate,
            settled,
            phase: steer.phase,
            why: steer.why.as_deref().map(Arc::from),
            ..View::default()
        });
        self.steer = Some(steer);
        if opens {
            self.finish_promotion();
        }
    }

    fn answer(&mut self, id: OrderId, result: Result<String, String>) {
        let Some(answer) = self.answers.remove(&id.0) else {
            return;
        };
        let unavailable_ms = self.last_outage.map(|outage| outage.as_secs_f64() * 1000.0);
        // The view is published first: when the asker hears of it, requests go there already.
        let _ = answer.send(result.map(|message| Done {
            message,
            unavailable_ms,
        }));
    }
}

fn obeyed(result: Result<Led, CallError>) -> Obeyed {
    match result {
        Ok(led) => Obeyed::Done(led.position),
        Err(CallError::Refused { refusal, .. }) => Obeyed::Refused(refusal.error, refusal.epoch),
        Err(error) => Obeyed::Failed(error.to_string()),
    }
}
