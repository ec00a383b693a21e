//! Random histories of a log, each step compared with a list in memory.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use shared::rng::Rng;
use syncd::log::{Limits, Log, LogError, Point, Retention};
use syncd::wire::increment::Increment;

use crate::support::{SMALL, Scratch, base, begun, next, point, read_all};

struct Model {
    base: Point,
    increments: Vec<Increment>,
    marks: Vec<Option<Vec<u8>>>,
    /// How many transactions were synced.
    durable: usize,
}

impl Model {
    fn points(&self) -> Vec<Point> {
        let last_parts = self.increments.iter().filter(|increment| increment.last);
        std::iter::once(self.base)
            .chain(last_parts.map(point))
            .collect()
    }

    fn end(&self) -> Point {
        *self.points().last().unwrap()
    }

    fn keep(&mut self, transactions: usize) {
        let last = self.points()[transactions];
        self.increments
            .retain(|increment| increment.position.seq <= last.position.seq);
        self.marks.truncate(transactions);
        self.durable = self.durable.min(transactions);
    }

    fn forget_before(&mut self, start: Point) {
        let dropped = self
            .points()
            .iter()
            .position(|point| *point == start)
            .unwrap();
        self.increments
            .retain(|increment| increment.position.seq > start.position.seq);
        self.marks.drain(..dropped);
        self.durable = self.durable.saturating_sub(dropped);
        self.base = start;
    }

    fn check(&self, log: &Log) {
        assert_eq!(log.end(), Some(self.end()));
        assert_eq!(log.start(), Some(self.base));
        if let Some(mark) = self.marks.last() {
            assert_eq!(log.mark(), *mark);
        }
        assert_eq!(read_all(log, self.base.position), self.increments);
    }
}

fn segments(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    paths
}

/// Cuts or changes what was not synced, as a loss of power may.
fn tear(folder: &Path, durable: u64, rng: &mut Rng) {
    let last = segments(folder).pop().unwrap();
    let length = fs::metadata(&last).unwrap().len();
    if length <= durable {
        return;
    }
    let file = File::options().write(true).open(&last).unwrap();
    let at = rng.u64(durable..length);
    match rng.u32(0..3) {
        0 => file.set_len(at).unwrap(),
        1 => file.write_all_at(&[rng.u8(..)], at).unwrap(),
        _ => {
            let end = rng.u64(at..=length);
            file.write_all_at(&vec![0; usize::try_from(end - at).unwrap()], at)
                .unwrap();
        }
    }
}

