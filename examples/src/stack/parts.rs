//! What a deployment consists of, and which port each part listens on.

use std::fmt;

/// The proxy's listener, counted from the first port.
pub(crate) const LISTENER: u16 = 0;
/// The proxy's admin door.
pub(crate) const ADMIN: u16 = 1;

/// Where a bad wire is, if there is one.
pub(crate) const WIRE: u16 = 6;

/// One of the two nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// The one that is listed first.
    A,
    /// The other.
    B,
}

impl Side {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::A, Self::B];

    /// The other one.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// The name it is configured under.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
        }
    }

    /// The node of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::BOTH.into_iter().find(|side| side.name() == name)
    }

    pub(crate) const fn index(self) -> usize {
        match self {
            Self::A => 0,
            Self::B => 1,
        }
    }

    pub(crate) const fn app_port(self) -> u16 {
        match self {
            Self::A => 2,
            Self::B => 3,
        }
    }

    pub(crate) const fn syncd_port(self) -> u16 {
        match self {
            Self::A => 4,
            Self::B => 5,
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A program of the deployment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// A node's application.
    App(Side),
    /// A node's syncd.
    Syncd(Side),
    /// The proxy.
    Proxy,
}

impl Part {
    /// All of them, in the order in which a careful person starts them.
    pub const ALL: [Self; 5] = [
        Self::App(Side::A),
        Self::App(Side::B),
        Self::Syncd(Side::A),
        Self::Syncd(Side::B),
        Self::Proxy,
    ];

    pub(crate) const fn index(self) -> usize {
        match self {
            Self::App(side) => side.index(),
            Self::Syncd(side) => 2 + side.index(),
            Self::Proxy => 4,
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::App(side) => write!(f, "app-{side}"),
            Self::Syncd(side) => write!(f, "syncd-{side}"),
            Self::Proxy => f.write_str("hotwarm"),
        }
    }
}
