//! Every number the proxy counts in. Families are registered once and handed down; names are a contract with dashboards.
//!
//! Nothing on the request path touches a family: workers keep their own counts ([`local`]) and add them up a few times a
//! second.

pub mod local;

use std::collections::HashMap;

use prometheus::core::{Collector, MetricVec, MetricVecBuilder};
use prometheus::opts;
use prometheus::proto::MetricFamily;
use shared::metrics::{
    GaugeVec, HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, REQUEST_SECONDS, Registry,
    SHORT_SECONDS, register,
};

/// Buckets for outages and holds, in seconds: 10 ms to 5 minutes.
const OUTAGE_SECONDS: &[f64] = &[
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
];

/// Every family.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Where they are registered.
    pub registry: Registry,
    /// Finished requests.
    pub requests: IntCounterVec,
    /// Finished requests, by what the client spoke.
    pub protocols: IntCounterVec,
    /// From the head of a request to the end of its response.
    pub request_seconds: HistogramVec,
    /// From an attempt's start to the head of the node's response.
    pub upstream_seconds: HistogramVec,
    /// Connections to nodes, idle and active.
    pub upstream_connections: IntGaugeVec,
    /// Tunnels open at this moment.
    pub tunnels: IntGaugeVec,
    /// Attempts beyond the first, by the class of the one that failed.
    pub retries: IntCounterVec,
    /// 0 closed, 1 half-open, 2 open.
    pub breaker_state: IntGaugeVec,
    /// Whether a node passes its health checks.
    pub node_up: IntGaugeVec,
    /// Whether a node is primary.
    pub node_primary: IntGaugeVec,
    /// The epoch in force.
    pub epoch: IntGaugeVec,
    /// Changes of primary, by kind.
    pub failovers: IntCounterVec,
    /// How long nobody took writes.
    pub failover_unavailable_seconds: HistogramVec,
    /// Promotions that were needed and refused, by reason.
    pub promotions_refused: IntCounterVec,
    /// Requests held at this moment.
    pub held_requests: IntGaugeVec,
    /// Requests that wait because a node has as many as it may, by service and node.
    pub queued_requests: IntGaugeVec,
    /// How long requests were held.
    pub hold_seconds: HistogramVec,
    /// How long responses waited for a standby.
    pub ack_wait_seconds: HistogramVec,
    /// Responses released without a standby, after the wait was over.
    pub ack_degraded: IntCounterVec,
    /// Requests refused under overload, because they can be done without.
    pub shed: IntCounterVec,
    /// How far behind a standby is, in seconds.
    pub replication_lag_seconds: GaugeVec,
    /// How far behind a standby is, in bytes.
    pub replication_lag_bytes: IntGaugeVec,
    /// Clients connected.
    pub client_connections: IntGaugeVec,
    /// Connections that were not served, by reason.
    pub client_connections_refused: IntCounterVec,
    /// TLS handshakes that failed, by reason.
    pub tls_handshakes_failed: IntCounterVec,
    /// When certificates end, in seconds since 1970.
    pub tls_certificate_expiry: IntGaugeVec,
    /// Changed files of certificates, by what came of them.
    pub tls_reloads: IntCounterVec,
    /// Reloads of the configuration, by result.
    pub config_reloads: IntCounterVec,
    /// Lines of the access log that were dropped because the disk did not keep up.
    pub access_log_dropped: IntCounterVec,
}

