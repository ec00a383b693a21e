//! Somebody who watches all the while and remembers who said that it led in which epoch (there must be one at most), and what
//! each change of primary is said to have lost.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use shared::api::Report;
use shared::clock;
use shared::model::{Epoch, Role};
use tokio::task::JoinHandle;

use crate::admin::{Hotwarm, Syncd};
use crate::stack::{Side, Stack};

const EVERY: Duration = Duration::from_millis(50);

/// Watches until it is dropped.
#[derive(Debug)]
pub struct Witness {
    seen: Arc<Mutex<Seen>>,
    watching: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Seen {
    leaders: BTreeMap<Epoch, BTreeSet<String>>,
    newest: BTreeMap<String, Epoch>,
    contradictions: BTreeSet<String>,
    /// By the epoch that began; none if nobody knows how much.
    losses: BTreeMap<Epoch, Option<u64>>,
}

impl Witness {
    /// Begins to watch a deployment.
    #[must_use]
    pub fn begin(stack: &Stack) -> Self {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let notes = Arc::clone(&seen);
        let (hotwarm, syncds) = (stack.hotwarm().clone(), stack.syncds().clone());
        let watching = tokio::spawn(async move { watch(&hotwarm, &syncds, &notes).await });
        Self { seen, watching }
    }

    /// What cannot be, and was seen all the same.
    #[must_use]
    pub fn contradictions(&self) -> Vec<String> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.contradictions.iter().cloned().collect()
    }

    /// How many transactions the changes of primary after epoch `before`, up to `after`, are said to have lost at most; none if
    /// one of them was not seen or does not know.
    #[must_use]
    pub fn admitted_loss(&self, before: Epoch, after: Epoch) -> Option<u64> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.admitted_loss(before, after)
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.watching.abort();
    }
}

async fn watch(hotwarm: &Hotwarm, syncds: &[Syncd; 2], notes: &Mutex<Seen>) {
    loop {
        let (proxy, a, b) = tokio::join!(hotwarm.service(), syncds[0].status(), syncds[1].status());
        {
            let mut seen = notes.lock().unwrap_or_else(PoisonError::into_inner);
            if let Ok(service) = proxy {
                seen.epoch("hotwarm", service.epoch);
                if let Some(primary) = service.primary {
                    seen.leader(service.epoch, primary);
                }
                if let Some(event) = service.last_failover {
                    seen.losses.insert(event.epoch, event.lost_transactions);
                }
            }
            for (side, status) in Side::BOTH.into_iter().zip([a, b]) {
                if let Ok(status) = status {
                    seen.node(side, &status.report);
                }
            }
        }
        clock::sleep(EVERY).await;
    }
}

impl Seen {
    fn node(&mut self, side: Side, report: &Report) {
        self.epoch(&format!("syncd-{side}"), report.epoch);
        if report.role == Role::Primary && !report.fenced {
            self.leader(report.epoch, side.name().to_owned());
        }
    }

    fn admitted_loss(&self, before: Epoch, after: Epoch) -> Option<u64> {
        let epochs = before.0 + 1..=after.0;
        let mut losses = epochs.map(|epoch| self.losses.get(&Epoch(epoch)).copied().flatten());
        losses.try_fold(0_u64, |sum, lost| Some(sum.saturating_add(lost?)))
    }

    /// An epoch only ever grows, also over restarts: it is on disk before it is spoken.
    fn epoch(&mut self, who: &str, epoch: Epoch) {
        let newest = self.newest.entry(who.to_owned()).or_default();
        if epoch < *newest {
            let went_back = format!("{who} went back from epoch {newest} to {epoch}");
            self.contradictions.insert(went_back);
        }
        *newest = epoch.max(*newest);
    }

    fn leader(&mut self, epoch: Epoch, who: String) {
        let leaders = self.leaders.entry(epoch).or_default();
        leaders.insert(who);
        if leaders.len() > 1 {
            let both = format!("several led in epoch {epoch}: {leaders:?}");
            self.contradictions.insert(both);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_leaders_of_one_epoch_and_an_epoch_that_shrinks_are_noticed() {
        let mut seen = Seen::default();
        let report = |role, epoch, fenced| Report {
            role,
            epoch: Epoch(epoch),
            fenced,
            ..Report::default()
        };
        seen.leader(Epoch(1), "a".to_owned());
        seen.node(Side::A, &report(Role::Primary, 1, false));
        seen.node(Side::B, &report(Role::Standby, 1, true));
        seen.node(Side::B, &report(Role::Primary, 2, false));
        assert!(seen.contradictions.is_empty());
        seen.node(Side::A, &report(Role::Primary, 2, true));
        assert!(seen.contradictions.is_empty(), "a sealed node leads nobody");
        seen.node(Side::A, &report(Role::Primary, 2, false));
        assert_eq!(seen.contradictions.len(), 1);
        seen.epoch("hotwarm", Epoch(2));
        seen.epoch("hotwarm", Epoch(1));
        assert_eq!(seen.contradictions.len(), 2);
    }

    #[test]
    fn a_loss_is_admitted_only_if_every_change_of_primary_was_seen() {
        let seen = Seen {
            losses: [(2, Some(3)), (3, Some(0)), (5, Some(4)), (6, None)]
                .map(|(epoch, lost)| (Epoch(epoch), lost))
                .into(),
            ..Seen::default()
        };
        let admitted = |before, after| seen.admitted_loss(Epoch(before), Epoch(after));
        assert_eq!(admitted(1, 1), Some(0));
        assert_eq!(admitted(1, 3), Some(3));
        assert_eq!(admitted(2, 3), Some(0));
        assert_eq!(admitted(1, 5), None, "nobody saw epoch 4 begin");
        assert_eq!(admitted(4, 5), Some(4));
        assert_eq!(admitted(4, 6), None, "epoch 6 does not know");
    }
}
