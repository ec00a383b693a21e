//! Whatever an application does, the standby has the same pages, and its readers never see anything between two commits.

use crate::rig::Chaos;
use crate::support::{Scratch, assert_same, assert_sound, say};

fn check(chaos: &Chaos) {
    let scratch = Scratch::new("chaos");
    let outcome = chaos.run(&scratch);
    let report = format!(
        "seed {}: {} commits; primary {:?}; standby {:?}; reader {}; {:?}",
        chaos.seed,
        outcome.position,
        outcome.primary,
        outcome.standby,
        outcome.reader.trim(),
        outcome.said
    );
    say(&report);
    assert!(
        outcome.reader.contains("\"bads\": 0, \"errs\": {}"),
        "{report}"
    );
    let (primary, mut standby) = outcome.databases;
    assert_same(primary.path(), standby.path());
    assert_sound(standby.path());
    assert_sound(primary.path());
    // Read again from the files, the content is that of the position, down to its last page.
    let path = standby.path().to_owned();
    standby.lift_fence();
    drop(standby);
    let mut standby = crate::support::open(&scratch.options("standby.db"));
    assert_eq!(standby.path(), path);
    assert!(standby.try_fence().unwrap());
    let apply = syncd::sqlite::Apply::attach(&mut standby).unwrap();
    assert_eq!(
        apply.position().map(|position| position.seq),
        Some(outcome.position)
    );
    for said in &outcome.said {
        assert!(
            !said.contains("locked") && !said.contains("malformed"),
            "{report}"
        );
    }
}

#[test]
fn a_chaotic_application_has_an_exact_standby() {
    check(&Chaos {
        seed: 1,
        seconds: 4.0,
        workers: 2,
        vacuum: 0.6,
        page_size: 4096,
        auto_vacuum: "none",
        journal: "delete",
    });
}

#[test]
#[ignore = "takes minutes"]
fn many_chaotic_applications_have_exact_standbys() {
    let sizes = [512, 1024, 4096, 8192, 16384, 65536];
    let vacuums = ["none", "full", "incremental"];
    for seed in 0..18 {
        let pick = usize::try_from(seed).unwrap();
        check(&Chaos {
            seed: 100 + seed,
            seconds: 12.0,
            workers: 1 + seed % 3,
            vacuum: 0.6,
            page_size: sizes[pick % 6],
            auto_vacuum: vacuums[pick / 6],
            journal: if seed % 2 == 0 { "delete" } else { "wal" },
        });
    }
}
