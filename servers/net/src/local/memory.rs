//! What sockets can't say by themselves, noted in a file that outlives the server: options that their marks have no room for, and where
//! a bound socket connected to.
//!
//! It is a log: each change is one write at its end, and the next server reads it all. When it gets long it is written anew, without
//! sockets that are gone. A kill of the server reaches no worker within a step, so a record is whole or not there.

use super::state::Extra;
use hurdle_netstack::address::Endpoint;
use hurdle_netstack::name::{Meaning, Name};
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;

/// Options by socket cookie.
pub(super) type Extras = HashMap<u64, Vec<Extra>>;
/// Where the holder of a bound name connected to.
pub(super) type Destinations = HashMap<Name, Endpoint>;

const OPTION: u8 = 1;
const DESTINATION: u8 = 2;
const FORGOTTEN: u8 = 3;
/// Of a record: its kind, and the length of what follows.
const HEADER: usize = 3;
/// So long it gets before it is written anew, if that makes it shorter.
const LONG: u64 = 256 << 10;

/// The log.
#[derive(Debug)]
pub(super) struct Memory {
    file: File,
    end: u64,
    /// When to look again for what can go.
    limit: u64,
}

impl Memory {
    /// A new one, or that of the server before.
    pub(super) fn open(file: Option<OwnedFd>) -> io::Result<Memory> {
        let file = file.map_or_else(|| hurdle_sys::memfd::create(c"hurdle-sockets"), Ok)?;
        let file = File::from(file);
        let end = file.metadata()?.len();
        Ok(Memory { file, end, limit: LONG.max(2 * end) })
    }

    /// For the server after.
    pub(super) fn file(&self) -> io::Result<OwnedFd> {
        Ok(self.file.try_clone()?.into())
    }

    /// What servers have noted. What is no record ends it.
    pub(super) fn recall(&mut self) -> io::Result<(Extras, Destinations)> {
        let (mut extras, mut destinations) = (Extras::new(), Destinations::new());
        let mut bytes = Vec::new();
        self.file.rewind()?;
        self.file.read_to_end(&mut bytes)?;
        let mut rest = bytes.as_slice();
        while let Some((kind, body, next)) = record(rest) {
            rest = next;
            match kind {
                OPTION => {
                    let Some((cookie, option, value)) = option(body) else { break };
                    set(extras.entry(cookie).or_default(), option, value.to_vec());
                }
                DESTINATION => {
                    let Some((name, to)) = destination(body) else { break };
                    destinations.insert(name, to);
                }
                FORGOTTEN => {
                    let Some(Meaning::Bound(bound)) = Meaning::decode(body) else { break };
                    destinations.remove(&bound.name());
                }
                _ => break,
            }
        }
        Ok((extras, destinations))
    }

    /// A socket has this option from now on.
    pub(super) fn note_option(&mut self, cookie: u64, option: (i32, i32), value: &[u8]) -> io::Result<()> {
        let mut body = cookie.to_ne_bytes().to_vec();
        body.extend([option.0.to_ne_bytes(), option.1.to_ne_bytes()].concat());
        body.extend(value);
        self.append(OPTION, &body)
    }

    /// Who holds this name connected there.
    pub(super) fn note_destination(&mut self, name: &Name, to: Endpoint) -> io::Result<()> {
        self.append(
            DESTINATION,
            &[name.bytes(), Meaning::Connection { local: to, remote: to }.encode().bytes()].concat(),
        )
    }

    /// Somebody else holds this name.
    pub(super) fn forget(&mut self, name: &Name) -> io::Result<()> {
        self.append(FORGOTTEN, name.bytes())
    }

    /// Whether it is so long that it should be written anew.
    pub(super) fn is_long(&self) -> bool {
        self.end > self.limit
    }

