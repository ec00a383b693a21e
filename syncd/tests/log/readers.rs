//! Reading while somebody writes, and what happens when what is read goes away.

use std::time::Duration;

use shared::rng::Rng;
use syncd::log::{Limits, LogError, Point, Retention};

use crate::support::{SMALL, Scratch, base, begun, next, point, read_all};

const NOTHING_KEPT: Retention = Retention {
    bytes: 0,
    age: Duration::from_secs(3600),
};

#[test]
fn a_reader_in_another_thread_sees_everything_once_and_in_order() {
    let scratch = Scratch::new("threads");
    let mut log = begun(&scratch.0, SMALL);
    let readers: Vec<_> = (0..3)
        .map(|_| {
            let mut reader = log.reader(base().position).unwrap();
            std::thread::spawn(move || {
                let mut end = base();
                while end.position.seq < base().position.seq + 2000 {
                    let Some(increment) = reader.poll().unwrap() else {
                        std::thread::yield_now();
                        continue;
                    };
                    assert_eq!(increment.position.seq, end.position.seq + 1);
                    assert_eq!(increment.pre, end.content);
                    if increment.last {
                        end = point(&increment);
                    }
                }
            })
        })
        .collect();
    let mut rng = Rng::with_seed(3);
    let mut end = base();
    for _ in 0..2000 {
        for part in next(end, &mut rng) {
            log.append(&part, None).unwrap();
            if part.last {
                end = point(&part);
            }
        }
    }
    for reader in readers {
        reader.join().unwrap();
    }
}

#[test]
fn a_transaction_is_readable_only_when_its_last_part_is_there() {
    let scratch = Scratch::new("parts");
    let mut rng = Rng::with_seed(1);
    let mut log = begun(&scratch.0, SMALL);
    let mut reader = log.reader(base().position).unwrap();
    let parts = std::iter::repeat_with(|| next(base(), &mut rng))
        .find(|parts| parts.len() > 2)
        .unwrap();
    for part in &parts {
        assert!(reader.poll().unwrap().is_none());
        assert_eq!(log.end(), Some(base()));
        log.append(part, None).unwrap();
    }
    assert_eq!(read_all(&log, base().position), parts);
    let head = reader.last_head().unwrap().unwrap();
    assert_eq!(
        (head.position, head.post),
        (parts[0].position, parts[0].post)
    );
}

#[test]
fn what_is_pinned_or_still_needed_stays_and_what_is_gone_is_said_to_be() {
    let scratch = Scratch::new("pins");
    let mut rng = Rng::with_seed(4);
    let mut log = begun(
        &scratch.0,
        Limits {
            ring_bytes: 0,
            ..SMALL
        },
    );
    let mut points = vec![base()];
    for _ in 0..200 {
        for part in next(*points.last().unwrap(), &mut rng) {
            log.append(&part, None).unwrap();
            if part.last {
                points.push(point(&part));
            }
        }
    }
    let pin = log.pin(points[100].position.seq);
    log.keep_after(Some(points[150].position.seq));
    assert!(log.retain(&NOTHING_KEPT).unwrap() > 0);
    let start = log.start().unwrap();
    assert!(
        start.position.seq <= points[100].position.seq && start.position.seq > base().position.seq
    );
    let mut reader = log.reader(points[100].position).unwrap();
    assert!(reader.poll().unwrap().is_some());

    pin.advance(points[120].position.seq);
    log.retain(&NOTHING_KEPT).unwrap();
    assert!(log.start().unwrap().position.seq <= points[120].position.seq);
    drop(pin);
    log.retain(&NOTHING_KEPT).unwrap();
    assert!(log.start().unwrap().position.seq <= points[150].position.seq);
    log.keep_after(None);
    log.retain(&NOTHING_KEPT).unwrap();
    assert!(log.start().unwrap().position.seq > points[150].position.seq);
    assert!(matches!(
        log.reader(points[100].position),
        Err(LogError::Gone { .. })
    ));
    let gone = std::iter::from_fn(|| reader.poll().transpose()).find_map(Result::err);
    assert!(matches!(gone, Some(LogError::Gone { .. })), "{gone:?}");
}

#[test]
fn a_reader_learns_that_the_log_was_cut_back_or_begun_anew() {
    let scratch = Scratch::new("moved");
    let mut rng = Rng::with_seed(4);
    let mut log = begun(&scratch.0, SMALL);
    let mut end = base();
    for _ in 0..10 {
        for part in next(end, &mut rng) {
            log.append(&part, None).unwrap();
            end = point(&part);
        }
    }
    let mut reader = log.reader(base().position).unwrap();
    assert!(reader.poll().unwrap().is_some());
    log.truncate_after(base().position).unwrap();
    assert!(matches!(reader.poll(), Err(LogError::Moved)));
    let mut reader = log.reader(base().position).unwrap();
    assert!(reader.poll().unwrap().is_none());
    log.reset(Point {
        content: 1,
        ..base()
    })
    .unwrap();
    assert!(matches!(reader.poll(), Err(LogError::Moved)));
    let other = shared::model::Position {
        generation: 9,
        ..base().position
    };
    assert!(matches!(log.reader(other), Err(LogError::Unknown(_))));
}