impl Metrics {
    /// Registers every family.
    ///
    /// # Panics
    /// When called twice for one registry: a fault of the program.
    #[must_use]
    pub fn register(registry: &Registry) -> Self {
        let counter = |name: &str, help: &str, labels: &[&str]| {
            register(registry, IntCounterVec::new(opts!(name, help), labels))
        };
        let gauge = |name: &str, help: &str, labels: &[&str]| {
            register(registry, IntGaugeVec::new(opts!(name, help), labels))
        };
        let histogram = |name: &str, help: &str, buckets: &[f64], labels: &[&str]| {
            let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
            register(registry, HistogramVec::new(options, labels))
        };
        let (service, node) = (&["service"][..], &["service", "node"][..]);
        Self {
            requests: counter(
                "hotwarm_requests_total",
                "Finished requests; node is empty when none answered",
                &["service", "node", "method", "code"],
            ),
            protocols: counter(
                "hotwarm_requests_by_protocol_total",
                "Finished requests, by the version of HTTP that the client spoke",
                &["service", "protocol"],
            ),
            request_seconds: histogram(
                "hotwarm_request_duration_seconds",
                "From the head of a request to the end of its response",
                REQUEST_SECONDS,
                service,
            ),
            upstream_seconds: histogram(
                "hotwarm_upstream_duration_seconds",
                "From an attempt's start to the head of the node's response",
                REQUEST_SECONDS,
                node,
            ),
            upstream_connections: gauge(
                "hotwarm_upstream_connections",
                "Connections to nodes, or requests under way at those that speak HTTP/2",
                &["service", "node", "state"],
            ),
            tunnels: gauge(
                "hotwarm_tunnels",
                "Tunnels (WebSocket and other upgrades) open at this moment",
                node,
            ),
            retries: counter(
                "hotwarm_retries_total",
                "Attempts beyond the first, by what is known of the one before",
                &["service", "reason"],
            ),
            breaker_state: gauge(
                "hotwarm_breaker_state",
                "0 closed, 1 half-open, 2 open",
                node,
            ),
            node_up: gauge(
                "hotwarm_node_up",
                "Whether a node passes its health checks",
                node,
            ),
            node_primary: gauge("hotwarm_node_primary", "Whether a node is primary", node),
            epoch: gauge("hotwarm_epoch", "The epoch in force", service),
            failovers: counter(
                "hotwarm_failovers_total",
                "Changes of primary",
                &["service", "kind"],
            ),
            failover_unavailable_seconds: histogram(
                "hotwarm_failover_unavailable_seconds",
                "How long nobody took writes",
                OUTAGE_SECONDS,
                service,
            ),
            promotions_refused: counter(
                "hotwarm_promotions_refused_total",
                "Promotions that were needed and refused",
                &["service", "reason"],
            ),
            held_requests: gauge(
                "hotwarm_held_requests",
                "Requests held at this moment",
                service,
            ),
            queued_requests: gauge(
                "hotwarm_queued_requests",
                "Requests that wait because a node has as many as it may have at once",
                node,
            ),
            hold_seconds: histogram(
                "hotwarm_hold_seconds",
                "How long requests were held",
                OUTAGE_SECONDS,
                service,
            ),
            ack_wait_seconds: histogram(
                "hotwarm_ack_wait_seconds",
                "How long responses waited for a standby",
                SHORT_SECONDS,
                service,
            ),
            ack_degraded: counter(
                "hotwarm_ack_degraded_total",
                "Responses released without a standby after the wait was over",
                service,
            ),
            shed: counter(
                "hotwarm_shed_total",
                "Requests refused under overload because their route can be done without",
                &["service", "class"],
            ),
            replication_lag_seconds: register(
                registry,
                GaugeVec::new(
                    opts!(
                        "hotwarm_replication_lag_seconds",
                        "How far behind a standby is"
                    ),
                    node,
                ),
            ),
            replication_lag_bytes: gauge(
                "hotwarm_replication_lag_bytes",
                "How far behind a standby is",
                node,
            ),
            client_connections: gauge(
                "hotwarm_client_connections",
                "Clients connected",
                &["listener"],
            ),
            client_connections_refused: counter(
                "hotwarm_client_connections_refused_total",
                "Client connections that were not served",
                &["listener", "reason"],
            ),
            tls_handshakes_failed: counter(
                "hotwarm_tls_handshakes_failed_total",
                "TLS handshakes that failed; clients that only went away are not counted",
                &["listener", "reason"],
            ),
            tls_certificate_expiry: gauge(
                "hotwarm_tls_certificate_expiry_seconds",
                "When a certificate ends, in seconds since 1970; subtract time()",
                &["listener", "cert"],
            ),
            tls_reloads: counter(
                "hotwarm_tls_reloads_total",
                "Files of certificates that changed, by what came of it",
                &["listener", "result"],
            ),
            config_reloads: counter(
                "hotwarm_config_reloads_total",
                "Reloads of the configuration",
                &["result"],
            ),
            access_log_dropped: counter(
                "hotwarm_access_log_dropped_total",
                "Access log lines dropped because the disk did not keep up",
                &[],
            ),
            registry: registry.clone(),
        }
    }
}

