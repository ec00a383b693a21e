//! Seeded schedules of whatever can happen to two nodes. After every step the standby shows a state that the primary's history had,
//! and never an older one than before; what was acknowledged is never lost; at the end both databases are the same. `SYNCD_SEED` replays one seed.

use rusqlite::Connection;
use shared::model::{Positions, Role};
use shared::rng::Rng;

use crate::bank;
use crate::pair::Pair;

const SEEDS: std::ops::Range<u64> = 1..4;
const STEPS: u32 = 24;

#[derive(Clone, Copy, Debug)]
enum Step {
    /// Transactions, as if there were nothing else.
    Commit,
    /// One that does not fit into memory at once.
    CommitLarge,
    /// Every page moves.
    Vacuum,
    /// Connections break, in the middle of commits.
    Cut,
    /// The standby cannot reach the primary for a while.
    Part,
    /// The standby's syncd is killed, and comes back after commits that it missed.
    KillStandby,
    /// The primary's syncd is killed, the application goes on alone, and syncd comes back.
    KillPrimary,
    /// The same, but as a supervisor ends it.
    EndPrimary,
    /// Both are killed at once.
    KillBoth,
    /// The application closes and opens its database.
    Reopen,
    /// As planned.
    HandOver,
    /// The same, with a wire that is cut and a standby that is killed in the middle of it.
    HandOverInTrouble,
    /// A new term of the same primary, after somebody thought better of it.
    Renew,
    /// The primary is lost with what nobody else has, and returns as a standby.
    LoseHost,
}

/// How often each step is drawn.
const STEPS_DRAWN: &[(Step, u32)] = &[
    (Step::Commit, 5),
    (Step::CommitLarge, 2),
    (Step::Vacuum, 1),
    (Step::Cut, 3),
    (Step::Part, 3),
    (Step::KillStandby, 3),
    (Step::KillPrimary, 2),
    (Step::EndPrimary, 1),
    (Step::Reopen, 2),
    (Step::KillBoth, 1),
    (Step::HandOver, 2),
    (Step::HandOverInTrouble, 2),
    (Step::Renew, 1),
    (Step::LoseHost, 3),
];

fn draw(rng: &mut Rng) -> Step {
    let all: u32 = STEPS_DRAWN.iter().map(|(_, weight)| weight).sum();
    let mut at = rng.u32(..all);
    for (step, weight) in STEPS_DRAWN {
        if at < *weight {
            return *step;
        }
        at -= weight;
    }
    Step::Commit
}

struct World {
    pair: Pair,
    rng: Rng,
    primary: usize,
    app: Option<Connection>,
    /// What the rows were after each commit.
    history: Vec<u64>,
    /// Where in it the standby was seen last.
    seen: usize,
    /// Everything up to here in it was acknowledged.
    acknowledged: usize,
    commits: u32,
}

impl World {
    async fn new(seed: u64) -> Self {
        let mut pair = Pair::start("schedule").await;
        let path = pair.nodes[0].database();
        bank::create(&path, 4096);
        pair.epoch = pair.epoch.next();
        pair.begin(0, Positions::default()).await;
        pair.until_level(0).await;
        Self {
            pair,
            rng: Rng::with_seed(seed),
            primary: 0,
            app: None,
            history: vec![bank::rows(&path)],
            seen: 0,
            acknowledged: 0,
            commits: 0,
        }
    }

    const fn standby(&self) -> usize {
        1 - self.primary
    }

    fn commit(&mut self, is_large: bool) {
        let path = self.pair.nodes[self.primary].database();
        self.commits += 1;
        let app = self.app.get_or_insert_with(|| bank::open(&path));
        bank::commit(app, self.commits, is_large, &mut self.rng);
        self.history.push(bank::rows(&path));
    }

    fn commit_some(&mut self) {
        for _ in 0..self.rng.u32(1..12) {
            self.commit(false);
        }
    }

    async fn take(&mut self, step: Step) {
        let standby = self.standby();
        match step {
            Step::Commit => {
                self.commit_some();
                self.acknowledge().await;
            }
            Step::CommitLarge => self.commit(true),
            Step::Vacuum => {
                let path = self.pair.nodes[self.primary].database();
                let app = self.app.get_or_insert_with(|| bank::open(&path));
                app.execute_batch("VACUUM").unwrap();
            }
            Step::Cut => {
                for _ in 0..3 {
                    self.commit_some();
                    self.pair.wires[self.primary].cut();
                }
                self.acknowledge().await;
            }
            Step::Part => {
                self.pair.wires[self.primary].take_down();
                self.commit_some();
                self.check_standby().await;
                self.pair.wires[self.primary].repair();
            }
            Step::KillStandby => {
                self.commit_some();
                self.pair.nodes[standby].kill();
                self.commit_some();
                self.pair.nodes[standby].start().await;
                self.pair.follow(standby, false).await.unwrap();
            }
            Step::KillPrimary => {
                self.commit_some();
                self.pair.nodes[self.primary].kill();
                self.primary_returns().await;
            }
            Step::EndPrimary => {
                self.commit_some();
                self.pair.nodes[self.primary].terminate();
                self.primary_returns().await;
            }
            Step::Reopen => {
                self.app = None;
                self.commit_some();
            }
            Step::KillBoth => {
                self.commit_some();
                self.pair.nodes[standby].kill();
                self.pair.nodes[self.primary].kill();
                self.primary_returns().await;
                self.pair.nodes[standby].start().await;
                self.pair.follow(standby, false).await.unwrap();
            }
            Step::HandOver => {
                self.commit_some();
                self.app = None;
                self.pair.hand_over(self.primary).await;
                self.assert_handed_over();
            }
            Step::HandOverInTrouble => {
                self.commit_some();
                self.app = None;
                self.pair.wires[self.primary].take_down();
                self.pair.epoch = self.pair.epoch.next();
                let last = self.pair.seal(self.primary).await.durable;
                self.pair.seal(standby).await;
                self.pair.wires[self.primary].repair();
                if self.rng.bool() {
                    self.pair.nodes[standby].kill();
                    self.pair.nodes[standby].start().await;
                }
                self.pair.wires[self.primary].cut();
                self.pair.until_durable(standby, &last).await;
                self.pair.begin(standby, last).await;
                self.assert_handed_over();
            }
            Step::Renew => {
                self.commit_some();
                self.pair.epoch = self.pair.epoch.next();
                let last = self.pair.seal(self.primary).await.durable;
                self.pair.seal(standby).await;
                self.pair.begin(self.primary, last).await;
                self.seen = 0;
            }
            Step::LoseHost => self.lose_host().await,
        }
    }

