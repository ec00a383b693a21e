//! Barriers: everything that was committed when one was asked for is on the disk of every required standby when it is answered.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use shared::api::{Lead, Passed, Refusal, Refused};
use shared::model::{Epoch, Positions};

use super::Node;

impl Node {
    /// Answers once everything that is committed now is on the disk of every required standby.
    ///
    /// # Errors
    /// This node does not lead in `epoch` (any more), or `within` is over.
    pub async fn barrier(&self, epoch: Epoch, within: Duration) -> Result<Passed, Refusal> {
        self.check_barrier(epoch)?;
        let mut changes = self.changes();
        let waited = tokio::time::timeout(within, async {
            let sample = self
                .sample()
                .await
                .map_err(|why| self.refuse(Refused::NotPrimary, why))?;
            loop {
                changes.borrow_and_update();
                self.check_barrier(epoch)?;
                if self
                    .inner()
                    .gate
                    .as_ref()
                    .is_some_and(|gate| gate.passes(&sample))
                {
                    return Ok(Passed { position: sample });
                }
                if changes.changed().await.is_err() {
                    return Err(
                        self.refuse(Refused::NotPrimary, "the program is ending".to_owned())
                    );
                }
            }
        });
        waited.await.unwrap_or_else(|_| {
            Err(self.refuse(
                Refused::Timeout,
                format!("no required standby had it on disk within {within:?}"),
            ))
        })
    }

    fn check_barrier(&self, epoch: Epoch) -> Result<(), Refusal> {
        let inner = self.inner();
        let seen = inner.station.held().epoch;
        let leads = inner.station.leads().map(|lead| lead.epoch);
        drop(inner);
        if leads == Some(epoch) {
            Ok(())
        } else if seen > epoch {
            Err(self.refuse(
                Refused::StaleEpoch,
                format!("epoch {epoch} is over; this node has seen {seen}"),
            ))
        } else {
            Err(self.refuse(
                Refused::NotPrimary,
                format!("this node does not lead in epoch {epoch}"),
            ))
        }
    }

    /// The new state of the gate needs a sample of its own, taken after it came into force.
    pub(super) async fn sample_for_gate(&self, order: &Lead) {
        match self.sample().await {
            Ok(sample) => {
                if let Some(gate) = &mut self.inner().gate {
                    gate.handle_sample(order.version, sample);
                }
                self.touch();
            }
            Err(why) => tracing::warn!(
                why,
                "no sample for the gate; it stays closed until the next order"
            ),
        }
    }

    async fn sample(&self) -> Result<Positions, String> {
        let mut positions = BTreeMap::new();
        let samples: Vec<_> = self
            .replicas
            .iter()
            .map(|replica| Box::pin(replica.sample()))
            .collect();
        // Asked all at once: a barrier is about one moment, and as slow as the slowest source.
        for (replica, sample) in self.replicas.iter().zip(join_all(samples).await) {
            if let Some(position) =
                sample.map_err(|error| format!("source \"{}\": {error}", replica.name()))?
            {
                positions.insert(replica.name().to_owned(), position);
            }
        }
        Ok(Positions(positions))
    }
}

/// Waits for all of them at once, on this task.
pub(super) async fn join_all<F: Future + Unpin>(futures: Vec<F>) -> Vec<F::Output> {
    let mut futures: Vec<_> = futures
        .into_iter()
        .map(|future| (Some(future), None))
        .collect();
    std::future::poll_fn(|cx| {
        let mut waiting = false;
        for (future, output) in &mut futures {
            let Some(pending) = future else { continue };
            match Pin::new(pending).poll(cx) {
                Poll::Ready(done) => {
                    *future = None;
                    *output = Some(done);
                }
                Poll::Pending => waiting = true,
            }
        }
        if waiting {
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    })
    .await;
    futures
        .into_iter()
        .filter_map(|(_, output)| output)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[tokio::test]
    async fn all_are_begun_before_any_is_waited_for() {
        let begun = Cell::new(0);
        let wait = |number| {
            let begun = &begun;
            Box::pin(async move {
                begun.set(begun.get() + 1);
                while begun.get() < 3 {
                    tokio::task::yield_now().await;
                }
                number
            })
        };
        assert_eq!(join_all(vec![wait(1), wait(2), wait(3)]).await, [1, 2, 3]);
    }
}
