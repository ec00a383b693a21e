//! The log against a model of itself: whatever is appended, cut, dropped, torn or reopened, what it gives is what went in.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod model;
mod readers;
mod support;
mod trouble;
