//! Every promise holds in every order of events within the limits, and every safeguard is needed for that.
//!
//! Each `holds` explores its whole space, not a sample. Each `breaks` switches one safeguard off and demands that the checker
//! finds the order of events that it was there for.
#![expect(
    clippy::print_stdout,
    reason = "how much was searched belongs in the report"
)]
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use model::{Action, Fault, Limits, Message, Wire};
use proxy::logic::failover::{Durability, Timer};
use stateright::{Checker, Model};

const ACK: Durability = Wire::STANDBY_ACK;
const ONE: Limits = Limits {
    writes: 1,
    epochs: 2,
    apps: 0,
    syncds: 0,
    proxies: 0,
    hosts: 0,
    cuts: 0,
    hangs: 0,
    doubles: 0,
    late: 0,
    mutes: 0,
    ack_timeouts: 0,
    switchovers: 0,
};
const TWO: Limits = Limits { epochs: 3, ..ONE };

fn wire(limits: Limits, durability: Durability) -> Wire {
    Wire::new(limits, durability, shared::clock::now())
}

fn holds(wire: Wire) {
    let checker = wire.clone().checker().threads(2).spawn_bfs().join();
    println!(
        "{} states, {} steps deep: {:?}",
        checker.unique_state_count(),
        checker.max_depth(),
        wire.limits()
    );
    if let Some(path) = checker.discovery("promises hold") {
        let broken = path.last_state().broken();
        let steps = path
            .into_actions()
            .into_iter()
            .map(|action| format!("\n  {action:?}"));
        panic!("{broken:?} after{}", steps.collect::<String>());
    }
    assert!(checker.is_done(), "not everything was explored");
}

fn breaks(fault: Fault, wire: Wire) {
    let checker = wire.without(fault).checker().threads(2).spawn_bfs().join();
    let states = checker.unique_state_count();
    let path = checker.discovery("promises hold").unwrap_or_else(|| {
        panic!("{fault:?}: switched off, and nothing broke in {states} states: not needed, or the model does not look")
    });
    let broken = path.last_state().broken().unwrap();
    println!(
        "{fault:?}: \"{broken}\" after {} steps, {states} states",
        path.into_actions().len()
    );
}

// ---- every promise holds ----------------------------------------------------------------------------------------------

#[test]
fn promises_hold_when_the_application_and_the_proxy_die() {
    holds(wire(
        Limits {
            apps: 1,
            proxies: 1,
            ..ONE
        },
        ACK,
    ));
}

#[test]
fn promises_hold_when_the_application_and_a_syncd_die() {
    holds(wire(
        Limits {
            apps: 1,
            syncds: 1,
            ..TWO
        },
        ACK,
    ));
}

#[test]
fn promises_hold_when_a_node_is_cut_off_and_a_syncd_dies() {
    holds(wire(
        Limits {
            cuts: 1,
            syncds: 1,
            ..TWO
        },
        ACK,
    ));
}

#[test]
fn promises_hold_when_a_node_is_cut_off_and_a_machine_dies() {
    holds(wire(
        Limits {
            cuts: 1,
            hosts: 1,
            ..ONE
        },
        ACK,
    ));
}

#[test]
fn promises_hold_when_an_application_hangs_and_goes_on_after_a_second_failover() {
    holds(wire(Limits { hangs: 2, ..TWO }, ACK));
}

#[test]
fn promises_hold_when_an_application_hangs_and_dies_later() {
    holds(wire(
        Limits {
            hangs: 1,
            apps: 1,
            ..ONE
        },
        ACK,
    ));
}

#[test]
fn promises_hold_when_the_standby_leaves_and_enters_the_in_sync_set() {
    holds(wire(
        Limits {
            apps: 1,
            ack_timeouts: 1,
            ..TWO
        },
        ACK,
    ));
    holds(
        wire(
            Limits {
                cuts: 1,
                ack_timeouts: 1,
                mutes: 1,
                ..ONE
            },
            ACK,
        )
        .from_alone()
        .after(TO_REACHED_AND_MUTED.into()),
    );
    holds(
        wire(
            Limits {
                writes: 2,
                cuts: 1,
                ..ONE
            },
            ACK,
        )
        .from_alone(),
    );
}

#[test]
fn promises_hold_when_two_clients_write_and_the_application_dies() {
    holds(wire(
        Limits {
            writes: 2,
            apps: 1,
            ..ONE
        },
        ACK,
    ));
}

#[test]
fn promises_hold_through_switchovers_and_crashes_amid_them() {
    holds(wire(
        Limits {
            switchovers: 2,
            ..TWO
        },
        ACK,
    ));
    holds(wire(
        Limits {
            switchovers: 1,
            syncds: 1,
            ..TWO
        },
        ACK,
    ));
    holds(wire(
        Limits {
            switchovers: 1,
            proxies: 1,
            ..TWO
        },
        ACK,
    ));
}

#[test]
fn promises_hold_when_orders_come_twice() {
    holds(wire(
        Limits {
            cuts: 1,
            doubles: 1,
            ..ONE
        },
        ACK,
    ));
    holds(wire(
        Limits {
            apps: 1,
            doubles: 1,
            ..TWO
        },
        ACK,
    ));
}

