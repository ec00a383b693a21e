//! A full disk: an error that says so, nothing half-written, and old segments given up first.

use std::path::Path;
use std::process::Command;

use shared::rng::Rng;
use syncd::log::{Limits, Log, LogError};

use crate::support::{Scratch, base, begun, next, point, read_all};

/// A file system of two megabytes, if this user may make one.
struct Tiny<'a>(&'a Path);

impl<'a> Tiny<'a> {
    fn mount(at: &'a Path) -> Option<Self> {
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"])
            .arg(at)
            .output()
            .ok()?;
        mounted.status.success().then_some(Self(at))
    }
}

impl Drop for Tiny<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

#[test]
fn a_full_disk_costs_old_segments_first_and_then_is_an_error_that_loses_nothing() {
    let scratch = Scratch::new("full");
    let Some(tiny) = Tiny::mount(&scratch.0) else {
        // Only root may mount; the other tests do not depend on it.
        return;
    };
    let limits = Limits {
        segment_bytes: 200_000,
        ring_bytes: 0,
    };
    let mut log = begun(tiny.0, limits);
    let mut rng = Rng::with_seed(9);
    let mut end = base();
    for _ in 0..4000 {
        for part in next(end, &mut rng) {
            log.append(&part, None).unwrap();
            end = point(&part);
        }
    }
    assert!(
        log.start().unwrap().position.seq > base().position.seq,
        "old segments made room"
    );

    let needed = log.start().unwrap();
    log.keep_after(Some(needed.position.seq));
    let failed = 'full: loop {
        for part in next(end, &mut rng) {
            match log.append(&part, None) {
                Ok(()) if part.last => end = point(&part),
                Ok(()) => (),
                Err(error) => break 'full error,
            }
        }
    };
    assert!(matches!(failed, LogError::Full { .. }), "{failed}");
    assert_eq!(log.end(), Some(end));
    let whole = read_all(&log, needed.position);
    drop(log);
    let mut log = Log::open(tiny.0, limits).unwrap();
    assert_eq!(log.cut(), None);
    assert_eq!(read_all(&log, needed.position), whole);
    for part in next(end, &mut rng) {
        log.append(&part, None).unwrap();
    }
}

#[test]
fn on_a_small_disk_the_log_leaves_room_and_gives_up_what_is_pinned_before_it_refuses_anything() {
    let scratch = Scratch::new("small");
    let Some(tiny) = Tiny::mount(&scratch.0) else {
        return;
    };
    let mut log = begun(tiny.0, Limits::default());
    let mut behind = log.reader(base().position).unwrap();
    let _pin = log.pin(base().position.seq);
    let mut rng = Rng::with_seed(10);
    let mut end = base();
    for _ in 0..4000 {
        for part in next(end, &mut rng) {
            log.append(&part, None).unwrap();
            end = point(&part);
        }
    }
    assert!(log.start().unwrap().position.seq > base().position.seq);
    assert!(log.bytes() < 2 << 20);
    let disk = rustix::fs::statvfs(tiny.0).unwrap();
    let used = (disk.f_blocks - disk.f_bfree) * disk.f_frsize;
    assert!(used < log.bytes() + (300 << 10), "{used} bytes are used");
    // The ring is larger than this disk: only what is not in memory any more is gone.
    log.keep_after(None);
    drop(log);
    assert!(behind.poll().is_ok());
    let log = Log::open(tiny.0, Limits::default()).unwrap();
    assert_eq!(log.end(), Some(end));
    assert!(matches!(
        log.reader(base().position),
        Err(LogError::Gone { .. })
    ));
}

#[test]
fn whatever_happens_to_the_files_nothing_but_what_was_appended_is_read() {
    for seed in 0..50 {
        let mut rng = Rng::with_seed(seed);
        let scratch = Scratch::new("rot");
        let limits = Limits {
            segment_bytes: 6000,
            ring_bytes: 0,
        };
        let mut log = begun(&scratch.0, limits);
        let mut end = base();
        let mut appended = Vec::new();
        for _ in 0..40 {
            for part in next(end, &mut rng) {
                log.append(&part, Some(&[7; 32])).unwrap();
                end = point(&part);
                appended.push(part);
            }
            if rng.u32(0..10) == 0 {
                log.sync().unwrap();
            }
        }
        drop(log);
        let files: Vec<_> = std::fs::read_dir(&scratch.0)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        for _ in 0..rng.u32(1..4) {
            let file = &files[rng.usize(..files.len())];
            let mut bytes = std::fs::read(file).unwrap();
            match rng.u32(0..4) {
                0 => bytes.truncate(rng.usize(..=bytes.len())),
                1 => bytes.extend((0..rng.usize(..200)).map(|_| rng.u8(..))),
                2 => bytes.clear(),
                _ if bytes.is_empty() => (),
                _ => {
                    let at = rng.usize(..bytes.len());
                    bytes[at] = rng.u8(..);
                }
            }
            std::fs::write(file, bytes).unwrap();
        }
        let log = Log::open(&scratch.0, limits).unwrap();
        let Some(start) = log.start() else { continue };
        let mut reader = log.reader(start.position).unwrap();
        let mut expected = appended
            .iter()
            .filter(|part| part.position.seq > start.position.seq);
        loop {
            match reader.poll() {
                Ok(Some(increment)) => assert_eq!(Some(&increment), expected.next(), "seed {seed}"),
                Ok(None) => break,
                Err(LogError::Damaged { .. } | LogError::Moved | LogError::Io { .. }) => break,
                Err(other) => panic!("seed {seed}: {other}"),
            }
        }
    }
}
