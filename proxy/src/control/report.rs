//! Hearing a node's syncd: its reports as they come, line by line, and its silence.

use std::time::Duration;

use bytes::BytesMut;
use http_body_util::BodyExt;
use shared::api::{Peer as PeerReport, Report};
use shared::backoff::Backoff;
use shared::call::Peer;
use shared::clock;
use shared::drain;
use shared::model::Lag;
use shared::rng::Rng;
use tokio::sync::mpsc;

use crate::logic::NodeId;
use crate::logic::failover::{PeerStanding, Standing};

/// How long a syncd may take to answer the call.
const CONNECT_WITHIN: Duration = Duration::from_secs(1);
/// It says something at least four times a second.
const SILENCE_MOST: Duration = Duration::from_secs(1);
/// No report is longer.
const LINE_MOST: usize = 1 << 20;

/// What is heard of a node's syncd.
#[derive(Debug)]
pub(super) struct Heard {
    pub(super) node: NodeId,
    /// Its report; the reason for its silence.
    pub(super) report: Result<Box<Report>, String>,
}

/// Follows the reports of `peer` until the drain begins or nobody listens.
pub(super) async fn run(
    node: NodeId,
    peer: Peer,
    heard: mpsc::Sender<Heard>,
    mut drain: drain::Watch,
) {
    let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(100));
    let mut rng = Rng::new();
    loop {
        let ended = tokio::select! {
            () = drain.begun() => return,
            ended = follow(node, &peer, &heard, &mut backoff) => ended,
        };
        let Err(why) = ended else { return };
        if heard
            .send(Heard {
                node,
                report: Err(why),
            })
            .await
            .is_err()
        {
            return;
        }
        tokio::select! {
            () = drain.begun() => return,
            () = clock::sleep(backoff.wait(&mut rng)) => (),
        }
    }
}

/// One connection's reports. An error is why there are no more; `Ok` means that nobody listens.
async fn follow(
    node: NodeId,
    peer: &Peer,
    heard: &mpsc::Sender<Heard>,
    backoff: &mut Backoff,
) -> Result<(), String> {
    let mut body = peer
        .stream("/v1/watch", CONNECT_WITHIN)
        .await
        .map_err(|error| error.to_string())?;
    let mut buffer = BytesMut::new();
    loop {
        let frame = tokio::time::timeout(SILENCE_MOST, body.frame())
            .await
            .map_err(|_| "it fell silent".to_owned())?;
        let frame = frame
            .ok_or("it closed the connection")?
            .map_err(|error| error.to_string())?;
        if let Some(data) = frame.data_ref() {
            buffer.extend_from_slice(data);
        }
        if buffer.len() > LINE_MOST {
            return Err("its report is too long".to_owned());
        }
        while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line = buffer.split_to(end + 1);
            let report = serde_json::from_slice(&line)
                .map_err(|error| format!("its report makes no sense: {error}"))?;
            backoff.reset();
            if heard
                .send(Heard {
                    node,
                    report: Ok(Box::new(report)),
                })
                .await
                .is_err()
            {
                return Ok(());
            }
        }
    }
}

/// What the machine needs of a report. `id` finds a node by its name.
pub(super) fn standing(report: &Report, id: impl Fn(&str) -> Option<NodeId>) -> Standing {
    let peer = |(name, peer): (&String, &PeerReport)| {
        let standing = PeerStanding {
            connected: peer.connected,
            durable: peer.durable.clone(),
            lag_bytes: peer.lag.bytes,
            lag_millis: millis(peer.lag),
        };
        Some((id(name)?, standing))
    };
    Standing {
        run: report.run,
        cluster: report.cluster,
        epoch: report.epoch,
        role: report.role,
        primary: report.primary.as_deref().and_then(&id),
        fenced: report.fenced,
        tip: report.tip.clone(),
        durable: report.durable.clone(),
        applied: report.applied.clone(),
        heard: report.heard.clone(),
        gate: report
            .gate
            .as_ref()
            .map(|gate| (gate.version, gate.reached)),
        peers: report.peers.iter().filter_map(peer).collect(),
        content: report.content,
        unfit: report.unfit.clone(),
    }
}

/// The lag in whole milliseconds, rounded up.
fn millis(lag: Lag) -> Option<u64> {
    let millis = (lag.seconds? * 1000.0).ceil();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the cast saturates, and lag is not negative"
    )]
    Some(millis as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lag_is_rounded_up_and_unknown_stays_unknown() {
        assert_eq!(
            millis(Lag {
                seconds: Some(0.0012),
                ..Lag::default()
            }),
            Some(2)
        );
        assert_eq!(
            millis(Lag {
                seconds: Some(0.0),
                ..Lag::default()
            }),
            Some(0)
        );
        assert_eq!(millis(Lag::default()), None);
    }

    #[test]
    fn nodes_that_are_not_configured_are_left_out() {
        let mut report = Report {
            primary: Some("z".into()),
            ..Report::default()
        };
        report.peers.insert("b".into(), PeerReport::default());
        report.peers.insert("z".into(), PeerReport::default());
        let standing = standing(&report, |name| (name == "b").then_some(NodeId(1)));
        assert_eq!(standing.primary, None);
        assert_eq!(
            standing.peers.keys().copied().collect::<Vec<_>>(),
            [NodeId(1)]
        );
    }
}
