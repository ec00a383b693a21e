//! Towards nodes: connections and their pool, barriers of their `syncd`, and the prober.

pub mod barrier;
pub mod client;
pub mod link;
pub mod pool;
pub mod probe;
