//! The services that run: each has one driver at any time, whatever happens to its settings.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use shared::clock;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::arbiter::{Arbiter, Place};
use crate::config::{Next, Service};
use crate::control::{self, Chronicle, Control, Driving, Left, Parts};
use crate::logic::failover::Record;
use crate::metrics::Metrics;
use crate::secret::Secret;
use crate::steer::{Gate, Members, Readers, Sign, Steering, View};
use crate::worker::{self, ServiceHandle};

/// A driver that is ended may still be writing its record to the disk.
const WRITE_WITHIN: Duration = Duration::from_secs(5);

/// Phases in which requests have a place to go to, or would not get one soon.
const SETTLED: [&str; 4] = ["serving", "starting", "read-only", "unavailable"];

/// All services.
pub(super) struct Services {
    arbiter: Arbiter,
    secret: Secret,
    lanes: usize,
    chronicle: Chronicle,
    metrics: Metrics,
    /// Those of the settings in force, in their order.
    running: Vec<Running>,
    /// Former ones, and former settings, that have requests.
    former: Vec<Former>,
}

/// A service that another process decides for, while this one finishes requests.
pub(super) struct Frozen {
    name: Arc<str>,
    steering: Arc<Steering>,
    /// How many responses to writes the primary's last report knew of.
    reported: u64,
}

struct Running {
    handle: ServiceHandle,
    control: Control,
    driver: Driver,
}

/// Who decides for a service.
enum Driver {
    Drives(Driving),
    /// It was ended, and its last write is still under way.
    Ending(JoinHandle<Left>),
    /// Nobody: it is to be started again.
    Paused(Left),
    /// For the moment in which it is passed on.
    Gone,
}

struct Former {
    handle: ServiceHandle,
    /// If the whole service was removed.
    driver: Option<Driver>,
    until: Instant,
}

/// A service of the next settings.
pub(super) struct Prepared {
    handle: ServiceHandle,
    /// Unless it stays as it is.
    new: Option<New>,
    former: Option<From>,
}

/// Where an heir comes from.
#[derive(Clone, Copy)]
enum From {
    /// This one of the running services; it stays, or its driver was ended.
    Running(usize),
    /// This one of the former services.
    Former(usize),
}

struct New {
    signs: mpsc::Receiver<Sign>,
    place: Place,
    record: Record,
}

impl Services {
    pub(super) fn new(
        arbiter: Arbiter,
        secret: Secret,
        lanes: usize,
        chronicle: Chronicle,
        metrics: Metrics,
    ) -> Self {
        Self {
            arbiter,
            secret,
            lanes,
            chronicle,
            metrics,
            running: Vec::new(),
            former: Vec::new(),
        }
    }

    /// Starts these; there are none yet.
    pub(super) fn start(&mut self, services: &[Arc<Service>]) -> Result<(), String> {
        for service in services {
            let (handle, signs) = self.added(service);
            let (place, record) = self.record(service)?;
            let new = New {
                signs,
                place,
                record,
            };
            let running = self.drive(handle, new, None);
            self.running.push(running);
        }
        Ok(())
    }

    fn added(&self, service: &Arc<Service>) -> (ServiceHandle, mpsc::Receiver<Sign>) {
        let first = View {
            phase: "starting",
            members: service
                .is_balanced()
                .then(|| Members::none_of(service.nodes.len())),
            ..View::default()
        };
        let nodes = service.counted_nodes();
        let (steering, signs) = Steering::counting(self.lanes, nodes, first);
        let service = Arc::clone(service);
        let handle = ServiceHandle::new(service, steering, self.lanes, &self.metrics);
        (handle.signed_with(self.secret.clone()), signs)
    }

    fn record(&self, service: &Service) -> Result<(Place, Record), String> {
        let nodes = service.nodes.iter().map(|node| node.name.to_string());
        let place = self.arbiter.place(&service.name, nodes.collect());
        // Where every node is active nothing is on record, whatever there was before.
        let record = if service.is_balanced() {
            Record::default()
        } else {
            place.load().map_err(|error| error.to_string())?
        };
        Ok((place, record))
    }

