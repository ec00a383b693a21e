//! The only place where an error becomes a response: a page for people, an RFC 9457 problem for programs, a status of its own
//! for gRPC; an RFC 9209 `Proxy-Status` for whoever looks into chains of proxies, and `Retry-After` where waiting helps.

pub mod grpc;
pub mod page;
pub mod wants;

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use std::convert::Infallible;
use tower::{Layer, Service};

use self::wants::Wants;
use crate::exchange::fields::FieldSet;
use crate::exchange::{
    Body, Cause, Closer, Fault, Reach, Request, RequestId, Response, Trail, Unavailable,
    Unconfirmed, UpstreamFault,
};

/// What a client that is turned away should wait before it comes again, in seconds: a promotion takes less.
const COME_AGAIN: &str = "1";
/// What a client may use instead of a method that is never forwarded.
const METHODS: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";

/// Puts a [`Rescue`] around a service.
#[derive(Clone, Copy, Debug)]
pub struct RescueLayer;

impl<S> Layer<S> for RescueLayer {
    type Service = Rescue<S>;

    fn layer(&self, inner: S) -> Rescue<S> {
        Rescue { inner }
    }
}

/// Answers what the service inside could not.
#[derive(Clone, Debug)]
pub struct Rescue<S> {
    inner: S,
}

impl<S> Service<Request> for Rescue<S>
where
    S: Service<Request, Response = Response, Error = Fault>,
    S::Future: Unpin,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Rescuing<S::Future>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Rescuing<S::Future> {
        let trail = Rc::clone(&request.trail);
        Rescuing {
            call: self.inner.call(request),
            trail,
        }
    }
}

/// A request that will be answered.
#[derive(Debug)]
#[must_use]
pub struct Rescuing<F> {
    call: F,
    trail: Rc<Trail>,
}

impl<F> Future for Rescuing<F>
where
    F: Future<Output = Result<Response, Fault>> + Unpin,
{
    type Output = Result<Response, Infallible>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        Poll::Ready(Ok(match ready!(Pin::new(&mut this.call).poll(context)) {
            Ok(response) => response,
            Err(fault) => {
                this.trail.closed_by(if matches!(fault, Fault::BodyBroken) {
                    Closer::Client
                } else {
                    Closer::Proxy
                });
                tracing::debug!(%fault, "answer in the node's stead");
                let head = this.trail.head();
                let wants = head.map_or(Wants::Problem, |head| Wants::of(head));
                let id = this.trail.id().map(RequestId::as_bytes);
                response(&fault, &wants, id)
            }
        }))
    }
}

/// What a fault is called.
struct Named {
    status: StatusCode,
    /// The error type of RFC 9209 §2.3.
    error: &'static str,
    detail: String,
}

/// Makes the response to a fault, in the form that the client wants; `id` is what its request is called.
#[must_use]
pub fn response(fault: &Fault, wants: &Wants, id: Option<&[u8]>) -> Response {
    let Named {
        status,
        error,
        detail,
    } = name(fault);
    let wait = (status == StatusCode::SERVICE_UNAVAILABLE).then_some(COME_AGAIN);
    let mut response = match wants {
        Wants::Problem => {
            let body = problem(status, &detail);
            with_body(status, "application/problem+json", body)
        }
        Wants::Page => {
            let body = page::page(fault, status, id, wait);
            let mut response = with_body(status, "text/html; charset=utf-8", body);
            let policy = page::POLICY.as_bytes();
            response.fields.add("Content-Security-Policy", policy);
            response
        }
        Wants::Grpc(kind) => {
            let mut response = Response::new(StatusCode::OK, Body::Empty);
            let fields = &mut response.fields;
            fields.add("Content-Type", kind.as_bytes());
            fields.add("Grpc-Status", grpc::code(fault, status).as_bytes());
            fields.add("Grpc-Message", grpc::message(&detail).as_bytes());
            response
        }
    };
    response.last = matches!(
        fault,
        Fault::Request { .. } | Fault::HeadTooSlow | Fault::BodyBroken | Fault::BodyTooSlow
    );
    let proxy_status = format!("hotwarm; error={error}; details=\"{}\"", quoted(&detail));
    let fields = &mut response.fields;
    fields.add("Cache-Control", b"no-store");
    fields.add("Proxy-Status", proxy_status.as_bytes());
    if let Some(wait) = wait {
        fields.add("Retry-After", wait.as_bytes());
    }
    if status == StatusCode::METHOD_NOT_ALLOWED {
        fields.add("Allow", METHODS.as_bytes());
    }
    response
}

