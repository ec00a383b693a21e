//! Somebody who watches all the while and remembers who said that it led in which epoch: there must be one at most.

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
}