    fn drive(&self, handle: ServiceHandle, new: New, former: Option<Left>) -> Running {
        let parts = Parts {
            handle: handle.clone(),
            signs: new.signs,
            place: new.place,
            chronicle: self.chronicle.clone(),
            metrics: self.metrics.clone(),
            former,
        };
        let (control, driving) = control::start(parts, new.record);
        Running {
            handle,
            control,
            driver: Driver::Drives(driving),
        }
    }

    /// What workers need of each.
    pub(super) fn handles(&self) -> Vec<ServiceHandle> {
        self.running.iter().map(|one| one.handle.clone()).collect()
    }

    /// What operators see of each.
    pub(super) fn controls(&self) -> BTreeMap<String, Control> {
        let named = |one: &Running| (one.handle.service().name.to_string(), one.control.clone());
        self.running.iter().map(named).collect()
    }

    /// Prepares the next settings: everything that can fail. Drivers whose settings change are ended; until [`Self::commit`] or
    /// [`Self::resume`] nobody decides for their services, and requests go where they went before.
    pub(super) async fn prepare(
        &mut self,
        services: &[Arc<Service>],
        fates: &[Next],
    ) -> Result<Vec<Prepared>, String> {
        if !self.decides() {
            return Err("another process is taking over".to_owned());
        }
        let mut prepared = Vec::new();
        for (service, fate) in services.iter().zip(fates) {
            let name = &service.name;
            let former = match *fate {
                Next::Kept(at) => {
                    let handle = self.running[at].handle.clone();
                    let former = Some(From::Running(at));
                    prepared.push(Prepared {
                        handle,
                        new: None,
                        former,
                    });
                    continue;
                }
                Next::Changed(at) => Some(From::Running(at)),
                // Removed a moment ago, and not gone yet.
                Next::Added => self
                    .former
                    .iter()
                    .position(|former| {
                        former.driver.is_some() && former.handle.service().name == *name
                    })
                    .map(From::Former),
            };
            if let Some(former) = former {
                self.end_driver(former).await.map_err(|()| {
                    format!("service {name}: its record is still being written; reload again in a moment")
                })?;
            }
            let (handle, signs) = match former {
                Some(From::Running(at)) => self.heir(&self.running[at].handle, service),
                Some(From::Former(at)) => self.heir(&self.former[at].handle, service),
                None => self.added(service),
            };
            let (place, record) = self.record(service)?;
            let watched = worker::watch_files(std::slice::from_ref(&handle));
            watched.map_err(|error| error.to_string())?;
            let new = New {
                signs,
                place,
                record,
            };
            prepared.push(Prepared {
                handle,
                new: Some(new),
                former,
            });
        }
        Ok(prepared)
    }

    fn heir(
        &self,
        handle: &ServiceHandle,
        service: &Arc<Service>,
    ) -> (ServiceHandle, mpsc::Receiver<Sign>) {
        handle.heir(Arc::clone(service), self.lanes, &self.metrics)
    }

    async fn end_driver(&mut self, which: From) -> Result<(), ()> {
        let driver = match which {
            From::Running(at) => Some(&mut self.running[at].driver),
            From::Former(at) => self.former[at].driver.as_mut(),
        };
        let Some(driver) = driver else { return Ok(()) };
        driver.end(WRITE_WITHIN).await;
        if matches!(driver, Driver::Ending(_)) {
            return Err(());
        }
        Ok(())
    }

    /// After a preparation that came to nothing: whoever was ended goes on.
    pub(super) fn resume(&mut self) {
        for at in 0..self.running.len() {
            let one = &mut self.running[at];
            let Driver::Paused(left) = &mut one.driver else {
                continue;
            };
            let (handle, signs) = (one.handle.clone(), left.signs());
            let service = Arc::clone(handle.service());
            let (place, record) = match self.record(&service) {
                Ok(found) => found,
                Err(error) => {
                    tracing::error!(
                        service = &*service.name,
                        error,
                        "nobody decides for the service until its record can be read"
                    );
                    if let Driver::Paused(left) = &mut self.running[at].driver {
                        left.give_back(signs);
                    }
                    continue;
                }
            };
            let new = New {
                signs,
                place,
                record,
            };
            let left = match std::mem::replace(&mut self.running[at].driver, Driver::Gone) {
                Driver::Paused(left) => Some(left),
                Driver::Drives(_) | Driver::Ending(_) | Driver::Gone => None,
            };
            self.running[at] = self.drive(handle, new, left);
        }
    }

