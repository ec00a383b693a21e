//! Dialogues with the machine: what it is told, and what it then wants done. Every order of events is the matter of the crate
//! `model`; here is what people see, and what takes time.

#![expect(
    clippy::wildcard_enum_match_arm,
    clippy::unwrap_in_result,
    reason = "a claim concerns a few effects, and a test stops at the first surprise"
)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use shared::api::{Content, Sealed, Version};
use shared::model::{ClusterId, Epoch, Position, Positions, Role};

use super::*;

const A: NodeId = NodeId(0);
const B: NodeId = NodeId(1);
const CLUSTER: ClusterId = ClusterId(7);
const MILLIS: Duration = Duration::from_millis(1);

fn rules() -> Rules {
    let member = |name: &str| Member {
        name: name.to_owned(),
        priority: 100,
    };
    Rules {
        service: "shop".to_owned(),
        members: vec![member("a"), member("b")],
        replicated: true,
        auto: true,
        durability: Durability::StandbyAck {
            count: 1,
            on_timeout: OnAckTimeout::Degrade,
        },
        max_lag: 500 * MILLIS,
        max_lag_bytes: 1000,
        too_far_behind: TooFarBehind::ReadOnly,
        failback: false,
        min_interval: 10_000 * MILLIS,
        crash_after: 250 * MILLIS,
        drain_within: 1000 * MILLIS,
        seal_within: 100 * MILLIS,
        catch_up_within: 2000 * MILLIS,
        lead_within: 2000 * MILLIS,
        enter_within: 5000 * MILLIS,
        rest: 200 * MILLIS,
        meet_within: 3000 * MILLIS,
        start_within: 1000 * MILLIS,
    }
}

fn at(epoch: u64, seq: u64) -> Positions {
    let position = Position {
        epoch: Epoch(epoch),
        generation: 0,
        seq,
    };
    Positions(BTreeMap::from([("db".to_owned(), position)]))
}

/// Led by `a` in epoch 1, with `b` in sync.
fn led_by_a() -> Record {
    Record {
        cluster: Some(CLUSTER),
        epoch: Epoch(1),
        primary: Some(A),
        in_sync: [B].into(),
        run: 0,
    }
}

fn primary(epoch: u64, seq: u64) -> Standing {
    let peer = PeerStanding {
        connected: true,
        durable: at(epoch, seq),
        lag_bytes: Some(0),
        lag_millis: Some(0),
    };
    Standing {
        cluster: Some(CLUSTER),
        epoch: Epoch(epoch),
        role: Role::Primary,
        tip: at(epoch, seq),
        durable: at(epoch, seq),
        applied: at(epoch, seq),
        gate: Some((Version(1, 0), true)),
        peers: [(B, peer)].into(),
        ..Standing::default()
    }
}

fn standby(epoch: u64, seq: u64, primary: NodeId) -> Standing {
    Standing {
        cluster: Some(CLUSTER),
        epoch: Epoch(epoch),
        role: Role::Standby,
        primary: Some(primary),
        fenced: true,
        tip: at(epoch, seq),
        durable: at(epoch, seq),
        applied: at(epoch, seq),
        ..Standing::default()
    }
}

fn stranger(rows: u64) -> Standing {
    Standing {
        content: Some(Content { rows, bytes: 4096 }),
        ..Standing::default()
    }
}

fn sealed(epoch: u64, fenced: bool, durable: Positions) -> SealAnswer {
    SealAnswer::Sealed(Sealed {
        epoch: Epoch(epoch),
        fenced,
        proved: true,
        durable,
        heard: None,
    })
}

/// A machine, the time, and what it wanted since it was last asked.
struct Dialogue {
    machine: Failover,
    now: Instant,
    said: Vec<Effect>,
}

impl Dialogue {
    /// A machine that has taken up `record`; the disk has taken the note that it runs.
    fn begin(rules: Rules, record: Record) -> Self {
        let mut dialogue = Self {
            machine: Failover::new(Arc::new(rules), record, CLUSTER),
            now: shared::clock::now(),
            said: Vec::new(),
        };
        dialogue.listen();
        dialogue.persist();
        dialogue
    }

    /// `a` leads and `b` follows, both are up, and requests are taken.
    fn serving(rules: Rules) -> Self {
        let mut dialogue = Self::begin(rules, led_by_a());
        dialogue.up(A);
        dialogue.up(B);
        dialogue.tell(Input::Report(A, primary(1, 10)));
        dialogue.tell(Input::Report(B, standby(1, 10, A)));
        assert_eq!(dialogue.target(), Some(A), "{:?}", dialogue.machine);
        dialogue.said.clear();
        dialogue
    }

