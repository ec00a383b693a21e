//! Changes to valid messages that make them odd, or not messages at all.

use shared::rng::Rng;

/// Makes a few changes here and there, most at the beginning of a line.
pub(crate) fn season(rng: &mut Rng, text: &mut Vec<u8>, spices: &[&[u8]]) {
    for _ in 0..rng.usize(1..4) {
        let at = rng.usize(..=text.len());
        let spice = spices[rng.usize(..spices.len())];
        match rng.u8(..6) {
            0 => drop(text.splice(at..at, spice.iter().copied())),
            1 if at < text.len() => text[at] = rng.u8(..),
            2 => text.truncate(at),
            3 => {
                let end = (at + rng.usize(..10)).min(text.len());
                text.drain(at..end);
            }
            _ => {
                let lines = text.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
                let lines: Vec<usize> = lines.map(|(at, _)| at + 1).collect();
                if let Some(at) = rng.choice(&lines) {
                    text.splice(*at..*at, spice.iter().copied());
                }
            }
        }
    }
}
