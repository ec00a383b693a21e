//! What a request is worth, by its path: core work, or work that can be done without for a while; and where it had better go.

/// Whether a route can be done without.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Worth {
    /// It cannot.
    #[default]
    Core,
    /// It is the first to be refused under overload.
    NonCore,
}

impl Worth {
    /// The word that users see.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Core => "core",
            Self::NonCore => "non-core",
        }
    }
}

/// Where the requests of a route that change nothing go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Prefer {
    /// Where all others go.
    #[default]
    Hot,
    /// To a standby, if one is fit for it.
    Warm,
}

/// What is known of a route.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tier {
    /// Whether it can be done without.
    pub worth: Worth,
    /// Where it goes.
    pub prefer: Prefer,
}

/// A service's routes. Immutable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tiers(Vec<(Box<str>, Tier)>);

impl Tiers {
    /// Routes by the paths that they begin with.
    #[must_use]
    pub fn new(routes: impl IntoIterator<Item = (String, Tier)>) -> Self {
        let tidy = |path: String| path.trim_end_matches('/').into();
        let routes = routes.into_iter();
        let mut routes: Vec<_> = routes.map(|(path, tier)| (tidy(path), tier)).collect();
        routes.sort_by_key(|(path, _): &(Box<str>, Tier)| std::cmp::Reverse(path.len()));
        Self(routes)
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether some route had better go to a standby.
    #[must_use]
    pub fn prefer_warm(&self) -> bool {
        self.0.iter().any(|(_, tier)| tier.prefer == Prefer::Warm)
    }

    /// The tier of a request's target, by the longest path that it begins with. `/a` is the beginning of `/a`, `/a/b` and `/a?b`,
    /// and not of `/ab`.
    #[must_use]
    pub fn find(&self, target: &[u8]) -> Tier {
        let begins = |path: &str| {
            target
                .strip_prefix(path.as_bytes())
                .is_some_and(|rest| matches!(rest.first(), None | Some(b'/' | b'?')))
        };
        let found = self.0.iter().find(|(path, _)| begins(path));
        found.map_or_else(Tier::default, |(_, tier)| *tier)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_path_wins_and_ends_where_a_segment_ends() {
        let tier = |worth, prefer| Tier { worth, prefer };
        let (core, extra) = (Tier::default(), tier(Worth::NonCore, Prefer::Warm));
        let warm = tier(Worth::Core, Prefer::Warm);
        let tiers = Tiers::new([
            ("/shop".to_owned(), extra),
            ("/shop/cart/".to_owned(), core),
            ("/shop/cart/tips".to_owned(), warm),
        ]);
        for (target, found) in [
            ("/shop", extra),
            ("/shop/", extra),
            ("/shop?x=/shop/cart", extra),
            ("/shop/other", extra),
            ("/shopping", core),
            ("/shop/cart", core),
            ("/shop/carts", extra),
            ("/shop/cart/tips/1", warm),
            ("/", core),
            ("*", core),
            ("/x/shop", core),
        ] {
            assert_eq!(tiers.find(target.as_bytes()), found, "{target}");
        }
        let all = Tiers::new([("/".to_owned(), extra)]);
        assert_eq!(all.find(b"/anything"), extra);
        assert!(tiers.prefer_warm() && Tiers::default().is_empty());
    }
}
