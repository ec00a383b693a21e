//! Free ports on loopback.

use std::net::TcpListener;

use shared::rng::Rng;

use crate::trouble::Trouble;

/// Below the range that Linux takes the near ends of outgoing connections from, so that none of those is in the way later.
const RANGE: std::ops::Range<u16> = 20_000..32_000;
const TRIES: usize = 200;

/// Finds `count` ports in a row that nobody listens on.
///
/// # Errors
/// There is no such row to be found.
pub fn free(count: u16) -> Result<u16, Trouble> {
    let mut rng = Rng::new();
    let fits = |base: &u16| (0..count).all(|n| TcpListener::bind(("127.0.0.1", base + n)).is_ok());
    std::iter::repeat_with(|| rng.u16(RANGE.start..RANGE.end - count))
        .take(TRIES)
        .find(fits)
        .ok_or_else(|| Trouble::Nonsense(format!("no {count} free ports in a row on loopback")))
}
