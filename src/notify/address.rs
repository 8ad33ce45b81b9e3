//! Addresses that deliveries may go to: public ones, and private ones that the operator listed.
//!
//! A webhook's URL is the operator's, but what its name resolves to is somebody else's: without this rule a name
//! could lead a delivery to the machine itself, its network or a cloud's metadata. Always true: the address that was
//! judged is the one that is connected to.
//!
//! Not here: resolving and connecting (`client`).

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

/// A block of addresses: `10.0.0.0/8`, `fd00::/8`, or one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    first: IpAddr,
    bits: u8,
}

/// A host that webhooks may name: a name, an address, or `*.example.com` for all names below one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRule(String);

/// Blocks of IPv4 that are no unicast addresses of the internet (IANA IPv4 Special-Purpose Address Registry; RFC 5771,
/// RFC 1112).
const SPECIAL_V4: [([u8; 4], u8); 15] = [
    ([0, 0, 0, 0], 8),
    ([10, 0, 0, 0], 8),
    ([100, 64, 0, 0], 10),
    ([127, 0, 0, 0], 8),
    ([169, 254, 0, 0], 16),
    ([172, 16, 0, 0], 12),
    ([192, 0, 0, 0], 24),
    ([192, 0, 2, 0], 24),
    ([192, 88, 99, 0], 24),
    ([192, 168, 0, 0], 16),
    ([198, 18, 0, 0], 15),
    ([198, 51, 100, 0], 24),
    ([203, 0, 113, 0], 24),
    ([224, 0, 0, 0], 4),
    ([240, 0, 0, 0], 4),
];

/// Blocks of IPv6's global unicast space, `2000::/3`, that lead elsewhere: protocol assignments with Teredo and ORCHID,
/// documentation, 6to4 (IANA IPv6 Special-Purpose Address Registry).
const SPECIAL_V6: [([u16; 2], u8); 4] =
    [([0x2001, 0], 23), ([0x2001, 0x0db8], 32), ([0x2002, 0], 16), ([0x3fff, 0], 20)];

/// True if an address is one of the public internet.
pub(super) fn is_public(address: IpAddr) -> bool {
    match plain(address) {
        IpAddr::V4(address) => {
            let special = |(first, bits): &([u8; 4], u8)| {
                Block { first: Ipv4Addr::from(*first).into(), bits: *bits }.contains(address.into())
            };
            !SPECIAL_V4.iter().any(special)
        }
        IpAddr::V6(address) => {
            let special = |(first, bits): &([u16; 2], u8)| {
                let first = Ipv6Addr::new(first[0], first[1], 0, 0, 0, 0, 0, 0).into();
                Block { first, bits: *bits }.contains(address.into())
            };
            address.segments()[0] >> 13 == 1 && !SPECIAL_V6.iter().any(special)
        }
    }
}

/// True if a delivery may be sent to an address.
pub(super) fn is_permitted(address: IpAddr, listed: &[Block]) -> bool {
    is_public(address) || listed.iter().any(|block| block.contains(address))
}

/// The IPv4 address inside an IPv6 one where that leads to it: mapped (RFC 4291), or through NAT64 (RFC 6052).
fn plain(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    if let Some(mapped) = v6.to_ipv4_mapped() {
        return mapped.into();
    }
    match v6.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
            Ipv4Addr::new(a, b, c, d).into()
        }
        _ => address,
    }
}

impl Block {
    /// True if an address lies in the block.
    pub fn contains(self, address: IpAddr) -> bool {
        match (self.first, plain(address)) {
            (IpAddr::V4(first), IpAddr::V4(address)) => {
                let shift = 32 - u32::from(self.bits);
                u64::from(first.to_bits()) >> shift == u64::from(address.to_bits()) >> shift
            }
            (IpAddr::V6(first), IpAddr::V6(address)) => {
                let shift = 128 - u32::from(self.bits);
                first.to_bits().checked_shr(shift).unwrap_or(0)
                    == address.to_bits().checked_shr(shift).unwrap_or(0)
            }
            _ => false,
        }
    }
}

