//! Which orders this node obeys.
//!
//! One number decides almost everything: the newest epoch that was ever seen, which is on disk before it is spoken of. What
//! comes from an older epoch is answered with that number and changes nothing. Within an epoch a node's role is fixed, so
//! that repeated and late orders are harmless; only the state of the gate may change, and that is ordered by its version.
//!
//! A node boots sealed: it remembers the epoch and who led, but takes no role before the arbiter confirms one.

use shared::api::{Follow, Lead, Refused};
use shared::model::{ClusterId, Epoch};

/// What must survive a crash.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Held {
    /// The cluster this node belongs to; `None` until its first order.
    pub cluster: Option<ClusterId>,
    /// The newest epoch it has seen.
    pub epoch: Epoch,
    /// Who led the last epoch in which this node had a role.
    pub last: Option<Leader>,
}

/// A primary as its standbys know it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Leader {
    /// Its name.
    pub name: String,
    /// Its syncd's base URL; empty for this node itself.
    pub url: String,
}

/// What this node does at this moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Standing {
    /// It never belonged to a cluster: its application is left alone.
    Free,
    /// It takes no writes and obeys only what is of its epoch or newer.
    #[default]
    Sealed,
    /// It takes writes.
    Leading(Lead),
    /// It follows that primary.
    Following(Follow),
}

/// Why an order is not obeyed. The answer to the arbiter carries the epoch held here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Disobedience {
    /// Which refusal.
    pub refused: Refused,
    /// The newest epoch seen here.
    pub epoch: Epoch,
}

/// What obeying an order amounts to: put `held` on disk (if it is news), then [`Station::commit`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[must_use]
pub struct Decision {
    /// What must be on disk first; `None` when it is there already.
    pub persist: Option<Held>,
    /// What this node does then; `None` when nothing changes.
    pub standing: Option<Standing>,
}

impl Decision {
    const NOTHING: Self = Self {
        persist: None,
        standing: None,
    };
}

/// The machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Station {
    name: String,
    held: Held,
    standing: Standing,
}

impl Station {
    /// Boots the node `name` with what is on its disk.
    #[must_use]
    pub fn new(name: impl Into<String>, held: Held) -> Self {
        let standing = if held.cluster.is_some() {
            Standing::Sealed
        } else {
            Standing::Free
        };
        Self {
            name: name.into(),
            held,
            standing,
        }
    }

    /// What is on disk.
    #[must_use]
    pub const fn held(&self) -> &Held {
        &self.held
    }

    /// What this node does.
    #[must_use]
    pub const fn standing(&self) -> &Standing {
        &self.standing
    }

    /// Whether this node led the last epoch in which it had a role: only it may hand out that epoch's tail.
    #[must_use]
    pub fn has_led(&self) -> bool {
        self.held
            .last
            .as_ref()
            .is_some_and(|last| last.name == self.name)
    }

    /// Puts a decision in force, after its `persist` is on disk.
    pub fn commit(&mut self, decision: Decision) {
        if let Some(held) = decision.persist {
            debug_assert!(held.epoch >= self.held.epoch, "epochs only grow");
            self.held = held;
        }
        if let Some(standing) = decision.standing {
            self.standing = standing;
        }
    }

    /// An order that nothing of an epoch below `epoch` may change anything here any more.
    ///
    /// # Errors
    /// The epoch is not newer than one in which this node already has a role.
    pub fn handle_seal(&self, cluster: ClusterId, epoch: Epoch) -> Result<Decision, Disobedience> {
        self.check(cluster, epoch)?;
        if epoch == self.held.epoch && self.held.cluster.is_some() {
            return match self.standing {
                Standing::Sealed | Standing::Free => Ok(Decision::NOTHING),
                // The order is a late one: its epoch has begun in the meantime.
                Standing::Leading(_) | Standing::Following(_) => {
                    Err(self.refuse(Refused::StaleEpoch))
                }
            };
        }
        let held = Held {
            cluster: Some(cluster),
            epoch,
            ..self.held.clone()
        };
        Ok(Decision {
            persist: Some(held),
            standing: Some(Standing::Sealed),
        })
    }

