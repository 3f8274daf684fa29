//! The nodes that the kernel knows: a number for each (parent, name), in memory that outlives the server.
//!
//! The kernel holds a number until it says *forget*, also across the death of the server, so all that a number means lies in
//! a memory file: one record each, which the number is the place of. What only makes finding quick (an index by name, lists
//! of free records) is made anew by whoever maps the file next. A step that a death cuts short leaves at worst a record
//! that is counted once too often, and so is never used again: never one that is freed too early.
//!
//! A record is in units of 32 bytes, and never changes its length:
//! ```text
//! word 0   references: what the kernel counts, and one for each child; 0: the record is free
//! word 1   parent (32 bits), generation (32 bits)
//! word 2   length of the name, units, kind, flags (8 bits each), hash (32 bits)
//! word 3   which file it was (32 bits), in what version (32 bits)
//! word 4…  the name
//! ```
//! Unit 0 is the head: a mark with the layout's version, the first unit never used, the negotiated options. Unit 1 is `/`.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use hashbrown::HashTable;
use hurdle_sys::shared::SharedWords;

/// A node's number; 1 is `/`.
pub(super) type Id = u32;

/// The root's number, which the kernel takes for granted.
pub(super) const ROOT: Id = 1;

/// `hurdle` and the version of this layout.
const MARK: u64 = u64::from_be_bytes(*b"hurdle\0\x01");
const UNIT: usize = 4;
/// Units of the longest record: four words, and a name of 255 bytes.
const LONGEST: usize = 9;
/// Not in the index: another file has the name now.
const DETACHED: u8 = 0x80;

/// What a node is: its kind (the `S_IFMT` bits of its mode, shifted down), flags of the caller's, and which file in which
/// version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) file: u32,
    pub(super) version: u32,
}

/// A node as it is looked up by number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) parent: Id,
    /// Tells apart those that had this number one after the other.
    pub(super) generation: u32,
    pub(super) name: Vec<u8>,
    pub(super) facts: Facts,
}

/// All nodes. Callers hold a lock around it.
#[derive(Debug)]
pub(super) struct Table {
    words: SharedWords,
    index: HashTable<Id>,
    free: [Vec<Id>; LONGEST + 1],
    adopted: bool,
}

