//! Two nodes, the wires between them, and an arbiter who gives the orders that hotwarm would give.

use std::time::Duration;

use shared::api::{Follow, Lead, Led, Passed, Seal, Sealed, Status, Version};
use shared::call::CallError;
use shared::model::{ClusterId, Epoch, Positions, Role};

use crate::bank;
use crate::program::{Program, Scratch, WITHIN};
use crate::relay::Relay;

const CLUSTER: ClusterId = ClusterId(7);

/// The pair.
pub(crate) struct Pair {
    // Dropped first: the programs must not outlive their folder.
    pub(crate) nodes: [Program; 2],
    /// What others reach each node's syncd by.
    pub(crate) wires: [Relay; 2],
    pub(crate) epoch: Epoch,
    version: u64,
    _scratch: Scratch,
}

impl Pair {
    /// Both run, and belong to no cluster yet; there are no databases.
    pub(crate) async fn start(name: &str) -> Self {
        let scratch = Scratch::new(name);
        let mut nodes = ["a", "b"].map(|name| Program::new(&scratch, name));
        for node in &mut nodes {
            node.start().await;
        }
        let wires = [
            Relay::start(nodes[0].address).await,
            Relay::start(nodes[1].address).await,
        ];
        Self {
            nodes,
            wires,
            epoch: Epoch(0),
            version: 0,
            _scratch: scratch,
        }
    }

    pub(crate) async fn lead(
        &mut self,
        node: usize,
        at_least: Positions,
    ) -> Result<Led, CallError> {
        self.version += 1;
        let order = Lead {
            cluster: CLUSTER,
            epoch: self.epoch,
            version: Version(1, self.version),
            required: [self.nodes[1 - node].name.to_owned()].into(),
            acks: 1,
            durable: self.version.is_multiple_of(2),
            at_least,
        };
        self.nodes[node]
            .peer()
            .post("/v1/lead", &order, WITHIN)
            .await
    }

    /// `node` follows the other.
    pub(crate) async fn follow(&self, node: usize, overwrite: bool) -> Result<Led, CallError> {
        let primary = 1 - node;
        let order = Follow {
            cluster: CLUSTER,
            epoch: self.epoch,
            primary: self.nodes[primary].name.to_owned(),
            url: format!("http://{}", self.wires[primary].address),
            overwrite,
        };
        self.nodes[node]
            .peer()
            .post("/v1/follow", &order, WITHIN)
            .await
    }

    /// Nothing of an epoch before the present one changes anything on `node` any more.
    pub(crate) async fn seal(&self, node: usize) -> Sealed {
        let order = Seal {
            cluster: CLUSTER,
            epoch: self.epoch,
            within_ms: u64::try_from(WITHIN.as_millis()).unwrap(),
        };
        let peer = self.nodes[node].peer();
        let sealed: Sealed = peer.post("/v1/fence", &order, WITHIN).await.unwrap();
        assert!(sealed.fenced, "{}: {sealed:?}", self.nodes[node].name);
        sealed
    }

    /// `node` leads from now on and the other follows; both are there.
    pub(crate) async fn begin(&mut self, node: usize, at_least: Positions) {
        self.lead(node, at_least).await.unwrap();
        self.follow(1 - node, true).await.unwrap();
    }

    /// Hands over as hotwarm does: fence, final position, the other has it, lead.
    pub(crate) async fn hand_over(&mut self, from: usize) {
        self.epoch = self.epoch.next();
        let last = self.seal(from).await.durable;
        self.seal(1 - from).await;
        self.until_durable(1 - from, &last).await;
        self.begin(1 - from, last).await;
    }

    /// Waits until `node` has all of `wanted` on disk.
    pub(crate) async fn until_durable(&self, node: usize, wanted: &Positions) {
        let has_all = |status: &Status| status.report.durable.covers(wanted);
        self.nodes[node]
            .until("it has all of the former primary", has_all)
            .await;
    }

    /// Waits until the standby shows all that the primary has.
    pub(crate) async fn until_level(&self, primary: usize) {
        let is_primary = |status: &Status| !status.report.tip.0.is_empty();
        let tip = self.nodes[primary].until("it captures", is_primary).await;
        let tip = tip.report.tip;
        let shows_all = |status: &Status| {
            status.report.role == Role::Standby && status.report.applied.covers(&tip)
        };
        self.nodes[1 - primary]
            .until("it shows all of the primary", shows_all)
            .await;
    }

    /// Waits until everything that is committed on the primary is on the standby's disk, as a write's response would.
    pub(crate) async fn until_acknowledged(&self, primary: usize) {
        let within = WITHIN.as_millis();
        let path = format!("/v1/barrier?epoch={}&within_ms={within}", self.epoch);
        let peer = self.nodes[primary].peer();
        let passed = peer.get::<Passed>(&path, WITHIN + Duration::from_secs(1));
        passed.await.unwrap();
    }

    /// Nothing moves any more: both databases are sound, and the same page by page.
    pub(crate) async fn assert_equal(&self, primary: usize) {
        self.until_acknowledged(primary).await;
        self.until_level(primary).await;
        let [a, b] = [0, 1].map(|node: usize| self.nodes[node].database());
        assert_eq!(bank::integrity(&a), "ok");
        assert_eq!(bank::integrity(&b), "ok");
        let (a, b) = (bank::pages(&a), bank::pages(&b));
        assert_eq!(a.len(), b.len(), "pages");
        let differing: Vec<_> = (1..)
            .zip(a.iter().zip(&b))
            .filter(|(_, (a, b))| a != b)
            .map(|(number, _): (u32, _)| number)
            .collect();
        assert!(differing.is_empty(), "these pages differ: {differing:?}");
    }
}
