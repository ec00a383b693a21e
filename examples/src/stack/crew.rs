//! The running parts of a deployment, and the supervisor that starts again what has ended.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use shared::clock;

use crate::process::{Process, Spec};
use crate::stack::Part;
use crate::trouble::Trouble;

const LOOK_EVERY: Duration = Duration::from_millis(20);

/// All parts of a deployment.
#[derive(Debug)]
pub(crate) struct Crew {
    places: Arc<Mutex<Vec<Place>>>,
    over: Arc<AtomicBool>,
    supervisor: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Place {
    process: Process,
    wanted: bool,
    seen_down: Option<Instant>,
}

impl Crew {
    /// Nobody runs yet. `specs` are in the order of [`Part::ALL`].
    pub(crate) fn new(specs: Vec<Spec>, restart_after: Option<Duration>) -> Self {
        let place = |spec| Place {
            process: Process::new(spec),
            wanted: false,
            seen_down: None,
        };
        let places = Arc::new(Mutex::new(specs.into_iter().map(place).collect()));
        let over = Arc::new(AtomicBool::new(false));
        let supervisor = restart_after.map(|after| {
            let (places, over) = (Arc::clone(&places), Arc::clone(&over));
            std::thread::spawn(move || supervise(&places, &over, after))
        });
        Self {
            places,
            over,
            supervisor,
        }
    }

    pub(crate) fn start(&self, part: Part) -> Result<(), Trouble> {
        let place = &mut self.lock()[part.index()];
        place.wanted = true;
        place.process.start()
    }

    pub(crate) fn kill(&self, parts: &[Part]) {
        let mut places = self.lock();
        for part in parts {
            places[part.index()].process.signal(Signal::KILL);
        }
        for part in parts {
            places[part.index()].process.reap();
        }
    }

    pub(crate) fn kill_for_good(&self, parts: &[Part]) {
        for part in parts {
            self.lock()[part.index()].wanted = false;
        }
        self.kill(parts);
    }

    pub(crate) fn freeze(&self, parts: &[Part]) {
        self.signal(parts, Signal::STOP);
    }

    pub(crate) fn thaw(&self, parts: &[Part]) {
        self.signal(parts, Signal::CONT);
    }

    pub(crate) fn terminate(&self, part: Part, grace: Duration) -> bool {
        let place = &mut self.lock()[part.index()];
        place.wanted = false;
        let status = place.process.terminate(grace);
        status.is_some_and(|status| status.success())
    }

    pub(crate) fn starts(&self, part: Part) -> u32 {
        self.lock()[part.index()].process.starts()
    }

    pub(crate) fn spec(&self, part: Part) -> Spec {
        self.lock()[part.index()].process.spec().clone()
    }

    pub(crate) fn group(&self, part: Part) -> Option<i32> {
        let group = self.lock()[part.index()].process.group();
        group.map(rustix::process::Pid::as_raw_pid)
    }

    fn signal(&self, parts: &[Part], signal: Signal) {
        let places = self.lock();
        for part in parts {
            places[part.index()].process.signal(signal);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Place>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(supervisor) = self.supervisor.take() {
            // It has nothing to say.
            let _ = supervisor.join();
        }
        self.kill_for_good(&Part::ALL);
    }
}

fn supervise(places: &Mutex<Vec<Place>>, over: &AtomicBool, after: Duration) {
    while !over.load(Ordering::Relaxed) {
        for place in &mut *places.lock().unwrap_or_else(PoisonError::into_inner) {
            place.look(after);
        }
        clock::pause_thread(LOOK_EVERY);
    }
}

impl Place {
    fn look(&mut self, after: Duration) {
        if !self.wanted || self.process.is_running() {
            self.seen_down = None;
            return;
        }
        let now = clock::now();
        let since = *self.seen_down.get_or_insert(now);
        if now - since >= after {
            self.seen_down = None;
            // What cannot be started now is tried again after the same wait.
            let _ = self.process.start();
        }
    }
}
