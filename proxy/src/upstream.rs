//! Towards nodes: connections and their pool, barriers of their `syncd`, and the prober.

pub mod barrier;
pub mod client;
pub mod link;
pub mod places;
pub mod pool;
pub mod probe;
mod session;
mod stream;
