//! Whole workers over loopback, against scripted nodes on raw sockets, steered by hand.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test stops at the first surprise"
)]

mod balancing;
mod breaking;
mod calling;
mod certificates;
mod crew;
mod draining;
mod encryption;
mod flooding;
mod forwarding;
mod gating;
mod harness;
mod holding;
mod introductions;
mod limits;
mod logging;
mod multiplexing;
mod parsing;
mod queueing;
mod reading;
mod reloading;
mod responses;
mod retrying;
mod sharing;
mod smuggling;
mod sockets;
mod splitting;
mod strictness;
mod succeeding;
mod trailing;
mod trusting;
mod tunneling;
mod watching;
