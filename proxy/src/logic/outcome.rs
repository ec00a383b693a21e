//! What an attempt says about its node. A node is blamed for what it cannot blame on the request: 501 or 505 answer an odd
//! request correctly, 500, 502, 503 and 504 are an application or a gateway in trouble.

use http::StatusCode;

/// A node's part in one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It answered.
    Good,
    /// It refused, broke off, was too late, or answered that it is in trouble.
    Bad,
}

/// Judges an answer by its status.
#[must_use]
pub const fn judge(status: StatusCode) -> Outcome {
    match status.as_u16() {
        500 | 502 | 503 | 504 => Outcome::Bad,
        _ => Outcome::Good,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_trouble_counts_against_a_node() {
        for bad in [500, 502, 503, 504] {
            assert_eq!(judge(StatusCode::from_u16(bad).unwrap()), Outcome::Bad);
        }
        for good in [200, 204, 301, 400, 404, 409, 429, 501, 505] {
            assert_eq!(judge(StatusCode::from_u16(good).unwrap()), Outcome::Good);
        }
    }
}
