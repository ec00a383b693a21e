//! One worker's share of the numbers of one service, kept without atomics and without looking up a label, and added to the
//! families a few times a second.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use http::{Method, StatusCode, Version};
use prometheus::local::LocalHistogram;
use shared::metrics::{IntCounter, IntGauge};

use crate::logic::NodeId;
use crate::logic::retry::Class;
use crate::logic::tier::Worth;
use crate::metrics::Metrics;

/// The methods that have a label of their own; everything else is "other", so that clients cannot invent labels.
const METHODS: [&str; 8] = [
    "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "other",
];

/// The versions of HTTP that clients speak.
const PROTOCOLS: [&str; 3] = ["1.0", "1.1", "2"];

/// One worker's numbers of one service.
#[derive(Debug)]
pub struct ServiceNumbers {
    families: Metrics,
    service: Box<str>,
    names: Vec<Box<str>>,
    /// By node (the last place is "none") and method.
    requests: RefCell<Vec<Vec<Counted>>>,
    request_seconds: LocalHistogram,
    upstream_seconds: Vec<LocalHistogram>,
    hold_seconds: LocalHistogram,
    ack_wait_seconds: LocalHistogram,
    ack_degraded: IntCounter,
    shed: IntCounter,
    retries: [IntCounter; 4],
    /// In the order of [`PROTOCOLS`].
    protocols: [(IntCounter, Cell<u64>); 3],
}

#[derive(Debug)]
struct Counted {
    status: StatusCode,
    pending: u64,
    family: IntCounter,
}

impl ServiceNumbers {
    /// Looks up once what can be known now. `nodes` are the names in the order of their ids.
    #[must_use]
    pub fn new<'n>(
        families: &Metrics,
        service: &str,
        nodes: impl Iterator<Item = &'n str>,
    ) -> Self {
        let names: Vec<Box<str>> = nodes.map(Into::into).chain([Box::from("")]).collect();
        let mut requests = Vec::new();
        requests.resize_with(names.len() * METHODS.len(), Vec::new);
        let upstream = |node: &str| {
            families
                .upstream_seconds
                .with_label_values(&[service, node])
        };
        let retries = |reason: &str| families.retries.with_label_values(&[service, reason]);
        Self {
            upstream_seconds: names.iter().map(|node| upstream(node).local()).collect(),
            request_seconds: families
                .request_seconds
                .with_label_values(&[service])
                .local(),
            hold_seconds: families.hold_seconds.with_label_values(&[service]).local(),
            ack_wait_seconds: families
                .ack_wait_seconds
                .with_label_values(&[service])
                .local(),
            ack_degraded: families.ack_degraded.with_label_values(&[service]),
            shed: families
                .shed
                .with_label_values(&[service, Worth::NonCore.as_str()]),
            retries: [
                retries(Class::NeverSent.as_str()),
                retries(Class::KnownUnprocessed.as_str()),
                retries(Class::MaybeProcessed.as_str()),
                retries("proved-unprocessed"),
            ],
            protocols: PROTOCOLS.map(|protocol| {
                let labels = [service, protocol];
                (families.protocols.with_label_values(&labels), Cell::new(0))
            }),
            requests: RefCell::new(requests),
            families: families.clone(),
            service: service.into(),
            names,
        }
    }

    /// Counts a finished request.
    pub fn finished(
        &self,
        node: Option<NodeId>,
        method: &Method,
        status: StatusCode,
        took: Duration,
    ) {
        // How long a tunnel was open says nothing about how fast anything is.
        if status != StatusCode::SWITCHING_PROTOCOLS {
            self.request_seconds.observe(took.as_secs_f64());
        }
        let node = node.map_or(self.names.len() - 1, NodeId::index);
        let method = method_place(method);
        let mut requests = self.requests.borrow_mut();
        let Some(counted) = requests.get_mut(node * METHODS.len() + method) else {
            return;
        };
        if let Some(known) = counted.iter_mut().find(|known| known.status == status) {
            known.pending += 1;
            return;
        }
        let labels = [
            &*self.service,
            &*self.names[node],
            METHODS[method],
            status.as_str(),
        ];
        counted.push(Counted {
            status,
            pending: 1,
            family: self.families.requests.with_label_values(&labels),
        });
    }

    /// Counts what the client of a finished request spoke.
    pub fn spoken(&self, version: Version) {
        let place = match version {
            Version::HTTP_10 => 0,
            Version::HTTP_2 => 2,
            _ => 1,
        };
        let (_, pending) = &self.protocols[place];
        pending.set(pending.get() + 1);
    }

    /// Takes in how long a node took to answer.
    pub fn answered(&self, node: NodeId, took: Duration) {
        if let Some(seconds) = self.upstream_seconds.get(node.index()) {
            seconds.observe(took.as_secs_f64());
        }
    }

    /// Takes in how long a request was held.
    pub fn held(&self, took: Duration) {
        self.hold_seconds.observe(took.as_secs_f64());
    }

    /// Takes in how long a response waited for a standby.
    pub fn acked(&self, took: Duration) {
        self.ack_wait_seconds.observe(took.as_secs_f64());
    }

    /// Counts a response that was released without a standby.
    pub fn degraded(&self) {
        self.ack_degraded.inc();
    }

    /// Counts a request that was refused because it can be done without.
    pub fn shed(&self) {
        self.shed.inc();
    }

    /// Counts an attempt beyond the first.
    pub fn retried(&self, class: Class) {
        self.retries[class_place(class)].inc();
    }

    /// Counts an unsafe request made again because it was proved that it had not been processed.
    pub fn proved(&self) {
        self.retries[3].inc();
    }

    /// Adds everything to the families.
    pub fn flush(&self) {
        self.request_seconds.flush();
        self.hold_seconds.flush();
        self.ack_wait_seconds.flush();
        self.upstream_seconds.iter().for_each(LocalHistogram::flush);
        for (family, pending) in &self.protocols {
            if pending.get() > 0 {
                family.inc_by(pending.take());
            }
        }
        for counted in self.requests.borrow_mut().iter_mut().flatten() {
            if counted.pending > 0 {
                counted.family.inc_by(std::mem::take(&mut counted.pending));
            }
        }
    }
}

