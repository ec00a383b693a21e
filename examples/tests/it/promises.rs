//! The promises, in their short forms. `rehearse` (the binary) runs the long ones.

use std::time::Duration;

use examples::scenario::{crash, first_start, hang, reader, rounds, switchover};
use examples::stack::Durability;
use examples::stack::Durability::{Async, StandbyAck};

use crate::{kept, rehearse};

/// A short run proves that nothing is lost; how fast it goes is for the long runs on a quiet machine. This only sees to it
/// that nobody waits for a timeout.
const GAP_MS: f64 = 3_000.0;

fn crash(victim: crash::Victim, durability: Durability, seed: u64) {
    rehearse(async {
        let options = crash::Options {
            victim,
            durability,
            seed,
            around: Duration::from_secs(2),
            base_port: None,
        };
        let report = crash::run(options, |step| eprintln!("{step}")).await?;
        kept(&report);
        assert!(report.value("gap_ms") < GAP_MS, "{report}");
        Ok(())
    });
}

#[test]
fn an_application_crash_loses_nothing_with_standby_ack() {
    crash(crash::Victim::Application, StandbyAck, 11);
}

#[test]
fn an_application_crash_loses_nothing_asynchronously() {
    crash(crash::Victim::Application, Async, 12);
}

#[test]
fn a_host_loss_loses_nothing_with_standby_ack() {
    crash(crash::Victim::Host, StandbyAck, 13);
}

#[test]
fn a_host_loss_loses_no_more_than_is_reported_asynchronously_and_keeps_that() {
    crash(crash::Victim::Host, Async, 14);
}

#[test]
fn a_hung_application_is_given_up_and_what_it_does_later_does_not_count() {
    rehearse(async {
        let options = hang::Options {
            durability: StandbyAck,
            seed: 15,
            around: Duration::from_secs(2),
            well_within: None,
        };
        kept(&hang::run(options).await?);
        Ok(())
    });
}

#[test]
fn a_switchover_fails_no_request_and_loses_no_order() {
    rehearse(async {
        let options = switchover::Options {
            durability: StandbyAck,
            seed: 16,
            times: 6,
            between: Duration::from_millis(500),
        };
        kept(&switchover::run(options).await?);
        Ok(())
    });
}

#[test]
fn a_standby_is_readable_all_the_time() {
    rehearse(async {
        let options = reader::Options {
            seed: 17,
            rate: 500,
            lasting: Duration::from_secs(12),
        };
        kept(&reader::run(options).await?);
        Ok(())
    });
}

fn random_rounds(durability: Durability, seed: u64) {
    rehearse(async {
        let options = rounds::Options {
            durability,
            seed,
            first: 0,
            rounds: 5,
            rate: 60.0,
            keep: false,
        };
        let report = rounds::run(options, |line| eprintln!("{line}")).await?;
        kept(&report);
        Ok(())
    });
}

#[test]
fn anything_may_crash_at_any_time_with_standby_ack() {
    random_rounds(StandbyAck, 18);
}

#[test]
fn anything_may_crash_at_any_time_asynchronously() {
    random_rounds(Async, 19);
}

#[test]
fn two_fresh_nodes_come_up_in_any_order() {
    rehearse(async {
        // All in order, all in reverse, and some in between.
        for number in [0, 119, 37, 64, 90] {
            let report = first_start::fresh(StandbyAck, number).await?;
            kept(&report);
            assert!(report.value("up_ms") < 15_000.0, "{report}");
        }
        Ok(())
    });
}

#[test]
fn an_empty_node_never_wins_over_one_with_data() {
    rehearse(async {
        kept(&first_start::joining(StandbyAck).await?);
        Ok(())
    });
}

#[test]
fn two_nodes_with_unrelated_data_are_refused_with_the_command_that_decides() {
    rehearse(async {
        kept(&first_start::strangers().await?);
        Ok(())
    });
}
