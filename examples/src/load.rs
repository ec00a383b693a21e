//! Customers: orders and look-ups at a fixed rate, whatever the answers do (an open loop), each order with a reference of its own.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::StatusCode;
use serde::Deserialize;
use shared::clock;
use shared::rng::Rng;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::client::{Answer, Client, Lost};
use crate::ledger::{Entry, Fate, Kind, Ledger, Outcome};

/// Requests under way at one time; what is due beyond that is not sent, and counted.
const UNDER_WAY_MOST: usize = 4_096;
const MENU: [&str; 5] = ["coffee", "tea", "cake", "juice", "bagel"];

/// What the customers do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Requests per second, all together.
    pub rate: f64,
    /// The share of them that place an order, 0 to 1.
    pub writes: f64,
    /// How long a customer waits for an answer.
    pub patience: Duration,
    /// The beginning of every order's reference; must differ between loads on the same shop.
    pub name: String,
    /// Decides which request is what.
    pub seed: u64,
}

impl Plan {
    /// 300 requests a second, a third of them orders: the load that the promises are stated for.
    #[must_use]
    pub fn standard(name: impl Into<String>, seed: u64) -> Self {
        Self {
            rate: 300.0,
            writes: 1.0 / 3.0,
            patience: Duration::from_secs(30),
            name: name.into(),
            seed,
        }
    }
}

/// Customers at work.
#[derive(Debug)]
pub struct Load {
    shop: Arc<Shop>,
    enough: Arc<AtomicBool>,
    door: JoinHandle<()>,
}

/// What all customers share.
#[derive(Debug)]
struct Shop {
    client: Client,
    patience: Duration,
    places: Arc<Semaphore>,
    ledger: Mutex<Ledger>,
    newest: Mutex<Vec<i64>>,
}

#[derive(Deserialize)]
struct Placed {
    id: i64,
    #[serde(rename = "ref")]
    reference: String,
}

impl Load {
    /// Sends the first customers in.
    #[must_use]
    pub fn start(server: SocketAddr, plan: Plan) -> Self {
        let shop = Arc::new(Shop {
            client: Client::new(server),
            patience: plan.patience,
            places: Arc::new(Semaphore::new(UNDER_WAY_MOST)),
            ledger: Mutex::default(),
            newest: Mutex::default(),
        });
        let enough = Arc::new(AtomicBool::new(false));
        let door = tokio::spawn(keep_sending(Arc::clone(&shop), Arc::clone(&enough), plan));
        Self { shop, enough, door }
    }

    /// Sends no more, waits for the answers that are still due, and hands over what happened.
    pub async fn finish(self) -> Ledger {
        self.enough.store(true, Ordering::Relaxed);
        // The sender cannot fail; a panic in it would show as an empty ledger in every test.
        let _ = self.door.await;
        let all = u32::try_from(UNDER_WAY_MOST).unwrap_or(u32::MAX);
        let _everybody = self.shop.places.acquire_many(all).await;
        std::mem::take(&mut *self.shop.ledger())
    }
}

async fn keep_sending(shop: Arc<Shop>, enough: Arc<AtomicBool>, plan: Plan) {
    let mut rng = Rng::with_seed(plan.seed);
    let interval = Duration::from_secs_f64(1.0 / plan.rate);
    let mut due = clock::now();
    let mut number = 0_u64;
    while !enough.load(Ordering::Relaxed) {
        clock::sleep_until(due).await;
        let Ok(place) = Arc::clone(&shop.places).try_acquire_owned() else {
            shop.ledger().overdue += 1;
            due += interval;
            continue;
        };
        number += 1;
        let order = (rng.f64() < plan.writes).then(|| format!("{}-{number}", plan.name));
        let (item, pick) = (MENU[rng.usize(..MENU.len())], rng.usize(..));
        let (shop, sent) = (Arc::clone(&shop), due);
        tokio::spawn(async move {
            match order {
                Some(reference) => shop.order(sent, reference, item).await,
                None => shop.look(sent, pick).await,
            }
            drop(place);
        });
        due += interval;
    }
}

impl Shop {
    async fn order(&self, sent: Instant, reference: String, item: &str) {
        let fate = order(&self.client, &reference, item, self.patience).await;
        let outcome = match &fate {
            Fate::Accepted(id) => {
                self.remember(*id);
                Outcome::Served
            }
            Fate::Refused(why) => Outcome::Refused(why.clone()),
            Fate::Unknown(why) => Outcome::Unknown(why.clone()),
        };
        let mut ledger = self.ledger();
        ledger.orders.insert(reference, fate);
        ledger.enter(Kind::Write, sent, outcome);
    }

    /// Looks at one of the newest accepted orders, or at the list while there are none.
    async fn look(&self, sent: Instant, pick: usize) {
        let path = match self.any_of_the_newest(pick) {
            Some(id) => format!("/order/{id}"),
            None => "/orders?per_page=5".to_owned(),
        };
        let outcome = match self.client.get(&path, self.patience).await {
            Ok(answer) if answer.status == StatusCode::OK => Outcome::Served,
            Ok(answer) if answer.status == StatusCode::NOT_FOUND => Outcome::NotFound,
            Ok(answer) => Outcome::Unknown(describe(&answer)),
            Err(lost) => Outcome::Unknown(lost.to_string()),
        };
        self.ledger().enter(Kind::Read, sent, outcome);
    }

    fn remember(&self, id: i64) {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        if newest.len() < 64 {
            newest.push(id);
        } else {
            let at = usize::try_from(id).unwrap_or(0) % 64;
            newest[at] = id;
        }
    }

    fn any_of_the_newest(&self, pick: usize) -> Option<i64> {
        let newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        newest.get(pick % newest.len().max(1)).copied()
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ledger {
    fn enter(&mut self, kind: Kind, sent: Instant, outcome: Outcome) {
        self.entries.push(Entry {
            kind,
            sent,
            done: clock::now(),
            outcome,
        });
    }
}

/// Places one order, and says what its customer knows then.
pub async fn order(shop: &Client, reference: &str, item: &str, patience: Duration) -> Fate {
    let body = format!(r#"{{"item":"{item}","quantity":1,"ref":"{reference}"}}"#);
    match shop.post("/order", body, patience).await {
        Ok(answer) => fate(&answer, reference),
        Err(Lost::Connect(error)) => Fate::Refused(format!("connect: {error}")),
        Err(lost @ (Lost::Broken(_) | Lost::Late)) => Fate::Unknown(lost.to_string()),
    }
}

/// What an answer to an order tells its customer. Only a status that promises that nothing was done counts as a refusal: 4xx
/// and the proxy's own 503. A 500 of the application may come after its commit.
fn fate(answer: &Answer, reference: &str) -> Fate {
    let status = answer.status;
    if status == StatusCode::CREATED {
        return match answer.json::<Placed>() {
            Some(placed) if placed.reference == reference => Fate::Accepted(placed.id),
            _ => Fate::Unknown("201 for another order".to_owned()),
        };
    }
    if status.is_client_error() || status == StatusCode::SERVICE_UNAVAILABLE {
        return Fate::Refused(describe(answer));
    }
    Fate::Unknown(describe(answer))
}

/// The status, and the proxy's own explanation if it made it.
fn describe(answer: &Answer) -> String {
    let said = answer.headers.get("proxy-status");
    let said = said.and_then(|value| value.to_str().ok()).unwrap_or("");
    format!("{} {said}", answer.status.as_u16())
        .trim()
        .to_owned()
}
