//! Ten thousand seeded inputs for every reader of foreign bytes; what must hold of each is in `proxy::trial`.

use proxy::trial;
use shared::rng::Rng;

const INPUTS: usize = 10_000;

/// One of the seeds with some of it changed, doubled, cut, or put elsewhere.
fn mutated(seeds: &[&[u8]], rng: &mut Rng) -> Vec<u8> {
    let spices: [&[u8]; 12] = [
        b"\r\n", b"\n", b"\r", b"\0", b" ", b":", b",", b";", b"\"", b"\xff", b"0", b"chunked",
    ];
    let mut bytes = seeds[rng.usize(..seeds.len())].to_vec();
    for _ in 0..rng.usize(..6) {
        let at = rng.usize(..=bytes.len());
        let end = (at + rng.usize(..16)).min(bytes.len());
        match rng.u8(..6) {
            0 if at < bytes.len() => bytes[at] = rng.u8(..),
            1 => drop(bytes.drain(at..end)),
            2 => {
                let part = bytes[at..end].to_vec();
                bytes.splice(at..at, part);
            }
            3 => {
                let other = seeds[rng.usize(..seeds.len())];
                let from = rng.usize(..=other.len());
                bytes.splice(at..end, other[from..].iter().copied());
            }
            4 => bytes.truncate(at),
            _ => {
                let spice = spices[rng.usize(..spices.len())];
                bytes.splice(at..at, spice.iter().copied());
            }
        }
    }
    bytes
}

#[test]
fn whatever_bytes_come_every_reader_keeps_its_word() {
    for (name, try_it, seeds) in trial::ALL {
        seeds.iter().for_each(|seed| try_it(seed));
        let seed = 0x0057_41c7_0001;
        let mut rng = Rng::with_seed(seed);
        for input in 0..INPUTS {
            let bytes = mutated(seeds, &mut rng);
            let shown = bytes.clone();
            let result = std::panic::catch_unwind(|| try_it(&bytes));
            assert!(
                result.is_ok(),
                "{name}, seed {seed:#x}, input {input}: {:?}",
                String::from_utf8_lossy(&shown)
            );
        }
    }
}

#[test]
fn every_trial_has_a_fuzz_target() {
    let manifest = include_str!("../../../fuzz/Cargo.toml");
    for (name, ..) in trial::ALL {
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
    }
}
