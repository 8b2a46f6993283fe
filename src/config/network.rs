//! Networks from which a key may be used.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::toml_reader::{InvalidValue, ValueKind};

/// An address, or all addresses that begin with the same bits (`10.0.0.0/8`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    first: IpAddr,
    prefix_bits: u8,
}

impl Network {
    /// Whether the network contains this address. An IPv4 address that is written as an IPv6 address counts as IPv4.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        masked(address.to_canonical(), self.prefix_bits) == Some(self.first)
    }

    fn parse(text: &str) -> Option<Self> {
        let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        let given: IpAddr = address.parse().ok()?;
        let most = if given.is_ipv4() { 32 } else { 128 };
        let is_decimal = |bits: &&str| bits.bytes().all(|byte| byte.is_ascii_digit());
        let bits: u8 = bits.map_or(Some(most), |bits| Some(bits).filter(is_decimal)?.parse().ok())?;
        let first = given.to_canonical();
        // ::ffff:10.0.0.0/104 is 10.0.0.0/8.
        let cut_bits = if given.is_ipv6() && first.is_ipv4() { 96 } else { 0 };
        let prefix_bits = bits.checked_sub(cut_bits).filter(|_| bits <= most)?;
        Some(Self { first, prefix_bits })
    }

    /// The network without the bits after its prefix.
    fn without_host(self) -> Option<Self> {
        Some(Self { first: masked(self.first, self.prefix_bits)?, ..self })
    }
}

/// The address with all bits after the prefix set to 0. `None` if it has fewer bits.
fn masked(address: IpAddr, prefix_bits: u8) -> Option<IpAddr> {
    let bits = u32::from(prefix_bits);
    match address {
        IpAddr::V4(v4) => {
            let rest = 32_u32.checked_sub(bits)?;
            Some(Ipv4Addr::from_bits(v4.to_bits() & u32::MAX.checked_shl(rest).unwrap_or(0)).into())
        }
        IpAddr::V6(v6) => {
            let rest = 128_u32.checked_sub(bits)?;
            Some(Ipv6Addr::from_bits(v6.to_bits() & u128::MAX.checked_shl(rest).unwrap_or(0)).into())
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_address = self.prefix_bits == if self.first.is_ipv4() { 32 } else { 128 };
        if is_address { self.first.fmt(f) } else { write!(f, "{}/{}", self.first, self.prefix_bits) }
    }
}

pub(super) const NETWORK: ValueKind<Network> = ValueKind::text("an address or a network", "\"10.0.0.0/8\"", |text| {
    let help = "write an IP address, or a network as its first address and the length of its prefix: \"10.0.0.0/8\"";
    let network =
        Network::parse(text).ok_or_else(|| InvalidValue::quoting(text, "is not an address or a network", help))?;
    match network.without_host() {
        Some(whole) if whole != network => {
            let help = format!("write \"{whole}\" for the network, or the address without /{}", network.prefix_bits);
            Err(InvalidValue::quoting(text, "is an address inside of a network", help))
        }
        Some(_) | None => Ok(network),
    }
});

#[cfg(test)]
mod tests {
    use super::*;

    fn contains(network: &str, address: &str) -> bool {
        (NETWORK.parse)(network).unwrap().contains(address.parse().unwrap())
    }

    #[test]
    fn a_network_contains_what_begins_with_its_bits() {
        for (network, address, expected) in [
            ("10.0.0.0/8", "10.255.0.1", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("10.0.0.0/8", "::ffff:10.1.2.3", true),
            ("::ffff:10.0.0.0/104", "10.1.2.3", true),
            ("127.0.0.1", "127.0.0.1", true),
            ("127.0.0.1", "127.0.0.2", false),
            ("0.0.0.0/0", "192.0.2.1", true),
            ("0.0.0.0/0", "2001:db8::1", false),
            ("::/0", "2001:db8::1", true),
            ("::/0", "192.0.2.1", false),
            ("2001:db8::/32", "2001:db8:1::1", true),
            ("2001:db8::/32", "2001:db9::1", false),
            ("192.0.2.128/25", "192.0.2.127", false),
            ("::1", "::1", true),
        ] {
            assert_eq!(contains(network, address), expected, "{network} {address}");
        }
    }

    #[test]
    fn what_is_no_network_is_refused_with_what_to_write() {
        for bad in ["", "10.0.0.0/33", "10.0.0.0/", "10.0.0.0/+8", "10.0.0/8", "::/129", "::ffff:10.0.0.0/8", "host"] {
            let told = (NETWORK.parse)(bad).unwrap_err().to_string();
            assert!(told.contains("is not an address or a network"), "{told}");
        }
        let told = (NETWORK.parse)("10.1.2.3/8").unwrap_err().to_string();
        assert!(told.contains("write \"10.0.0.0/8\" for the network"), "{told}");
        assert_eq!((NETWORK.parse)("::ffff:10.0.0.0/104").unwrap().to_string(), "10.0.0.0/8");
        assert_eq!((NETWORK.parse)("127.0.0.1/32").unwrap().to_string(), "127.0.0.1");
    }
}
