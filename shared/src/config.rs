//! Text → typed value: durations and sizes with their units, and every fault named with file, line, column and key.
//!
//! Reading has two steps. [`read`] checks the form (syntax, unknown keys, types) and stops at the first fault, because what
//! follows cannot be trusted. The caller then checks the meaning, notes every fault in [`Problems`] by key, and ends with
//! [`Problems::finish`].

use std::fmt::{self, Display};
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde::de::{self, DeserializeOwned, Deserializer, Visitor};
use thiserror::Error;
use toml::de::{DeTable, DeValue};

/// One thing that is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Line, from 1; 0 when the file could not be read.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// The key, as a dotted path; empty when the form itself is wrong.
    pub key: String,
    /// Why, and what is allowed instead.
    pub why: String,
}

/// All that is wrong with one file.
#[derive(Debug, Error)]
pub struct ConfigError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong, in the order of the file.
    pub faults: Vec<Fault>,
}

impl Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, fault) in self.faults.iter().enumerate() {
            if n > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{}", self.path.display())?;
            if fault.line > 0 {
                write!(f, ":{}:{}", fault.line, fault.column)?;
            }
            f.write_str(": ")?;
            if !fault.key.is_empty() {
                write!(f, "{}: ", fault.key)?;
            }
            f.write_str(&fault.why)?;
        }
        Ok(())
    }
}

/// A file's faults of meaning, gathered while it is checked.
#[derive(Debug)]
pub struct Problems {
    path: PathBuf,
    text: String,
    faults: Vec<Fault>,
}

/// Reads `path` as a `T`, together with the place to note what is wrong with its meaning.
///
/// # Errors
/// The file cannot be read, is not TOML, has a key that `T` does not know, or a value of the wrong type.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<(T, Problems), ConfigError> {
    let text = fs::read_to_string(path).map_err(|error| ConfigError {
        path: path.into(),
        faults: vec![Fault {
            line: 0,
            column: 0,
            key: String::new(),
            why: format!("read configuration: {error}"),
        }],
    })?;
    parse(path, text)
}

/// [`read`] over text that is already here; `path` is only for messages.
///
/// # Errors
/// As [`read`].
pub fn parse<T: DeserializeOwned>(path: &Path, text: String) -> Result<(T, Problems), ConfigError> {
    match toml::from_str(&text) {
        Ok(value) => Ok((
            value,
            Problems {
                path: path.into(),
                text,
                faults: Vec::new(),
            },
        )),
        Err(error) => {
            let (line, column) = error.span().map_or((1, 1), |span| place(&text, span.start));
            let why = error.message().to_owned();
            Err(ConfigError {
                path: path.into(),
                faults: vec![Fault {
                    line,
                    column,
                    key: String::new(),
                    why,
                }],
            })
        }
    }
}

impl Problems {
    /// Notes that the value at `key` is wrong. `key` is dotted, with list elements by number: `service.0.node.1.url`.
    /// The nearest existing parent gives the place when the key itself is absent.
    pub fn note(&mut self, key: &str, why: impl Display) {
        let at = locate(&self.text, key).map_or(0, |span| span.start);
        let (line, column) = place(&self.text, at);
        self.faults.push(Fault {
            line,
            column,
            key: key.to_owned(),
            why: why.to_string(),
        });
    }

    /// The folder that relative paths in the file start from.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.path.parent().unwrap_or_else(|| Path::new(""))
    }

    /// Hands `value` on if nothing was noted.
    ///
    /// # Errors
    /// All that was noted, in the order of the file.
    pub fn finish<T>(mut self, value: T) -> Result<T, ConfigError> {
        if self.faults.is_empty() {
            return Ok(value);
        }
        self.faults.sort_by_key(|fault| (fault.line, fault.column));
        Err(ConfigError {
            path: self.path,
            faults: self.faults,
        })
    }
}

/// Finds the bytes of `key`'s value, or of its nearest parent that exists.
fn locate(text: &str, key: &str) -> Option<Range<usize>> {
    let table = DeTable::parse(text).ok()?;
    let mut found = None;
    let mut here: Option<&DeValue<'_>> = None;
    for name in key.split('.') {
        let next = match here {
            None => table.get_ref().get(name),
            Some(DeValue::Array(list)) => name.parse::<usize>().ok().and_then(|n| list.get(n)),
            Some(value) => value.as_table().and_then(|table| table.get(name)),
        };
        let Some(next) = next else { break };
        found = Some(next.span());
        here = Some(next.get_ref());
    }
    found
}

/// Line and column of a byte offset, both from 1, the column in characters.
fn place(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let start = before.rfind('\n').map_or(0, |end| end + 1);
    (
        before.matches('\n').count() + 1,
        before[start..].chars().count() + 1,
    )
}

/// A duration with its unit: `"250ms"`, `"10s"`, `"5m"`, `"1h"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl Span {
    /// A span of whole milliseconds.
    #[must_use]
    pub const fn millis(millis: u64) -> Self {
        Self(Duration::from_millis(millis))
    }

    /// A span of whole seconds.
    #[must_use]
    pub const fn secs(secs: u64) -> Self {
        Self(Duration::from_secs(secs))
    }
}

/// A size with its unit: `"512B"`, `"64KiB"`, `"64MiB"`, `"1GiB"`; in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

