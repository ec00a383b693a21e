//! A primary in trouble: requests are held while it is found out whether somebody must take over.

use std::time::Instant;

use super::{Cause, Effect, Event, Failover, Phase, Timer, Trouble, choose};
use crate::logic::NodeId;

impl Failover {
    pub(super) fn look_suspect(&mut self, now: Instant) {
        let Some(primary) = self.record.primary else {
            return;
        };
        if self.must_decide_anew(primary) {
            return self.begin_round(now, Cause::Restart, None, false, None);
        }
        let Phase::Suspect {
            mut trouble,
            mut ripe,
            ..
        } = self.phase
        else {
            return;
        };
        let Some(worst) = self.facts(primary).trouble() else {
            self.effects
                .push_back(Effect::Tell(Event::Cleared(primary)));
            return self.serve();
        };
        self.look_in_sync(now, primary);
        let may_relieve = choose::plausible(self, now);
        if worst == Trouble::Stall {
            // It is for the health checks to say whether this is a hang.
            if may_relieve.is_err() {
                self.serve();
            }
            return;
        }
        if trouble == Trouble::Stall {
            self.suspect(now, primary, worst);
            (trouble, ripe) = (worst, false);
        }
        // A refused port is given a moment to come back; every other trouble has been watched for long enough already.
        if !(ripe || worst != Trouble::Crash) {
            return;
        }
        match may_relieve {
            Ok(()) => self.begin_round(now, Cause::Trouble(trouble), None, false, None),
            Err(refusal) => self.refuse(now, refusal),
        }
    }

    pub(super) fn suspect(&mut self, now: Instant, primary: NodeId, trouble: Trouble) {
        let why = match trouble {
            Trouble::Crash => "connections refused".to_owned(),
            Trouble::Hang => self.facts(primary).app_why.clone(),
            Trouble::Breaker => "circuit breaker opened".to_owned(),
            Trouble::Stall => "requests wait there, and none is answered".to_owned(),
        };
        self.effects
            .push_back(Effect::Tell(Event::Suspected(primary, trouble, why)));
        self.effects.push_back(Effect::Alert(primary, true));
        self.arm(now, Timer::Crash, self.rules.crash_after);
        self.phase = Phase::Suspect {
            trouble,
            since: now,
            ripe: false,
            reads: None,
            said: None,
        };
    }

    /// Stays suspect, says why once, and lets reads through if the rules and the facts allow.
    pub(super) fn refuse(&mut self, now: Instant, refusal: choose::Refusal) {
        if let Some(left) = refusal.wait {
            self.arm(now, Timer::Interval, left);
        }
        let epoch = self.record.epoch;
        let Phase::Suspect { reads, said, .. } = &mut self.phase else {
            return;
        };
        *reads = refusal.reads;
        if *said != Some(refusal.label) {
            *said = Some(refusal.label);
            self.effects.push_back(Effect::Tell(Event::Refused(
                epoch,
                refusal.label,
                refusal.why,
            )));
        }
    }
}
