//! What happened, for people: the last events, and whoever follows them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use shared::clock;
use tokio::sync::broadcast;

/// So many events are remembered.
const REMEMBERED: usize = 512;
/// A follower that is further behind than this misses some.
const BEHIND_MOST: usize = 128;

/// One event.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Entry {
    /// Its number, from 1.
    pub id: u64,
    /// When, RFC 3339.
    pub at: String,
    /// The service.
    pub service: String,
    /// What kind of event, one word.
    pub kind: &'static str,
    /// The node it is about.
    pub node: Option<String>,
    /// The epoch it belongs to.
    pub epoch: u64,
    /// In words, with the numbers.
    pub message: String,
}

/// All events of this process.
#[derive(Clone, Debug)]
pub struct Chronicle {
    entries: Arc<Mutex<VecDeque<Arc<Entry>>>>,
    news: broadcast::Sender<Arc<Entry>>,
}

impl Default for Chronicle {
    fn default() -> Self {
        Self {
            entries: Arc::default(),
            news: broadcast::channel(BEHIND_MOST).0,
        }
    }
}

impl Chronicle {
    /// Adds an event.
    pub fn tell(
        &self,
        service: &str,
        kind: &'static str,
        node: Option<String>,
        epoch: u64,
        message: String,
    ) {
        let mut entries = self.entries();
        let id = entries.back().map_or(1, |last| last.id + 1);
        let entry = Arc::new(Entry {
            id,
            at: clock::rfc3339(),
            service: service.to_owned(),
            kind,
            node,
            epoch,
            message,
        });
        if entries.len() == REMEMBERED {
            entries.pop_front();
        }
        entries.push_back(Arc::clone(&entry));
        // Nobody may be following.
        let _ = self.news.send(entry);
    }

    /// The events that are remembered, oldest first.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Entry>> {
        self.entries().iter().cloned().collect()
    }

    /// The events so far, and those to come.
    #[must_use]
    pub fn follow(&self) -> (Vec<Arc<Entry>>, broadcast::Receiver<Arc<Entry>>) {
        let entries = self.entries();
        (entries.iter().cloned().collect(), self.news.subscribe())
    }

    fn entries(&self) -> MutexGuard<'_, VecDeque<Arc<Entry>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_follower_sees_what_was_and_what_comes_once_each() {
        let chronicle = Chronicle::default();
        chronicle.tell("shop", "promoted", None, 1, "one".into());
        let (before, mut after) = chronicle.follow();
        chronicle.tell("shop", "promoted", None, 2, "two".into());
        assert_eq!(before.iter().map(|entry| entry.id).collect::<Vec<_>>(), [1]);
        assert_eq!(after.recv().await.unwrap().id, 2);
    }

    #[test]
    fn the_past_is_bounded() {
        let chronicle = Chronicle::default();
        (0..REMEMBERED + 10).for_each(|_| chronicle.tell("shop", "x", None, 1, String::new()));
        assert_eq!(
            (chronicle.all().len(), chronicle.all()[0].id),
            (REMEMBERED, 11)
        );
    }
}
