//! Decisions: which orders to obey, when a write is safe, what a follower needs. Values in, values out.

pub mod gate;
pub mod rejoin;
pub mod station;
