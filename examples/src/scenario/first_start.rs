//! The first start, in any order; a node that joins; two nodes that do not belong together.

use std::time::Duration;

use shared::clock;
use shared::rng::Rng;

use crate::audit::{Order, over_http};
use crate::client::Client;
use crate::diverged;
use crate::scenario::{Report, Target, UP_WITHIN, WHOLE_WITHIN, millis, wrong};
use crate::stack::{Durability, Part, Shape, Side, Stack};
use crate::trouble::Trouble;

/// What the median of several first starts must not exceed.
pub const TARGETS: &[Target] = &[Target {
    fact: "up_ms",
    at_most: 5_000.0,
}];

/// How many orders of starting there are.
pub const ORDERS: u32 = 120;

/// Two fresh nodes and the proxy, started in the order of that number (0 to 119).
///
/// # Errors
/// It could not be carried out, or nothing came up.
pub async fn fresh(durability: Durability, number: u32) -> Result<Report, Trouble> {
    let order = permutation(number);
    let names: Vec<_> = order.iter().map(ToString::to_string).collect();
    let mut report = Report::new(
        format!("first start: {}", names.join(", ")),
        u64::from(number),
    );
    let stack = Stack::new(Shape::new(durability).supervised())?;
    let mut rng = Rng::with_seed(u64::from(number));
    for part in &order {
        stack.start(*part)?;
        clock::sleep(Duration::from_millis(rng.u64(0..400))).await;
    }
    let since = clock::now();
    stack.until_safe(UP_WITHIN).await?;
    report.fact("up_ms", millis(clock::now() - since));
    place(&stack.client(), &["first"]).await?;
    for side in Side::BOTH {
        let at = |wanted| order.iter().position(|part| *part == wanted);
        let opened_before = at(Part::App(side)) < at(Part::Syncd(side));
        let starts = stack.starts(Part::App(side));
        report.promise(!opened_before || starts == 1, || {
            format!("app-{side} was there before its syncd and had to be started {starts} times")
        });
    }
    stack.until_level(WHOLE_WITHIN).await?;
    report.broken.extend(wrong(&stack)?);
    Ok(report)
}

/// A fresh node, listed first, and one with orders: the orders must win, and the fresh copy be kept.
///
/// # Errors
/// It could not be carried out, or nothing came up.
pub async fn joining(durability: Durability) -> Result<Report, Trouble> {
    let mut report = Report::new("an empty node joins one with data", 0);
    let stack = Stack::new(Shape::new(durability).supervised())?;
    let references = numbered("kept", 100);
    fill(&stack, Side::B, &references).await?;
    stack.start_all()?;
    let service = stack.until_safe(UP_WITHIN).await?;
    let orders = over_http(&stack.client()).await?;
    report.count("orders", orders.len());
    report.promise(service.primary.as_deref() == Some(Side::B.name()), || {
        format!("the empty node won: {}", service.summary())
    });
    report.promise(has_all(&orders, &references), || {
        "orders are missing".to_owned()
    });
    stack.until_level(WHOLE_WITHIN).await?;
    report.broken.extend(wrong(&stack)?);
    Ok(report)
}

/// Two nodes with different orders: refused, with the command that decides; and the command works, and loses nothing.
///
/// # Errors
/// It could not be carried out.
pub async fn strangers() -> Result<Report, Trouble> {
    let mut report = Report::new("two nodes with unrelated data", 0);
    let stack = Stack::new(Shape::new(Durability::Async).supervised())?;
    let (ours, theirs) = (numbered("ours", 100), numbered("theirs", 100));
    fill(&stack, Side::A, &ours).await?;
    fill(&stack, Side::B, &theirs).await?;
    stack.start_all()?;
    // Long enough for a first meeting, which takes 5 s at most, to have gone wrong.
    clock::sleep(Duration::from_secs(7)).await;
    let stands = stack.describe().await;
    let service = stack.service().await?;
    report.promise(!service.is_safe(), || {
        "they were joined without being asked".to_owned()
    });
    report.promise(stands.contains("hotwarm promote"), || {
        format!("nobody says which command decides: {stands}")
    });
    for (side, references) in [(Side::A, &ours), (Side::B, &theirs)] {
        let orders = over_http(&Client::new(stack.app(side))).await?;
        report.promise(has_all(&orders, references), || {
            format!("{side} lost orders")
        });
    }
    let admin = format!("http://{}", stack.admin());
    let promote = [
        "promote",
        "shop",
        "--to",
        "b",
        "--accept-data-loss",
        "--admin",
        &admin,
    ];
    let output = stack.run(&stack.programs().hotwarm, &promote)?;
    report.promise(output.status.success(), || {
        format!(
            "hotwarm {promote:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        )
    });
    stack.until_safe(UP_WITHIN).await?;
    let orders = over_http(&stack.client()).await?;
    report.promise(has_all(&orders, &theirs), || {
        "the chosen node lost orders".to_owned()
    });
    stack.until_level(WHOLE_WITHIN).await?;
    report.broken.extend(wrong(&stack)?);
    let missing = diverged::missing(&stack, Side::A, &ours)?;
    report.promise(missing.is_empty(), || {
        format!("{} orders of the other node were not kept", missing.len())
    });
    Ok(report)
}

/// Runs one node's application alone and has it take orders.
async fn fill(stack: &Stack, side: Side, references: &[String]) -> Result<(), Trouble> {
    stack.start(Part::App(side))?;
    let shop = Client::new(stack.app(side));
    stack
        .wait("the application", UP_WITHIN, async || {
            let well = shop.get("/healthz", Duration::from_secs(1)).await.ok()?;
            well.status.is_success().then_some(())
        })
        .await?;
    let references: Vec<_> = references.iter().map(String::as_str).collect();
    place(&shop, &references).await
}

async fn place(shop: &Client, references: &[&str]) -> Result<(), Trouble> {
    for reference in references {
        let body = format!(r#"{{"item":"tea","quantity":1,"ref":"{reference}"}}"#);
        let answer = shop.post("/order", body, Duration::from_secs(10)).await;
        let status = answer.map(|answer| answer.status.as_u16());
        if !matches!(status, Ok(201)) {
            return Err(Trouble::Nonsense(format!("order {reference}: {status:?}")));
        }
    }
    Ok(())
}

fn numbered(name: &str, count: u32) -> Vec<String> {
    (0..count)
        .map(|number| format!("{name}-{number}"))
        .collect()
}

fn has_all(orders: &[Order], references: &[String]) -> bool {
    let has = |wanted: &String| {
        orders
            .iter()
            .any(|order| order.reference.as_ref() == Some(wanted))
    };
    references.iter().all(has)
}

/// The order of that number, by drawing from what is left (the factorial number system).
fn permutation(number: u32) -> Vec<Part> {
    let mut left = Part::ALL.to_vec();
    let mut rest = usize::try_from(number % ORDERS).unwrap_or(0);
    let mut drawn = Vec::new();
    while !left.is_empty() {
        drawn.push(left.remove(rest % left.len()));
        rest /= left.len() + 1;
    }
    drawn
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_order_of_starting_comes_up_once() {
        let all: BTreeSet<_> = (0..ORDERS).map(permutation).collect();
        assert_eq!(all.len(), 120);
        assert!(all.iter().all(|order| order.len() == 5));
    }
}
