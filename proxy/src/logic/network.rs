//! Ranges of addresses, as in `127.0.0.0/8`: whose word about the client is believed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// First address and how many leading bits are fixed, 0 to 32.
    V4(Ipv4Addr, u8),
    /// First address and how many leading bits are fixed, 0 to 128.
    V6(Ipv6Addr, u8),
}

impl Network {
    /// Reads an address with or without `/bits`; `None` when it is not of the form or has bits set behind the prefix.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let bits = |most: u8| match bits {
            None => Some(most),
            Some(text) if text.bytes().all(|b| b.is_ascii_digit()) => {
                text.parse().ok().filter(|bits| *bits <= most)
            }
            Some(_) => None,
        };
        match address.parse().ok()? {
            IpAddr::V4(address) => {
                let bits = bits(32)?;
                (address.to_bits() & !mask32(bits) == 0).then_some(Self::V4(address, bits))
            }
            IpAddr::V6(address) => {
                let bits = bits(128)?;
                (address.to_bits() & !mask128(bits) == 0).then_some(Self::V6(address, bits))
            }
        }
    }

    /// Whether `address` is in it. An IPv4 address written as IPv6 counts as the IPv4 address that it is.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self, address.to_canonical()) {
            (Self::V4(first, bits), IpAddr::V4(address)) => {
                (first.to_bits() ^ address.to_bits()) & mask32(*bits) == 0
            }
            (Self::V6(first, bits), IpAddr::V6(address)) => {
                (first.to_bits() ^ address.to_bits()) & mask128(*bits) == 0
            }
            (Self::V4(..), IpAddr::V6(_)) | (Self::V6(..), IpAddr::V4(_)) => false,
        }
    }
}

fn mask32(bits: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0)
}

fn mask128(bits: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_contains_what_shares_its_prefix() {
        let loopback = Network::parse("127.0.0.0/8").unwrap();
        for (text, inside) in [
            ("127.0.0.1", true),
            ("127.255.255.255", true),
            ("128.0.0.1", false),
            ("::ffff:127.0.0.1", true),
            ("::1", false),
        ] {
            assert_eq!(loopback.contains(text.parse().unwrap()), inside, "{text}");
        }
        let all = Network::parse("0.0.0.0/0").unwrap();
        assert!(all.contains("8.8.8.8".parse().unwrap()));
        let one = Network::parse("::1").unwrap();
        assert!(one.contains("::1".parse().unwrap()));
        assert!(!one.contains("::2".parse().unwrap()));
        let site = Network::parse("fd00::/8").unwrap();
        assert!(site.contains("fdff::1".parse().unwrap()));
    }

    #[test]
    fn ranges_are_read_strictly() {
        for text in [
            "",
            "127.0.0.1/8",
            "127.0.0.0/33",
            "127.0.0.0/",
            "127.0.0.0/+8",
            "host",
            "::/129",
        ] {
            assert_eq!(Network::parse(text), None, "{text}");
        }
    }
}