    fn listen(&mut self) {
        while let Some(effect) = self.machine.poll_effect() {
            self.said.push(effect);
        }
    }

    fn tell(&mut self, input: Input) {
        self.machine.handle_input(self.now, input);
        self.listen();
    }

    fn up(&mut self, node: NodeId) {
        self.tell(Input::Health(node, App::Up, String::new()));
    }

    fn pass(&mut self, span: Duration) {
        self.now += span;
        self.machine.handle_timeout(self.now);
        self.listen();
    }

    /// What was wanted since the last call.
    fn take(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.said)
    }

    /// The disk takes what it was last given.
    fn persist(&mut self) -> Record {
        let wanted = self.said.iter().rev().find_map(|effect| match effect {
            Effect::Persist(record) => Some(record.clone()),
            _ => None,
        });
        let record = wanted.unwrap();
        self.said
            .retain(|effect| !matches!(effect, Effect::Persist(_)));
        self.tell(Input::Persisted(Ok(record.clone())));
        record
    }

    fn target(&self) -> Option<NodeId> {
        self.machine.steered.as_ref().unwrap().target
    }

    fn events(&mut self) -> Vec<Event> {
        let events = self.take().into_iter().filter_map(|effect| match effect {
            Effect::Tell(event) => Some(event),
            _ => None,
        });
        events.collect()
    }

    fn leads(&self) -> Vec<(NodeId, u64)> {
        let leads = self.said.iter().filter_map(|effect| match effect {
            Effect::Lead(node, order) => Some((*node, order.epoch.0)),
            _ => None,
        });
        leads.collect()
    }

    /// Both answer their sealing in `epoch`, and the disk takes the decision.
    fn seal_both(&mut self, epoch: u64, fenced: bool) {
        self.tell(Input::Sealed(
            A,
            Epoch(epoch),
            sealed(epoch, fenced, at(1, 10)),
        ));
        self.tell(Input::Sealed(
            B,
            Epoch(epoch),
            sealed(epoch, true, at(1, 10)),
        ));
    }

    fn led(&mut self, node: NodeId, epoch: u64) {
        let version = self.machine.version();
        self.tell(Input::Led(
            node,
            Epoch(epoch),
            version,
            Obeyed::Done(at(epoch, 10)),
        ));
    }
}

fn refusals(events: &[Event]) -> Vec<&'static str> {
    let labels = events.iter().filter_map(|event| match event {
        Event::Refused(_, label, _) => Some(*label),
        _ => None,
    });
    labels.collect()
}

// ---- a primary in trouble ------------------------------------------------------------------------------------------

#[test]
fn a_port_that_comes_back_in_time_changes_nothing() {
    let mut shop = Dialogue::serving(rules());
    shop.tell(Input::Refused(A));
    assert_eq!(shop.target(), None, "requests are held at once");
    shop.pass(249 * MILLIS);
    shop.tell(Input::Answered(A));
    assert_eq!(shop.target(), Some(A));
    let events = shop.events();
    assert!(matches!(
        events.as_slice(),
        [Event::Suspected(A, Trouble::Crash, _), Event::Cleared(A)]
    ));
    shop.pass(10_000 * MILLIS);
    assert_eq!(shop.machine.record().epoch, Epoch(1));
}

#[test]
fn a_crash_is_decided_on_disk_before_anybody_leads_and_led_before_anybody_is_served() {
    let mut shop = Dialogue::serving(rules());
    shop.tell(Input::Refused(A));
    shop.pass(250 * MILLIS);
    let seals = [Effect::Seal(A, Epoch(2)), Effect::Seal(B, Epoch(2))];
    assert!(
        seals.iter().all(|seal| shop.said.contains(seal)),
        "{:?}",
        shop.said
    );
    let abandoned = shop
        .said
        .iter()
        .position(|e| *e == Effect::Abandon(Epoch(2)));
    let asked = shop.said.iter().position(|e| *e == seals[0]);
    assert!(
        abandoned < asked,
        "what is in flight is given up before the primary says where it stands"
    );

    shop.seal_both(2, true);
    assert_eq!(shop.leads(), [], "not before the epoch is on disk");
    let record = shop.persist();
    assert_eq!((record.epoch, record.primary), (Epoch(2), Some(B)));
    assert_eq!(shop.leads(), [(B, 2)]);
    assert_eq!(shop.target(), None, "not before it leads");
    shop.led(B, 2);
    assert_eq!(shop.target(), Some(B));
    let promoted = shop.events().into_iter().find_map(|event| match event {
        Event::Promoted(promotion) => Some(promotion),
        _ => None,
    });
    let promotion = promoted.unwrap();
    assert_eq!(
        (promotion.from, promotion.to, promotion.loss),
        (Some(A), B, Loss::None)
    );
}

