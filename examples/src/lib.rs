//! Whole small deployments on loopback, and what it takes to put them under load, break them, and say what became of every
//! acknowledged write. The demo, the fault runs, the benchmarks and the end-to-end tests are all made of these parts.
//!
//! Nothing here knows the inside of either program: they are started as a user starts them, and spoken to over HTTP.

pub mod admin;
pub mod audit;
pub mod bench;
pub mod client;
pub mod compare;
pub mod demo;
pub mod diverged;
pub mod faults;
pub mod guard;
pub mod ledger;
pub mod load;
pub mod mangler;
pub mod ports;
pub mod process;
pub mod programs;
pub mod scenario;
pub mod scratch;
pub mod stack;
pub mod stats;
pub mod trouble;
pub mod witness;
pub mod workload;