fn problem(status: StatusCode, detail: &str) -> String {
    let problem = serde_json::json!({
        "type": "about:blank",
        "title": status.canonical_reason().unwrap_or("Error"),
        "status": status.as_u16(),
        "detail": detail,
    });
    problem.to_string()
}

fn with_body(status: StatusCode, kind: &str, body: String) -> Response {
    let mut response = Response::new(status, Body::full(Bytes::from(body)));
    response.fields.add("Content-Type", kind.as_bytes());
    response
}

/// The response to a fault as bytes, for connections that nobody reads a request from.
#[must_use]
pub fn raw(fault: &Fault) -> Bytes {
    let response = response(fault, &Wants::Problem, None);
    let (code, reason) = (response.status.as_u16(), response.reason());
    let mut text = format!("HTTP/1.1 {code} ").into_bytes();
    text.extend_from_slice(reason);
    text.extend_from_slice(b"\r\n");
    response.fields.write(&mut text, FieldSet::NONE);
    let Body::Full(body) = response.body else {
        return Bytes::new();
    };
    let end = format!(
        "Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    text.extend_from_slice(end.as_bytes());
    text.extend_from_slice(&body);
    text.into()
}

fn name(fault: &Fault) -> Named {
    let named = |status, error, detail: String| Named {
        status,
        error,
        detail,
    };
    match fault {
        Fault::Request { status, why } => {
            let error = if *status == StatusCode::LOOP_DETECTED {
                "proxy_loop_detected"
            } else {
                "http_request_error"
            };
            named(*status, error, (*why).to_owned())
        }
        Fault::BodyBroken => named(
            StatusCode::BAD_REQUEST,
            "http_request_error",
            "the request's body is malformed or ended early".to_owned(),
        ),
        Fault::BodyTooSlow => named(
            StatusCode::REQUEST_TIMEOUT,
            "http_request_error",
            "the request's body made no progress for too long".to_owned(),
        ),
        Fault::HeadTooSlow => named(
            StatusCode::REQUEST_TIMEOUT,
            "http_request_error",
            "the request's head was not complete in time".to_owned(),
        ),
        Fault::NoService => named(
            StatusCode::NOT_FOUND,
            "destination_not_found",
            "no service is configured for this host".to_owned(),
        ),
        Fault::Unavailable(why) => named(
            StatusCode::SERVICE_UNAVAILABLE,
            "destination_unavailable",
            unavailable(why),
        ),
        Fault::Upstream(fault) => upstream(fault),
        Fault::Unconfirmed(Unconfirmed::Unreplicated) => named(
            StatusCode::GATEWAY_TIMEOUT,
            "http_response_timeout",
            "the write stands on the primary, its replication is unconfirmed".to_owned(),
        ),
        Fault::Unconfirmed(Unconfirmed::Outdated) => named(
            StatusCode::GATEWAY_TIMEOUT,
            "http_response_timeout",
            "the primary was replaced before the write was confirmed; whether it stands is unknown"
                .to_owned(),
        ),
    }
}

fn unavailable(why: &Unavailable) -> String {
    let because = |why: &Option<std::sync::Arc<str>>| {
        why.as_ref()
            .map_or_else(String::new, |why| format!(": {why}"))
    };
    match why {
        Unavailable::Waited { waited, why } => {
            let waited = shown(*waited);
            format!("no node took the request within {waited}{}", because(why))
        }
        Unavailable::TooMany { why } => {
            format!("too many requests are waiting for a node{}", because(why))
        }
        Unavailable::Shed => {
            "the service is overloaded, and this part of it is not essential".to_owned()
        }
        Unavailable::Connections => "all connections are taken".to_owned(),
    }
}

fn shown(span: Duration) -> String {
    shared::config::Span(span).to_string()
}

fn upstream(fault: &UpstreamFault) -> Named {
    let (status, error) = match fault.cause {
        Cause::Refused => (StatusCode::BAD_GATEWAY, "connection_refused"),
        Cause::ConnectTimeout => (StatusCode::GATEWAY_TIMEOUT, "connection_timeout"),
        Cause::NameLookup => (StatusCode::BAD_GATEWAY, "dns_error"),
        Cause::Certificate(_) => (StatusCode::BAD_GATEWAY, "tls_certificate_error"),
        Cause::Handshake(_) => (StatusCode::BAD_GATEWAY, "tls_protocol_error"),
        Cause::Closed | Cause::Io(_) if matches!(fault.reach, Reach::Head | Reach::Body) => {
            (StatusCode::BAD_GATEWAY, "http_response_incomplete")
        }
        Cause::Closed | Cause::Io(_) => (StatusCode::BAD_GATEWAY, "connection_terminated"),
        Cause::ResponseTimeout => (StatusCode::GATEWAY_TIMEOUT, "http_response_timeout"),
        Cause::IdleTimeout => (StatusCode::GATEWAY_TIMEOUT, "connection_read_timeout"),
        Cause::Malformed(_) | Cause::NotHttp2 => (StatusCode::BAD_GATEWAY, "http_protocol_error"),
        Cause::Declined => (StatusCode::SERVICE_UNAVAILABLE, "destination_unavailable"),
        Cause::Reset(_) => (StatusCode::BAD_GATEWAY, "connection_terminated"),
        Cause::Broken(_) => (StatusCode::SERVICE_UNAVAILABLE, "destination_unavailable"),
        Cause::Full => (StatusCode::SERVICE_UNAVAILABLE, "connection_limit_reached"),
        Cause::Abandoned => (StatusCode::GATEWAY_TIMEOUT, "connection_terminated"),
    };
    let sent = match fault.reach {
        Reach::Connect | Reach::Unsent => "the request was not sent",
        Reach::Declined => "the request was not carried out",
        Reach::Sent | Reach::Head | Reach::Body => "whether the request was carried out is unknown",
    };
    Named {
        status,
        error,
        detail: format!("{}; {sent}", fault.cause),
    }
}

/// Text as it may stand in a quoted string of a structured field (RFC 9651 §3.3.3).
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            ' '..='~' => out.push(c),
            _ => out.push('?'),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logic::NodeId;

    fn told(fault: &Fault) -> (u16, serde_json::Value, String) {
        let response = response(fault, &Wants::Problem, None);
        let Body::Full(body) = &response.body else {
            panic!("no body");
        };
        let value = serde_json::from_slice(body).unwrap();
        (
            response.status.as_u16(),
            value,
            field(&response, "Proxy-Status").unwrap(),
        )
    }

    fn problem_of(fault: &Fault) -> Response {
        response(fault, &Wants::Problem, None)
    }

    fn field(response: &Response, name: &str) -> Option<String> {
        let mut text = Vec::new();
        response.fields.write(&mut text, FieldSet::NONE);
        let text = String::from_utf8(text).unwrap();
        let fields = text.lines().filter_map(|line| line.split_once(": "));
        fields
            .clone()
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value.to_owned())
    }

    #[test]
    fn a_problem_says_what_happened_in_both_forms() {
        let fault = Fault::Upstream(UpstreamFault {
            node: NodeId(0),
            reach: Reach::Sent,
            cause: Cause::Closed,
        });
        let (status, problem, proxy_status) = told(&fault);
        assert_eq!((status, problem["status"].as_u64()), (502, Some(502)));
        assert_eq!(problem["title"], "Bad Gateway");
        let detail =
            "connection closed by the node; whether the request was carried out is unknown";
        assert_eq!(problem["detail"], detail);
        let expected = format!("hotwarm; error=connection_terminated; details=\"{detail}\"");
        assert_eq!(proxy_status, expected);
    }

    #[test]
    fn who_is_turned_away_is_told_when_to_come_again_and_why() {
        let fault = Fault::Unavailable(Unavailable::Waited {
            waited: Duration::from_secs(10),
            why: Some("the \"primary\" is in trouble — crash".into()),
        });
        let (status, _, proxy_status) = told(&fault);
        assert_eq!(status, 503);
        assert!(
            proxy_status.contains("within 10s: the \\\"primary\\\" is in trouble ? crash"),
            "{proxy_status}"
        );
        assert_eq!(
            field(&problem_of(&fault), "Retry-After").as_deref(),
            Some("1")
        );
        let not_allowed = Fault::Request {
            status: StatusCode::METHOD_NOT_ALLOWED,
            why: "never forwarded",
        };
        assert!(field(&problem_of(&not_allowed), "Allow").is_some());
        let text = String::from_utf8(raw(&not_allowed).to_vec()).unwrap();
        assert!(
            text.starts_with("HTTP/1.1 405 Method Not Allowed\r\n"),
            "{text}"
        );
        assert!(text.contains("\r\nConnection: close\r\n\r\n{"), "{text}");
    }

    #[test]
    fn a_person_gets_a_page_and_grpc_a_status_of_its_own() {
        let fault = Fault::Unavailable(Unavailable::Connections);
        let page = response(&fault, &Wants::Page, Some(b"id7"));
        let kind = "text/html; charset=utf-8";
        assert_eq!(field(&page, "Content-Type").as_deref(), Some(kind));
        assert!(field(&page, "Content-Security-Policy").is_some_and(|it| it.contains("'none'")));
        assert_eq!(
            (page.status.as_u16(), field(&page, "Retry-After")),
            (503, Some("1".into()))
        );
        let Body::Full(body) = &page.body else {
            panic!("no body");
        };
        let text = std::str::from_utf8(body).unwrap();
        assert!(
            text.contains("again in 1 second.") && text.contains("id7"),
            "{text}"
        );
        let grpc = response(&fault, &Wants::Grpc("application/grpc+x".into()), None);
        assert_eq!(grpc.status.as_u16(), 200);
        assert!(matches!(grpc.body, Body::Empty));
        for (name, value) in [
            ("Content-Type", "application/grpc+x"),
            ("Grpc-Status", "14"),
            ("Grpc-Message", "all connections are taken"),
        ] {
            assert_eq!(field(&grpc, name).as_deref(), Some(value));
        }
        assert!(field(&grpc, "Proxy-Status").is_some());
    }

    #[test]
    fn each_fault_has_the_error_of_the_registry() {
        let upstream = |reach, cause| {
            Fault::Upstream(UpstreamFault {
                node: NodeId(0),
                reach,
                cause,
            })
        };
        for (fault, error) in [
            (
                upstream(Reach::Sent, Cause::Closed),
                "connection_terminated",
            ),
            (
                upstream(Reach::Head, Cause::Closed),
                "http_response_incomplete",
            ),
            (
                upstream(Reach::Connect, Cause::Refused),
                "connection_refused",
            ),
            (
                upstream(Reach::Connect, Cause::ConnectTimeout),
                "connection_timeout",
            ),
            (upstream(Reach::Connect, Cause::NameLookup), "dns_error"),
            (
                upstream(Reach::Sent, Cause::ResponseTimeout),
                "http_response_timeout",
            ),
            (
                upstream(Reach::Sent, Cause::IdleTimeout),
                "connection_read_timeout",
            ),
            (
                upstream(Reach::Head, Cause::Malformed("x")),
                "http_protocol_error",
            ),
            (
                upstream(Reach::Connect, Cause::Full),
                "connection_limit_reached",
            ),
            (Fault::NoService, "destination_not_found"),
            (Fault::HeadTooSlow, "http_request_error"),
            (
                Fault::Request {
                    status: StatusCode::LOOP_DETECTED,
                    why: "x",
                },
                "proxy_loop_detected",
            ),
        ] {
            let (_, _, status) = told(&fault);
            assert!(status.contains(&format!("error={error};")), "{status}");
        }
    }
}
