//! Real databases, used by real processes of an older SQLite, captured and applied.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod applying;
mod bench;
mod capture;
mod chaos;
mod kills;
mod opening;
mod preserving;
mod process;
mod rig;
mod support;
mod trouble;