    /// An order to lead.
    ///
    /// # Errors
    /// Its epoch is older than one that was seen, or this node follows in it.
    pub fn handle_lead(&self, lead: Lead) -> Result<Decision, Disobedience> {
        self.check(lead.cluster, lead.epoch)?;
        match &self.standing {
            Standing::Following(follow) if follow.epoch == lead.epoch => {
                return Err(self.refuse(Refused::StaleEpoch));
            }
            Standing::Leading(before)
                if before.epoch == lead.epoch && before.version >= lead.version =>
            {
                return Ok(Decision::NOTHING);
            }
            Standing::Free | Standing::Sealed | Standing::Leading(_) | Standing::Following(_) => (),
        }
        let last = Some(Leader {
            name: self.name.clone(),
            url: String::new(),
        });
        let held = Held {
            cluster: Some(lead.cluster),
            epoch: lead.epoch,
            last,
        };
        Ok(self.decide(held, Standing::Leading(lead)))
    }

    /// An order to follow.
    ///
    /// # Errors
    /// Its epoch is older than one that was seen, or this node leads in it, or follows another in it.
    pub fn handle_follow(&self, follow: Follow) -> Result<Decision, Disobedience> {
        self.check(follow.cluster, follow.epoch)?;
        match &self.standing {
            Standing::Leading(lead) if lead.epoch == follow.epoch => {
                return Err(self.refuse(Refused::StaleEpoch));
            }
            Standing::Following(before) if before.epoch == follow.epoch => {
                if before.primary != follow.primary {
                    return Err(self.refuse(Refused::StaleEpoch));
                }
                if *before == follow {
                    return Ok(Decision::NOTHING);
                }
            }
            Standing::Free | Standing::Sealed | Standing::Leading(_) | Standing::Following(_) => (),
        }
        let last = Some(Leader {
            name: follow.primary.clone(),
            url: follow.url.clone(),
        });
        let held = Held {
            cluster: Some(follow.cluster),
            epoch: follow.epoch,
            last,
        };
        Ok(self.decide(held, Standing::Following(follow)))
    }

    /// The epoch in which barriers are answered here, if any are.
    #[must_use]
    pub const fn leads(&self) -> Option<&Lead> {
        match &self.standing {
            Standing::Leading(lead) => Some(lead),
            Standing::Free | Standing::Sealed | Standing::Following(_) => None,
        }
    }

    /// Whether a greeting from a peer of `epoch` may be answered with this node's history. A newer epoch must be sealed
    /// first ([`Station::handle_seal`]): whoever speaks of it has heard it from the arbiter.
    ///
    /// # Errors
    /// The peer is of another cluster or an older epoch, or this node is not one to follow.
    pub fn handle_greeting(&self, cluster: ClusterId, epoch: Epoch) -> Result<(), Disobedience> {
        self.check(cluster, epoch)?;
        let serves = match &self.standing {
            Standing::Leading(_) => true,
            Standing::Sealed => self.has_led(),
            Standing::Free | Standing::Following(_) => false,
        };
        if serves && epoch == self.held.epoch {
            Ok(())
        } else {
            Err(self.refuse(Refused::NotPrimary))
        }
    }

    fn decide(&self, held: Held, standing: Standing) -> Decision {
        Decision {
            persist: (held != self.held).then_some(held),
            standing: Some(standing),
        }
    }

    fn check(&self, cluster: ClusterId, epoch: Epoch) -> Result<(), Disobedience> {
        if self.held.cluster.is_some_and(|ours| ours != cluster) {
            return Err(self.refuse(Refused::OtherCluster));
        }
        if epoch < self.held.epoch {
            return Err(self.refuse(Refused::StaleEpoch));
        }
        Ok(())
    }