impl Table {
    /// Of a memory file: an empty one, where `/` gets these flags, or one that a dead server left behind. InvalidData: of
    /// another version.
    pub(super) fn new(words: SharedWords, root: Facts) -> io::Result<Table> {
        let mut table = Table { words, index: HashTable::new(), free: Default::default(), adopted: false };
        match table.words[0].load(Ordering::Acquire) {
            0 => {
                table.write(ROOT, 0, 1, 0, &[], root);
                table.words[1].store(2, Ordering::Release);
                table.words[UNIT].store(1, Ordering::Release);
                table.words[0].store(MARK, Ordering::Release);
            }
            MARK => table.adopt(),
            _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "the nodes were left by another version")),
        }
        Ok(table)
    }

    /// Whether there was one before.
    pub(super) fn adopted(&self) -> bool {
        self.adopted
    }

    /// The options that were negotiated with the kernel, once they were.
    #[cfg(test)]
    pub(super) fn negotiated(&self) -> u64 {
        self.words[2].load(Ordering::Acquire)
    }

    /// Keeps them for a successor.
    pub(super) fn set_negotiated(&mut self, options: u64) {
        self.words[2].store(options, Ordering::Release);
    }

    /// How many nodes there are besides `/`.
    pub(super) fn len(&self) -> usize {
        self.index.len()
    }

    /// Counts one more reference of the kernel to the node of `name` in `parent`, which is made if there is none, or if what
    /// there is was another file. Of a known one the flags in `stays` stay. Yields its number and generation. `None`: no memory is left for it.
    pub(super) fn refer(&mut self, parent: Id, name: &[u8], facts: Facts, stays: u8) -> Option<(Id, u32)> {
        if let Some(id) = self.find(parent, name) {
            let old = self.facts(id);
            if (old.kind, old.file) == (facts.kind, facts.file) {
                self.word(id, 0).fetch_add(1, Ordering::AcqRel);
                self.set_facts(id, Facts { flags: facts.flags & !stays | old.flags & stays, ..facts });
                return Some((id, self.generation(id)));
            }
            self.detach(id);
        }
        let units = (4 + name.len().div_ceil(8)).div_ceil(UNIT);
        let id = match self.free.get_mut(units)?.pop() {
            Some(id) => id,
            None => {
                let id = self.words[1].load(Ordering::Acquire);
                if (id as usize + units) * UNIT > self.words.len() {
                    return None;
                }
                let first = id as usize * UNIT;
                // Its length must be there when a successor comes upon it.
                self.words[first + 2].store((units as u64) << 8, Ordering::Release);
                self.words[1].store(id + units as u64, Ordering::Release);
                u32::try_from(id).ok()?
            }
        };
        // In this order: a death in between leaves one reference too many, or a free record.
        self.word(parent, 0).fetch_add(1, Ordering::AcqRel);
        let hash = hash(parent, name);
        let generation = self.generation(id).wrapping_add(1);
        self.write(id, parent, units, hash, name, facts);
        self.word(id, 1).store(u64::from(parent) | u64::from(generation) << 32, Ordering::Release);
        self.word(id, 0).store(1, Ordering::Release);
        let words = &self.words;
        self.index.insert_unique(hash.into(), id, |other| stored_hash(words, *other).into());
        Some((id, generation))
    }

    /// Takes `count` references of the kernel away; a node without any is gone, and its number free: `freed` hears of it.
    pub(super) fn forget(&mut self, id: Id, count: u64, mut freed: impl FnMut(Id)) {
        let (mut id, mut count) = (id, count);
        while id != ROOT && self.exists(id) {
            let left = self.word(id, 0).load(Ordering::Acquire).saturating_sub(count);
            let parent = self.parent(id);
            if left == 0 && self.facts_word(id) & u64::from(DETACHED) << 24 == 0 {
                self.unindex(id);
            }
            self.word(id, 0).store(left, Ordering::Release);
            if left > 0 {
                return;
            }
            let units = self.units(id);
            self.free[units].push(id);
            freed(id);
            (id, count) = (parent, 1);
        }
    }

    /// The node with this number. `None`: the kernel was never given it, or has forgotten it.
    pub(super) fn get(&self, id: Id) -> Option<Node> {
        self.exists(id).then(|| Node {
            parent: self.parent(id),
            generation: self.generation(id),
            name: self.name(id),
            facts: self.facts(id),
        })
    }

    /// Whether a node that was looked up is still the one with this number.
    pub(super) fn is(&self, id: Id, generation: u32) -> bool {
        self.exists(id) && self.generation(id) == generation
    }

    /// Whether `parent` has a node of this name that is known, and its number.
    pub(super) fn find(&self, parent: Id, name: &[u8]) -> Option<Id> {
        let same = |id: &Id| self.parent(*id) == parent && self.is_named(*id, name);
        self.index.find(hash(parent, name).into(), same).copied()
    }

    /// Notes the version of its file that the kernel was told of last. `false`: it was told another one before.
    pub(super) fn told(&mut self, id: Id, facts: Facts) -> bool {
        let same = self.facts(id).version == facts.version;
        if !same {
            self.word(id, 3).store(u64::from(facts.file) | u64::from(facts.version) << 32, Ordering::Release);
        }
        same
    }

    /// Takes the name away from a node; the kernel may still hold its number.
    fn detach(&mut self, id: Id) {
        self.unindex(id);
        let word = self.facts_word(id);
        self.word(id, 2).store(word | u64::from(DETACHED) << 24, Ordering::Release);
    }

    fn unindex(&mut self, id: Id) {
        let hash = stored_hash(&self.words, id);
        if let Ok(entry) = self.index.find_entry(hash.into(), |other| *other == id) {
            entry.remove();
        }
    }

    /// Finds what the one before left.
    fn adopt(&mut self) {
        self.adopted = true;
        let end = self.words[1].load(Ordering::Acquire) as u32;
        let mut id = 2;
        while id < end {
            let units = self.units(id);
            if !(1..=LONGEST).contains(&units) {
                // Nothing writes that; what follows can't be told from names.
                return;
            }
            if self.word(id, 0).load(Ordering::Acquire) == 0 {
                self.free[units].push(id);
            } else if self.facts_word(id) & u64::from(DETACHED) << 24 == 0 {
                let words = &self.words;
                let hash = stored_hash(words, id);
                self.index.insert_unique(hash.into(), id, |other| stored_hash(words, *other).into());
            }
            id += units as u32;
        }
    }

    fn write(&self, id: Id, parent: Id, units: usize, hash: u32, name: &[u8], facts: Facts) {
        for (at, bytes) in name.chunks(8).enumerate() {
            let mut word = [0; 8];
            word[..bytes.len()].copy_from_slice(bytes);
            self.word(id, 4 + at).store(u64::from_le_bytes(word), Ordering::Relaxed);
        }
        let word = name.len() as u64 | (units as u64) << 8 | u64::from(hash) << 32;
        self.word(id, 2).store(word, Ordering::Relaxed);
        self.set_facts(id, facts);
        self.word(id, 1).store(u64::from(parent), Ordering::Relaxed);
    }

    fn set_facts(&self, id: Id, facts: Facts) {
        let word = self.facts_word(id) & 0xffff_ffff_0000_ffff;
        let word = word | u64::from(facts.kind) << 16 | u64::from(facts.flags & !DETACHED) << 24;
        self.word(id, 2).store(word, Ordering::Release);
        self.word(id, 3).store(u64::from(facts.file) | u64::from(facts.version) << 32, Ordering::Release);
    }

    fn facts(&self, id: Id) -> Facts {
        let (word, which) = (self.facts_word(id), self.word(id, 3).load(Ordering::Acquire));
        Facts {
            kind: (word >> 16) as u8,
            flags: (word >> 24) as u8 & !DETACHED,
            file: which as u32,
            version: (which >> 32) as u32,
        }
    }

    fn exists(&self, id: Id) -> bool {
        let end = self.words[1].load(Ordering::Acquire);
        id >= ROOT && u64::from(id) < end && self.word(id, 0).load(Ordering::Acquire) > 0
    }

    fn name(&self, id: Id) -> Vec<u8> {
        let len = self.facts_word(id) as u8 as usize;
        let words = (0..len.div_ceil(8)).flat_map(|at| self.word(id, 4 + at).load(Ordering::Relaxed).to_le_bytes());
        words.take(len).collect()
    }

    fn is_named(&self, id: Id, name: &[u8]) -> bool {
        self.facts_word(id) as u8 as usize == name.len()
            && name
                .chunks(8)
                .enumerate()
                .all(|(at, bytes)| self.word(id, 4 + at).load(Ordering::Relaxed).to_le_bytes()[..bytes.len()] == *bytes)
    }

    fn word(&self, id: Id, at: usize) -> &AtomicU64 {
        &self.words[id as usize * UNIT + at]
    }

    fn facts_word(&self, id: Id) -> u64 {
        self.word(id, 2).load(Ordering::Acquire)
    }

    fn units(&self, id: Id) -> usize {
        (self.facts_word(id) >> 8) as u8 as usize
    }

    fn parent(&self, id: Id) -> Id {
        self.word(id, 1).load(Ordering::Acquire) as u32
    }

    fn generation(&self, id: Id) -> u32 {
        (self.word(id, 1).load(Ordering::Acquire) >> 32) as u32
    }
}

