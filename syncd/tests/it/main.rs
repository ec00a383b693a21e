//! Two real syncds on loopback, with the test as their arbiter, their network and their applications.

#![allow(
    clippy::unwrap_used,
    reason = "tests, and helpers that only tests call, stop at the first surprise"
)]
#![allow(
    clippy::print_stdout,
    reason = "the test runner shows what a failing test printed: its seed and its steps"
)]

mod bank;
mod page_sizes;
mod pair;
mod program;
mod relay;
mod schedule;
