//! The promotion protocol as an exhaustive model: promise, fence, gate, degrade, re-enter, rejoin, a second failover, with
//! deaths of every process and of machines (which lose what was not synced), and lost, late and doubled messages.
//!
//! What decides here is what decides in production: `proxy::logic::failover::Failover` as the arbiter, and
//! `syncd::logic::{station, gate}` on each node. The model only replaces what they touch: disks, wires, databases.
//! Two nodes, one source; a write is one number, a database the list of the writes it has.
//!
//! [`Fault`] switches off one safeguard at a time, at the border between the machines and the world. With each of them the
//! checker must find a broken promise; that is how we know that it looks.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a fault concerns a few actions; the others go their way"
)]

mod arbiter;
mod clients;
mod fault;
mod node;
mod orders;
mod promises;
mod step;
mod stream;
mod world;

pub use fault::{Fault, Limits};
pub use step::{Action, Wire};
pub use world::{Message, World};
