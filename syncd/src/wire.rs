//! What travels between two syncds and what lies in their logs, as bytes and as values. Pure: nothing here waits or touches the world.

pub mod checksum;
pub mod increment;
pub mod message;
