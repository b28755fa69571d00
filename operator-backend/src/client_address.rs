//! Who is on the other end: the peer, or what a trusted proxy says about it.

use std::{net::IpAddr, str::FromStr};

use axum::http::HeaderMap;

/// The networks whose X-Forwarded-For is believed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedProxies(Vec<Network>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Network {
    address: u128,
    prefix: u32,
}

/// A list of networks that does not parse.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not a network; write CIDR such as 10.0.0.0/8 or fd00::/8, separated by commas")]
pub struct InvalidNetwork(String);

/// IPv4 and IPv6 on one number line, IPv4 as its mapped form, so that one comparison serves both.
fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().into(),
        IpAddr::V6(address) => address.into(),
    }
}

impl FromStr for Network {
    type Err = InvalidNetwork;

    fn from_str(text: &str) -> Result<Self, InvalidNetwork> {
        let invalid = || InvalidNetwork(text.to_owned());
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix.parse::<u32>().map_err(|_| invalid())?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| invalid())?;
        let (bits, offset) = if address.is_ipv4() { (32, 96) } else { (128, 0) };
        let prefix = prefix.unwrap_or(bits);
        if prefix > bits {
            return Err(invalid());
        }
        Ok(Self { address: number(address), prefix: prefix + offset })
    }
}

impl Network {
    fn contains(self, address: u128) -> bool {
        let mask = u128::MAX.checked_shl(128 - self.prefix).unwrap_or(0);
        (self.address ^ address) & mask == 0
    }
}

impl FromStr for TrustedProxies {
    type Err = InvalidNetwork;

    fn from_str(text: &str) -> Result<Self, InvalidNetwork> {
        text.split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .map(str::parse)
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl TrustedProxies {
    fn trusts(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(number(address)))
    }

    /// Address of the client: the peer, or, when the peer is a trusted proxy, the rightmost
    /// X-Forwarded-For entry that is not one itself. What stands left of it could be anybody's claim.
    #[must_use]
    pub fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let peer = peer.to_canonical();
        if self.0.is_empty() || !self.trusts(peer) {
            return peer;
        }
        let mut client = peer;
        let values: Vec<_> = headers.get_all("x-forwarded-for").iter().collect();
        for entry in values.iter().rev().filter_map(|value| value.to_str().ok()).flat_map(|v| v.rsplit(',')) {
            let Ok(address) = entry.trim().parse::<IpAddr>() else {
                break;
            };
            client = address.to_canonical();
            if !self.trusts(client) {
                break;
            }
        }
        client
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::no_proxy_is_trusted("", "203.0.113.9", Some("198.51.100.1"), "203.0.113.9")]
    #[case::an_untrusted_peer_cannot_claim("10.0.0.0/8", "203.0.113.9", Some("198.51.100.1"), "203.0.113.9")]
    #[case::a_trusted_peer_tells("10.0.0.0/8", "10.1.2.3", Some("198.51.100.1"), "198.51.100.1")]
    #[case::the_rightmost_untrusted_counts(
        "10.0.0.0/8",
        "10.1.2.3",
        Some("1.2.3.4, 198.51.100.1, 10.9.9.9"),
        "198.51.100.1"
    )]
    #[case::rubbish_stops_the_walk("10.0.0.0/8", "10.1.2.3", Some("1.2.3.4, unknown"), "10.1.2.3")]
    #[case::all_trusted_is_the_leftmost("10.0.0.0/8", "10.1.2.3", Some("10.0.0.1, 10.0.0.2"), "10.0.0.1")]
    #[case::no_header("10.0.0.0/8", "10.1.2.3", None, "10.1.2.3")]
    #[case::ipv6("fd00::/8", "fd00::1", Some("2001:db8::7"), "2001:db8::7")]
    #[case::mapped_ipv4_peer("10.0.0.0/8", "::ffff:10.1.2.3", Some("198.51.100.1"), "198.51.100.1")]
    fn client_address(
        #[case] trusted: &str,
        #[case] peer: &str,
        #[case] forwarded: Option<&str>,
        #[case] client: &str,
    ) {
        let mut headers = HeaderMap::new();
        if let Some(forwarded) = forwarded {
            headers.insert("x-forwarded-for", forwarded.parse().unwrap());
        }
        let trusted: TrustedProxies = trusted.parse().unwrap();
        assert_eq!(trusted.client(peer.parse().unwrap(), &headers), client.parse::<IpAddr>().unwrap());
    }

    #[rstest]
    #[case("10.0.0.0/33")]
    #[case("10.0.0/8")]
    #[case("10.0.0.0/8, ten")]
    #[case("::/129")]
    fn what_is_no_network_is_named(#[case] list: &str) {
        assert!(list.parse::<TrustedProxies>().is_err());
    }

    #[test]
    fn a_prefix_of_zero_is_everything() {
        let trusted: TrustedProxies = "::/0".parse().unwrap();
        assert!(trusted.trusts("192.0.2.1".parse().unwrap()));
    }
}
