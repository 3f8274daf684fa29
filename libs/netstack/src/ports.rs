//! Which ports are bound: an index over names that the kernel holds.
//!
//! The kernel is the truth, this is a view of it. Sockets close without anybody being told, so an entry may be stale; who
//! is about to refuse something because of an entry asks the kernel first (`alive`) and forgets it if it is gone.
//! A new server fills the index from the kernel's list.

use crate::address::{Endpoint, Host};
use crate::name::Bound;
use std::collections::HashMap;

/// A bound socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What its name says.
    pub bound: Bound,
    /// Whether it listens.
    pub listening: bool,
}

/// The first and the last ephemeral port (ip_local_port_range of ip(7)).
pub const EPHEMERAL: (u16, u16) = (32768, 60999);

/// The index.
#[derive(Debug)]
pub struct Ports {
    bound: HashMap<u16, Vec<Entry>>,
    next: [u16; 2],
    turn: usize,
}

/// Whether two bound sockets cover an address in common. Ports are not compared.
pub fn overlaps(one: &Bound, other: &Bound) -> bool {
    let covers = |any: &Bound, host: Host| match any.endpoint.host {
        Host::ANY4 => matches!(host, Host::Four(_)),
        Host::Any6 => !any.v6_only || !matches!(host, Host::Four(_)),
        exact => exact == host,
    };
    covers(one, other.endpoint.host) || covers(other, one.endpoint.host)
}

/// Whether the second keeps the first from being bound. See SO_REUSEADDR and SO_REUSEPORT in socket(7).
fn conflicts(new: &Bound, old: &Entry) -> bool {
    overlaps(new, &old.bound)
        && !(new.reuse_address && old.bound.reuse_address && !old.listening)
        && !(new.reuse_port && old.bound.reuse_port)
}

/// How well an entry fits a connection to this host: the more exact the higher, 0 for not at all.
fn fit(entry: &Entry, host: Host) -> u8 {
    match (entry.bound.endpoint.host, host) {
        (exact, host) if exact == host => 3,
        (Host::ANY4, Host::Four(_)) => 2,
        (Host::Any6, Host::Four(_)) if entry.bound.v6_only => 0,
        (Host::Any6, _) => 1,
        _ => 0,
    }
}

impl Ports {
    /// An empty index. `seed` spreads the first ephemeral ports, so that they are not the same in each run.
    pub fn new(seed: u16) -> Ports {
        let first = EPHEMERAL.0 + (seed % (EPHEMERAL.1 - EPHEMERAL.0)) / 2 * 2;
        Ports { bound: HashMap::new(), next: [first, first + 1], turn: 0 }
    }

    /// The next ephemeral port. As in the kernel, connections get even ports and bound sockets odd ones, so that they
    /// seldom meet.
    pub fn ephemeral(&mut self, for_bind: bool) -> u16 {
        let next = &mut self.next[usize::from(for_bind)];
        let port = *next;
        *next = if port >= EPHEMERAL.1 - 1 { EPHEMERAL.0 + u16::from(for_bind) } else { port + 2 };
        port
    }

    /// Whether anything was bound to the port, as far as is known.
    pub fn is_used(&self, port: u16) -> bool {
        self.bound.contains_key(&port)
    }

    /// Whether anybody listens on the port, as far as is known.
    pub fn is_listening(&self, port: u16) -> bool {
        self.bound.get(&port).is_some_and(|entries| entries.iter().any(|entry| entry.listening))
    }

    /// Finds what keeps this socket from being bound; with `listening`, from listening: then only listeners count.
    pub fn conflict(&mut self, new: &Bound, listening: bool, mut alive: impl FnMut(&Bound) -> bool) -> bool {
        let Some(entries) = self.bound.get_mut(&new.endpoint.port) else { return false };
        let mut found = false;
        entries.retain(|old| {
            let counts = !listening || (old.listening && old.bound != *new);
            if found || !counts || !conflicts(new, old) {
                return true;
            }
            found = alive(&old.bound);
            found
        });
        if entries.is_empty() {
            self.bound.remove(&new.endpoint.port);
        }
        found
    }

    /// Notes a socket that was bound.
    pub fn add(&mut self, bound: Bound, listening: bool) {
        let entries = self.bound.entry(bound.endpoint.port).or_default();
        match entries.iter_mut().find(|entry| entry.bound == bound) {
            Some(entry) => entry.listening = listening,
            None => entries.push(Entry { bound, listening }),
        }
    }

    /// Forgets one that is gone.
    pub fn remove(&mut self, bound: &Bound) {
        if let Some(entries) = self.bound.get_mut(&bound.endpoint.port) {
            entries.retain(|entry| entry.bound != *bound);
            if entries.is_empty() {
                self.bound.remove(&bound.endpoint.port);
            }
        }
    }

