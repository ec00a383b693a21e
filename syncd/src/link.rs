//! Sessions between two syncds over a connection: the follower dials and pulls, the primary serves. One session a source, each of
//! one epoch: when either side's epoch moves on, it ends, and nothing said in it counts any more.

mod frames;
mod pull;
mod serve;

pub use pull::run as pull;
pub use serve::serve;

use std::time::Duration;

/// Signs of life come this often.
const HEARTBEAT_EVERY: Duration = Duration::from_millis(250);
/// A peer that was silent for this long is gone.
const SILENCE_MOST: Duration = Duration::from_secs(3);
/// How long a greeting and its answer may take. The answer may have to wait for a scan of the database.
const GREETING_WITHIN: Duration = Duration::from_secs(30);