    /// What workers need of the next settings.
    pub(super) fn next_handles(prepared: &[Prepared]) -> Vec<ServiceHandle> {
        prepared.iter().map(|one| one.handle.clone()).collect()
    }

    /// The workers have changed: new drivers begin, and what is gone is let go of within `within`.
    pub(super) fn commit(&mut self, prepared: Vec<Prepared>, within: Duration) {
        let until = clock::now() + within;
        let mut before: Vec<_> = std::mem::take(&mut self.running)
            .into_iter()
            .map(Some)
            .collect();
        for Prepared {
            handle,
            new,
            former,
        } in prepared
        {
            let Some(new) = new else {
                if let Some(From::Running(at)) = former {
                    self.running.extend(before[at].take());
                }
                continue;
            };
            let driver = match former {
                Some(From::Running(at)) => before[at].take().map(|one| {
                    self.former.push(Former {
                        handle: one.handle,
                        driver: None,
                        until,
                    });
                    one.driver
                }),
                Some(From::Former(at)) => self.former[at].driver.take(),
                None => None,
            };
            let left = match driver {
                Some(Driver::Paused(left)) => Some(left),
                Some(Driver::Drives(_) | Driver::Ending(_) | Driver::Gone) | None => None,
            };
            let running = self.drive(handle, new, left);
            self.running.push(running);
        }
        for gone in before.into_iter().flatten() {
            self.former.push(Former {
                handle: gone.handle,
                driver: Some(gone.driver),
                until,
            });
        }
    }

    /// Lets go of what has ended, and starts whoever could not be started before.
    pub(super) async fn sweep(&mut self) {
        for one in &mut self.running {
            one.driver.look().await;
        }
        if self.decides() || self.take_up() {
            self.resume();
        }
        let now = clock::now();
        let over = |former: &mut Former| !former.handle.is_in_use() || former.until <= now;
        let over: Vec<_> = self.former.extract_if(.., over).collect();
        for mut former in over {
            if let Some(driver) = &mut former.driver {
                driver.end(WRITE_WITHIN).await;
            }
            let service = former.handle.service();
            let all = self.running.iter().map(|one| one.handle.service());
            let now = all.into_iter().find(|other| other.name == service.name);
            let is_gone = |node: &str| {
                now.is_none_or(|now| !node.is_empty() && now.nodes.iter().all(|n| *n.name != *node))
            };
            self.metrics.forget(&service.name, is_gone);
        }
    }

    /// Whether this process decides for its services.
    pub(super) const fn decides(&self) -> bool {
        self.arbiter.is_held()
    }

    /// Why no other process can take over at this moment, if that is so.
    pub(super) fn not_ready(&self) -> Option<String> {
        if !self.arbiter.is_alone() {
            let why = "the process before this one still finishes its requests (drain_timeout); try again in a moment";
            return Some(why.to_owned());
        }
        let unsettled = |one: &&Running| {
            let phase = one.handle.steering().view().phase;
            !SETTLED.contains(&phase)
        };
        let one = self.running.iter().find(unsettled)?;
        Some(format!(
            "service {} is changing its primary (hotwarm status); try again in a moment",
            one.handle.service().name
        ))
    }

    /// Ends everybody and lets go of the right to decide. Requests go where they went before, and no response to a write is
    /// released on this process's word alone.
    ///
    /// # Errors
    /// Something is still under way; then everybody goes on.
    pub(super) async fn give_up(&mut self) -> Result<Vec<Frozen>, String> {
        let mut ending = self.not_ready();
        let running = self.running.iter_mut().map(|one| &mut one.driver);
        let former = self.former.iter_mut();
        let former = former.filter_map(|one| one.driver.as_mut());
        for driver in running.chain(former) {
            if ending.is_none() {
                driver.end(WRITE_WITHIN).await;
            }
            if matches!(driver, Driver::Ending(_)) {
                ending = Some("a record is still being written; try again in a moment".to_owned());
            }
        }
        // What they did last may be the beginning of a change.
        if let Some(why) = ending.or_else(|| self.not_ready()) {
            self.resume();
            return Err(why);
        }
        let running = self.running.iter().map(|one| (&one.handle, &one.driver));
        let former = self.former.iter();
        let former = former.filter_map(|one| Some((&one.handle, one.driver.as_ref()?)));
        let frozen = running.chain(former).map(|(handle, driver)| {
            let unreported = match driver {
                Driver::Paused(left) => left.unreported(),
                Driver::Drives(_) | Driver::Ending(_) | Driver::Gone => 0,
            };
            let name = Arc::clone(&handle.service().name);
            Frozen::new(name, Arc::clone(handle.steering()), unreported)
        });
        let frozen = frozen.collect();
        self.arbiter.release();
        Ok(frozen)
    }

