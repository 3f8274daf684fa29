//! Inet endpoints of an environment whose only network is loopback.
//!
//! What is local there: 127.0.0.0/8, ::1, and the wildcards. An IPv4 address on an IPv6 socket is the IPv4 address itself
//! (`::ffff:a.b.c.d`), so a [`Host`] says who is meant and a [`Family`] how a socket writes it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The address family of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// AF_INET.
    V4,
    /// AF_INET6.
    V6,
}

/// An address that exists in the environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// An IPv4 address: 0.0.0.0 or one of 127.0.0.0/8.
    Four(Ipv4Addr),
    /// The IPv6 wildcard, `::`.
    Any6,
    /// `::1`.
    Loopback6,
}

impl Host {
    /// 127.0.0.1.
    pub const LOOPBACK4: Host = Host::Four(Ipv4Addr::LOCALHOST);
    /// 0.0.0.0.
    pub const ANY4: Host = Host::Four(Ipv4Addr::UNSPECIFIED);

    /// Whether it is one of the wildcards.
    pub fn is_any(self) -> bool {
        self == Host::Any6 || self == Host::ANY4
    }

    /// An address as a host, if it exists in the environment.
    pub fn of(ip: IpAddr) -> Option<Host> {
        match ip {
            IpAddr::V4(ip) => (ip.is_unspecified() || ip.is_loopback()).then_some(Host::Four(ip)),
            IpAddr::V6(ip) => match ip.to_ipv4_mapped() {
                Some(ip) => Host::of(ip.into()),
                None if ip.is_unspecified() => Some(Host::Any6),
                None => ip.is_loopback().then_some(Host::Loopback6),
            },
        }
    }

    /// Its address in network order: 4 bytes or 16.
    pub fn octets(self) -> Vec<u8> {
        match self {
            Host::Four(ip) => ip.octets().to_vec(),
            Host::Any6 => Ipv6Addr::UNSPECIFIED.octets().to_vec(),
            Host::Loopback6 => Ipv6Addr::LOCALHOST.octets().to_vec(),
        }
    }

    /// Where a connection to it goes, and what a socket bound to it is called once connected: loopback for a wildcard.
    pub fn concrete(self) -> Host {
        match self {
            Host::Any6 => Host::Loopback6,
            Host::ANY4 => Host::LOOPBACK4,
            other => other,
        }
    }
}

/// A host and a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// The address.
    pub host: Host,
    /// The port, 0 for none yet.
    pub port: u16,
}

/// What a program wrote into a sockaddr.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// An endpoint of this environment.
    Local(Endpoint),
    /// A well-formed address that does not exist here.
    Elsewhere,
    /// AF_UNSPEC.
    Unspecified,
    /// Another family than the socket's.
    OtherFamily(u16),
    /// Too short for its family.
    Short,
}

/// The longest sockaddr that a program may pass (sockaddr_storage).
pub const LONGEST: usize = 128;

/// Which family a sockaddr says it is, if it is long enough to say.
pub fn family_of(bytes: &[u8]) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?))
}

/// Reads a sockaddr_in or sockaddr_in6 that was passed for a socket of this family. See ip(7) and ipv6(7).
pub fn parse(family: Family, bytes: &[u8]) -> Written {
    let Some(tag) = family_of(bytes) else { return Written::Short };
    if i32::from(tag) == libc::AF_UNSPEC {
        return Written::Unspecified;
    }
    let wanted = match family {
        Family::V4 => libc::AF_INET,
        Family::V6 => libc::AF_INET6,
    };
    // The kernel looks at the length first; 24 is sockaddr_in6 without its scope, which old programs pass.
    if bytes.len() < if family == Family::V4 { 16 } else { 24 } {
        return Written::Short;
    }
    if i32::from(tag) != wanted {
        return Written::OtherFamily(tag);
    }
    let port = u16::from_be_bytes([bytes[2], bytes[3]]);
    let host = match family {
        Family::V4 => Host::of(Ipv4Addr::new(bytes[4], bytes[5], bytes[6], bytes[7]).into()),
        Family::V6 => {
            let mut octets = [0; 16];
            octets.copy_from_slice(&bytes[8..24]);
            Host::of(Ipv6Addr::from(octets).into())
        }
    };
    host.map_or(Written::Elsewhere, |host| Written::Local(Endpoint { host, port }))
}

/// A sockaddr as the kernel writes it: its bytes and their number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sockaddr {
    bytes: [u8; 28],
    length: usize,
}

impl Sockaddr {
    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl Endpoint {
    /// What a socket that is not bound says of itself.
    pub fn unbound(family: Family) -> Endpoint {
        Endpoint { host: if family == Family::V4 { Host::ANY4 } else { Host::Any6 }, port: 0 }
    }

    /// The endpoint as a socket of this family writes it.
    pub fn sockaddr(self, family: Family) -> Sockaddr {
        let mut bytes = [0; 28];
        bytes[2..4].copy_from_slice(&self.port.to_be_bytes());
        match family {
            Family::V4 => {
                bytes[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
                if let Host::Four(ip) = self.host {
                    bytes[4..8].copy_from_slice(&ip.octets());
                }
                Sockaddr { bytes, length: 16 }
            }
            Family::V6 => {
                bytes[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
                let ip = match self.host {
                    Host::Four(ip) => ip.to_ipv6_mapped(),
                    Host::Any6 => Ipv6Addr::UNSPECIFIED,
                    Host::Loopback6 => Ipv6Addr::LOCALHOST,
                };
                bytes[8..24].copy_from_slice(&ip.octets());
                Sockaddr { bytes, length: 28 }
            }
        }
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.host {
            Host::Four(ip) => write!(f, "{ip}:{}", self.port),
            Host::Any6 => write!(f, "[::]:{}", self.port),
            Host::Loopback6 => write!(f, "[::1]:{}", self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_programs_write_is_read_back() {
        for host in [Host::LOOPBACK4, Host::ANY4, Host::Four(Ipv4Addr::new(127, 1, 2, 3))] {
            let endpoint = Endpoint { host, port: 8080 };
            for family in [Family::V4, Family::V6] {
                assert_eq!(parse(family, endpoint.sockaddr(family).bytes()), Written::Local(endpoint));
            }
        }
        for host in [Host::Any6, Host::Loopback6] {
            let endpoint = Endpoint { host, port: 1 };
            assert_eq!(parse(Family::V6, endpoint.sockaddr(Family::V6).bytes()), Written::Local(endpoint));
        }
    }

    #[test]
    fn what_is_not_here_is_told_apart() {
        let mut far = Endpoint { host: Host::LOOPBACK4, port: 80 }.sockaddr(Family::V4);
        far.bytes[4] = 10;
        assert_eq!(parse(Family::V4, far.bytes()), Written::Elsewhere);
        assert_eq!(parse(Family::V4, &far.bytes()[..15]), Written::Short);
        assert_eq!(parse(Family::V6, &far.bytes[..28]), Written::OtherFamily(libc::AF_INET as u16));
        assert_eq!(parse(Family::V4, &[0, 0]), Written::Unspecified);
        assert_eq!(parse(Family::V4, &[2]), Written::Short);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..LONGEST)) {
            let _ = (parse(Family::V4, &bytes), parse(Family::V6, &bytes), family_of(&bytes));
        }
    }
}
