//! When a write is safe: the primary's side of the durability gate.
//!
//! A barrier takes a sample of what is committed and passes when every required standby has it on disk. The set of required
//! standbys is the arbiter's, and always contains those from whom it would choose a new primary.

use std::collections::{BTreeMap, BTreeSet};

use shared::api::{GateReport, Lead, Version};
use shared::model::{Epoch, Positions};

/// The gate of one epoch of leadership.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Gate {
    epoch: Epoch,
    version: Version,
    required: BTreeSet<String>,
    acks: usize,
    durable: BTreeMap<String, Positions>,
    sample: Option<Positions>,
    reached: bool,
}

impl Gate {
    /// Closed: nothing passes before the first sample and the first acknowledgements.
    #[must_use]
    pub fn new(lead: &Lead) -> Self {
        Self {
            epoch: lead.epoch,
            version: lead.version,
            required: lead.required.clone(),
            acks: lead.acks,
            durable: BTreeMap::new(),
            sample: None,
            reached: false,
        }
    }

    /// Takes on a newer state of the same epoch. The caller must then take a sample ([`Gate::handle_sample`]).
    pub fn handle_lead(&mut self, lead: &Lead) {
        if lead.epoch == self.epoch && lead.version > self.version {
            self.version = lead.version;
            self.required = lead.required.clone();
            self.acks = lead.acks;
            self.sample = None;
            self.reached = false;
        }
    }

    /// Everything that was committed when (or after) the state `version` came into force.
    pub fn handle_sample(&mut self, version: Version, sample: Positions) {
        if version == self.version && self.sample.is_none() {
            self.sample = Some(sample);
            self.look();
        }
    }

    /// A standby has this much on disk, as it said in a session of this epoch.
    pub fn handle_durable(&mut self, name: &str, durable: Positions) {
        self.durable.insert(name.to_owned(), durable);
        self.look();
    }

    /// Whether everything up to `sample` is where it has to be.
    #[must_use]
    pub fn passes(&self, sample: &Positions) -> bool {
        self.required.len() >= self.acks && self.all_have(sample)
    }

    /// The epoch whose barriers it answers.
    #[must_use]
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The state in force.
    #[must_use]
    pub const fn version(&self) -> Version {
        self.version
    }

    /// How it stands, for the arbiter.
    #[must_use]
    pub const fn report(&self) -> GateReport {
        GateReport {
            version: self.version,
            reached: self.reached,
        }
    }

    fn look(&mut self) {
        self.reached = self.reached
            || self
                .sample
                .as_ref()
                .is_some_and(|sample| self.all_have(sample));
    }

    fn all_have(&self, sample: &Positions) -> bool {
        self.required.iter().all(|name| {
            self.durable
                .get(name)
                .is_some_and(|durable| durable.covers(sample))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::model::{ClusterId, Position};

    fn at(seq: u64) -> Positions {
        Positions(
            [(
                "db".to_owned(),
                Position {
                    epoch: Epoch(1),
                    generation: 0,
                    seq,
                },
            )]
            .into(),
        )
    }

    fn lead(version: u64, required: &[&str], acks: usize) -> Lead {
        Lead {
            cluster: ClusterId(1),
            epoch: Epoch(1),
            version: Version(1, version),
            required: required.iter().map(ToString::to_string).collect(),
            acks,
            durable: true,
            at_least: Positions::default(),
        }
    }

    #[test]
    fn every_required_standby_must_have_the_sample() {
        let mut gate = Gate::new(&lead(0, &["b", "c"], 1));
        gate.handle_durable("b", at(5));
        assert!(!gate.passes(&at(5)));
        gate.handle_durable("c", at(4));
        assert!(!gate.passes(&at(5)));
        gate.handle_durable("c", at(6));
        assert!(gate.passes(&at(5)));
        assert!(!gate.passes(&at(6)));
    }

    #[test]
    fn nothing_passes_with_fewer_standbys_than_must_acknowledge() {
        let gate = Gate::new(&lead(0, &[], 1));
        assert!(!gate.passes(&at(0)));
        assert!(Gate::new(&lead(0, &[], 0)).passes(&at(9)));
    }

    #[test]
    fn a_newer_state_is_reached_only_past_a_sample_of_its_own() {
        let mut gate = Gate::new(&lead(0, &[], 1));
        gate.handle_sample(Version(1, 0), at(1));
        assert!(gate.report().reached);
        gate.handle_durable("b", at(3));
        gate.handle_lead(&lead(1, &["b"], 1));
        assert!(!gate.report().reached);
        gate.handle_sample(Version(1, 0), at(1));
        assert!(
            !gate.report().reached,
            "a sample for an older state says nothing about this one"
        );
        gate.handle_sample(Version(1, 1), at(4));
        assert!(!gate.report().reached);
        gate.handle_durable("b", at(4));
        assert_eq!(
            gate.report(),
            GateReport {
                version: Version(1, 1),
                reached: true
            }
        );
    }

    #[test]
    fn an_older_state_is_ignored() {
        let mut gate = Gate::new(&lead(2, &["b"], 1));
        gate.handle_lead(&lead(1, &[], 0));
        assert!(!gate.passes(&at(0)));
    }
}
