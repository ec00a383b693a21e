//! syncd: keeps a standby's data a copy of its primary's, proves that it is one, reports positions, and obeys the arbiter. See
//! `ARCHITECTURE.md` for the plan of the house.

pub mod admin;
pub mod app;
pub mod cli;
pub mod config;
pub mod diverged;
pub mod hook;
pub mod link;
pub mod log;
pub mod logic;
pub mod metrics;
pub mod node;
pub mod replica;
pub mod sqlite;
pub mod store;
pub mod wire;
