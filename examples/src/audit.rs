//! What the shop has in its books, and what that makes of what its customers were told.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};
use serde::Deserialize;

use crate::client::Client;
use crate::ledger::{Fate, Ledger};
use crate::trouble::Trouble;

/// Orders per page when reading over HTTP; the shop allows no more.
const PAGE: usize = 1_000;
/// How many examples of each fault are shown.
const SHOWN: usize = 5;

/// An order in the books.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Order {
    /// Its number.
    pub id: i64,
    /// The customer's reference.
    #[serde(rename = "ref")]
    pub reference: Option<String>,
    /// How many were ordered.
    pub quantity: i64,
}

#[derive(Deserialize)]
struct Page {
    orders: Vec<Order>,
    pages: usize,
}

/// All orders, as any client can read them.
///
/// # Errors
/// The shop does not answer.
pub async fn over_http(shop: &Client) -> Result<Vec<Order>, Trouble> {
    Ok(over_http_from(0, shop).await?.1)
}

/// The orders from place `from` on, as any client can read them, and some before it: whole pages are read. Returns how many
/// orders were left out, and the others.
///
/// # Errors
/// The shop does not answer, or has no orders at that place.
pub async fn over_http_from(from: usize, shop: &Client) -> Result<(usize, Vec<Order>), Trouble> {
    let mut orders = Vec::new();
    let first = from / PAGE;
    for number in first + 1.. {
        let path = format!("/orders?per_page={PAGE}&page={number}");
        let answer = shop.get(&path, Duration::from_secs(30)).await;
        let answer = answer.map_err(|lost| Trouble::Nonsense(format!("read orders: {lost}")))?;
        let page: Page = answer.json().ok_or_else(|| {
            Trouble::Nonsense(format!("read orders: the shop answered {}", answer.status))
        })?;
        orders.extend(page.orders);
        if number >= page.pages {
            break;
        }
    }
    Ok((first * PAGE, orders))
}

/// The books themselves, read from the database file in one transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Books {
    /// All orders.
    pub orders: Vec<Order>,
    /// The sum of what the products' own counters say was sold. Each order adds to both in one transaction.
    pub sold: i64,
}

impl Books {
    /// Reads them from a database that may be in use.
    ///
    /// # Errors
    /// The file cannot be read as the shop's database.
    pub fn read(path: &Path) -> Result<Self, Trouble> {
        Self::read_inner(path).map_err(Trouble::database(path))
    }

    fn read_inner(path: &Path) -> rusqlite::Result<Self> {
        let mut db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        db.busy_timeout(Duration::from_secs(5))?;
        let snapshot = db.transaction()?;
        let order = |row: &rusqlite::Row<'_>| {
            Ok(Order {
                id: row.get(0)?,
                reference: row.get(1)?,
                quantity: row.get(2)?,
            })
        };
        let orders = snapshot
            .prepare("SELECT id, ref, quantity FROM orders ORDER BY id")?
            .query_map([], order)?
            .collect::<rusqlite::Result<_>>()?;
        let sold = snapshot.query_row("SELECT coalesce(sum(sold), 0) FROM product", [], |row| {
            row.get(0)
        })?;
        Ok(Self { orders, sold })
    }
}

/// What became of what the customers were told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Accepted orders.
    pub accepted: usize,
    /// Accepted, and not in the books.
    pub lost: Vec<String>,
    /// In the books more than once.
    pub doubled: Vec<String>,
    /// Accepted under one number, and in the books under another.
    pub renumbered: Vec<String>,
    /// Refused, and yet in the books.
    pub contradicted: Vec<String>,
    /// Orders of unknown outcome that are in the books.
    pub unknown_there: usize,
    /// Orders of unknown outcome that are not.
    pub unknown_absent: usize,
}

