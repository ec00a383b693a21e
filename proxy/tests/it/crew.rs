//! The control plane of a service whose nodes are all active, with real probes: who is sent requests, and what is shown.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use proxy::arbiter::Arbiter;
use proxy::config;
use proxy::control::{self, Chronicle, Control, Driving, Parts, ServiceView};
use proxy::logic::failover::{Order, Record};
use proxy::logic::fleet::Members;
use proxy::metrics::Metrics;
use proxy::steer::{Steering, View};
use proxy::worker::ServiceHandle;
use tokio::runtime::Runtime;

use crate::harness::{A, Act, B, Node, PATIENCE};

struct Crew {
    control: Control,
    steering: Arc<Steering>,
    chronicle: Chronicle,
    runtime: Runtime,
    _driving: Driving,
    folder: PathBuf,
}

impl Crew {
    fn start(name: &str, nodes: &[&Node]) -> Self {
        let folder =
            std::env::temp_dir().join(format!("hotwarm-crew-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let mut text = "state_dir = \"state\"\n[[listener]]\nbind = \"127.0.0.1:0\"\n[[service]]\nname = \"shop\"\nmode = \"hot-hot\"\n\
                        [service.health]\ninterval = \"20ms\"\nrise = 1\nfall = 2\n"
            .to_owned();
        for (name, node) in ["a", "b"].iter().zip(nodes) {
            let address = node.address;
            text += &format!("[[service.node]]\nname = \"{name}\"\nurl = \"http://{address}\"\n");
        }
        let path = folder.join("hotwarm.toml");
        fs::write(&path, text).unwrap();
        let settings = config::load(&path).unwrap_or_else(|error| panic!("{error}"));
        let service = Arc::clone(&settings.services[0]);
        let first = View {
            members: Some(Members::none_of(nodes.len())),
            phase: "starting",
            ..View::default()
        };
        let (steering, signs) = Steering::new(1, first);
        let (metrics, chronicle) = (Metrics::default(), Chronicle::default());
        let handle = ServiceHandle::new(service, Arc::clone(&steering), 1, &metrics);
        let arbiter = Arbiter::open(&settings.state_dir).unwrap();
        let parts = Parts {
            handle,
            signs,
            place: arbiter.place("shop", vec!["a".into(), "b".into()]),
            chronicle: chronicle.clone(),
            metrics,
            former: None,
        };
        let runtime = Runtime::new().unwrap();
        let (control, driving) =
            runtime.block_on(async { control::start(parts, Record::default()) });
        Self {
            control,
            steering,
            chronicle,
            runtime,
            _driving: driving,
            folder,
        }
    }

    /// Waits until what is shown is so.
    fn until(&self, is_so: impl Fn(&ServiceView) -> bool) -> Arc<ServiceView> {
        let mut view = self.control.view.clone();
        self.runtime.block_on(async {
            let so = tokio::time::timeout(PATIENCE, view.wait_for(|view| is_so(view))).await;
            Arc::clone(
                &so.unwrap_or_else(|_| panic!("in vain: {:?}", self.control.view.borrow()))
                    .unwrap(),
            )
        })
    }

    fn order(&self, order: Order) -> Result<String, String> {
        let answered = self.runtime.block_on(self.control.order(order));
        answered.map(|done| done.message)
    }

    fn takes(&self) -> Vec<u8> {
        let view = self.steering.view();
        let members = view.members.as_ref().unwrap();
        members.takes.iter().map(|node| node.0).collect()
    }

    fn told(&self, kind: &str, node: &str) -> bool {
        let entries = self.chronicle.all();
        entries
            .iter()
            .any(|entry| entry.kind == kind && entry.node.as_deref() == Some(node))
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

#[test]
fn every_healthy_node_takes_requests_without_a_primary() {
    let (a, b) = (Node::ok(), Node::ok());
    let crew = Crew::start("all", &[&a, &b]);
    let view = crew.until(|view| view.nodes.iter().all(|node| node.health == "up"));
    assert_eq!(
        (view.mode, view.phase, view.epoch),
        ("hot-hot", "serving", 0)
    );
    assert_eq!((&view.primary, &view.last_failover), (&None, &None));
    assert!(
        view.nodes
            .iter()
            .all(|node| node.role == "none" && node.promotable.is_none())
    );
    assert_eq!(crew.takes(), [0, 1]);
    for order in [Order::Switchover(Some(B)), Order::Rejoin(B)] {
        let refused = crew.order(order).unwrap_err();
        assert!(
            refused.contains("hot-hot") && refused.contains("drain"),
            "{refused}"
        );
    }
}

#[test]
fn a_node_that_fails_leaves_and_returns_by_its_health_checks() {
    let sick = Arc::new(AtomicBool::new(false));
    let is_sick = Arc::clone(&sick);
    let a = Node::start(move |_| {
        if is_sick.load(SeqCst) {
            Act::status(503, "sick")
        } else {
            Act::ok("ok")
        }
    });
    let b = Node::ok();
    let crew = Crew::start("sick", &[&a, &b]);
    crew.until(|view| view.nodes.iter().all(|node| node.health == "up"));
    sick.store(true, SeqCst);
    let view = crew.until(|view| view.nodes[0].health == "down");
    assert!(
        view.nodes[0]
            .health_why
            .as_deref()
            .is_some_and(|why| why.contains("503")),
        "{view:?}"
    );
    assert_eq!((crew.takes(), view.phase), (vec![1], "serving"));
    assert!(crew.told("down", "a"));
    sick.store(false, SeqCst);
    crew.until(|view| view.nodes[0].health == "up");
    assert_eq!(crew.takes(), [0, 1]);
    b.kill();
    crew.until(|view| view.nodes[1].health == "down");
    a.kill();
    let view = crew.until(|view| view.phase == "unavailable");
    assert!(
        view.why
            .as_deref()
            .is_some_and(|why| why.contains("onnection refused") && why.contains("; b: ")),
        "{view:?}"
    );
    assert!(crew.takes().is_empty());
}

#[test]
fn a_refused_connection_takes_a_node_out_until_it_answers_again() {
    let (a, b) = (Node::ok(), Node::ok());
    let crew = Crew::start("refused", &[&a, &b]);
    crew.until(|view| view.nodes.iter().all(|node| node.health == "up"));
    crew.steering.tell(proxy::steer::Sign::Refused(A));
    // Whether it is seen in between or not, it was told, and the node is back because it answers.
    let told = || crew.told("down", "a") && crew.takes() == [0, 1];
    let until = shared::clock::now() + PATIENCE;
    while !told() {
        assert!(shared::clock::now() < until, "in vain");
        shared::clock::pause_thread(std::time::Duration::from_millis(1));
    }
}

#[test]
fn a_drained_node_gets_nothing_new_and_the_last_one_stays() {
    let (a, b) = (Node::ok(), Node::ok());
    let crew = Crew::start("drain", &[&a, &b]);
    crew.until(|view| view.nodes.iter().all(|node| node.health == "up"));
    assert_eq!(
        crew.order(Order::Drain(A)).unwrap(),
        "a gets no new requests"
    );
    assert_eq!(crew.takes(), [1], "in force when it is answered");
    let keeps = crew.steering.view().members.as_ref().unwrap().keeps;
    assert!(keeps.has(A) && !keeps.has(B));
    assert_eq!(
        crew.until(|view| view.nodes[0].health == "draining").phase,
        "serving"
    );
    assert!(
        crew.order(Order::Drain(B))
            .unwrap_err()
            .contains("no other node")
    );
    crew.order(Order::Undrain(A)).unwrap();
    assert_eq!(crew.takes(), [0, 1]);
    assert!(crew.told("draining", "a") && crew.told("undrained", "a"));
}