impl FromStr for Block {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let advice = || {
            format!(
                "`{}` is no address or block; write 10.1.2.3, 10.0.0.0/8 or fd00::/8",
                text.escape_debug()
            )
        };
        let (first, bits) = text.split_once('/').map_or((text, None), |(a, b)| (a, Some(b)));
        let first = plain(first.parse().map_err(|_| advice())?);
        let most = if first.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Ok(most), |bits| bits.parse::<u8>().map_err(|_| advice()))?;
        if bits > most { Err(advice()) } else { Ok(Self { first, bits }) }
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.bits)
    }
}

impl HostRule {
    /// True if a webhook may name this host.
    pub fn permits(&self, host: &str) -> bool {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        match self.0.strip_prefix('*') {
            Some(parent) => host.len() > parent.len() && host.ends_with(parent),
            None => host == self.0,
        }
    }
}

impl FromStr for HostRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let plain = text.trim_matches(['[', ']']).trim_end_matches('.').to_ascii_lowercase();
        let name = plain.strip_prefix("*.").unwrap_or(&plain);
        let is_name = !name.is_empty()
            && name.len() <= 253
            && name.split('.').all(|label| !label.is_empty())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
        if is_name || plain.parse::<IpAddr>().is_ok() {
            return Ok(Self(plain));
        }
        Err(format!(
            "`{}` is no host; write hooks.example.com, *.example.com or an address",
            text.escape_debug()
        ))
    }
}

impl fmt::Display for HostRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_internet_is_public() {
        let private = [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "10.255.255.255",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.7",
            "203.0.113.7",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:10.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::a00:1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "3fff::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "4000::1",
        ];
        for text in private {
            assert!(!is_public(text.parse().unwrap()), "{text}");
        }
        let public = [
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "172.15.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "198.20.0.1",
            "223.255.255.255",
            "::ffff:1.1.1.1",
            "64:ff9b::101:101",
            "2606:4700:4700::1111",
            "2001:4860:4860::8888",
            "2a00::1",
        ];
        for text in public {
            assert!(is_public(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn listed_blocks_are_permitted() {
        let listed: Vec<Block> =
            ["10.1.0.0/16", "127.0.0.1", "fd00::/8"].iter().map(|t| t.parse().unwrap()).collect();
        for (address, expected) in [
            ("10.1.255.1", true),
            ("10.2.0.1", false),
            ("127.0.0.1", true),
            ("::ffff:127.0.0.1", true),
            ("127.0.0.2", false),
            ("fd12::1", true),
            ("fc00::1", false),
            ("8.8.8.8", true),
        ] {
            assert_eq!(is_permitted(address.parse().unwrap(), &listed), expected, "{address}");
        }
        let all: Block = "0.0.0.0/0".parse().unwrap();
        assert!(
            all.contains("255.1.2.3".parse().unwrap()) && !all.contains("::1".parse().unwrap())
        );
        let all: Block = "::/0".parse().unwrap();
        assert!(all.contains("ff02::1".parse().unwrap()));
        for wrong in ["", "10.0.0.0/33", "fd00::/129", "10.0.0/8", "host", "10.0.0.0/x"] {
            assert!(wrong.parse::<Block>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn hosts_are_named_whole_or_by_their_parent() {
        let rule = |text: &str| text.parse::<HostRule>().unwrap();
        assert!(rule("Hooks.Example.com").permits("hooks.example.COM."));
        assert!(!rule("example.com").permits("hooks.example.com"));
        assert!(rule("*.example.com").permits("a.b.example.com"));
        assert!(!rule("*.example.com").permits("example.com"));
        assert!(!rule("*.example.com").permits("evil-example.com"));
        assert!(rule("[::1]").permits("::1"));
        for wrong in ["", "a b", "http://x", "*", "*.", "a..b", "x/y"] {
            assert!(wrong.parse::<HostRule>().is_err(), "{wrong}");
        }
    }
}