    /// Nobody has taken over after all: takes the right to decide again. False while somebody else has it.
    pub(super) fn take_up(&mut self) -> bool {
        self.arbiter.take().is_ok()
    }

    /// Ends everybody.
    pub(super) async fn end(self, within: Duration) {
        let running = self.running.into_iter().map(|one| one.driver);
        let former = self.former.into_iter().filter_map(|one| one.driver);
        for mut driver in running.chain(former) {
            driver.end(within).await;
        }
    }
}

impl Frozen {
    fn new(name: Arc<str>, steering: Arc<Steering>, unreported: u64) -> Self {
        let view = steering.view();
        let gate = match view.gate {
            Gate::Off => Gate::Off,
            // Which standbys must have a write is known to its node alone now.
            Gate::Barrier | Gate::Open => Gate::Barrier,
        };
        steering.publish(View {
            gate,
            ..View::clone(&view)
        });
        steering.let_read(Readers::default());
        Self {
            name,
            reported: steering.released().saturating_sub(unreported),
            steering,
        }
    }

    /// Whether it is the service of this name.
    pub(super) fn is(&self, name: &str) -> bool {
        *self.name == *name
    }

    /// Sends no more requests to it. Returns how many responses to writes were released that the primary's last report did not
    /// know of.
    pub(super) fn close(&self) -> u64 {
        let view = self.steering.view();
        self.steering.publish(View {
            target: None,
            reads: None,
            members: view
                .members
                .as_ref()
                .map(|members| Members::none_of(members.weights.len())),
            phase: "handed-over",
            why: Some("the process before this one has ended".into()),
            ..View::clone(&view)
        });
        self.steering.released().saturating_sub(self.reported)
    }
}

impl Driver {
    /// Ends it; it is paused then, unless it is still writing.
    async fn end(&mut self, within: Duration) {
        *self = match std::mem::replace(self, Self::Gone) {
            Self::Drives(driving) => match driving.end(within).await {
                Ok(left) => Self::Paused(left),
                Err(task) => Self::Ending(task),
            },
            same @ (Self::Ending(_) | Self::Paused(_) | Self::Gone) => same,
        };
        self.look().await;
    }

    /// Notices that its last write is over.
    async fn look(&mut self) {
        if let Self::Ending(task) = self
            && task.is_finished()
            && let Ok(left) = task.await
        {
            *self = Self::Paused(left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logic::NodeId;
    use shared::model::Epoch;

    #[test]
    fn a_frozen_service_asks_its_node_about_every_write_and_a_closed_one_has_nobody() {
        let led = |gate| View {
            epoch: Epoch(4),
            target: Some(NodeId(0)),
            reads: Some(NodeId(1)),
            gate,
            phase: "serving",
            ..View::default()
        };
        for (before, after) in [
            (Gate::Off, Gate::Off),
            (Gate::Open, Gate::Barrier),
            (Gate::Barrier, Gate::Barrier),
        ] {
            let (steering, _signs) = Steering::new(1, led(before));
            let frozen = Frozen::new("shop".into(), Arc::clone(&steering), 0);
            let view = steering.view();
            assert_eq!(
                (view.gate, view.target, view.epoch),
                (after, Some(NodeId(0)), Epoch(4))
            );
            assert!(frozen.is("shop") && !frozen.is("other"));
            assert_eq!(frozen.close(), 0);
            let view = steering.view();
            assert_eq!((view.gate, view.target, view.reads), (after, None, None));
            assert_eq!(view.epoch, Epoch(4));
        }
    }
}
