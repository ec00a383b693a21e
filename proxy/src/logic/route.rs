//! Which service a request is for, by its host: exact names first, then the longest wildcard, then `*`.

use std::cmp::Ordering;

/// A host that a service answers for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HostPattern {
    /// This name, in lower case, without a port.
    Exact(String),
    /// Every name that ends in this, in lower case, with its leading dot: `*.example.com` is `.example.com`.
    Below(String),
    /// Every name.
    Any,
}

impl HostPattern {
    /// Reads `*`, `*.example.com` or a name; `None` when it is none of these.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let name = text.to_ascii_lowercase();
        if name == "*" {
            return Some(Self::Any);
        }
        // A name may end in the dot of the root, which hosts are compared without.
        let name = name.strip_suffix('.').unwrap_or(&name);
        match name.strip_prefix('*') {
            Some(rest) if rest.starts_with('.') && is_name(&rest[1..]) => {
                Some(Self::Below(rest.to_owned()))
            }
            Some(_) => None,
            None if is_name(name) => Some(Self::Exact(name.to_owned())),
            None => None,
        }
    }
}

/// Whether `text` may stand in a URL as a host: letters, digits, `-`, `.`, `_`, or an address in brackets.
fn is_name(text: &str) -> bool {
    let inside = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    if let Some(inside) = inside {
        return inside.parse::<std::net::Ipv6Addr>().is_ok();
    }
    !text.is_empty()
        && text.len() <= 253
        && !text.starts_with('.')
        && !text.ends_with('.')
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
}

/// Every service's hosts. Immutable.
#[derive(Clone, Debug, Default)]
pub struct Table {
    exact: Vec<(String, usize)>,
    below: Vec<(String, usize)>,
    any: Option<usize>,
}

impl Table {
    /// Builds the table from patterns and the places of their services. The first of equal patterns wins.
    #[must_use]
    pub fn new(rules: impl IntoIterator<Item = (HostPattern, usize)>) -> Self {
        let mut table = Self::default();
        for (pattern, service) in rules {
            match pattern {
                HostPattern::Exact(name) => table.exact.push((name, service)),
                HostPattern::Below(name) => table.below.push((name, service)),
                HostPattern::Any => {
                    table.any.get_or_insert(service);
                }
            }
        }
        table.exact.sort_by(|a, b| a.0.cmp(&b.0));
        table.below.sort_by_key(|rule| usize::MAX - rule.0.len());
        table
    }

    /// Finds the service for a `Host` value, with or without a port, in any case.
    #[must_use]
    pub fn find(&self, host: &[u8]) -> Option<usize> {
        if self.exact.is_empty() && self.below.is_empty() {
            return self.any;
        }
        let host = without_port(host);
        let host = host.strip_suffix(b".").unwrap_or(host);
        if let Ok(at) = self.exact.binary_search_by(|rule| compare(&rule.0, host)) {
            return Some(self.exact[at].1);
        }
        let ends = |rule: &&(String, usize)| {
            host.len() > rule.0.len()
                && host[host.len() - rule.0.len()..].eq_ignore_ascii_case(rule.0.as_bytes())
        };
        let below = self.below.iter().find(ends).map(|rule| rule.1);
        below.or(self.any)
    }
}

/// Compares a name in lower case with one in any case.
fn compare(lower: &str, any: &[u8]) -> Ordering {
    lower.bytes().cmp(any.iter().map(u8::to_ascii_lowercase))
}

fn without_port(host: &[u8]) -> &[u8] {
    let end = match host.strip_prefix(b"[") {
        Some(inside) => inside
            .iter()
            .position(|byte| *byte == b']')
            .map(|at| at + 2),
        None => host.iter().position(|byte| *byte == b':'),
    };
    end.and_then(|end| host.get(..end)).unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(patterns: &[&str]) -> Table {
        let rules = patterns.iter().enumerate();
        Table::new(rules.map(|(n, text)| (HostPattern::parse(text).unwrap(), n)))
    }

    #[test]
    fn the_most_specific_pattern_wins() {
        let table = table(&["*", "*.example.com", "shop.example.com", "*.b.example.com"]);
        for (host, found) in [
            ("shop.example.com", 2),
            ("SHOP.Example.COM:8080", 2),
            ("shop.example.com.", 2),
            ("other.example.com", 1),
            ("a.b.example.com", 3),
            ("example.com", 0),
            (".example.com", 0),
            ("", 0),
            ("[::1]:80", 0),
        ] {
            assert_eq!(table.find(host.as_bytes()), Some(found), "{host}");
        }
    }

    #[test]
    fn without_a_catch_all_other_hosts_belong_to_nobody() {
        let table = table(&["shop.example.com", "[::1]"]);
        assert_eq!(table.find(b"evil.example.com"), None);
        assert_eq!(table.find(b"[::1]:8080"), Some(1));
        assert_eq!(table.find(b"[::1"), None);
    }

    #[test]
    fn patterns_are_read_strictly() {
        for text in [
            "", "*x", "*.", "a b", "a/b", "a:80", "**", "[::g]", "*.*.a", ".a",
        ] {
            assert_eq!(HostPattern::parse(text), None, "{text}");
        }
        assert_eq!(
            HostPattern::parse("*.Example.com"),
            Some(HostPattern::Below(".example.com".to_owned()))
        );
    }
}