impl Verdict {
    /// Compares what the customers were told with the orders in the books.
    #[must_use]
    pub fn of(ledger: &Ledger, orders: &[Order]) -> Self {
        let mut numbers: BTreeMap<&str, Vec<i64>> = BTreeMap::new();
        for order in orders {
            if let Some(reference) = order.reference.as_deref() {
                numbers.entry(reference).or_default().push(order.id);
            }
        }
        let mut verdict = Self::default();
        for (reference, fate) in &ledger.orders {
            let there = numbers
                .get(reference.as_str())
                .map_or(&[][..], Vec::as_slice);
            if there.len() > 1 {
                verdict.doubled.push(reference.clone());
            }
            match (fate, there.len()) {
                (Fate::Accepted(_), 0) => verdict.lost.push(reference.clone()),
                (Fate::Accepted(id), 1..) if !there.contains(id) => {
                    verdict
                        .renumbered
                        .push(format!("{reference} ({id}, now {there:?})"));
                }
                (Fate::Refused(why), 1..) => {
                    verdict.contradicted.push(format!("{reference} ({why})"));
                }
                (Fate::Unknown(_), 0) => verdict.unknown_absent += 1,
                (Fate::Unknown(_), 1..) => verdict.unknown_there += 1,
                (Fate::Accepted(_), 1..) | (Fate::Refused(_), 0) => (),
            }
            verdict.accepted += usize::from(matches!(fate, Fate::Accepted(_)));
        }
        verdict
    }

    /// What was promised and not kept, in words; nothing if all was. `may_lose` accepted orders may be missing.
    #[must_use]
    pub fn broken(&self, may_lose: usize) -> Vec<String> {
        let mut broken = Vec::new();
        let mut note = |what: &str, which: &[String], allowed: usize| {
            if which.len() > allowed {
                let shown = which.iter().take(SHOWN).cloned().collect::<Vec<_>>();
                broken.push(format!("{} {what}: {} …", which.len(), shown.join(", ")));
            }
        };
        note("accepted orders lost", &self.lost, may_lose);
        note("orders executed more than once", &self.doubled, 0);
        note(
            "accepted orders have another number now",
            &self.renumbered,
            0,
        );
        note("orders refused and yet executed", &self.contradicted, 0);
        broken
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} accepted, {} lost, {} doubled; {} of unknown outcome ({} of them executed)",
            self.accepted,
            self.lost.len(),
            self.doubled.len(),
            self.unknown_there + self.unknown_absent,
            self.unknown_there
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(id: i64, reference: &str) -> Order {
        Order {
            id,
            reference: Some(reference.to_owned()),
            quantity: 1,
        }
    }

    #[test]
    fn every_way_of_breaking_a_promise_is_told_apart() {
        let ledger = Ledger {
            orders: [
                ("kept", Fate::Accepted(1)),
                ("lost", Fate::Accepted(2)),
                ("twice", Fate::Accepted(3)),
                ("moved", Fate::Accepted(99)),
                ("refused", Fate::Refused("503".to_owned())),
                ("ghost", Fate::Refused("503".to_owned())),
                ("maybe", Fate::Unknown("502".to_owned())),
                ("maybe-not", Fate::Unknown("504".to_owned())),
                ("maybe-twice", Fate::Unknown("504".to_owned())),
            ]
            .map(|(reference, fate)| (reference.to_owned(), fate))
            .into(),
            ..Ledger::default()
        };
        let books = [
            "kept",
            "twice",
            "twice",
            "ghost",
            "maybe",
            "maybe-twice",
            "maybe-twice",
            "moved",
        ];
        let books: Vec<_> = (1..).zip(books).map(|(id, name)| order(id, name)).collect();
        let verdict = Verdict::of(&ledger, &books);
        assert_eq!(verdict.lost, ["lost"]);
        assert_eq!(verdict.doubled, ["maybe-twice", "twice"]);
        assert_eq!(verdict.contradicted, ["ghost (503)"]);
        assert_eq!(verdict.renumbered, ["moved (99, now [8])"]);
        assert_eq!((verdict.unknown_there, verdict.unknown_absent), (2, 1));
        assert_eq!(verdict.broken(0).len(), 4);
        assert_eq!(verdict.broken(1).len(), 3);
    }
}
