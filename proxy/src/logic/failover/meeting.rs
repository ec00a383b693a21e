//! The first meeting: nobody has led yet, and it must be decided whose data is the cluster's.

use std::collections::BTreeSet;
use std::time::Instant;

use shared::api::Content;

use super::facts::{App, Standing};
use super::{Effect, Event, Failover, OrderId, Phase, Record, Then, Timer};
use crate::logic::NodeId;

/// Why it cannot be told yet whose data is the cluster's.
enum Open {
    /// Somebody has not spoken yet.
    Waiting(String),
    /// Only a person can tell.
    Undecidable(String),
}

impl Failover {
    pub(super) fn look_meeting(&mut self, now: Instant, waited: bool) {
        if !self.rules.replicated {
            return self.meet_unreplicated(waited);
        }
        let (node, reason) = match self.whose_data() {
            Ok(found) => found,
            Err(open) => {
                self.timers.remove(&Timer::Meet);
                return self.leave_open(open);
            }
        };
        // An application that is still starting may be creating its tables: let it, for a while.
        let late = matches!(self.phase, Phase::Starting { met_late: true, .. });
        if !late
            && self
                .ids()
                .any(|node| self.nodes[node.index()].app != App::Up)
        {
            return self.arm(now, Timer::Meet, self.rules.meet_within);
        }
        self.meet(node, reason, None);
    }

    /// Says once that somebody must decide, if that is so.
    fn leave_open(&mut self, open: Open) {
        let Phase::Starting { said, .. } = &mut self.phase else {
            return;
        };
        if let Open::Undecidable(why) = open
            && !std::mem::replace(said, true)
        {
            let epoch = self.record.epoch;
            self.effects
                .push_back(Effect::Tell(Event::Refused(epoch, "undecided", why)));
        }
    }

    fn meet_unreplicated(&mut self, waited: bool) {
        let up = self.ids().find(|node| self.nodes[node.index()].is_up());
        let first = NodeId(0);
        if self.nodes[0].is_up() {
            self.meet(first, "first in the configuration".to_owned(), None);
        } else if let Some(node) = up.filter(|_| waited) {
            self.meet(
                node,
                "the first that answers its health checks".to_owned(),
                None,
            );
        }
    }

    fn meet(&mut self, node: NodeId, reason: String, order: Option<OrderId>) {
        let cluster = self
            .standings()
            .find_map(|(_, standing)| standing.cluster)
            .unwrap_or(self.fresh);
        let record = Record {
            cluster: self.rules.replicated.then_some(cluster),
            epoch: self.newest.next(),
            primary: Some(node),
            in_sync: BTreeSet::new(),
            run: self.record.run,
        };
        self.write(record, Then::Meet { reason, order });
    }

    pub(super) fn met(&mut self, reason: String, order: Option<OrderId>) {
        let Some(primary) = self.record.primary else {
            return;
        };
        // Whoever else has data here was found to hold nothing that this node lacks, or somebody decided.
        self.overwrite = self.ids().filter(|node| *node != primary).collect();
        self.effects
            .push_back(Effect::Tell(Event::Met(primary, reason)));
        let done = format!(
            "{} is the primary, in epoch {}",
            self.name(primary),
            self.record.epoch
        );
        self.effects
            .extend(order.map(|id| Effect::Answer(id, Ok(done))));
        self.timers.remove(&Timer::Start);
        self.timers.remove(&Timer::Meet);
        self.serve();
    }

    /// An operator decides whose data it is.
    pub(super) fn order_meeting(
        &mut self,
        id: OrderId,
        to: NodeId,
        accept: bool,
    ) -> Result<(), String> {
        if self.writing.is_some() {
            return Err("the record is being written; ask again in a moment".to_owned());
        }
        let others = self.standings().filter(|(node, _)| *node != to);
        let real: Vec<_> = others
            .filter(|(_, at)| !is_fresh(at))
            .map(|(node, _)| self.name(node).to_owned())
            .collect();
        let unheard = self.rules.replicated && self.standings().count() < self.nodes.len();
        if !accept && (!real.is_empty() || unheard) {
            let whose = if real.is_empty() {
                "a node that cannot be heard".to_owned()
            } else {
                real.join(", ")
            };
            return Err(format!(
                "{whose} may hold data of its own, which would be replaced by that of {} (a copy is kept). \
                 If that is right, repeat with --accept-data-loss",
                self.name(to)
            ));
        }
        self.meet(to, "operator's decision".to_owned(), Some(id));
        Ok(())
    }

    fn standings(&self) -> impl Iterator<Item = (NodeId, &Standing)> {
        self.ids()
            .filter_map(|node| Some((node, self.nodes[node.index()].standing.as_ref()?)))
    }

