//! The configuration is read again: all of it comes into force, or nothing.
//!
//! First everything that can fail is done: the file is read and checked, listeners are bound, files opened, records read. Then the
//! workers change, one after the other, each between two requests; then the control plane. What is the same in the new file
//! notices nothing.

use std::sync::Arc;

use super::services::Services;
use super::{App, start_log};
use crate::admin::Reloaded;
use crate::config;
use crate::supervisor::{self, State};

impl App {
    /// Reads the configuration again and puts it in force. What came of it is also logged and counted.
    pub(super) async fn reload(&mut self) -> Result<Reloaded, String> {
        supervisor::tell(State::Reloading);
        let result = self.try_reload().await;
        supervisor::tell(State::Ready);
        let label = if result.is_ok() { "ok" } else { "refused" };
        self.metrics
            .config_reloads
            .with_label_values(&[label])
            .inc();
        match &result {
            Ok(done) => {
                tracing::info!(changed = done.changed.join("; "), "configuration reloaded");
            }
            Err(why) => {
                tracing::error!(why, "configuration not reloaded; what was in force stays");
            }
        }
        result
    }

    async fn try_reload(&mut self) -> Result<Reloaded, String> {
        let now = Arc::clone(&self.settings);
        let read = tokio::task::spawn_blocking(move || config::reload(&now.path, &now));
        let read = read.await.map_err(|error| error.to_string())?;
        let (next, change) = read.map_err(|error| error.to_string())?;
        let next = Arc::new(next);
        let listeners = self.workers.prepare(&next.listeners, &change.listeners);
        let listeners = listeners.map_err(|error| error.to_string())?;
        let log = if change.access_log {
            Some(start_log(&next, &self.metrics)?)
        } else {
            None
        };
        let services = self.services.prepare(&next.services, &change.services);
        let services = match services.await {
            Ok(services) => services,
            Err(why) => {
                self.services.resume();
                return Err(why);
            }
        };

        // From here on nothing is refused any more.
        let handles = Services::next_handles(&services);
        let lines = log
            .as_ref()
            .map(|log| log.as_ref().map(|(log, _)| log.clone()));
        let all = self.workers.change(&next, &handles, lines, listeners).await;
        if !all {
            tracing::error!(
                "a worker hangs; it serves by the former configuration until it goes on"
            );
        }
        self.services.commit(services, next.drain_timeout);
        self.door
            .change(self.services.controls(), next.admin.token.clone());
        if let Some(level) = change.level {
            self.switch.set(level);
        }
        if let Some(log) = log {
            // The former writer ends when the last of its lines is written.
            self.log = log;
        } else {
            self.reopen_log();
        }
        for (service, fate) in next.services.iter().zip(&change.services) {
            if let config::Next::Changed(_) | config::Next::Added = fate {
                let what = "its settings were read again and have changed".to_owned();
                self.chronicle
                    .tell(&service.name, "reloaded", None, 0, what);
            }
        }
        next.notes.iter().for_each(|note| tracing::warn!("{note}"));
        self.settings = next;
        Ok(Reloaded::new(change.words))
    }
}
