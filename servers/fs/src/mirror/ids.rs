//! Whom the mirror says a file belongs to: host ids in the environment's numbers, and what the server's user may do.

use std::io;

use hurdle_sys::ns::Extent;
use rustix::process::{getegid, geteuid, getgroups};

/// An id that no map holds: the kernel shows it as nobody, and lets nobody be it.
const UNMAPPED: u32 = u32::MAX;
/// Linux's own number for those who have none.
const NOBODY: u32 = 65534;

/// Host ids as the environment should see them.
///
/// Where the user is root inside, his own files *and* host root's are root's: so that env root may change (a copy of) what
/// host root owns. Any other host id is shown by the environment's map, else as the same number if that is mapped inside, else
/// as nobody. A host group that the user is a member of is shown as his own group, so that what it may do inside is what he
/// may do outside.
#[derive(Debug, Clone)]
pub struct Ids {
    users: Vec<Extent>,
    groups: Vec<Extent>,
    uid: u32,
    gid: u32,
    member: Vec<u32>,
}

impl Ids {
    /// From an environment's `uid_map` and `gid_map` as the caller sees them, and the caller's own ids (getgroups(2)).
    pub fn new(users: Vec<Extent>, groups: Vec<Extent>) -> io::Result<Ids> {
        let member = getgroups()?.into_iter().map(|gid| gid.as_raw()).collect();
        Ok(Ids { users, groups, uid: geteuid().as_raw(), gid: getegid().as_raw(), member })
    }

    /// Whether the user is root inside.
    pub(super) fn root_inside(&self) -> bool {
        mapped(&self.users, self.uid) == Some(0)
    }

    /// The owner of what host user `uid` owns.
    pub(super) fn user(&self, uid: u32) -> u32 {
        inside(&self.users, self.root_inside(), uid)
    }

    /// The group of what host group `gid` has.
    pub(super) fn group(&self, gid: u32) -> u32 {
        if gid != self.gid && self.member.contains(&gid) && mapped(&self.groups, gid).is_none() {
            return inside(&self.groups, self.root_inside(), self.gid);
        }
        inside(&self.groups, self.root_inside(), gid)
    }

    /// Whether the server's own process is granted all of `bits` (4 read, 2 write, 1 execute) by owner, group and mode
    /// alone, as path_resolution(7) says: no ACL, no capability.
    pub(super) fn granted(&self, uid: u32, gid: u32, mode: u32, bits: u32) -> bool {
        let class = if uid == self.uid {
            mode >> 6
        } else if gid == self.gid || self.member.contains(&gid) {
            mode >> 3
        } else {
            mode
        };
        class & bits == bits
    }
}

fn mapped(extents: &[Extent], outside: u32) -> Option<u32> {
    extents.iter().find_map(|e| {
        let offset = outside.checked_sub(e.outside).filter(|offset| *offset < e.count)?;
        Some(e.inside + offset)
    })
}

/// `root`: whether host root's files are those of root inside; else they have their number, as any others do.
fn inside(extents: &[Extent], root: bool, outside: u32) -> u32 {
    let exists = |id: u32| extents.iter().any(|e| id.checked_sub(e.inside).is_some_and(|offset| offset < e.count));
    match mapped(extents, outside) {
        Some(id) => id,
        None if exists(outside) => outside,
        // What nobody owns can't be copied up (EOVERFLOW), so where only one id exists all is root's.
        None if exists(NOBODY) => NOBODY,
        None if root => 0,
        None => UNMAPPED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(users: &[(u32, u32, u32)], groups: &[(u32, u32, u32)]) -> Ids {
        let extents = |maps: &[(u32, u32, u32)]| {
            maps.iter().map(|&(inside, outside, count)| Extent { inside, outside, count }).collect()
        };
        Ids { users: extents(users), groups: extents(groups), uid: 1001, gid: 1001, member: vec![1001, 27] }
    }

    #[test]
    fn root_inside_owns_what_host_root_owns() {
        let range = [(0, 1001, 1), (1, 100000, 65536)];
        let ids = ids(&range, &range);
        assert_eq!((ids.user(1001), ids.user(0)), (0, 0));
        // A system user is itself; so is one that the range maps; the user's own range is what it is inside.
        assert_eq!((ids.user(33), ids.user(65534), ids.user(100032)), (33, 65534, 33));
        assert_eq!(ids.user(700000), 65534);
        // A group that he is in lets him in; another one doesn't.
        assert_eq!((ids.group(27), ids.group(1001), ids.group(0), ids.group(42)), (0, 0, 0, 42));
    }

    #[test]
    fn one_id_is_all_there_is() {
        let root = ids(&[(0, 1001, 1)], &[(0, 1001, 1)]);
        assert_eq!((root.user(1001), root.user(0), root.user(33)), (0, 0, 0));
        let same = ids(&[(1001, 1001, 1)], &[(1001, 1001, 1)]);
        assert_eq!((same.user(1001), same.user(0), same.user(33)), (1001, UNMAPPED, UNMAPPED));
        assert_eq!((same.group(27), same.group(0)), (1001, UNMAPPED));
        let around = [(0, 100000, 1001), (1001, 1001, 1), (1002, 101001, 64535)];
        let around = self::ids(&around, &around);
        assert_eq!((around.user(1001), around.user(0), around.user(33), around.group(27)), (1001, 0, 33, 1001));
        assert!(!same.root_inside() && root.root_inside());
    }

    #[test]
    fn the_first_class_that_fits_decides() {
        let ids = ids(&[(0, 1001, 1)], &[(0, 1001, 1)]);
        assert!(ids.granted(1001, 0, 0o400, 4) && !ids.granted(1001, 0, 0o077, 4));
        assert!(ids.granted(0, 27, 0o640, 4) && !ids.granted(0, 27, 0o604, 4));
        assert!(ids.granted(0, 42, 0o755, 5) && !ids.granted(0, 42, 0o754, 5));
    }
}