const SPAN_FORM: &str =
    "a duration in quotes with its unit, such as \"500ms\", \"10s\", \"5m\" or \"1h\"";
const SIZE_FORM: &str =
    "a size in quotes with its unit, such as \"512B\", \"64KiB\", \"64MiB\" or \"1GiB\"";

/// Reads a [`Span`]; `None` when it is not of the form or too large.
#[must_use]
pub fn span(text: &str) -> Option<Span> {
    let units = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];
    Some(Span::millis(scaled(text, &units)?))
}

/// Reads a [`Size`]; `None` when it is not of the form or too large.
#[must_use]
pub fn size(text: &str) -> Option<Size> {
    let units = [
        ("B", 1),
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
    ];
    Some(Size(scaled(text, &units)?))
}

/// `"12ms"` → 12 times the unit's worth. The number is whole or has a fraction that comes out whole.
fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, unit) = text.split_at(digits);
    let (_, worth) = units.iter().find(|(name, _)| *name == unit)?;
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    let whole = whole.parse::<u64>().ok()?.checked_mul(*worth)?;
    if part.is_empty() {
        return if number.ends_with('.') {
            None
        } else {
            Some(whole)
        };
    }
    let tenths = 10_u64.checked_pow(u32::try_from(part.len()).ok()?)?;
    let scaled = part.parse::<u64>().ok()?.checked_mul(*worth)?;
    if scaled % tenths == 0 {
        whole.checked_add(scaled / tenths)
    } else {
        None
    }
}

struct Worded<T>(&'static str, fn(&str) -> Option<T>);

impl<T> Visitor<'_> for Worded<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        (self.1)(text).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_str(Worded(SPAN_FORM, span))
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_str(Worded(SIZE_FORM, size))
    }
}

impl Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        match millis {
            0 => f.write_str("0s"),
            _ if millis.is_multiple_of(3_600_000) => write!(f, "{}h", millis / 3_600_000),
            _ if millis.is_multiple_of(60_000) => write!(f, "{}m", millis / 60_000),
            _ if millis.is_multiple_of(1_000) => write!(f, "{}s", millis / 1_000),
            _ => write!(f, "{millis}ms"),
        }
    }
}

impl Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("0B"),
            n if n % (1 << 30) == 0 => write!(f, "{}GiB", n >> 30),
            n if n % (1 << 20) == 0 => write!(f, "{}MiB", n >> 20),
            n if n % (1 << 10) == 0 => write!(f, "{}KiB", n >> 10),
            n => write!(f, "{n}B"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        wait: Span,
        room: Option<Size>,
        #[serde(default)]
        node: Vec<Node>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Node {
        url: String,
    }

    fn parse_sample(text: &str) -> Result<(Sample, Problems), ConfigError> {
        parse(Path::new("f.toml"), text.to_owned())
    }

    #[test]
    fn units_are_read_and_shown() {
        for (text, millis) in [
            ("250ms", 250),
            ("10s", 10_000),
            ("5m", 300_000),
            ("1h", 3_600_000),
            ("1.5s", 1_500),
            ("0s", 0),
        ] {
            assert_eq!(span(text), Some(Span::millis(millis)), "{text}");
        }
        for text in [
            "10",
            "",
            "s",
            "-1s",
            "1 s",
            "1.s",
            "1d",
            "0.0001ms",
            "99999999999999999999s",
            "1.5.5s",
        ] {
            assert_eq!(span(text), None, "{text}");
        }
        assert_eq!(size("1.5KiB"), Some(Size(1536)));
        assert_eq!(size("1GB"), None);
        assert_eq!(Span::millis(90_000).to_string(), "90s");
        assert_eq!(Size(64 << 20).to_string(), "64MiB");
    }

    #[test]
    fn a_bare_number_is_refused_with_what_is_allowed() {
        let error = parse_sample("wait = 10\n").unwrap_err().to_string();
        assert!(error.starts_with("f.toml:1:8: "), "{error}");
        assert!(error.contains("\"500ms\""), "{error}");
    }

    #[test]
    fn an_unknown_key_is_named_with_its_place_and_the_known_ones() {
        let error = parse_sample("wait = \"1s\"\nwiat = \"1s\"\n")
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("f.toml:2:1: unknown field `wiat`"),
            "{error}"
        );
        assert!(error.contains("`room`"), "{error}");
    }

    #[test]
    fn faults_of_meaning_come_all_at_once_in_the_order_of_the_file() {
        let text = "wait = \"1s\"\nroom = \"1KiB\"\n[[node]]\nurl = \"x\"\n[[node]]\nurl = \"é\"\n";
        let (sample, mut problems) = parse_sample(text).unwrap();
        problems.note("node.1.url", "not a URL");
        problems.note("room", "too small");
        problems.note("node.0.port", "missing");
        assert_eq!(sample.node[1].url, "é");
        assert_eq!(
            (sample.wait, sample.room),
            (Span::secs(1), Some(Size(1024)))
        );
        let error = problems.finish(()).unwrap_err().to_string();
        let expected = "f.toml:2:8: room: too small\nf.toml:3:1: node.0.port: missing\nf.toml:6:7: node.1.url: not a URL";
        assert_eq!(error, expected);
    }
}
