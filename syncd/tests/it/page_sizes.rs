//! A node whose database was created with other pages than the primary's.

use rusqlite::Connection;
use shared::model::{Positions, Role};
use shared::rng::Rng;

use crate::bank;
use crate::pair::Pair;

/// A leads with pages of 4096 bytes; B has a database of its own, with pages of `size` and a few rows.
async fn strangers(name: &str, size: u32) -> Pair {
    let mut pair = Pair::start(name).await;
    let mut rng = Rng::with_seed(u64::from(size));
    for (node, size) in pair.nodes.iter().zip([4096, size]) {
        let path = node.database();
        bank::create(&path, size);
        let app = bank::open(&path);
        (1..5).for_each(|n| bank::commit(&app, n, false, &mut rng));
    }
    pair.epoch = pair.epoch.next();
    pair.lead(0, Positions::default()).await.unwrap();
    pair
}

fn page_size(app: &Connection) -> u32 {
    app.pragma_query_value(None, "page_size", |row| row.get(0))
        .unwrap()
}

#[tokio::test]
async fn a_database_that_nobody_uses_is_given_the_primarys_pages_and_a_copy_is_kept() {
    for size in [1024, 16384] {
        let pair = strangers("unused", size).await;
        let had = bank::rows(&pair.nodes[1].database());
        pair.follow(1, true).await.unwrap();
        pair.assert_equal(0).await;
        let kept = pair.nodes[1].kept();
        assert_eq!(kept.len(), 1);
        assert_eq!(bank::rows(&kept[0]), had);
        assert_eq!(page_size(&bank::open(&pair.nodes[1].database())), 4096);
    }
}

#[tokio::test]
async fn a_database_in_use_is_left_alone_until_its_application_is_stopped_and_that_is_said() {
    let pair = strangers("used", 512).await;
    let path = pair.nodes[1].database();
    let had = bank::rows(&path);
    let app = bank::open(&path);
    assert_eq!(page_size(&app), 512);
    app.query_row("SELECT count(*) FROM t", [], |_| Ok(()))
        .unwrap();
    pair.follow(1, true).await.unwrap();
    let told = pair.nodes[1]
        .until("it says what to do", |status| {
            let error = status.sources[0].error.as_deref().unwrap_or_default();
            error.contains("4096")
                && error.contains("512")
                && error.contains("stop the application")
        })
        .await;
    let error = told.sources[0].error.as_deref().unwrap();
    assert!(error.contains("app.db"), "{error}");
    assert_ne!(told.report.role, Role::Standby);
    // Tried once more and more: it stays as it is, and copies do not pile up.
    pair.nodes[1]
        .until("it has tried again", |_| {
            pair.nodes[1]
                .log()
                .matches("its page size is to be changed")
                .count()
                > 1
        })
        .await;
    assert_eq!(bank::rows(&path), had);
    assert!(pair.nodes[1].kept().is_empty());
    drop(app);
    pair.assert_equal(0).await;
    assert_eq!(bank::rows(&pair.nodes[1].kept()[0]), had);
}

#[tokio::test]
async fn a_primary_that_was_rebuilt_with_other_pages_is_followed_again() {
    let mut pair = strangers("rebuilt", 4096).await;
    pair.follow(1, true).await.unwrap();
    pair.assert_equal(0).await;
    pair.nodes[0].terminate();
    {
        let app = bank::open(&pair.nodes[0].database());
        app.execute_batch(
            "PRAGMA journal_mode = DELETE; PRAGMA page_size = 8192; VACUUM; PRAGMA journal_mode = WAL;",
        )
        .unwrap();
    }
    pair.nodes[0].start().await;
    pair.lead(0, Positions::default()).await.unwrap();
    let app = bank::open(&pair.nodes[0].database());
    bank::commit(&app, 100, false, &mut Rng::with_seed(1));
    pair.assert_equal(0).await;
    assert_eq!(page_size(&bank::open(&pair.nodes[1].database())), 8192);
}
