//! Reads from standbys: which of a service's nodes may answer a request that changes nothing, so that no client reads what was
//! before its own last write.

use std::sync::Arc;

use super::balance::Tries;
use super::seen::{Memory, Wants};
use crate::config;
use crate::exchange::{Response, Trail};
use crate::logic::NodeId;
use crate::logic::nodes::NodeSet;
use crate::logic::tier::{Prefer, Tiers};
use crate::secret::Secret;
use crate::steer::{Class, Readers, View};

/// The rules of one service.
#[derive(Debug)]
pub struct Reading {
    /// What clients remember, if any caught-up node may answer them.
    memory: Option<Memory>,
    tiers: Arc<Tiers>,
}

/// Who may answer a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Any of these.
    pub among: NodeSet,
    /// If there is none: this one.
    pub otherwise: Option<NodeId>,
}

impl Reading {
    /// The rules of `service`; `None` if the primary has all requests.
    #[must_use]
    pub fn new(service: &config::Service, secret: &Secret) -> Option<Self> {
        let reads = service.is_read_anywhere();
        let memory = reads.then(|| Memory::new(Arc::clone(&service.name), secret.clone()));
        (service.reads_standbys()).then(|| Self {
            memory,
            tiers: Arc::clone(&service.tiers),
        })
    }

    /// Who may answer a request that changes nothing. `broken` are nodes in trouble.
    #[must_use]
    pub fn choose(
        &self,
        view: &View,
        readers: &Readers,
        trail: &Trail,
        broken: NodeSet,
        tries: Tries,
    ) -> Choice {
        let wants = self
            .memory
            .as_ref()
            .map_or(Wants::Anything, |memory| memory.wants(trail));
        let current = readers.epoch == view.epoch;
        let fit = match &wants {
            _ if !current => NodeSet::NONE,
            Wants::Anything => readers.fit,
            Wants::Primary => NodeSet::NONE,
            Wants::AtLeast(seen) => {
                let has = |node: &NodeId| {
                    let applied = readers.applied.get(node.index());
                    applied.is_some_and(|applied| seen.is_in(readers.epoch, applied))
                };
                readers.fit.iter().filter(has).collect()
            }
        };
        let hot = view.target.map_or(NodeSet::NONE, NodeSet::only);
        let warm = fit.except(hot);
        let tier = trail.head().map(|head| self.tiers.find(head.target()));
        let among = match tier.unwrap_or_default().prefer {
            Prefer::Warm => warm,
            // The primary alone needs no choice.
            Prefer::Hot if self.memory.is_some() && !warm.is_empty() => warm.or(hot),
            Prefer::Hot => NodeSet::NONE,
        };
        Choice {
            among: among.except(broken).except(tries.all),
            // While there is no primary, a standby may stand in for it only for a client that has written nothing.
            otherwise: match wants {
                Wants::Anything => view.taker(Class::Safe),
                Wants::Primary | Wants::AtLeast(_) => view.target,
            },
        }
    }

    /// Whether clients are told how far they have seen the data.
    #[must_use]
    pub const fn remembers(&self) -> bool {
        self.memory.is_some()
    }

    /// Tells a client that wrote how far it has seen the data.
    pub fn remember(&self, trail: &Trail, response: &mut Response) {
        if let Some(memory) = &self.memory {
            memory.remember(trail, response);
        }
    }
}