    /// The listeners that a connection to this endpoint may reach, best first. Those that share the endpoint by SO_REUSEPORT
    /// take turns at the head.
    pub fn listeners(&mut self, to: Endpoint, into: &mut Vec<Bound>) {
        into.clear();
        let Some(entries) = self.bound.get(&to.port) else { return };
        let mut fits: Vec<(u8, Bound)> = Vec::new();
        for entry in entries.iter().filter(|entry| entry.listening) {
            match fit(entry, to.host) {
                0 => {}
                fit => fits.push((fit, entry.bound)),
            }
        }
        fits.sort_by_key(|(fit, _)| std::cmp::Reverse(*fit));
        let best = fits.first().map_or(0, |(fit, _)| *fit);
        let group = fits.iter().filter(|(fit, _)| *fit == best).count();
        if group > 1 {
            self.turn = self.turn.wrapping_add(1);
            fits[..group].rotate_left(self.turn % group);
        }
        into.extend(fits.into_iter().map(|(_, bound)| bound));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bound(host: Host, port: u16) -> Bound {
        let endpoint = Endpoint { host, port };
        Bound { endpoint, reuse_address: false, reuse_port: false, v6_only: false, sibling: 0 }
    }

    fn four(d: u8) -> Host {
        Host::Four(std::net::Ipv4Addr::new(127, 0, 0, d))
    }

    #[test]
    fn wildcards_conflict_with_what_they_cover() {
        let only = Bound { v6_only: true, ..bound(Host::Any6, 80) };
        for (old, new, expected) in [
            (bound(Host::ANY4, 80), bound(four(1), 80), true),
            (bound(four(1), 80), bound(Host::ANY4, 80), true),
            (bound(four(1), 80), bound(four(2), 80), false),
            (bound(four(1), 80), bound(four(1), 81), false),
            (bound(Host::Any6, 80), bound(four(2), 80), true),
            (bound(Host::Any6, 80), bound(Host::ANY4, 80), true),
            (only, bound(Host::ANY4, 80), false),
            (only, bound(Host::Loopback6, 80), true),
            (bound(Host::Loopback6, 80), bound(Host::ANY4, 80), false),
        ] {
            let mut ports = Ports::new(0);
            ports.add(old, true);
            assert_eq!(ports.conflict(&new, false, |_| true), expected, "{old:?} then {new:?}");
            assert!(!ports.conflict(&new, false, |_| false), "what is gone keeps nobody out");
        }
    }

    #[test]
    fn reuse_needs_both_and_for_addresses_no_listener() {
        let reuse = Bound { reuse_address: true, ..bound(Host::ANY4, 80) };
        let mut ports = Ports::new(0);
        ports.add(reuse, false);
        assert!(!ports.conflict(&Bound { sibling: 1, ..reuse }, false, |_| true));
        assert!(ports.conflict(&bound(Host::ANY4, 80), false, |_| true));
        ports.add(reuse, true);
        assert!(ports.conflict(&Bound { sibling: 1, ..reuse }, false, |_| true));
        let group = Bound { reuse_port: true, ..bound(Host::ANY4, 81) };
        ports.add(group, true);
        assert!(!ports.conflict(&Bound { sibling: 1, ..group }, true, |_| true));
    }

    #[test]
    fn a_connection_reaches_the_best_listener_and_groups_take_turns() {
        let mut ports = Ports::new(0);
        let mut found = Vec::new();
        let to = |host| Endpoint { host, port: 80 };
        ports.add(bound(Host::Any6, 80), true);
        ports.listeners(to(four(1)), &mut found);
        assert_eq!(found[0].endpoint.host, Host::Any6);
        ports.add(bound(Host::ANY4, 80), true);
        ports.add(bound(four(1), 80), true);
        ports.add(bound(four(2), 80), false);
        ports.listeners(to(four(1)), &mut found);
        assert_eq!(found.iter().map(|b| b.endpoint.host).collect::<Vec<_>>(), [four(1), Host::ANY4, Host::Any6]);
        ports.listeners(to(four(2)), &mut found);
        assert_eq!(found[0].endpoint.host, Host::ANY4);

        let group: Vec<Bound> =
            (0..3).map(|sibling| Bound { reuse_port: true, sibling, ..bound(Host::ANY4, 90) }).collect();
        group.iter().for_each(|member| ports.add(*member, true));
        let mut hits = [0; 3];
        for _ in 0..30 {
            ports.listeners(Endpoint { host: four(1), port: 90 }, &mut found);
            hits[usize::from(found[0].sibling)] += 1;
        }
        assert_eq!(hits, [10, 10, 10]);
    }

    #[test]
    fn ephemeral_ports_stay_in_range_and_apart() {
        let mut ports = Ports::new(60000);
        for _ in 0..40000 {
            let (even, odd) = (ports.ephemeral(false), ports.ephemeral(true));
            assert!((EPHEMERAL.0..=EPHEMERAL.1).contains(&even) && even % 2 == 0);
            assert!((EPHEMERAL.0..=EPHEMERAL.1).contains(&odd) && odd % 2 == 1);
        }
    }
}
