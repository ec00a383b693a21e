//! Whole deployments on loopback: first that our own instruments are right, then the promises.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test stops at the first surprise and says what it skips"
)]

use std::future::Future;

use examples::scenario::Report;
use examples::trouble::Trouble;

mod clean_up;
mod demo;
mod liar;
mod promises;
mod refusals;
mod shop;

/// Runs a test on a runtime of its own; skips it aloud when something that it needs is not on this machine.
fn rehearse(test: impl Future<Output = Result<(), Trouble>>) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    match runtime.block_on(test) {
        Ok(()) => (),
        Err(missing @ Trouble::Missing { .. }) => eprintln!("skipped: {missing}"),
        Err(trouble) => panic!("{trouble}"),
    }
}

/// Shows a report and fails if it has a broken promise.
fn kept(report: &Report) {
    eprintln!("{report}");
    if let Err(broken) = report.check() {
        panic!("{broken}");
    }
}
