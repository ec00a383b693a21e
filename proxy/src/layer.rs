//! Decisions as tower middleware, one file each. The order in which they stand, and why, is in `stack`.
//!
//! Every service here is always ready: a refusal is an error, and whatever waits does so in its future. On the usual path a
//! future polls the one inside it and nothing is boxed; what is held, gated or tried again may box, because it waits anyway.

pub mod access_log;
pub mod balance;
pub mod breaker;
pub mod checked;
pub mod deadline;
pub mod forward;
pub mod gate;
pub mod hold;
pub mod observe;
pub mod reading;
pub mod rescue;
pub mod retry;
pub mod route;
pub mod seen;
pub mod sticky;
pub mod strict;
pub mod tunnel;