#[test]
fn promises_hold_when_words_come_late() {
    holds(wire(
        Limits {
            cuts: 1,
            late: 1,
            ..ONE
        },
        ACK,
    ));
    holds(wire(
        Limits {
            apps: 1,
            late: 1,
            mutes: 1,
            ..ONE
        },
        ACK,
    ));
}

#[test]
fn promises_hold_without_a_gate() {
    holds(wire(
        Limits {
            cuts: 1,
            hosts: 1,
            ..ONE
        },
        Durability::Async,
    ));
    holds(wire(
        Limits {
            apps: 1,
            syncds: 1,
            ..TWO
        },
        Durability::Async,
    ));
    holds(wire(
        Limits {
            writes: 2,
            hangs: 1,
            ..ONE
        },
        Durability::Async,
    ));
}

// ---- every safeguard is needed ----------------------------------------------------------------------------------------

#[test]
fn the_promise_is_needed() {
    breaks(Fault::NoPromise, wire(Limits { cuts: 1, ..ONE }, ACK));
}

#[test]
fn a_seal_on_disk_is_needed() {
    breaks(
        Fault::SealNotPersisted,
        wire(
            Limits {
                writes: 0,
                syncds: 1,
                hangs: 1,
                ..TWO
            },
            ACK,
        )
        .from_alone(),
    );
}

#[test]
fn the_fence_is_needed() {
    breaks(
        Fault::NoFence,
        wire(
            Limits {
                apps: 1,
                hangs: 1,
                ..ONE
            },
            ACK,
        ),
    );
}

#[test]
fn barriers_bound_to_their_epoch_are_needed() {
    breaks(Fault::BarrierUnbound, wire(Limits { hangs: 2, ..TWO }, ACK));
}

#[test]
fn out_of_sync_on_record_before_a_release_is_needed() {
    breaks(
        Fault::DegradeBeforePersist,
        wire(
            Limits {
                ack_timeouts: 1,
                proxies: 1,
                cuts: 1,
                ..ONE
            },
            ACK,
        ),
    );
}

#[test]
fn remembering_who_is_out_of_sync_is_needed() {
    breaks(
        Fault::DegradeForgotten,
        wire(
            Limits {
                ack_timeouts: 1,
                proxies: 1,
                cuts: 1,
                ..ONE
            },
            ACK,
        ),
    );
}

#[test]
fn a_sample_before_entering_is_needed() {
    breaks(
        Fault::EnterWithoutSample,
        wire(Limits { cuts: 1, ..ONE }, ACK).from_alone(),
    );
}

#[test]
fn a_closed_gate_while_entering_is_needed() {
    breaks(
        Fault::EnterWithOpenGate,
        wire(Limits { cuts: 1, ..ONE }, ACK).from_alone(),
    );
}

#[test]
fn versions_of_the_gate_are_needed() {
    let limits = Limits {
        ack_timeouts: 1,
        cuts: 1,
        mutes: 1,
        ..ONE
    };
    breaks(
        Fault::ReachedUnversioned,
        wire(limits, ACK)
            .from_alone()
            .after(TO_REACHED_AND_MUTED.into()),
    );
}

#[test]
fn booting_fenced_is_needed() {
    breaks(Fault::BootUnfenced, wire(Limits { syncds: 1, ..ONE }, ACK));
}

#[test]
fn persisting_before_speaking_is_needed() {
    breaks(
        Fault::SpeakBeforePersist,
        wire(
            Limits {
                proxies: 1,
                apps: 1,
                ..ONE
            },
            ACK,
        ),
    );
}

#[test]
fn durable_acknowledgements_are_needed() {
    breaks(
        Fault::AckBeforeDurable,
        wire(
            Limits {
                hosts: 1,
                apps: 1,
                ..ONE
            },
            ACK,
        ),
    );
}

#[test]
fn preserving_diverged_writes_is_needed() {
    breaks(
        Fault::NoPreserve,
        wire(Limits { hangs: 1, ..ONE }, Durability::Async),
    );
}

#[test]
fn comparing_content_instead_of_positions_is_needed() {
    breaks(
        Fault::PositionWithoutContent,
        wire(
            Limits {
                writes: 2,
                hangs: 1,
                ..ONE
            },
            Durability::Async,
        ),
    );
}

#[test]
fn releases_bound_to_the_epoch_of_admission_are_needed() {
    breaks(Fault::ReleaseUnbound, wire(Limits { cuts: 1, ..ONE }, ACK));
}

#[test]
fn replaying_only_what_was_lost_with_its_application_is_needed() {
    breaks(
        Fault::ReplayAbandoned,
        wire(Limits { hangs: 2, ..TWO }, ACK),
    );
}

/// An entrance is reached, but the word of it is held up, and the entrance is given up for taking too long.
const TO_REACHED_AND_MUTED: [fn(&Action) -> bool; 4] = [
    |action| matches!(action, Action::Pull(_)),
    |action| matches!(action, Action::Mute(node) if node.0 == 0),
    |action| matches!(action, Action::Deliver(Message::Lead(..))),
    |action| matches!(action, Action::Fire(Timer::Enter)),
];