fn history(seed: u64) {
    let mut rng = Rng::with_seed(seed);
    let scratch = Scratch::new("model");
    let limits = Limits {
        segment_bytes: rng.u64(2000..20_000),
        ring_bytes: rng.usize(0..20_000),
    };
    let mut log = begun(&scratch.0, limits);
    let mut model = Model {
        base: base(),
        increments: Vec::new(),
        marks: Vec::new(),
        durable: 0,
    };
    // Where the last segment was synced up to.
    let mut synced_length = fs::metadata(segments(&scratch.0).last().unwrap())
        .unwrap()
        .len();
    for _ in 0..60 {
        match rng.u32(0..100) {
            0..60 => {
                let parts = next(model.end(), &mut rng);
                let mark = rng.bool().then(|| vec![rng.u8(..); 32]);
                let before = segments(&scratch.0).len();
                // Now and then a writer gives up in the middle, and begins the transaction again.
                if parts.len() > 1 && rng.u32(0..3) == 0 {
                    log.append(&parts[0], None).unwrap();
                    assert!(matches!(
                        log.append(&parts[0], None),
                        Ok(()) | Err(LogError::NotNext { .. })
                    ));
                }
                for part in &parts {
                    log.append(part, mark.as_deref()).unwrap();
                }
                if segments(&scratch.0).len() != before {
                    synced_length = 0;
                }
                model.increments.extend(parts);
                model.marks.push(mark);
            }
            60..75 => {
                assert_eq!(log.sync().unwrap(), Some(model.end()));
                model.durable = model.marks.len();
                synced_length = fs::metadata(segments(&scratch.0).last().unwrap())
                    .unwrap()
                    .len();
            }
            75..80 => {
                let keep = rng.usize(0..=model.marks.len());
                log.truncate_after(model.points()[keep].position).unwrap();
                let had = model.marks.len();
                model.keep(keep);
                if had > 0 && keep <= had && !model.marks.is_empty() {
                    // The mark of the transaction that is the last now may be cut off with what followed it.
                    *model.marks.last_mut().unwrap() = log.mark();
                    assert!(log.mark().is_none());
                }
                model.durable = model.marks.len();
                synced_length = fs::metadata(segments(&scratch.0).last().unwrap())
                    .unwrap()
                    .len();
            }
            80..85 => {
                let retention = Retention {
                    bytes: rng.u64(0..30_000),
                    age: Duration::from_secs(3600),
                };
                if log.retain(&retention).unwrap() > 0 {
                    // What is dropped is so only after what follows it is on disk.
                    model.durable = model.marks.len();
                    synced_length = fs::metadata(segments(&scratch.0).last().unwrap())
                        .unwrap()
                        .len();
                }
                model.forget_before(log.start().unwrap());
            }
            85..87 => {
                let fresh = Point {
                    content: rng.u64(..),
                    ..base()
                };
                log.reset(fresh).unwrap();
                model = Model {
                    base: fresh,
                    increments: Vec::new(),
                    marks: Vec::new(),
                    durable: 0,
                };
                synced_length = fs::metadata(segments(&scratch.0).last().unwrap())
                    .unwrap()
                    .len();
            }
            87..93 => {
                drop(log);
                log = Log::open(&scratch.0, limits).unwrap();
                assert_eq!(log.cut(), None);
            }
            _ => {
                drop(log);
                tear(&scratch.0, synced_length, &mut rng);
                log = Log::open(&scratch.0, limits).unwrap();
                let end = log.end().unwrap();
                let kept = model
                    .points()
                    .iter()
                    .position(|point| *point == end)
                    .unwrap();
                assert!(
                    kept >= model.durable,
                    "{kept} of {} durable are left",
                    model.durable
                );
                model.keep(kept);
                if let Some(last) = model.marks.last_mut() {
                    assert!(log.mark().is_none() || log.mark() == *last);
                    *last = log.mark();
                }
                synced_length = fs::metadata(segments(&scratch.0).last().unwrap())
                    .unwrap()
                    .len();
            }
        }
        model.check(&log);
        for point in model.points() {
            assert_eq!(log.point_at(point.position.seq).unwrap(), Some(point));
            assert_eq!(log.find_content(point.content).unwrap(), Some(point));
        }
        assert_eq!(log.point_at(model.end().position.seq + 1).unwrap(), None);
    }
}

#[test]
fn random_histories_agree_with_the_model() {
    for seed in 0..60 {
        let told = std::panic::catch_unwind(|| history(seed));
        assert!(told.is_ok(), "replay with history({seed})");
    }
}

#[test]
fn what_does_not_continue_the_log_is_refused() {
    let scratch = Scratch::new("refuse");
    let mut rng = Rng::with_seed(1);
    let mut log = begun(&scratch.0, SMALL);
    let first = next(base(), &mut rng).remove(0);
    let good = Increment {
        last: true,
        ..first
    };
    for bad in [
        Increment {
            pre: 1,
            ..good.clone()
        },
        Increment {
            part: 1,
            ..good.clone()
        },
        Increment {
            position: base().position,
            ..good.clone()
        },
    ] {
        assert!(matches!(
            log.append(&bad, None),
            Err(LogError::NotNext { .. })
        ));
    }
    log.append(&good, None).unwrap();
    assert!(matches!(
        log.append(&good, None),
        Err(LogError::NotNext { .. })
    ));
    assert_eq!(log.end(), Some(point(&good)));
}

#[test]
fn damage_behind_a_sync_is_named_and_not_read_over() {
    let scratch = Scratch::new("damage");
    let mut rng = Rng::with_seed(5);
    let mut log = begun(
        &scratch.0,
        Limits {
            ring_bytes: 0,
            ..SMALL
        },
    );
    let mut end = base();
    while segments(&scratch.0).len() < 4 {
        for part in next(end, &mut rng) {
            log.append(&part, None).unwrap();
            end = point(&part);
        }
    }
    log.sync().unwrap();
    let second = &segments(&scratch.0)[1];
    File::options()
        .write(true)
        .open(second)
        .unwrap()
        .write_all_at(b"x", 400)
        .unwrap();
    let mut reader = log.reader(base().position).unwrap();
    let failed = std::iter::from_fn(|| reader.poll().transpose()).find_map(Result::err);
    assert!(
        matches!(failed, Some(LogError::Damaged { .. })),
        "{failed:?}"
    );
}
