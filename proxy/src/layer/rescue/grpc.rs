//! An error as gRPC's clients understand it: a response of 200 without a body, whose fields hold what trailers would
//! (gRPC over HTTP/2, "Trailers-Only").

use std::fmt::Write;

use http::StatusCode;

use crate::exchange::{Cause, Fault, Reach, Unconfirmed};

/// The status code of gRPC. `UNAVAILABLE` invites clients to send a call again without asking anybody, so it is only said
/// of calls that were certainly not carried out.
#[must_use]
pub fn code(fault: &Fault, status: StatusCode) -> &'static str {
    const CANCELLED: &str = "1";
    const UNKNOWN: &str = "2";
    const DEADLINE_EXCEEDED: &str = "4";
    const RESOURCE_EXHAUSTED: &str = "8";
    const UNIMPLEMENTED: &str = "12";
    const INTERNAL: &str = "13";
    const UNAVAILABLE: &str = "14";
    match fault {
        Fault::NoService => UNIMPLEMENTED,
        Fault::Unavailable(_) => UNAVAILABLE,
        Fault::Upstream(failure) => match failure.reach {
            Reach::Connect | Reach::Unsent | Reach::Declined => UNAVAILABLE,
            Reach::Sent | Reach::Head | Reach::Body
                if matches!(failure.cause, Cause::ResponseTimeout | Cause::IdleTimeout) =>
            {
                DEADLINE_EXCEEDED
            }
            Reach::Sent | Reach::Head | Reach::Body => UNKNOWN,
        },
        Fault::Unconfirmed(Unconfirmed::Unreplicated | Unconfirmed::Outdated) => UNKNOWN,
        Fault::HeadTooSlow | Fault::BodyTooSlow | Fault::BodyBroken => CANCELLED,
        Fault::Request { .. } => match status {
            StatusCode::URI_TOO_LONG | StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => {
                RESOURCE_EXHAUSTED
            }
            StatusCode::NOT_IMPLEMENTED | StatusCode::METHOD_NOT_ALLOWED => UNIMPLEMENTED,
            _ => INTERNAL,
        },
    }
}

/// A message as `grpc-message` holds it: whatever is not printable ASCII, and `%`, as percent and two digits.
#[must_use]
pub fn message(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'%' | 0..=0x1f | 0x7f..=0xff => {
                let _ = write!(out, "%{byte:02X}");
            }
            _ => out.push(char::from(byte)),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::UpstreamFault;
    use crate::logic::NodeId;

    #[test]
    fn clients_are_only_invited_to_send_again_what_was_not_carried_out() {
        let fault = |reach| {
            Fault::Upstream(UpstreamFault {
                node: NodeId(0),
                reach,
                cause: Cause::Closed,
            })
        };
        let status = StatusCode::BAD_GATEWAY;
        for (reach, wanted) in [
            (Reach::Connect, "14"),
            (Reach::Unsent, "14"),
            (Reach::Sent, "2"),
            (Reach::Head, "2"),
            (Reach::Body, "2"),
        ] {
            assert_eq!(code(&fault(reach), status), wanted, "{reach:?}");
        }
        for (cause, wanted) in [
            (Cause::ResponseTimeout, "4"),
            (Cause::IdleTimeout, "4"),
            // No time had run out: the node lost its role.
            (Cause::Abandoned, "2"),
        ] {
            let fault = Fault::Upstream(UpstreamFault {
                node: NodeId(0),
                reach: Reach::Sent,
                cause,
            });
            assert_eq!(code(&fault, StatusCode::GATEWAY_TIMEOUT), wanted);
        }
        let outdated = Fault::Unconfirmed(Unconfirmed::Outdated);
        assert_eq!(code(&outdated, StatusCode::GATEWAY_TIMEOUT), "2");
    }

    #[test]
    fn a_message_is_one_line_of_ascii() {
        assert_eq!(message("a 50% é\r\nb"), "a 50%25 %C3%A9%0D%0Ab");
    }
}