#[test]
fn a_record_that_cannot_be_written_is_tried_again_and_nobody_leads_meanwhile() {
    let mut shop = Dialogue::serving(rules());
    shop.tell(Input::Refused(A));
    shop.pass(250 * MILLIS);
    shop.seal_both(2, true);
    shop.take();
    shop.tell(Input::Persisted(Err("no space left".to_owned())));
    assert!(matches!(shop.events().as_slice(), [Event::NotPersisted(_)]));
    shop.pass(200 * MILLIS);
    assert_eq!(shop.leads(), []);
    let record = shop.persist();
    assert_eq!(record.primary, Some(B));
    assert_eq!(shop.leads(), [(B, 2)]);
}

#[test]
fn without_the_last_word_of_the_primary_only_a_standby_in_sync_is_chosen() {
    for in_sync in [true, false] {
        let mut record = led_by_a();
        if !in_sync {
            record.in_sync.clear();
        }
        let mut shop = Dialogue::begin(rules(), record);
        shop.up(A);
        shop.up(B);
        shop.tell(Input::Report(A, primary(1, 10)));
        shop.tell(Input::Report(B, standby(1, 10, A)));
        shop.tell(Input::Silent(A));
        shop.tell(Input::Refused(A));
        shop.take();
        shop.pass(250 * MILLIS);
        if in_sync {
            shop.tell(Input::Sealed(
                A,
                Epoch(2),
                SealAnswer::Failed("gone".to_owned()),
            ));
            shop.tell(Input::Sealed(B, Epoch(2), sealed(2, true, at(1, 10))));
            assert_eq!(shop.persist().primary, Some(B));
        } else {
            let events = shop.events();
            assert_eq!(refusals(&events), ["not-in-sync"]);
            assert!(format!("{events:?}").contains("hotwarm promote shop --to b"));
            shop.pass(5000 * MILLIS);
            assert_eq!(shop.events(), [], "said once");
        }
    }
}

#[test]
fn reads_go_to_the_standby_while_nobody_may_take_writes() {
    let mut lenient = rules();
    lenient.durability = Durability::Async;
    lenient.max_lag_bytes = 0;
    let mut shop = Dialogue::begin(lenient, led_by_a());
    shop.up(A);
    shop.up(B);
    let mut standing = primary(1, 10);
    standing.peers.get_mut(&B).unwrap().lag_bytes = Some(1);
    shop.tell(Input::Report(A, standing));
    shop.tell(Input::Report(B, standby(1, 9, A)));
    shop.tell(Input::Silent(A));
    shop.tell(Input::Refused(A));
    shop.pass(250 * MILLIS);
    let steer = shop.machine.steered.clone().unwrap();
    assert_eq!(
        (steer.target, steer.reads, steer.phase),
        (None, Some(B), "read-only")
    );
}

#[test]
fn two_promotions_that_nobody_asked_for_are_kept_apart() {
    let mut shop = Dialogue::serving(rules());
    shop.tell(Input::Refused(A));
    shop.pass(250 * MILLIS);
    shop.seal_both(2, true);
    shop.persist();
    shop.led(B, 2);
    shop.tell(Input::Answered(A));
    shop.tell(Input::Report(A, standby(2, 10, B)));
    shop.take();
    shop.tell(Input::Refused(B));
    shop.pass(250 * MILLIS);
    assert_eq!(refusals(&shop.events()), ["too-soon"]);
    shop.pass(10_000 * MILLIS);
    assert!(
        shop.said.contains(&Effect::Seal(A, Epoch(3))),
        "{:?}",
        shop.said
    );
}

#[test]
fn an_open_breaker_holds_nothing_when_nobody_could_take_over() {
    let mut shop = Dialogue::serving(rules());
    shop.tell(Input::Health(B, App::Down, "answered 500".to_owned()));
    shop.tell(Input::Broke(A));
    assert_eq!(shop.target(), Some(A));
    shop.up(B);
    assert_eq!(shop.target(), None);
    assert!(shop.said.contains(&Effect::Seal(A, Epoch(2))));
}

