//! Whose ids are whose: what an id of an upper directory, as the host has it, is inside the environment and on the host.
//!
//! Three numbers may name one owner: *outside*, the number that the host's kernel keeps in the upper directory; *inside*, what
//! the environment's programs see there; and *host*, the owner that a file has, or is to have, in the host's own tree. As root
//! all three agree. In the layer of a user without privileges *inside* and *outside* are joined by the extents of his user
//! namespace, and *inside* and *host* by the rule of the mirror that showed him the host's files.

use serde::{Deserialize, Serialize};

/// One line of an id map (user_namespaces(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// First id inside.
    pub inside: u32,
    /// First id outside.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

impl From<hurdle_sys::ns::Extent> for Extent {
    fn from(e: hurdle_sys::ns::Extent) -> Extent {
        Extent { inside: e.inside, outside: e.outside, count: e.count }
    }
}

impl From<Extent> for hurdle_sys::ns::Extent {
    fn from(e: Extent) -> hurdle_sys::ns::Extent {
        hurdle_sys::ns::Extent { inside: e.inside, outside: e.outside, count: e.count }
    }
}

/// User ids or group ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// `uid`
    Users,
    /// `gid`
    Groups,
}

/// The ids of the environment that a layer belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ids {
    /// Its user ids; no extent at all: as outside.
    pub users: Vec<Extent>,
    /// Its group ids; no extent at all: as outside.
    pub groups: Vec<Extent>,
    /// Whether the host's files were shown by a mirror, which makes host root's files those of root inside, and keeps its
    /// marks in `user.overlay.*`; else the kernel's overlay stood on the host's files, and its marks are `trusted.overlay.*`.
    pub mirrored: bool,
}

impl Ids {
    /// Every id is itself: a layer of root.
    pub fn same() -> Ids {
        Ids { users: Vec::new(), groups: Vec::new(), mirrored: false }
    }

    fn extents(&self, which: Which) -> &[Extent] {
        match which {
            Which::Users => &self.users,
            Which::Groups => &self.groups,
        }
    }

    /// What the environment calls the owner that the host's kernel calls `outside`; `None`: it has no number for it.
    pub fn inside(&self, which: Which, outside: u32) -> Option<u32> {
        let all = self.extents(which);
        let one = |e: &Extent| outside.checked_sub(e.outside).filter(|n| *n < e.count).map(|n| e.inside + n);
        if all.is_empty() { Some(outside) } else { all.iter().find_map(one) }
    }

    /// The other way: what the host's kernel calls the environment's `inside`.
    pub fn outside(&self, which: Which, inside: u32) -> Option<u32> {
        let all = self.extents(which);
        let one = |e: &Extent| inside.checked_sub(e.inside).filter(|n| *n < e.count).map(|n| e.outside + n);
        if all.is_empty() { Some(inside) } else { all.iter().find_map(one) }
    }

    /// Whose layer it is, by the host's number: the one id that is mapped alone.
    pub fn own(&self, which: Which) -> Option<u32> {
        self.extents(which).iter().find(|e| e.count == 1).map(|e| e.outside)
    }

    /// How the environment saw a file of the host that `host` owns; `None`: as nobody's. `member`: the host's groups that the
    /// layer's owner is a member of.
    pub fn shown(&self, which: Which, host: u32, member: &[u32]) -> Option<u32> {
        let mapped = self.inside(which, host);
        if !self.mirrored || mapped.is_some() {
            return mapped;
        }
        let own = self.own(which).and_then(|own| self.inside(which, own));
        if which == Which::Groups && member.contains(&host) {
            return own;
        }
        let exists = |id| self.outside(which, id).is_some();
        match host {
            _ if exists(host) => Some(host),
            _ if exists(NOBODY) => Some(NOBODY),
            // Where only one id exists, all is root's.
            _ if own == Some(0) => Some(0),
            _ => None,
        }
    }

    /// The owner on the host that a new file of the environment's `inside` is meant to have.
    pub fn meant(&self, which: Which, inside: u32) -> Option<u32> {
        let outside = self.outside(which, inside);
        if self.mirrored && outside != self.own(which) { Some(inside) } else { outside }
    }
}

/// Linux's own number for those who have none.
const NOBODY: u32 = 65534;

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(users: &[(u32, u32, u32)]) -> Ids {
        let extents: Vec<Extent> =
            users.iter().map(|&(inside, outside, count)| Extent { inside, outside, count }).collect();
        Ids { users: extents.clone(), groups: extents, mirrored: true }
    }

    #[test]
    fn a_mirror_gives_root_inside_what_is_the_users_and_host_roots() {
        let ids = ids(&[(0, 1001, 1), (1, 100_000, 65_536)]);
        let (which, shown) = (Which::Users, |host| ids.shown(Which::Users, host, &[27]));
        assert_eq!((shown(0), shown(1001), shown(33), shown(27)), (Some(0), Some(0), Some(33), Some(27)));
        // The user's own range is what it is inside; what no number stands for is nobody's.
        assert_eq!((shown(100_032), shown(700_000)), (Some(33), Some(65534)));
        assert_eq!(ids.shown(Which::Groups, 27, &[27]), Some(0), "a group that he is in lets him in");
        assert_eq!((ids.inside(which, 100_032), ids.inside(which, 5)), (Some(33), None));
        assert_eq!((ids.meant(which, 0), ids.meant(which, 33)), (Some(1001), Some(33)));
    }

    #[test]
    fn the_same_user_is_himself_among_others() {
        let which = Which::Users;
        let alone = ids(&[(1001, 1001, 1)]);
        assert_eq!((alone.shown(which, 1001, &[]), alone.shown(which, 0, &[])), (Some(1001), None));
        let around = ids(&[(0, 100_000, 1001), (1001, 1001, 1), (1002, 101_001, 64_535)]);
        assert_eq!((around.shown(which, 1001, &[]), around.shown(which, 0, &[])), (Some(1001), Some(0)));
        assert_eq!((around.meant(which, 1001), around.meant(which, 0)), (Some(1001), Some(0)));
        let root = ids(&[(0, 1001, 1)]);
        assert_eq!((root.shown(which, 33, &[]), root.meant(which, 0)), (Some(0), Some(1001)));
        assert_eq!((Ids::same().shown(which, 7, &[]), Ids::same().meant(which, 7)), (Some(7), Some(7)));
    }
}
