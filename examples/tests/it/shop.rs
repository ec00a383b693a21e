//! The order service by itself, and our own instruments on it.

use std::time::Duration;

use examples::audit::{Books, Verdict, over_http};
use examples::client::Client;
use examples::ledger::Kind;
use examples::load::{Load, Plan};
use examples::stack::{Durability, Part, Shape, Side, Stack};
use examples::trouble::Trouble;
use shared::clock;

use crate::rehearse;

/// One application by itself, up.
pub(crate) async fn alone() -> Result<(Stack, Client), Trouble> {
    let stack = Stack::new(Shape::new(Durability::Async))?;
    stack.start(Part::App(Side::A))?;
    let shop = Client::new(stack.app(Side::A));
    stack
        .wait("the shop", Duration::from_secs(20), async || {
            let answer = shop.get("/healthz", Duration::from_secs(1)).await.ok()?;
            answer.status.is_success().then_some(())
        })
        .await?;
    Ok((stack, shop))
}

#[test]
fn every_accepted_order_is_in_the_books_once() {
    rehearse(async {
        let (stack, shop) = alone().await?;
        let load = Load::start(stack.app(Side::A), Plan::standard("calm", 1));
        clock::sleep(Duration::from_secs(2)).await;
        let ledger = load.finish().await;
        let books = Books::read(&stack.database(Side::A))?;
        assert_eq!(over_http(&shop).await?, books.orders);
        let verdict = Verdict::of(&ledger, &books.orders);
        assert!(verdict.accepted > 100, "{verdict}");
        assert_eq!(verdict.broken(0), [""; 0]);
        assert_eq!(
            ledger.failed(Kind::Read) + ledger.failed(Kind::Write),
            0,
            "{:?}",
            ledger.failures()
        );
        assert_eq!(books.sold, i64::try_from(books.orders.len()).unwrap());
        Ok(())
    });
}

#[test]
fn a_killed_shop_leaves_a_gap_and_unknown_outcomes_and_no_lost_order() {
    rehearse(async {
        let (stack, _) = alone().await?;
        let load = Load::start(stack.app(Side::A), Plan::standard("killed", 2));
        clock::sleep(Duration::from_secs(1)).await;
        let struck = clock::now();
        stack.kill(&[Part::App(Side::A)]);
        clock::sleep(Duration::from_millis(300)).await;
        stack.start(Part::App(Side::A))?;
        clock::sleep(Duration::from_secs(3)).await;
        let ledger = load.finish().await;
        let verdict = Verdict::of(&ledger, &Books::read(&stack.database(Side::A))?.orders);
        assert_eq!(verdict.broken(0), [""; 0]);
        assert!(ledger.longest_gap(struck, clock::now()) > Duration::from_millis(300));
        assert!(ledger.failed(Kind::Write) > 10, "{:?}", ledger.failures());
        Ok(())
    });
}

#[test]
fn the_shop_refuses_what_is_not_an_order() {
    rehearse(async {
        let (_stack, shop) = alone().await?;
        let bodies = [
            "",
            "[]",
            "{}",
            r#"{"item":"gold"}"#,
            r#"{"item":"tea","quantity":0}"#,
            r#"{"item":"tea","quantity":true}"#,
            r#"{"item":"tea","ref":7}"#,
        ];
        for body in bodies {
            let answer = shop
                .post("/order", body, Duration::from_secs(5))
                .await
                .unwrap();
            assert!(answer.status.is_client_error(), "{body}: {}", answer.status);
        }
        let answer = shop.get("/order/1", Duration::from_secs(5)).await.unwrap();
        assert_eq!(answer.status, 404);
        assert_eq!(over_http(&shop).await?, []);
        Ok(())
    });
}