impl Metrics {
    /// Takes away every number of `service`'s nodes of which `is_gone` says so by name; with an empty name it is asked about the
    /// service's own.
    pub fn forget(&self, service: &str, is_gone: impl Fn(&str) -> bool) {
        fn sweep<B: MetricVecBuilder>(family: &MetricVec<B>, gone: impl Fn(&str, &str) -> bool) {
            for metric in family.collect().iter().flat_map(MetricFamily::get_metric) {
                let labels: HashMap<&str, &str> = metric
                    .get_label()
                    .iter()
                    .map(|label| (label.name(), label.value()))
                    .collect();
                let label = |name| labels.get(name).copied();
                let is_gone = label("service")
                    .is_some_and(|service| gone(service, label("node").unwrap_or_default()));
                if is_gone {
                    // Somebody else may have been quicker.
                    let _ = family.remove(&labels);
                }
            }
        }
        let gone = |of: &str, node: &str| of == service && is_gone(node);
        for family in [
            &self.requests,
            &self.protocols,
            &self.retries,
            &self.shed,
            &self.failovers,
            &self.promotions_refused,
            &self.ack_degraded,
        ] {
            sweep(family, gone);
        }
        for family in [
            &self.request_seconds,
            &self.upstream_seconds,
            &self.failover_unavailable_seconds,
            &self.hold_seconds,
            &self.ack_wait_seconds,
        ] {
            sweep(family, gone);
        }
        for family in [
            &self.upstream_connections,
            &self.tunnels,
            &self.breaker_state,
            &self.node_up,
            &self.node_primary,
            &self.epoch,
            &self.held_requests,
            &self.queued_requests,
            &self.replication_lag_bytes,
        ] {
            sweep(family, gone);
        }
        sweep(&self.replication_lag_seconds, gone);
    }
}

impl Default for Metrics {
    /// Registers into a registry of its own, for tests.
    fn default() -> Self {
        Self::register(&Registry::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_forgotten_by_every_family_that_names_it() {
        let metrics = Metrics::default();
        macro_rules! name_it {
            ($($family:ident: $labels:expr),*) => {
                $(drop(metrics.$family.with_label_values(&$labels));)*
            };
        }
        name_it! {
            requests: ["shop", "a", "GET", "200"], protocols: ["shop", "h2"], request_seconds: ["shop"],
            upstream_seconds: ["shop", "a"], upstream_connections: ["shop", "a", "idle"], tunnels: ["shop", "a"],
            retries: ["shop", "x"], breaker_state: ["shop", "a"], node_up: ["shop", "a"], node_primary: ["shop", "a"],
            epoch: ["shop"], failovers: ["shop", "crash"], failover_unavailable_seconds: ["shop"],
            promotions_refused: ["shop", "x"], held_requests: ["shop"], queued_requests: ["shop", "a"],
            hold_seconds: ["shop"], ack_wait_seconds: ["shop"], ack_degraded: ["shop"], shed: ["shop", "core"],
            replication_lag_seconds: ["shop", "a"], replication_lag_bytes: ["shop", "a"]
        }
        let lines = || {
            let text = shared::metrics::render(&metrics.registry);
            let text = String::from_utf8_lossy(&text).into_owned();
            let of_it = |line: &&str| line.contains("service=\"shop\"");
            text.lines()
                .filter(of_it)
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        assert!(lines().len() >= 22);
        metrics.forget("shop", |_| true);
        assert_eq!(lines(), [""; 0]);
    }

    #[test]
    fn what_is_gone_is_not_shown_any_more_and_everything_else_is() {
        let metrics = Metrics::default();
        for (service, node) in [("s", "a"), ("s", "b"), ("t", "a")] {
            let labels = [service, node, "GET", "200"];
            metrics.requests.with_label_values(&labels).inc();
            let seconds = &metrics.upstream_seconds;
            seconds.with_label_values(&[service, node]).observe(1.0);
            metrics.epoch.with_label_values(&[service]).set(3);
        }
        let shown = |metrics: &Metrics| {
            let text = shared::metrics::render(&metrics.registry);
            String::from_utf8(text).unwrap()
        };
        metrics.forget("s", |node| node == "b");
        let text = shown(&metrics);
        assert!(!text.contains("node=\"b\""), "{text}");
        assert!(text.contains("node=\"a\",service=\"s\"") && text.contains("epoch{service=\"s\"}"));
        metrics.forget("s", |_| true);
        let text = shown(&metrics);
        assert!(!text.contains("service=\"s\""), "{text}");
        assert!(text.contains("node=\"a\",service=\"t\""));
    }

    #[test]
    fn every_family_of_the_contract_is_registered() {
        let metrics = Metrics::default();
        metrics.access_log_dropped.with_label_values::<&str>(&[]);
        metrics
            .requests
            .with_label_values(&["s", "n", "GET", "200"]);
        metrics.epoch.with_label_values(&["s"]).set(3);
        let text = String::from_utf8(shared::metrics::render(&metrics.registry)).unwrap();
        assert!(text.contains("hotwarm_epoch{service=\"s\"} 3"), "{text}");
        assert!(text.contains(
            "hotwarm_requests_total{code=\"200\",method=\"GET\",node=\"n\",service=\"s\"} 0"
        ));
        assert!(text.contains("hotwarm_access_log_dropped_total 0"));
    }
}