    /// The standby leads now, and has everything.
    fn assert_handed_over(&mut self) {
        self.primary = self.standby();
        self.seen = 0;
        let now = bank::rows(&self.pair.nodes[self.primary].database());
        assert_eq!(self.history.last(), Some(&now), "handing over lost commits");
    }

    async fn acknowledge(&mut self) {
        self.pair.until_acknowledged(self.primary).await;
        self.acknowledged = self.history.len() - 1;
    }

    /// Its application went on without it, and perhaps was restarted, too.
    async fn primary_returns(&mut self) {
        if self.rng.bool() {
            self.commit_some();
        }
        if self.rng.bool() {
            self.app = None;
        }
        self.pair.nodes[self.primary].start().await;
        self.pair
            .lead(self.primary, Positions::default())
            .await
            .unwrap();
    }

    async fn lose_host(&mut self) {
        let (lost, chosen) = (self.primary, self.standby());
        if self.rng.bool() {
            self.pair.wires[lost].take_down();
        }
        self.commit_some();
        self.pair.nodes[lost].kill();
        if self.rng.bool() {
            self.commit_some();
        }
        self.app = None;
        self.pair.wires[lost].repair();
        let had = bank::rows(&self.pair.nodes[lost].database());
        let kept = self.pair.nodes[lost].kept().len();

        self.pair.epoch = self.pair.epoch.next();
        let durable = self.pair.seal(chosen).await.durable;
        self.pair.lead(chosen, durable).await.unwrap();
        let now = bank::rows(&self.pair.nodes[chosen].database());
        let at = self.history.iter().rposition(|state| *state == now);
        let at = at.expect("a promoted standby must be a prefix of its primary");
        assert!(at >= self.seen, "what was shown before is gone");
        assert!(at >= self.acknowledged, "what was acknowledged is gone");
        self.history.truncate(at + 1);
        self.primary = chosen;
        self.seen = 0;
        if self.rng.bool() {
            self.commit_some();
        }

        self.pair.nodes[lost].start().await;
        self.pair.follow(lost, false).await.unwrap();
        self.pair.until_level(chosen).await;
        if !self.history.contains(&had) {
            let copies = self.pair.nodes[lost].kept();
            assert_eq!(copies.len(), kept + 1, "diverged commits were not kept");
            assert!(
                copies.iter().any(|copy| bank::rows(copy) == had),
                "what was kept is not what diverged"
            );
        }
    }

    /// If it is a standby, it shows a state of the primary's history, and no older one than before.
    async fn check_standby(&mut self) {
        let standby = &self.pair.nodes[self.standby()];
        let Some(status) = standby.status().await else {
            return;
        };
        if status.report.role != Role::Standby {
            return;
        }
        let shown = bank::rows(&standby.database());
        let at = self.history.iter().rposition(|state| *state == shown);
        let at = at.expect("a standby must be a prefix of its primary");
        assert!(
            at >= self.seen,
            "the standby went back from {} to {at}",
            self.seen
        );
        self.seen = at;
    }
}

async fn run(seed: u64) {
    let mut world = World::new(seed).await;
    for number in 0..STEPS {
        let step = draw(&mut world.rng);
        println!(
            "seed {seed}, step {number}: {step:?} on {}",
            world.pair.nodes[world.primary].name
        );
        world.take(step).await;
        world.check_standby().await;
    }
    world.app = None;
    world.pair.assert_equal(world.primary).await;
    let last = bank::rows(&world.pair.nodes[world.primary].database());
    assert_eq!(world.history.last(), Some(&last));
    for node in &world.pair.nodes {
        let log = node.log();
        assert!(!log.contains("panicked"), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_is_a_prefix_whatever_happens_and_the_same_in_the_end() {
    #[expect(clippy::disallowed_methods, reason = "to replay one seed")]
    let given = std::env::var("SYNCD_SEED").ok();
    match given {
        Some(seed) => run(seed.parse().unwrap()).await,
        None => {
            for seed in SEEDS {
                run(seed).await;
            }
        }
    }
}
