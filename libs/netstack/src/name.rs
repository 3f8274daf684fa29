//! Endpoints as abstract AF_UNIX names, so that the kernel's own socket table is the database of a net server.
//!
//! A socket carries its inet identity in its name: the kernel keeps it as long as the socket lives, hands it to whoever
//! asks for the peer's name, refuses it twice, and frees it at the last close. Nothing has to be stored or swept.
//!
//! Two forms. *Bound*, for a socket that a program bound: endpoint, the flags it was bound with, and a number that tells
//! sockets apart that share the endpoint (SO_REUSEADDR, SO_REUSEPORT). *Connection*, for a socket that connected without
//! having been bound: both endpoints. A socket from accept(2) has its listener's name, and its peer's name says the rest.

use crate::address::{Endpoint, Host};
use std::net::Ipv4Addr;

/// What a name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Meaning {
    /// A socket that was bound.
    Bound(Bound),
    /// The connecting end of a connection.
    Connection {
        /// Its own endpoint.
        local: Endpoint,
        /// The endpoint it connected to, never a wildcard.
        remote: Endpoint,
    },
}

/// A socket that was bound, as its name has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Bound {
    /// Where.
    pub endpoint: Endpoint,
    /// With SO_REUSEADDR set.
    pub reuse_address: bool,
    /// With SO_REUSEPORT set.
    pub reuse_port: bool,
    /// With IPV6_V6ONLY set: an IPv6 wildcard that does not cover IPv4.
    pub v6_only: bool,
    /// Tells sockets apart that share the endpoint.
    pub sibling: u16,
}

/// An encoded name: the bytes after the leading NUL.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Name {
    bytes: [u8; LENGTH],
}

/// All names have one length: form, then two endpoints, or one with flags and number.
const LENGTH: usize = 15;
const BOUND: u8 = b'B';
const CONNECTION: u8 = b'C';

impl Name {
    /// The bytes to bind or connect to.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl std::fmt::Debug for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", Meaning::decode(&self.bytes))
    }
}

fn put(endpoint: Endpoint, into: &mut [u8]) {
    into[0] = match endpoint.host {
        Host::Four(ip) => {
            into[1..5].copy_from_slice(&ip.octets());
            4
        }
        Host::Any6 => 6,
        Host::Loopback6 => 7,
    };
    into[5..7].copy_from_slice(&endpoint.port.to_be_bytes());
}

fn get(from: &[u8]) -> Option<Endpoint> {
    let host = match from[0] {
        4 => Host::Four(Ipv4Addr::new(from[1], from[2], from[3], from[4])),
        6 => Host::Any6,
        7 => Host::Loopback6,
        _ => return None,
    };
    Some(Endpoint { host, port: u16::from_be_bytes([from[5], from[6]]) })
}

impl Bound {
    /// Its name.
    pub fn name(self) -> Name {
        Meaning::Bound(self).encode()
    }
}

impl Meaning {
    /// As a name.
    pub fn encode(self) -> Name {
        let mut bytes = [0; LENGTH];
        match self {
            Meaning::Bound(bound) => {
                bytes[0] = BOUND;
                put(bound.endpoint, &mut bytes[1..8]);
                let flags = [bound.reuse_address, bound.reuse_port, bound.v6_only];
                bytes[8] = flags.iter().enumerate().map(|(bit, on)| u8::from(*on) << bit).sum();
                bytes[9..11].copy_from_slice(&bound.sibling.to_be_bytes());
            }
            Meaning::Connection { local, remote } => {
                bytes[0] = CONNECTION;
                put(local, &mut bytes[1..8]);
                put(remote, &mut bytes[8..15]);
            }
        }
        Name { bytes }
    }

    /// From a name; `None` if it is not one of ours.
    pub fn decode(bytes: &[u8]) -> Option<Meaning> {
        let bytes: &[u8; LENGTH] = bytes.try_into().ok()?;
        let first = get(&bytes[1..8])?;
        match bytes[0] {
            BOUND => Some(Meaning::Bound(Bound {
                endpoint: first,
                reuse_address: bytes[8] & 1 != 0,
                reuse_port: bytes[8] & 2 != 0,
                v6_only: bytes[8] & 4 != 0,
                sibling: u16::from_be_bytes([bytes[9], bytes[10]]),
            })),
            CONNECTION => Some(Meaning::Connection { local: first, remote: get(&bytes[8..15])? }),
            _ => None,
        }
    }

    /// The endpoint of the socket that has the name.
    pub fn local(self) -> Endpoint {
        match self {
            Meaning::Bound(bound) => bound.endpoint,
            Meaning::Connection { local, .. } => local,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn endpoint() -> impl Strategy<Value = Endpoint> {
        let host = prop_oneof![
            any::<u32>().prop_map(|ip| Host::Four(Ipv4Addr::from(ip))),
            Just(Host::Any6),
            Just(Host::Loopback6)
        ];
        (host, any::<u16>()).prop_map(|(host, port)| Endpoint { host, port })
    }

    proptest! {
        #[test]
        fn a_connection_comes_back(local in endpoint(), remote in endpoint()) {
            let meaning = Meaning::Connection { local, remote };
            prop_assert_eq!(Meaning::decode(meaning.encode().bytes()), Some(meaning));
        }

        #[test]
        fn a_bound_socket_comes_back(endpoint in endpoint(), flags in any::<[bool; 3]>(), sibling in any::<u16>()) {
            let [reuse_address, reuse_port, v6_only] = flags;
            let meaning = Meaning::Bound(Bound { endpoint, reuse_address, reuse_port, v6_only, sibling });
            prop_assert_eq!(Meaning::decode(meaning.encode().bytes()), Some(meaning));
        }

        #[test]
        fn any_bytes_decode_or_not(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Some(meaning) = Meaning::decode(&bytes) {
                prop_assert_eq!(Meaning::decode(meaning.encode().bytes()), Some(meaning));
            }
        }
    }
}