    /// Whose data is the cluster's, and why; or why that cannot be told.
    fn whose_data(&self) -> Result<(NodeId, String), Open> {
        let silent: Vec<_> = self
            .ids()
            .filter(|node| self.nodes[node.index()].standing.is_none())
            .collect();
        if !silent.is_empty() {
            let names: Vec<_> = silent.iter().map(|node| self.name(*node)).collect();
            return Err(Open::Waiting(format!(
                "waiting for the first word of the syncd of {}",
                names.join(", ")
            )));
        }
        let unread = |(_, at): &(NodeId, &Standing)| at.cluster.is_none() && at.content.is_none();
        if let Some((node, standing)) = self.standings().find(unread) {
            let why = standing.unfit.as_ref();
            let why = why.map_or_else(String::new, |why| format!(": {why}"));
            return Err(Open::Waiting(format!(
                "waiting for the syncd of {} to read its data{why}",
                self.name(node)
            )));
        }
        if let Some(found) = self.former_cluster()? {
            return Ok(found);
        }
        let held: Vec<_> = self
            .standings()
            .map(|(node, at)| (node, at.content.unwrap_or_default()))
            .collect();
        let real: Vec<_> = held
            .iter()
            .filter(|(_, content)| !content.is_fresh())
            .collect();
        match real.as_slice() {
            [] => Ok(largest(&held)),
            [(node, content)] => Ok((
                *node,
                format!(
                    "the only node that holds data ({} rows or more)",
                    content.rows
                ),
            )),
            several => Err(Open::Undecidable(self.unrelated(several))),
        }
    }

    /// The cluster that the nodes remember although this arbiter does not: its last primary goes on.
    fn former_cluster(&self) -> Result<Option<(NodeId, String)>, Open> {
        let clusters: BTreeSet<_> = self
            .standings()
            .filter_map(|(_, standing)| standing.cluster)
            .collect();
        if clusters.len() > 1 {
            return Err(Open::Undecidable(
                "the nodes belong to different clusters: give one of them an empty state_dir"
                    .to_owned(),
            ));
        }
        let members = self
            .standings()
            .filter(|(_, standing)| standing.cluster.is_some());
        let Some(newest) = members.map(|(_, standing)| standing.epoch).max() else {
            return Ok(None);
        };
        let leads = |(node, standing): &(NodeId, &Standing)| {
            standing.epoch == newest && standing.primary.is_none_or(|primary| primary == *node)
        };
        let led: Vec<_> = self
            .standings()
            .filter(|(_, standing)| standing.cluster.is_some())
            .filter(leads)
            .collect();
        match led.as_slice() {
            [(node, _)] => Ok(Some((
                *node,
                "the last primary that the nodes remember".to_owned(),
            ))),
            _ => Err(Open::Undecidable(format!(
                "this proxy has no record of the cluster, and the nodes do not agree who led last; \
                 decide with `hotwarm promote {} --to NODE --accept-data-loss` (nodes: {})",
                self.rules.service,
                self.rules
                    .members
                    .iter()
                    .map(|member| member.name.as_str())
                    .collect::<Vec<_>>()
                    .join(", ")
            ))),
        }
    }

    fn unrelated(&self, several: &[&(NodeId, Content)]) -> String {
        let held: Vec<_> = several
            .iter()
            .map(|(node, held)| format!("{} ({} rows)", self.name(*node), held.rows))
            .collect();
        let first = several.first().map_or("", |(node, _)| self.name(*node));
        format!(
            "{} hold unrelated data, and neither may be overwritten unasked; \
             decide with `hotwarm promote {} --to {first} --accept-data-loss` (the other's copy is kept)",
            held.join(" and "),
            self.rules.service
        )
    }

    /// Why the first decision has not been made.
    pub(super) fn why_starting(&self) -> String {
        if self.record.primary.is_some() {
            return "the proxy has just started".to_owned();
        }
        if !self.rules.replicated {
            return "waiting for a node that answers its health checks".to_owned();
        }
        match self.whose_data() {
            Ok(_) => "waiting for the applications to start".to_owned(),
            Err(Open::Waiting(why) | Open::Undecidable(why)) => why,
        }
    }

    /// Whether the phase is that of a first meeting.
    #[must_use]
    pub fn is_meeting(&self) -> bool {
        matches!(self.phase, Phase::Starting { .. }) && self.record.primary.is_none()
    }
}

fn is_fresh(standing: &Standing) -> bool {
    standing.content.is_some_and(|content| content.is_fresh())
}

/// The node with the most rows, the first listed of equals.
fn largest(held: &[(NodeId, Content)]) -> (NodeId, String) {
    let rows = |(_, content): &&(NodeId, Content)| content.rows;
    let most = held
        .iter()
        .map(|(_, content)| content.rows)
        .max()
        .unwrap_or_default();
    let first = held.iter().find(|held| rows(held) == most);
    (
        first.map_or(NodeId(0), |(node, _)| *node),
        format!("all nodes are new, and it holds the most rows ({most})"),
    )
}