    /// Writes it anew, and lets go of sockets that are not among `alive`.
    pub(super) fn sweep(
        &mut self,
        extras: &mut Extras,
        destinations: &mut Destinations,
        alive: (&HashSet<u64>, &HashSet<Name>),
    ) -> io::Result<()> {
        extras.retain(|cookie, _| alive.0.contains(cookie));
        destinations.retain(|name, _| alive.1.contains(name));
        self.file.set_len(0)?;
        self.end = 0;
        for (cookie, all) in extras.iter() {
            all.iter().try_for_each(|(option, value)| self.note_option(*cookie, *option, value))?;
        }
        destinations.iter().try_for_each(|(name, to)| self.note_destination(name, *to))?;
        self.limit = LONG.max(2 * self.end);
        Ok(())
    }

    fn append(&mut self, kind: u8, body: &[u8]) -> io::Result<()> {
        let mut bytes = vec![kind];
        bytes.extend(u16::try_from(body.len()).map_err(|_| io::ErrorKind::InvalidInput)?.to_ne_bytes());
        bytes.extend(body);
        self.file.write_all_at(&bytes, self.end)?;
        self.end += bytes.len() as u64;
        Ok(())
    }
}

/// Gives a socket's option a value.
pub(super) fn set(extras: &mut Vec<Extra>, option: (i32, i32), value: Vec<u8>) {
    match extras.iter_mut().find(|(known, _)| *known == option) {
        Some((_, old)) => *old = value,
        None => extras.push((option, value)),
    }
}

fn record(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let [kind, low, high] = *bytes.first_chunk::<HEADER>()?;
    let end = HEADER + usize::from(u16::from_ne_bytes([low, high]));
    Some((kind, bytes.get(HEADER..end)?, &bytes[end..]))
}

fn option(body: &[u8]) -> Option<(u64, (i32, i32), &[u8])> {
    let (cookie, rest) = body.split_first_chunk::<8>()?;
    let (level, rest) = rest.split_first_chunk::<4>()?;
    let (name, value) = rest.split_first_chunk::<4>()?;
    Some((u64::from_ne_bytes(*cookie), (i32::from_ne_bytes(*level), i32::from_ne_bytes(*name)), value))
}

fn destination(body: &[u8]) -> Option<(Name, Endpoint)> {
    let (name, to) = body.split_at_checked(body.len() / 2)?;
    match (Meaning::decode(name)?, Meaning::decode(to)?) {
        (Meaning::Bound(bound), Meaning::Connection { remote, .. }) => Some((bound.name(), remote)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hurdle_netstack::address::{Family, Host};
    use hurdle_netstack::name::Bound;

    fn bound(port: u16) -> Name {
        let endpoint = Endpoint { port, ..Endpoint::unbound(Family::V4) };
        Bound { endpoint, reuse_address: false, reuse_port: false, v6_only: false, sibling: 0 }.name()
    }

    #[test]
    fn the_next_one_knows_what_was_noted() {
        let mut memory = Memory::open(None).unwrap();
        let to = Endpoint { host: Host::LOOPBACK4, port: 80 };
        memory.note_option(7, (6, 18), b"old").unwrap();
        memory.note_option(7, (6, 18), b"new").unwrap();
        memory.note_option(8, (0, 2), b"other").unwrap();
        memory.note_destination(&bound(1), to).unwrap();
        memory.note_destination(&bound(2), to).unwrap();
        memory.forget(&bound(1)).unwrap();
        let mut next = Memory::open(Some(memory.file().unwrap())).unwrap();
        let (mut extras, mut destinations) = next.recall().unwrap();
        assert_eq!(extras[&7], [((6, 18), b"new".to_vec())]);
        assert_eq!((extras.len(), destinations.len(), destinations[&bound(2)]), (2, 1, to));
        // What is gone goes; the rest stays.
        let before = next.end;
        next.sweep(&mut extras, &mut destinations, (&HashSet::from([8]), &HashSet::new())).unwrap();
        assert!(next.end < before);
        let (extras, destinations) = Memory::open(Some(next.file().unwrap())).unwrap().recall().unwrap();
        assert_eq!((extras.len(), destinations.len()), (1, 0));
        // What is no record is no panic.
        memory.file.write_all_at(&[1, 255, 255, 0], 0).unwrap();
        assert!(memory.recall().unwrap().0.is_empty());
    }
}
