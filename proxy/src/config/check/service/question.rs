//! What nodes are asked to find out whether they are healthy.

use super::One;
use crate::config::{Question, defaults, file};
use crate::logic::health::Statuses;

/// The longest name of a gRPC service, in bytes.
const GRPC_SERVICE_MOST: usize = 255;

impl One<'_> {
    /// A resource, or, by `health.grpc`, the protocol that gRPC has for it.
    pub(super) fn question(&mut self, service: &file::Service) -> Question {
        let health = &service.health;
        let Some(name) = &health.grpc else {
            return self.get(health);
        };
        for (key, is_given) in [
            ("health.path", health.path.is_some()),
            ("health.status", health.status.is_some()),
        ] {
            if is_given {
                self.note(
                    key,
                    "is of no use together with health.grpc, which asks by gRPC's own protocol; remove one of them",
                );
            }
        }
        if name.len() > GRPC_SERVICE_MOST || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
            self.note(
                "health.grpc",
                format!("{name:?} is not the name of a gRPC service, such as \"shop.v1.Orders\", or \"\" for the node as a whole"),
            );
        }
        let speaks_http2 = |url: &str| url.starts_with("h2c://") || url.starts_with("https://");
        for node in service.node.iter().filter(|node| !speaks_http2(&node.url)) {
            self.note(
                "health.grpc",
                format!("asks in HTTP/2, which node \"{}\" is not spoken to in: its url begins neither with h2c:// nor with https://", node.name),
            );
        }
        Question::Grpc(name.clone())
    }

    fn get(&mut self, health: &file::Health) -> Question {
        let path = health.path.as_deref().unwrap_or(defaults::HEALTH_PATH);
        let path_ok =
            path.starts_with('/') && path.bytes().all(|b| b.is_ascii_graphic() && b != b'#');
        if !path_ok {
            self.note(
                "health.path",
                format!("\"{path}\" is not a path: it begins with '/' and is plain ASCII"),
            );
        }
        let status = health.status.as_deref().unwrap_or(defaults::HEALTH_STATUS);
        let statuses = Statuses::parse(status);
        if statuses.is_none() {
            self.note(
                "health.status",
                format!("\"{status}\" is not a list of statuses: \"200-399\" or \"200-299,404\""),
            );
        }
        Question::Get {
            path: path.to_owned(),
            statuses: statuses.unwrap_or_default(),
        }
    }
}