// ---- a primary that answers nothing --------------------------------------------------------------------------------

#[test]
fn a_stall_holds_requests_and_lets_go_with_the_first_answer() {
    let mut shop = Dialogue::serving(rules());
    shop.tell(Input::Stalled(A));
    assert_eq!(shop.target(), None);
    assert!(
        shop.said.contains(&Effect::Alert(A, true)),
        "it is looked at closely"
    );
    shop.pass(60_000 * MILLIS);
    assert_eq!(
        shop.machine.record().epoch,
        Epoch(1),
        "a stall alone promotes nobody"
    );
    shop.tell(Input::Answered(A));
    assert_eq!(shop.target(), None, "a port that accepts is no answer");
    shop.tell(Input::Responded(A));
    assert_eq!(shop.target(), Some(A));
}

#[test]
fn a_stall_becomes_a_hang_or_a_crash_when_that_is_found() {
    let mut shop = Dialogue::serving(rules());
    shop.tell(Input::Stalled(A));
    shop.tell(Input::Health(
        A,
        App::Down,
        "no answer within 500 ms".to_owned(),
    ));
    assert!(
        shop.said.contains(&Effect::Seal(A, Epoch(2))),
        "{:?}",
        shop.said
    );

    let mut shop = Dialogue::serving(rules());
    shop.tell(Input::Stalled(A));
    shop.pass(400 * MILLIS);
    shop.tell(Input::Refused(A));
    shop.pass(249 * MILLIS);
    assert!(
        !shop.said.contains(&Effect::Seal(A, Epoch(2))),
        "a refused port has its time"
    );
    shop.pass(MILLIS);
    assert!(shop.said.contains(&Effect::Seal(A, Epoch(2))));
}

#[test]
fn a_stalled_primary_keeps_its_requests_while_nobody_could_relieve_it() {
    let mut shop = Dialogue::serving(rules());
    shop.tell(Input::Stalled(A));
    shop.tell(Input::Health(B, App::Down, "answered 500".to_owned()));
    assert_eq!(shop.target(), Some(A));
}

// ---- planned changes -----------------------------------------------------------------------------------------------

#[test]
fn a_switchover_waits_for_what_is_under_way_and_gives_up_in_time() {
    let mut shop = Dialogue::serving(rules());
    shop.tell(Input::Order(OrderId(1), Order::Switchover(None)));
    assert_eq!(shop.target(), None);
    assert!(shop.said.contains(&Effect::AwaitDrain));
    shop.pass(1000 * MILLIS);
    assert_eq!(shop.target(), Some(A), "nothing was changed");
    let refused = shop
        .said
        .iter()
        .any(|e| matches!(e, Effect::Answer(OrderId(1), Err(_))));
    assert!(refused, "{:?}", shop.said);

    shop.take();
    shop.tell(Input::Order(OrderId(2), Order::Switchover(Some(B))));
    shop.tell(Input::Drained);
    assert!(
        !shop.said.iter().any(|e| matches!(e, Effect::Abandon(_))),
        "nobody is given up"
    );
    shop.seal_both(2, true);
    shop.persist();
    shop.led(B, 2);
    assert_eq!(shop.target(), Some(B));
    assert!(
        shop.said
            .iter()
            .any(|e| matches!(e, Effect::Answer(OrderId(2), Ok(_))))
    );
}

#[test]
fn a_switchover_to_a_standby_that_is_far_behind_is_refused_with_the_number() {
    let mut shop = Dialogue::serving(rules());
    let mut standing = primary(1, 5000);
    standing.peers.get_mut(&B).unwrap().durable = at(1, 10);
    shop.tell(Input::Report(A, standing));
    shop.take();
    shop.tell(Input::Order(OrderId(1), Order::Switchover(Some(B))));
    let why = shop.said.iter().find_map(|effect| match effect {
        Effect::Answer(_, Err(why)) => Some(why.clone()),
        _ => None,
    });
    assert!(why.unwrap().contains("4990 transactions behind"));
    assert_eq!(shop.target(), Some(A));
}

#[test]
fn a_drained_standby_is_not_promoted_until_it_is_put_back() {
    let mut shop = Dialogue::serving(rules());
    shop.tell(Input::Order(OrderId(1), Order::Drain(B)));
    assert!(
        shop.machine
            .not_promotable(B)
            .unwrap()
            .contains("hotwarm undrain shop b")
    );
    shop.take();
    shop.tell(Input::Refused(A));
    shop.pass(250 * MILLIS);
    assert_eq!(refusals(&shop.events()), ["no-healthy-standby"]);
    shop.tell(Input::Order(OrderId(2), Order::Undrain(B)));
    assert!(
        shop.said.contains(&Effect::Seal(B, Epoch(2))),
        "{:?}",
        shop.said
    );
}

