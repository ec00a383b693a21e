//! The prober: what it sees of a node, and how fast.

use std::time::Duration;

use proxy::config::{Address, Endpoint, Health, Question};
use proxy::logic::NodeId;
use proxy::logic::health::{Patience, Statuses};
use proxy::upstream::probe::{How, Observation, Seen, Target, run};
use shared::drain;
use shared::rng::Rng;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use crate::harness::{Act, Node, PATIENCE, nobody};

pub(crate) struct Prober {
    seen: mpsc::Receiver<Observation>,
    alert: watch::Sender<bool>,
    _drain: drain::Signal,
}

impl Prober {
    fn new(address: std::net::SocketAddr, interval: Duration) -> Self {
        let address = Address {
            host: address.ip().to_string(),
            port: address.port(),
        };
        Self::at(address.into(), interval)
    }

    pub(crate) fn at(endpoint: Endpoint, interval: Duration) -> Self {
        let question = Question::Get {
            path: "/healthz".to_owned(),
            statuses: Statuses::parse("200-399").unwrap(),
        };
        Self::asking(endpoint, interval, question)
    }

    pub(crate) fn asking(endpoint: Endpoint, interval: Duration, question: Question) -> Self {
        let target = Target {
            node: NodeId(3),
            endpoint,
            health: Health {
                question,
                interval,
                timeout: Duration::from_secs(1),
                patience: Patience { rise: 2, fall: 3 },
                jitter: 0.1,
                crash_after: Duration::from_millis(250),
            },
        };
        let (tell, seen) = mpsc::channel(16);
        let (alert, alerted) = watch::channel(false);
        let (signal, watch) = drain::channel();
        tokio::spawn(run(target, alerted, tell, Rng::with_seed(1), watch));
        Self {
            seen,
            alert,
            _drain: signal,
        }
    }

    pub(crate) fn alarm(&self) {
        self.alert.send_replace(true);
    }

    pub(crate) async fn next(&mut self) -> Seen {
        let observation = timeout(PATIENCE, self.seen.recv()).await.unwrap().unwrap();
        assert_eq!(observation.node, NodeId(3));
        observation.kind
    }
}

pub(crate) fn failed(kind: Seen) -> (String, How) {
    match kind {
        Seen::Failed { why, how } => (why, how),
        other @ (Seen::Passed | Seen::Refused | Seen::Answered) => panic!("{other:?}"),
    }
}

pub(crate) const OFTEN: Duration = Duration::from_millis(20);

#[tokio::test]
async fn answers_are_judged_by_their_status() {
    let node = Node::acts([
        Act::ok("fine"),
        Act::status(302, ""),
        Act::status(500, "no"),
        Act::Close,
        Act::raw("nonsense\r\n\r\n"),
        Act::Never,
    ]);
    let mut prober = Prober::new(node.address, OFTEN);
    assert_eq!(prober.next().await, Seen::Passed);
    assert_eq!(prober.next().await, Seen::Passed);
    assert_eq!(
        failed(prober.next().await),
        ("answered 500".to_owned(), How::Wrong)
    );
    assert_eq!(
        failed(prober.next().await),
        ("closed without an answer".to_owned(), How::Wrong)
    );
    assert!(
        failed(prober.next().await)
            .0
            .starts_with("malformed answer")
    );
    assert_eq!(
        failed(prober.next().await),
        ("no answer within 1000 ms".to_owned(), How::Late)
    );
    assert_eq!(prober.next().await, Seen::Passed);
    let seen = node.seen();
    assert_eq!(
        (seen.target(), seen.field("connection")),
        ("/healthz", Some("close"))
    );
    assert_eq!(seen.field("host"), Some(&*node.address.to_string()));
}

#[tokio::test]
async fn a_refused_port_is_told_apart() {
    let mut prober = Prober::new(nobody(), OFTEN);
    assert_eq!(failed(prober.next().await).1, How::Refused);
}

#[tokio::test]
async fn an_alarm_makes_it_ask_at_once_and_knock_until_the_alarm_is_over() {
    let address = nobody();
    let mut prober = Prober::new(address, Duration::from_secs(3600));
    assert_eq!(failed(prober.next().await).1, How::Refused);
    prober.alert.send_replace(true);
    let mut asked = 0;
    for _ in 0..4 {
        match prober.next().await {
            Seen::Failed { how, .. } => {
                assert_eq!(how, How::Refused);
                asked += 1;
            }
            Seen::Refused => (),
            other @ (Seen::Passed | Seen::Answered) => panic!("{other:?}"),
        }
    }
    assert_eq!(asked, 1, "once, and not for the whole of the alarm");
    let back = Node::start_at(address, |_| Act::ok("back"));
    loop {
        if prober.next().await == Seen::Answered {
            break;
        }
    }
    prober.alert.send_replace(false);
    // What was on its way may still arrive, and then there is silence.
    while timeout(Duration::from_millis(200), prober.seen.recv())
        .await
        .is_ok()
    {}
    drop(back);
}

#[tokio::test]
async fn knocks_do_not_wait_for_a_probe_that_hangs() {
    let node = Node::start(|_| Act::Never);
    let mut prober = Prober::new(node.address, Duration::from_secs(3600));
    prober.alert.send_replace(true);
    assert_eq!(prober.next().await, Seen::Answered);
    assert_eq!(prober.next().await, Seen::Answered);
}
