//! The one door to real time. Everybody else is handed instants, so that tests can move time by hand.
#![expect(
    clippy::disallowed_methods,
    reason = "this is the door that the ban points to"
)]

use std::time::{Duration, Instant, SystemTime};

/// The present moment on the monotonic clock. Follows tokio's clock, so a paused test runtime moves it too.
#[must_use]
pub fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// The present moment on the wall clock, as nanoseconds since 1970. For people and for logs, never for decisions.
#[must_use]
pub fn unix_nanos() -> u64 {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// The present moment as RFC 3339 text in UTC, with milliseconds.
#[must_use]
pub fn rfc3339() -> String {
    rfc3339_at(unix_nanos())
}

/// `unix_nanos` as RFC 3339 text in UTC, with milliseconds.
#[must_use]
pub fn rfc3339_at(unix_nanos: u64) -> String {
    let moment = jiff::Timestamp::from_nanosecond(i128::from(unix_nanos)).unwrap_or_default();
    format!("{moment:.3}")
}

/// Waits until `at`.
pub async fn sleep_until(at: Instant) {
    tokio::time::sleep_until(at.into()).await;
}

/// Waits for `span`.
pub async fn sleep(span: Duration) {
    tokio::time::sleep(span).await;
}

/// Stops this thread for `span`. Only for threads of their own; never inside the runtime.
pub fn pause_thread(span: Duration) {
    std::thread::sleep(span);
}

#[cfg(test)]
mod tests {
    #[test]
    fn wall_time_reads_as_rfc_3339() {
        assert_eq!(
            super::rfc3339_at(1_700_000_000_123_000_000),
            "2023-11-14T22:13:20.123Z"
        );
    }
}
