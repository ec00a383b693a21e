//! What is due for the log, by its length and by what the application does.

/// Copy when this many frames are not in the database yet.
pub(super) const PASS_AT: u32 = 1000;
/// Make the log begin anew when it is longer than [`PASS_AT`] frames, but not while it is shorter than this, in bytes.
pub(super) const RESET_AT: u64 = 4 << 20;
/// While the application is idle, give back what the log file has beyond this, in bytes.
pub(super) const TRIM_AT: u64 = 16 << 20;
/// The remainder that is copied under the lock is at most this many frames at its beginning.
pub(super) const REMAINDER: u32 = 64;

/// What there is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Duty {
    /// Nothing.
    Rest,
    /// Copying what is committed.
    Pass,
    /// Making the log begin anew.
    Reset,
    /// Giving back the end of the file.
    Trim,
}

/// What it is decided by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Situation {
    /// In the log.
    pub(super) frames: u32,
    /// Of these, not in the database yet.
    pub(super) left: u32,
    /// What the frames take.
    pub(super) log_bytes: u64,
    /// What the file takes.
    pub(super) file_bytes: u64,
    /// Whether nothing was committed for a while.
    pub(super) is_idle: bool,
    /// Whether it is time for another attempt, and of use.
    pub(super) may_reset: bool,
    /// Whether there are frames that recovery would not see.
    pub(super) is_urgent: bool,
}

impl Situation {
    /// What is due.
    pub(super) const fn duty(&self) -> Duty {
        let wants_reset = self.is_urgent || (self.log_bytes > RESET_AT && self.frames > PASS_AT);
        if wants_reset && self.may_reset && self.frames > 0 {
            Duty::Reset
        } else if self.left >= PASS_AT
            || (self.is_idle && self.left > 0)
            || (wants_reset && self.left > REMAINDER)
        {
            Duty::Pass
        } else if self.is_idle
            && self.file_bytes > TRIM_AT
            && self.file_bytes.saturating_sub(self.log_bytes) > TRIM_AT / 4
        {
            Duty::Trim
        } else {
            Duty::Rest
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Situation = Situation {
        frames: 0,
        left: 0,
        log_bytes: 0,
        file_bytes: 0,
        is_idle: false,
        may_reset: true,
        is_urgent: false,
    };

    #[test]
    fn a_short_log_is_left_alone_until_the_application_is_idle() {
        let short = Situation {
            frames: 500,
            left: 500,
            log_bytes: 2 << 20,
            file_bytes: 4 << 20,
            ..NOTHING
        };
        assert_eq!(NOTHING.duty(), Duty::Rest);
        assert_eq!(short.duty(), Duty::Rest);
        assert_eq!(
            Situation {
                is_idle: true,
                ..short
            }
            .duty(),
            Duty::Pass
        );
        assert_eq!(
            Situation {
                left: 1000,
                ..short
            }
            .duty(),
            Duty::Pass
        );
    }

    #[test]
    fn the_application_is_stopped_only_for_a_long_log_or_one_that_recovery_would_lose() {
        let long = Situation {
            frames: 3000,
            left: 10,
            log_bytes: 12 << 20,
            file_bytes: 12 << 20,
            ..NOTHING
        };
        assert_eq!(long.duty(), Duty::Reset);
        assert_eq!(
            Situation {
                may_reset: false,
                ..long
            }
            .duty(),
            Duty::Rest
        );
        assert_eq!(
            Situation {
                may_reset: false,
                left: 100,
                ..long
            }
            .duty(),
            Duty::Pass
        );
        let unsealed = Situation {
            frames: 3,
            is_urgent: true,
            ..NOTHING
        };
        assert_eq!(unsealed.duty(), Duty::Reset);
    }

    #[test]
    fn a_file_far_larger_than_its_use_is_shortened_when_nobody_waits() {
        let large = Situation {
            frames: 10,
            log_bytes: 1 << 20,
            file_bytes: 100 << 20,
            ..NOTHING
        };
        let idle = Situation {
            is_idle: true,
            ..large
        };
        let in_use = Situation {
            log_bytes: 99 << 20,
            ..idle
        };
        assert_eq!(large.duty(), Duty::Rest);
        assert_eq!(idle.duty(), Duty::Trim);
        assert_eq!(in_use.duty(), Duty::Rest);
    }
}
