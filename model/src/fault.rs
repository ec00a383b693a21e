//! What may go wrong, and how often.

/// A safeguard that is switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// A standby's promise is answered but not kept: its session with the old primary goes on, and what comes through it
    /// is acknowledged even after the standby leads.
    NoPromise,
    /// A seal is kept in memory only: a restarted syncd has forgotten it.
    SealNotPersisted,
    /// A sealed primary says that it is fenced, but its application goes on writing.
    NoFence,
    /// A barrier is answered whatever the epoch it asks about.
    BarrierUnbound,
    /// Responses are released before "out of sync" is on record.
    DegradeBeforePersist,
    /// "Out of sync" is on record, but a restarted arbiter reads an older record.
    DegradeForgotten,
    /// A standby enters the in-sync set without having reached a sample.
    EnterWithoutSample,
    /// A standby enters while responses are still released without it.
    EnterWithOpenGate,
    /// A late "reached" of an entrance that was given up counts for the present one.
    ReachedUnversioned,
    /// A restarted syncd takes up its old role by itself.
    BootUnfenced,
    /// The arbiter speaks before its record is on disk.
    SpeakBeforePersist,
    /// A standby acknowledges what its disk does not have yet.
    AckBeforeDurable,
    /// Diverged writes are overwritten without a copy.
    NoPreserve,
    /// A returning node is taken for a prefix by its position, whatever its content.
    PositionWithoutContent,
    /// A response is judged by the gate of the present epoch instead of that in which its request was admitted.
    ReleaseUnbound,
    /// A request that was given up, but whose application lives, is replayed by the proof meant for lost ones.
    ReplayAbandoned,
}

/// How far the checker goes. Every number multiplies the states.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Limits {
    /// Writes that clients attempt.
    pub writes: u8,
    /// Epochs that the arbiter may decide.
    pub epochs: u64,
    /// Deaths of applications.
    pub apps: u8,
    /// Deaths of syncds.
    pub syncds: u8,
    /// Deaths of the proxy.
    pub proxies: u8,
    /// Deaths of whole machines, with what was not synced.
    pub hosts: u8,
    /// Times that the arbiter and a node lose sight of each other.
    pub cuts: u8,
    /// Times that an application seems to hang and goes on later.
    pub hangs: u8,
    /// Orders delivered twice.
    pub doubles: u8,
    /// Answers and acknowledgements that arrive late.
    pub late: u8,
    /// Times that a node's reports are held up.
    pub mutes: u8,
    /// Acknowledgement timeouts, and entrances that take too long.
    pub ack_timeouts: u8,
    /// Planned switchovers.
    pub switchovers: u8,
}

impl Limits {
    /// Whether `self` is within `most`, number by number.
    #[must_use]
    pub(crate) const fn allows(&self, spent: &Self) -> bool {
        spent.apps <= self.apps
            && spent.syncds <= self.syncds
            && spent.proxies <= self.proxies
            && spent.hosts <= self.hosts
            && spent.cuts <= self.cuts
            && spent.hangs <= self.hangs
            && spent.doubles <= self.doubles
            && spent.late <= self.late
            && spent.mutes <= self.mutes
            && spent.ack_timeouts <= self.ack_timeouts
            && spent.switchovers <= self.switchovers
    }
}
