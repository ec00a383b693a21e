//! What is wrong is refused clearly, and nothing is lost by it.

use std::time::Duration;

use examples::scenario::{bad_input, bad_state, commands};
use examples::stack::Side;
use examples::trouble::Trouble;

use crate::{kept, rehearse};

#[test]
fn a_wrong_configuration_is_refused_with_its_place_and_what_is_allowed() {
    rehearse(async {
        kept(&bad_input::run(|case| eprintln!("{case}"))?);
        Ok::<(), Trouble>(())
    });
}

#[test]
fn an_operator_and_a_client_see_what_is_documented() {
    rehearse(async {
        kept(&commands::run().await?);
        Ok(())
    });
}

#[test]
fn orders_of_an_older_epoch_change_nothing() {
    rehearse(async {
        kept(&bad_state::stale_orders().await?);
        Ok(())
    });
}

#[test]
fn a_damaged_state_file_is_never_taken_for_no_state() {
    rehearse(async {
        kept(&bad_state::damaged_state().await?);
        Ok(())
    });
}

#[test]
fn a_damaged_stream_is_noticed_and_made_good() {
    rehearse(async {
        kept(&bad_state::bad_wire(21, Duration::from_secs(10)).await?);
        Ok(())
    });
}

#[test]
fn a_file_that_is_no_database_is_named_and_left_alone() {
    rehearse(async {
        kept(&bad_state::no_database().await?);
        Ok(())
    });
}

#[test]
fn a_full_disk_under_the_primary_does_not_stop_the_application() {
    rehearse(async {
        kept(&bad_state::full_disk(Side::A).await?);
        Ok(())
    });
}

#[test]
fn a_full_disk_under_the_standby_does_not_stop_the_application() {
    rehearse(async {
        kept(&bad_state::full_disk(Side::B).await?);
        Ok(())
    });
}