#[test]
fn a_primary_hands_over_before_it_is_drained() {
    let mut shop = Dialogue::serving(rules());
    shop.tell(Input::Order(OrderId(1), Order::Drain(A)));
    shop.tell(Input::Drained);
    shop.seal_both(2, true);
    shop.persist();
    shop.led(B, 2);
    assert_eq!(shop.target(), Some(B));
    assert!(shop.machine.is_draining(A) && shop.machine.not_promotable(A).is_some());

    let mut shop = Dialogue::serving(rules());
    shop.tell(Input::Order(OrderId(1), Order::Drain(A)));
    shop.pass(1000 * MILLIS);
    assert_eq!(shop.target(), Some(A), "nothing was changed");
    assert!(!shop.machine.is_draining(A));

    let mut shop = Dialogue::serving(rules());
    shop.tell(Input::Health(B, App::Down, "answered 500".to_owned()));
    shop.take();
    shop.tell(Input::Order(OrderId(1), Order::Drain(A)));
    assert!(matches!(
        shop.take().as_slice(),
        [Effect::Answer(_, Err(_))]
    ));
    assert!(!shop.machine.is_draining(A));
}

// ---- beginnings ----------------------------------------------------------------------------------------------------

#[test]
fn the_only_node_with_data_leads_whatever_its_place() {
    let mut shop = Dialogue::begin(rules(), Record::default());
    shop.tell(Input::Report(A, stranger(3)));
    shop.up(A);
    shop.up(B);
    assert_eq!(shop.target(), None, "not before everybody has spoken");
    shop.tell(Input::Report(B, stranger(5000)));
    let record = shop.persist();
    assert_eq!((record.primary, record.epoch), (Some(B), Epoch(1)));
    assert!(record.in_sync.is_empty(), "nobody is a copy of it yet");
}

#[test]
fn between_strangers_a_person_decides_and_is_told_how() {
    let mut shop = Dialogue::begin(rules(), Record::default());
    shop.up(A);
    shop.up(B);
    shop.tell(Input::Report(A, stranger(4000)));
    shop.tell(Input::Report(B, stranger(5000)));
    let events = shop.events();
    assert_eq!(refusals(&events), ["undecided"]);
    assert!(format!("{events:?}").contains("hotwarm promote shop --to a --accept-data-loss"));
    assert!(shop.machine.not_promotable(A).is_some());
    shop.tell(Input::Report(A, stranger(4001)));
    shop.pass(60_000 * MILLIS);
    assert_eq!(shop.events(), [], "said once");

    let order = |accept_loss| Order::Promote { to: B, accept_loss };
    shop.tell(Input::Order(OrderId(1), order(false)));
    assert!(
        matches!(shop.take().as_slice(), [Effect::Answer(_, Err(why))] if why.contains("--accept-data-loss"))
    );
    shop.tell(Input::Order(OrderId(2), order(true)));
    assert_eq!(shop.persist().primary, Some(B));
}

#[test]
fn a_restarted_proxy_waits_for_the_first_word_of_the_primary_but_not_for_ever() {
    let mut shop = Dialogue::begin(rules(), led_by_a());
    shop.tell(Input::Report(B, standby(1, 10, A)));
    assert_eq!(shop.target(), None);
    shop.pass(1000 * MILLIS);
    assert_eq!(shop.target(), Some(A), "its application may well be fine");
}

#[test]
fn a_pair_without_syncd_only_changes_where_requests_go() {
    let mut plain = rules();
    plain.replicated = false;
    plain.durability = Durability::Async;
    plain.min_interval = Duration::ZERO;
    let mut shop = Dialogue::begin(plain, Record::default());
    shop.up(B);
    assert_eq!(
        shop.target(),
        None,
        "the first in the configuration is given its time"
    );
    shop.up(A);
    shop.persist();
    assert_eq!(shop.target(), Some(A));
    shop.tell(Input::Health(A, App::Down, "answered 500".to_owned()));
    assert!(
        !shop
            .said
            .iter()
            .any(|effect| matches!(effect, Effect::Seal(..)))
    );
    shop.persist();
    assert_eq!(shop.target(), Some(B));
}