    const fn refuse(&self, refused: Refused) -> Disobedience {
        Disobedience {
            refused,
            epoch: self.held.epoch,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::api::Version;

    const US: ClusterId = ClusterId(1);

    fn lead(epoch: u64, version: u64) -> Lead {
        Lead {
            cluster: US,
            epoch: Epoch(epoch),
            version: Version(1, version),
            required: [].into(),
            acks: 0,
            durable: false,
            at_least: shared::model::Positions::default(),
        }
    }

    fn follow(epoch: u64, primary: &str) -> Follow {
        Follow {
            cluster: US,
            epoch: Epoch(epoch),
            primary: primary.into(),
            url: "http://x:1".into(),
            overwrite: false,
        }
    }

    fn obey(station: &mut Station, order: impl FnOnce(&Station) -> Result<Decision, Disobedience>) {
        let decision = order(station).unwrap();
        station.commit(decision);
    }

    #[test]
    fn a_new_node_is_free_until_its_first_order_and_boots_sealed_after() {
        let mut a = Station::new("a", Held::default());
        assert_eq!(*a.standing(), Standing::Free);
        obey(&mut a, |a| a.handle_lead(lead(1, 0)));
        assert_eq!(a.leads().unwrap().epoch, Epoch(1));
        let a = Station::new("a", a.held().clone());
        assert_eq!(*a.standing(), Standing::Sealed);
        assert!(a.has_led());
    }

    #[test]
    fn nothing_of_an_older_epoch_is_obeyed_and_the_answer_names_the_newer() {
        let mut a = Station::new("a", Held::default());
        obey(&mut a, |a| a.handle_lead(lead(3, 0)));
        obey(&mut a, |a| a.handle_seal(US, Epoch(5)));
        let stale = Disobedience {
            refused: Refused::StaleEpoch,
            epoch: Epoch(5),
        };
        assert_eq!(a.handle_lead(lead(4, 9)).unwrap_err(), stale);
        assert_eq!(a.handle_follow(follow(4, "b")).unwrap_err(), stale);
        assert_eq!(a.handle_seal(US, Epoch(4)).unwrap_err(), stale);
        assert_eq!(a.handle_greeting(US, Epoch(4)).unwrap_err(), stale);
    }

    #[test]
    fn a_role_is_fixed_within_its_epoch() {
        let mut a = Station::new("a", Held::default());
        obey(&mut a, |a| a.handle_lead(lead(1, 0)));
        assert!(a.handle_follow(follow(1, "b")).is_err());
        assert!(a.handle_seal(US, Epoch(1)).is_err());
        let mut b = Station::new("b", Held::default());
        obey(&mut b, |b| b.handle_follow(follow(1, "a")));
        assert!(b.handle_lead(lead(1, 0)).is_err());
        assert!(b.handle_follow(follow(1, "c")).is_err());
        assert_eq!(b.handle_follow(follow(1, "a")).unwrap(), Decision::NOTHING);
    }

    #[test]
    fn an_older_state_of_the_gate_changes_nothing() {
        let mut a = Station::new("a", Held::default());
        obey(&mut a, |a| a.handle_lead(lead(1, 2)));
        assert_eq!(a.handle_lead(lead(1, 1)).unwrap(), Decision::NOTHING);
        obey(&mut a, |a| a.handle_lead(lead(1, 3)));
        assert_eq!(a.leads().unwrap().version, Version(1, 3));
    }

    #[test]
    fn another_cluster_is_refused_whatever_its_epoch() {
        let mut a = Station::new("a", Held::default());
        obey(&mut a, |a| a.handle_lead(lead(1, 0)));
        assert_eq!(
            a.handle_seal(ClusterId(2), Epoch(9)).unwrap_err().refused,
            Refused::OtherCluster
        );
    }

    #[test]
    fn only_a_primary_or_a_sealed_former_one_is_followed() {
        let mut a = Station::new("a", Held::default());
        obey(&mut a, |a| a.handle_lead(lead(1, 0)));
        assert!(a.handle_greeting(US, Epoch(1)).is_ok());
        obey(&mut a, |a| a.handle_seal(US, Epoch(2)));
        assert!(a.handle_greeting(US, Epoch(2)).is_ok());
        let mut b = Station::new("b", Held::default());
        obey(&mut b, |b| b.handle_follow(follow(1, "a")));
        assert_eq!(
            b.handle_greeting(US, Epoch(1)).unwrap_err().refused,
            Refused::NotPrimary
        );
        obey(&mut b, |b| b.handle_seal(US, Epoch(2)));
        assert_eq!(
            b.handle_greeting(US, Epoch(2)).unwrap_err().refused,
            Refused::NotPrimary
        );
    }

    #[test]
    fn a_repeated_seal_of_the_same_epoch_is_harmless() {
        let mut a = Station::new(
            "a",
            Held {
                cluster: Some(US),
                epoch: Epoch(1),
                last: None,
            },
        );
        obey(&mut a, |a| a.handle_seal(US, Epoch(2)));
        assert_eq!(a.handle_seal(US, Epoch(2)).unwrap(), Decision::NOTHING);
    }
}
