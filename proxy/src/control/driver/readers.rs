//! Which standbys may answer requests that change nothing, told to the workers whenever it changes.

use std::time::Duration;

use shared::api::Report;
use shared::model::{Epoch, Lag, Positions, Role};

use super::Driver;
use crate::logic::NodeId;
use crate::logic::failover::App;
use crate::logic::nodes::NodeSet;
use crate::steer::Readers;

impl Driver {
    pub(super) fn let_read(&mut self) {
        if !self.service.reads_standbys() {
            return;
        }
        let epoch = self.machine.record().epoch;
        let nodes = self.service.nodes.iter().map(|node| node.id);
        let fit: NodeSet = nodes.filter(|node| self.may_read(*node, epoch)).collect();
        let applied = |driver: &super::NodeDriver| {
            let report = driver.report.as_ref();
            report.map_or_else(Positions::default, |report| report.applied.clone())
        };
        let readers = Readers {
            epoch,
            fit,
            applied: self.nodes.iter().map(applied).collect(),
        };
        if self.readers != readers {
            self.readers = readers.clone();
            self.steering.let_read(readers);
        }
    }

    /// Whether `node` is a standby that is up and close to the primary.
    fn may_read(&self, node: NodeId, epoch: Epoch) -> bool {
        let (app, refusing) = self.machine.app(node);
        let is_up = app == App::Up && !refusing && !self.machine.is_draining(node);
        if !is_up || self.machine.record().primary == Some(node) {
            return false;
        }
        let driver = &self.nodes[node.index()];
        match &driver.report {
            None => driver.peer.is_none(),
            Some(report) => {
                is_prefix(report, epoch) && is_close(self.lag(node), self.service.failover.max_lag)
            }
        }
    }
}

/// Whether what a node shows is a point in the history of the primary of `epoch`.
fn is_prefix(report: &Report, epoch: Epoch) -> bool {
    report.role == Role::Standby && report.epoch == epoch && report.unfit.is_none()
}

/// Whether a lag is known, and is not too long.
fn is_close(lag: Lag, most: Duration) -> bool {
    lag.seconds
        .is_some_and(|seconds| seconds <= most.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_sound_standby_of_this_term_may_be_read() {
        let sound = Report {
            role: Role::Standby,
            epoch: Epoch(3),
            ..Report::default()
        };
        assert!(is_prefix(&sound, Epoch(3)));
        assert!(!is_prefix(&sound, Epoch(4)));
        for role in [Role::Primary, Role::Fenced, Role::Rejoining, Role::None] {
            let other = Report {
                role,
                ..sound.clone()
            };
            assert!(!is_prefix(&other, Epoch(3)), "{role}");
        }
        let unfit = Report {
            unfit: Some("differs".into()),
            ..sound
        };
        assert!(!is_prefix(&unfit, Epoch(3)));
    }

    #[test]
    fn an_unknown_lag_is_too_long() {
        let lag = |seconds| Lag {
            seconds,
            ..Lag::default()
        };
        let most = Duration::from_secs(5);
        assert!(is_close(lag(Some(5.0)), most));
        assert!(!is_close(lag(Some(5.1)), most) && !is_close(lag(None), most));
    }
}