fn stored_hash(words: &SharedWords, id: Id) -> u32 {
    (words[id as usize * UNIT + 2].load(Ordering::Acquire) >> 32) as u32
}

/// Names come from the host's files, not from whoever asks: no key is needed.
fn hash(parent: Id, name: &[u8]) -> u32 {
    const PRIME: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut hash = u64::from(parent).wrapping_mul(PRIME);
    for bytes in name.chunks(8) {
        let mut word = [0; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        hash = (hash.rotate_left(23) ^ u64::from_le_bytes(word)).wrapping_mul(PRIME);
    }
    (hash >> 32) as u32 ^ hash as u32
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const DIRECTORY: Facts = Facts { kind: 4, flags: 3, file: 1, version: 1 };

    fn open(file: &std::os::fd::OwnedFd) -> Table {
        Table::new(SharedWords::map(file, 1 << 16).unwrap(), DIRECTORY).unwrap()
    }

    fn memory() -> std::os::fd::OwnedFd {
        hurdle_sys::memfd::create(c"test").unwrap()
    }

    #[test]
    fn a_number_lasts_until_it_is_forgotten_as_often_as_it_was_given() {
        let mut table = open(&memory());
        let facts = Facts { kind: 8, flags: 0, file: 7, version: 1 };
        let (id, generation) = table.refer(ROOT, b"name", facts, 0).unwrap();
        assert_eq!(table.refer(ROOT, b"name", Facts { version: 2, ..facts }, 0), Some((id, generation)));
        let node = table.get(id).unwrap();
        assert_eq!((node.parent, node.name.as_slice(), node.facts.version), (ROOT, b"name".as_slice(), 2));
        let mut freed = Vec::new();
        table.forget(id, 1, |id| freed.push(id));
        assert!(table.get(id).is_some() && freed.is_empty());
        table.forget(id, 1, |id| freed.push(id));
        assert_eq!((table.get(id), table.find(ROOT, b"name"), freed), (None, None, vec![id]));
        // The number comes back for another file, and can be told from the one before.
        let again = table.refer(ROOT, b"other name", facts, 0).unwrap();
        assert_eq!((again.0, again.1), (id, generation + 1));
        assert!(!table.is(id, generation));
    }

    #[test]
    fn flags_stay_as_they_were_told() {
        let mut table = open(&memory());
        for (flags, later, then) in [(5, 3, 7), (3, 5, 1)] {
            let facts = Facts { flags, ..DIRECTORY };
            let (id, _) = table.refer(ROOT, b"name", facts, 4).unwrap();
            table.refer(ROOT, b"name", Facts { flags: later, ..facts }, 4).unwrap();
            assert_eq!(table.get(id).unwrap().facts.flags, then);
            table.forget(id, 2, |_| ());
        }
    }

    #[test]
    fn another_file_of_the_same_name_is_another_node() {
        let mut table = open(&memory());
        let facts = Facts { kind: 8, flags: 0, file: 7, version: 1 };
        let (old, _) = table.refer(ROOT, b"name", facts, 0).unwrap();
        let (new, _) = table.refer(ROOT, b"name", Facts { file: 8, ..facts }, 0).unwrap();
        assert_ne!(old, new);
        assert_eq!(table.get(old).unwrap().facts.file, 7);
        table.forget(old, 1, |_| ());
        assert_eq!((table.get(old), table.find(ROOT, b"name")), (None, Some(new)));
    }

    #[test]
    fn a_parent_lasts_as_long_as_its_children() {
        let mut table = open(&memory());
        let (parent, _) = table.refer(ROOT, b"parent", DIRECTORY, 0).unwrap();
        let (child, _) = table.refer(parent, b"child", DIRECTORY, 0).unwrap();
        table.forget(parent, 1, |_| ());
        assert!(table.get(parent).is_some());
        let mut freed = Vec::new();
        table.forget(child, 1, |id| freed.push(id));
        assert_eq!(freed, [child, parent]);
        // What the kernel never had is no harm.
        table.forget(child, 1, |_| panic!("freed twice"));
        table.forget(12345, 1, |_| panic!("never was"));
        assert_eq!(table.get(0), None);
    }

    #[test]
    fn a_full_table_refuses_and_lives_on() {
        let file = memory();
        let mut table = Table::new(SharedWords::map(&file, 64).unwrap(), DIRECTORY).unwrap();
        let names: Vec<String> = (0..100).map(|n| n.to_string()).collect();
        let given: Vec<_> = names.iter().map_while(|name| table.refer(ROOT, name.as_bytes(), DIRECTORY, 0)).collect();
        assert_eq!(given.len(), (64 / 4 - 2) / 2);
        table.forget(given[0].0, 1, |_| ());
        assert!(table.refer(ROOT, b"new", DIRECTORY, 0).is_some());
        assert_eq!(table.refer(ROOT, b"one more", DIRECTORY, 0), None);
    }

    #[test]
    fn a_successor_finds_all_there_was() {
        let file = memory();
        let mut table = open(&file);
        let mut want: BTreeMap<(Id, Vec<u8>), (Id, u64)> = BTreeMap::new();
        let mut random = 1u64;
        for step in 0..5000u32 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let name = vec![b'a' + (random % 20) as u8; 1 + (random >> 8) as usize % 255];
            let parents: Vec<Id> = want.values().map(|(id, _)| *id).chain([ROOT]).collect();
            let parent = parents[(random >> 20) as usize % parents.len().min(30)];
            if random % 5 < 3 {
                let Some((id, _)) = table.refer(parent, &name, DIRECTORY, 0) else { continue };
                let (known, count) = want.entry((parent, name)).or_insert((id, 0));
                assert_eq!(*known, id);
                *count += 1;
            } else if let Some((key, (id, count))) = want.iter().map(|(key, node)| (key.clone(), *node)).min() {
                // Only one without children, as the kernel does.
                if want.keys().all(|(parent, _)| *parent != id) {
                    table.forget(id, count, |_| ());
                    want.remove(&key);
                }
            }
            if step % 500 == 0 {
                table.set_negotiated(step.into());
                drop(table);
                table = open(&file);
                assert_eq!(table.negotiated(), u64::from(step));
            }
            assert_eq!(table.len(), want.len());
        }
        for ((parent, name), (id, _)) in &want {
            assert_eq!(table.find(*parent, name), Some(*id));
            let node = table.get(*id).unwrap();
            assert_eq!((node.parent, &node.name), (*parent, name));
        }
    }

    #[test]
    fn another_layout_is_refused() {
        let file = memory();
        SharedWords::map(&file, 1 << 16).unwrap()[0].store(MARK + 1, Ordering::Release);
        let error = Table::new(SharedWords::map(&file, 1 << 16).unwrap(), DIRECTORY).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
