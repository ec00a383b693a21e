//! How much of its disk a log takes: segments that are small against the disk can be given back in time, and somebody else may need
//! that disk too, the application above all.

use std::path::Path;

/// At least so many segments fit on the disk, so that dropping the oldest makes room while others are still needed.
const SEGMENTS_LEAST: u64 = 8;
/// A segment is not smaller than this, however small the disk.
const SEGMENT_LEAST: u64 = 256 << 10;

/// Bytes that can still be written on the disk of `folder`; as good as unlimited where the system does not say.
pub(super) fn free_on_disk(folder: &Path) -> u64 {
    rustix::fs::statvfs(folder).map_or(u64::MAX, |disk| disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// How long a segment may become, and how much is left free for others where that is possible: `most`, or less on a small disk. `kept`
/// is what the log has there already.
pub(super) fn share(free: u64, kept: u64, most: u64) -> u64 {
    (free.saturating_add(kept) / SEGMENTS_LEAST)
        .max(SEGMENT_LEAST)
        .min(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_small_disk_has_small_segments_and_a_large_one_those_that_are_configured() {
        assert_eq!(share(u64::MAX, 5 * MIB, 64 * MIB), 64 * MIB);
        assert_eq!(share(16 * MIB, 0, 64 * MIB), 2 * MIB);
        assert_eq!(share(4 * MIB, 12 * MIB, 64 * MIB), 2 * MIB);
        assert_eq!(share(0, 0, 64 * MIB), SEGMENT_LEAST);
        assert_eq!(share(0, 0, 1000), 1000);
    }
}
