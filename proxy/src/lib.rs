//! hotwarm: an HTTP reverse proxy that sends requests to the hot node, keeps them while roles change, and alone decides
//! who is primary. See `ARCHITECTURE.md` for the plan of the house.

pub mod admin;
pub mod app;
pub mod arbiter;
pub mod cli;
pub mod config;
pub mod control;
pub mod exchange;
pub mod layer;
pub mod logic;
pub mod metrics;
pub mod secret;
pub mod server;
pub mod stack;
pub mod steer;
pub mod supervisor;
pub mod takeover;
pub mod tls;
#[doc(hidden)]
pub mod trial;
pub mod upstream;
pub mod worker;
