//! Asking a primary's `syncd` whether its standbys have on disk what was committed: one question for everybody who waits.
//!
//! A round covers all responses that waited when it was sent. While a few rounds are under way, whoever comes next waits
//! for the round after them, so that a thousand writes at once cost a handful of questions.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::poll_fn;
use std::rc::Rc;
use std::time::Duration;

use http::{Method, StatusCode};
use http_body_util::{BodyExt, Limited};
use shared::api::{Passed, Refusal, Refused};
use shared::clock;
use shared::model::{Epoch, Positions};
use tokio::sync::oneshot;
use tokio::task::spawn_local;
use tokio::time::timeout;

use super::pool::Pool;
use crate::exchange::{Attempt, Head, Peer, Trail, Upload};
use crate::logic::NodeId;

/// Rounds of one worker and service under way at once.
const ROUNDS_MOST: usize = 4;
/// The largest answer that is read, in bytes.
const ANSWER_MOST: usize = 64 << 10;
/// How much longer than the node's own wait we wait for its answer.
const GRACE: Duration = Duration::from_millis(500);

/// Why a barrier was not passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotPassed {
    /// The node has seen a newer epoch: the response must not be released.
    Stale,
    /// Not in time, or nobody was there to ask. Asking again may help.
    NotYet,
}

/// What came of a round.
pub type Outcome = Result<Positions, NotPassed>;

/// One worker's barriers of one service.
pub struct Barriers {
    doors: Vec<Option<Door>>,
    within: Duration,
    under_way: Cell<usize>,
    next: RefCell<Vec<Round>>,
}

/// A node's `syncd`.
pub struct Door {
    /// Connections to it.
    pub pool: Rc<Pool>,
    /// Host and port, as they are named in requests.
    pub host: String,
    /// The token to show.
    pub token: Option<String>,
    /// Who asks.
    pub ourselves: Rc<Peer>,
}

struct Round {
    node: NodeId,
    epoch: Epoch,
    waiting: Vec<oneshot::Sender<Outcome>>,
}

impl fmt::Debug for Barriers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Barriers")
            .field("under_way", &self.under_way)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Door")
            .field("host", &self.host)
            .finish_non_exhaustive()
    }
}

impl Barriers {
    /// `doors` by node; `within` is how long one round waits for standbys.
    #[must_use]
    pub fn new(doors: Vec<Option<Door>>, within: Duration) -> Rc<Self> {
        Rc::new(Self {
            doors,
            within,
            under_way: Cell::new(0),
            next: RefCell::default(),
        })
    }

    /// Waits until everything that `node` had committed in `epoch` when this was called is safe.
    ///
    /// # Errors
    /// See [`NotPassed`].
    pub async fn pass(self: &Rc<Self>, node: NodeId, epoch: Epoch) -> Outcome {
        let (tell, told) = oneshot::channel();
        self.join(node, epoch, tell);
        self.launch();
        told.await.unwrap_or(Err(NotPassed::NotYet))
    }

    fn join(&self, node: NodeId, epoch: Epoch, tell: oneshot::Sender<Outcome>) {
        let mut next = self.next.borrow_mut();
        let same = |round: &&mut Round| (round.node, round.epoch) == (node, epoch);
        match next.iter_mut().find(same) {
            Some(round) => round.waiting.push(tell),
            None => next.push(Round {
                node,
                epoch,
                waiting: vec![tell],
            }),
        }
    }

    fn launch(self: &Rc<Self>) {
        while self.under_way.get() < ROUNDS_MOST {
            let mut next = self.next.borrow_mut();
            // Who went away meanwhile needs no answer, and a round for nobody needs no question.
            next.iter_mut()
                .for_each(|round| round.waiting.retain(|waiting| !waiting.is_closed()));
            next.retain(|round| !round.waiting.is_empty());
            if next.is_empty() {
                return;
            }
            let round = next.remove(0);
            drop(next);
            self.under_way.set(self.under_way.get() + 1);
            spawn_local(Rc::clone(self).run(round));
        }
    }

    async fn run(self: Rc<Self>, round: Round) {
        let outcome = timeout(self.within + GRACE, self.ask(round.node, round.epoch)).await;
        let outcome = outcome.unwrap_or(Err(NotPassed::NotYet));
        for waiting in round.waiting {
            // Whoever does not listen any more has given up, which is fine.
            let _ = waiting.send(outcome.clone());
        }
        self.under_way.set(self.under_way.get() - 1);
        self.launch();
    }

    async fn ask(&self, node: NodeId, epoch: Epoch) -> Outcome {
        let not_yet = |_| NotPassed::NotYet;
        let door = self.doors.get(node.index()).and_then(Option::as_ref);
        let door = door.ok_or(NotPassed::NotYet)?;
        let head = door.question(epoch, self.within);
        let attempt = Attempt {
            head: Rc::new(head),
            upload: Upload::none(),
            node,
            began: clock::now(),
            fresh: false,
            trail: door.trail(),
        };
        let mut exchanging = Box::pin(door.pool.exchange(attempt));
        let response = poll_fn(|context| exchanging.as_mut().poll(context)).await;
        let response = response.map_err(|_| NotPassed::NotYet)?;
        let body = Limited::new(response.body, ANSWER_MOST).collect().await;
        let body = body.map_err(|_| NotPassed::NotYet)?.to_bytes();
        if response.status == StatusCode::OK {
            let passed: Passed = serde_json::from_slice(&body).map_err(not_yet)?;
            return Ok(passed.position);
        }
        let refusal: Refusal = serde_json::from_slice(&body).map_err(not_yet)?;
        let stale = refusal.error == Refused::StaleEpoch || refusal.epoch > epoch;
        Err(if stale {
            NotPassed::Stale
        } else {
            NotPassed::NotYet
        })
    }
}

impl Door {
    fn question(&self, epoch: Epoch, within: Duration) -> Head {
        let millis = within.as_millis();
        let target = format!("/v1/barrier?epoch={epoch}&within_ms={millis}");
        let mut head = Head::plain(Method::GET, &target);
        head.fields.add("Host", self.host.as_bytes());
        if let Some(token) = &self.token {
            head.fields
                .add("Authorization", format!("Bearer {token}").as_bytes());
        }
        head
    }

    fn trail(&self) -> Rc<Trail> {
        Rc::new(Trail::new(clock::now(), Rc::clone(&self.ourselves)))
    }
}
