//! What `hotwarm` and `syncd` have in common: the words they use for each other, and the plain tools that both need.
//!
//! Nothing here knows either program. `model`, `rng` and `backoff` are pure and may be named by every room of the house;
//! the other rooms touch the world once each, so that nobody else has to.

pub mod admin;
pub mod api;
pub mod backoff;
pub mod call;
pub mod clock;
pub mod config;
pub mod drain;
pub mod durable;
pub mod metrics;
pub mod model;
pub mod rng;
pub mod telemetry;