impl Drop for ServiceNumbers {
    fn drop(&mut self) {
        self.flush();
    }
}

/// A gauge that several workers add to: each adds the change of its own share.
#[derive(Debug)]
pub struct Share {
    family: IntGauge,
    told: Cell<i64>,
}

impl Share {
    /// Begins with nothing.
    #[must_use]
    pub const fn new(family: IntGauge) -> Self {
        Self {
            family,
            told: Cell::new(0),
        }
    }

    /// Sets this worker's share.
    pub fn set(&self, share: usize) {
        let share = i64::try_from(share).unwrap_or(i64::MAX);
        self.family.add(share - self.told.replace(share));
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.family.sub(self.told.get());
    }
}

fn method_place(method: &Method) -> usize {
    match *method {
        Method::GET => 0,
        Method::HEAD => 1,
        Method::POST => 2,
        Method::PUT => 3,
        Method::PATCH => 4,
        Method::DELETE => 5,
        Method::OPTIONS => 6,
        _ => 7,
    }
}

const fn class_place(class: Class) -> usize {
    match class {
        Class::NeverSent => 0,
        Class::KnownUnprocessed => 1,
        Class::MaybeProcessed => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_appear_when_flushed_and_only_once() {
        let families = Metrics::default();
        let numbers = ServiceNumbers::new(&families, "shop", ["a", "b"].into_iter());
        let brew = Method::from_bytes(b"BREW").unwrap();
        for _ in 0..3 {
            numbers.finished(
                Some(NodeId(1)),
                &Method::GET,
                StatusCode::OK,
                Duration::ZERO,
            );
        }
        numbers.finished(None, &brew, StatusCode::BAD_GATEWAY, Duration::from_secs(1));
        numbers.spoken(Version::HTTP_2);
        let count = |labels: &[&str]| families.requests.with_label_values(labels).get();
        assert_eq!(count(&["shop", "b", "GET", "200"]), 0);
        numbers.flush();
        numbers.flush();
        assert_eq!(count(&["shop", "b", "GET", "200"]), 3);
        assert_eq!(count(&["shop", "", "other", "502"]), 1);
        let spoken = |protocol| {
            families
                .protocols
                .with_label_values(&["shop", protocol])
                .get()
        };
        assert_eq!((spoken("2"), spoken("1.1")), (1, 0));
        let seconds = families.request_seconds.with_label_values(&["shop"]);
        assert_eq!(seconds.get_sample_count(), 4);
    }

    #[test]
    fn a_share_is_taken_back_when_its_worker_ends() {
        let families = Metrics::default();
        let gauge = families
            .upstream_connections
            .with_label_values(&["s", "a", "idle"]);
        let (one, other) = (Share::new(gauge.clone()), Share::new(gauge.clone()));
        one.set(5);
        other.set(2);
        one.set(3);
        assert_eq!(gauge.get(), 5);
        drop(one);
        assert_eq!(gauge.get(), 2);
    }
}
