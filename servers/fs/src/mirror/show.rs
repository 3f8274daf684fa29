//! What a host file looks like in the mirror: its attributes in the environment's terms, and which parts are hidden, made up
//! or shown as empty.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::sync::Mutex;

use fuse_backend_rs::abi::fuse_abi::{Attr, stat64};
use rustix::fs::{Access, AtFlags, FileType, Mode, OFlags, Stat, accessat, fstatfs, openat, statat};
use rustix::io::Errno;

use super::ids::Ids;
use super::made_up::{self, Sham};
use super::places::lock;
use super::table::{Facts, Id, Node, ROOT};

/// A directory without children: none is found in it…
pub(super) const NO_CHILDREN: u8 = 1;
/// …and none is listed.
pub(super) const NO_LIST: u8 = 2;
/// What a file that the user can't read holds: nothing.
pub(super) const HOLLOW: u8 = 4;
/// Made up: see [`made_up`].
pub(super) const MADE_UP: u8 = 8;
/// On the way to a special path: the paths of its children are compared with those.
pub(super) const ON_THE_WAY: u8 = 16;
/// Below it, a file that the user can't read is an empty one.
pub(super) const LENIENT: u8 = 32;

/// A directory that leads to files which the plain part leaves to the rest: see [`Part`](super::Part).
pub(super) const LEADS: u8 = 64;

/// Which file a directory is that is empty because of its path.
const FIXED: u32 = 0;

const EMPTY: u8 = NO_CHILDREN | NO_LIST;

/// File systems that show the processes and the machine as the *server* sees them, wherever they are mounted: fs/*.h,
/// linux/magic.h. An environment has its own.
const KERNEL_FILES: &[i64] = &[
    0x9fa0,      // proc
    0x6265_6572, // sysfs
    0x6462_6720, // debugfs
    0x7472_6163, // tracefs
    0x7363_6673, // securityfs
    0x27_e0eb,   // cgroup
    0x6367_7270, // cgroup2
    0xcafe_4a11, // bpf
    0x1cd1,      // devpts
    0x1980_0202, // mqueue
    0x6265_6570, // configfs
    0x4249_4e4d, // binfmt_misc
];

/// How a file is shown.
#[derive(Debug)]
pub(super) struct Shown {
    pub(super) attributes: stat64,
    pub(super) facts: Facts,
}

/// What the mirror shows differently at one path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Special {
    Empty,
    Lenient,
    Sham(Sham),
}

/// How files are shown.
#[derive(Debug)]
pub(super) struct Show {
    ids: Ids,
    /// Device of `/`: inode numbers of all others are moved away from its own.
    device: u64,
    /// Absolute paths without links.
    special: Vec<(Vec<u8>, Special)>,
    /// Devices that were asked, and whether they are of [`KERNEL_FILES`].
    kernel_devices: Mutex<HashMap<u64, bool>>,
}

impl Show {
    pub(super) fn new(ids: Ids, hidden: &[PathBuf]) -> Result<Show, Errno> {
        let mut special: Vec<(Vec<u8>, Special)> =
            [b"/proc".as_slice(), b"/sys", b"/dev"].iter().map(|path| (path.to_vec(), Special::Empty)).collect();
        for path in hidden {
            let path = path.canonicalize().unwrap_or_else(|_| path.clone());
            special.push((path.as_os_str().as_bytes().to_vec(), Special::Empty));
        }
        if ids.root_inside() {
            special.extend([b"/var/log".as_slice(), b"/var/cache"].map(|path| (path.to_vec(), Special::Lenient)));
            special.extend(made_up::PATHS.iter().map(|(path, sham)| (path.as_bytes().to_vec(), Special::Sham(*sham))));
        }
        let device = rustix::fs::stat("/")?.st_dev;
        Ok(Show { ids, device, special, kernel_devices: Mutex::new(HashMap::from([(device, false)])) })
    }

    /// What is known of `/` before anybody looked.
    pub(super) fn root() -> Facts {
        Facts { kind: kind_of(rustix::fs::FileType::Directory.as_raw_mode()), flags: ON_THE_WAY, file: 0, version: 0 }
    }

    /// Looks at `name` in `place`, the directory that is `parent`.
    pub(super) fn child(&self, place: BorrowedFd<'_>, parent: &Parent, name: &[u8]) -> Result<Shown, Errno> {
        let stat = statat(place, name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT)?;
        let mut flags = parent.flags & LENIENT;
        let (mut sham, mut fixed) = (None, false);
        if let Some(path) = &parent.path {
            let mut path = path.clone();
            path.push(b'/');
            path.extend_from_slice(name);
            for (special, what) in &self.special {
                match special.strip_prefix(path.as_slice()) {
                    Some([]) => match what {
                        Special::Empty => (flags, fixed) = (flags | EMPTY, true),
                        Special::Lenient => flags |= LENIENT,
                        Special::Sham(which) => sham = Some(*which),
                    },
                    Some([b'/', ..]) => flags |= ON_THE_WAY,
                    _ => {}
                }
            }
        }
        let mut shown = self.shown(place, name, stat, flags, sham);
        if fixed {
            // The environment has something mounted over it, which the kernel would take away if this became another node.
            shown.facts.file = FIXED;
        }
        Ok(shown)
    }

    /// Looks again at a node that the kernel knows: `place` and `name` are its parent directory and its name there.
    pub(super) fn again(&self, place: BorrowedFd<'_>, id: Id, node: &Node) -> Result<Shown, Errno> {
        let name = if id == ROOT { b"." } else { node.name.as_slice() };
        let stat = statat(place, name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT)?;
        let flags = node.facts.flags;
        let sham = (flags & MADE_UP != 0).then(|| Sham::of(name)).flatten();
        // What was empty for its path's sake stays so; what was for its permissions' sake is judged anew, but may not widen.
        let mut shown = self.shown(place, name, stat, flags & !(MADE_UP | HOLLOW), sham);
        if node.facts.file == FIXED {
            shown.facts.file = FIXED;
        }
        Ok(shown)
    }

    fn shown(&self, place: BorrowedFd<'_>, name: &[u8], stat: Stat, mut flags: u8, sham: Option<Sham>) -> Shown {
        let mut attributes = Attr {
            ino: self.inode(stat.st_dev, stat.st_ino),
            size: stat.st_size as u64,
            blocks: stat.st_blocks as u64,
            atime: stat.st_atime as u64,
            mtime: stat.st_mtime as u64,
            ctime: stat.st_ctime as u64,
            atimensec: stat.st_atime_nsec as u32,
            mtimensec: stat.st_mtime_nsec as u32,
            ctimensec: stat.st_ctime_nsec as u32,
            mode: stat.st_mode,
            nlink: stat.st_nlink as u32,
            uid: self.ids.user(stat.st_uid),
            gid: self.ids.group(stat.st_gid),
            rdev: stat.st_rdev as u32,
            blksize: stat.st_blksize as u32,
            flags: 0,
        };
        let empty = |attributes: &mut Attr| {
            attributes.size = 0;
            attributes.blocks = 0;
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        if !self.ids.root_inside() && matches!(kind, FileType::Directory | FileType::RegularFile) {
            // What an ACL grants, which the kernel doesn't see here, is granted to all: that is to him, inside.
            for bits in [4, 1] {
                let granted = self.ids.granted(stat.st_uid, stat.st_gid, stat.st_mode, bits);
                if !granted && self.may(place, name, &stat, bits) {
                    attributes.mode |= bits;
                }
            }
        }
        match kind {
            FileType::Directory => {
                if self.of_kernel(stat.st_dev, place, name) {
                    flags |= EMPTY;
                }
                if self.ids.root_inside() && flags & EMPTY != EMPTY {
                    if !self.may(place, name, &stat, 1) {
                        flags |= EMPTY;
                    } else if !self.may(place, name, &stat, 4) {
                        flags |= NO_LIST;
                    }
                    if flags & EMPTY != 0 {
                        (attributes.uid, attributes.gid) = (0, 0);
                    }
                }
                if flags & EMPTY == EMPTY {
                    attributes.nlink = 2;
                }
            }
            FileType::RegularFile if flags & EMPTY == EMPTY => {
                flags |= HOLLOW;
                attributes.size = 0;
            }
            FileType::RegularFile if self.ids.root_inside() && !self.may(place, name, &stat, 4) => {
                if let Some(content) = sham.map(made_up::content) {
                    flags |= MADE_UP;
                    (attributes.uid, attributes.gid, attributes.mode) = (0, 0, stat.st_mode & !0o7777 | 0o640);
                    attributes.size = content.len() as u64;
                } else if stat.st_size == 0 || flags & LENIENT != 0 {
                    flags |= HOLLOW;
                    empty(&mut attributes);
                }
                // Any other one is what it is, so that it can be removed and replaced; to read it is refused (EACCES).
            }
            FileType::RegularFile if self.of_kernel(stat.st_dev, place, name) => {
                flags |= HOLLOW;
                empty(&mut attributes);
            }
            _ => {}
        }
        let facts = Facts { kind: kind_of(stat.st_mode), flags, file: file(&stat), version: version(&stat) };
        Shown { attributes: attributes.into(), facts }
    }

    /// Whether the server may read (4), write (2), search (1) this: as the mode says, or else as the kernel does, which knows
    /// of ACLs and capabilities.
    fn may(&self, place: BorrowedFd<'_>, name: &[u8], stat: &Stat, bits: u32) -> bool {
        if self.ids.granted(stat.st_uid, stat.st_gid, stat.st_mode, bits) {
            return true;
        }
        let access = if bits == 4 { Access::READ_OK } else { Access::EXEC_OK };
        accessat(place, name, access, AtFlags::EACCESS | AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// Whether a file belongs to one of [`KERNEL_FILES`]. One that can't be asked does.
    fn of_kernel(&self, device: u64, place: BorrowedFd<'_>, name: &[u8]) -> bool {
        if let Some(&known) = lock(&self.kernel_devices).get(&device) {
            return known;
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let found = openat(place, name, flags, Mode::empty()).and_then(|fd| fstatfs(fd.as_fd()));
        match found {
            Ok(found) => {
                let kernel = KERNEL_FILES.contains(&found.f_type);
                lock(&self.kernel_devices).insert(device, kernel);
                kernel
            }
            Err(_) => true,
        }
    }

    /// One number for each file of all devices. Programs take two files with one number (and one device, which the mirror
    /// is) for hard links of each other.
    pub(super) fn inode(&self, device: u64, inode: u64) -> u64 {
        if device == self.device {
            return inode;
        }
        // The device in the upper bits, and never 0 there; an inode number rarely takes more than the lower 40.
        let device = u64::from(mix(&[device])) | 1;
        inode ^ device << 40
    }
}

/// What of a directory decides how its children are shown.
pub(super) struct Parent {
    pub(super) flags: u8,
    /// Its path without a slash at the end, if it is on the way to a special one.
    pub(super) path: Option<Vec<u8>>,
}

/// Which version of its content a file's attributes tell of.
pub(super) fn version(stat: &Stat) -> u32 {
    mix(&[stat.st_size as u64, stat.st_mtime as u64, stat.st_mtime_nsec])
}

/// Which file it is.
pub(super) fn file(stat: &Stat) -> u32 {
    file_of(stat.st_dev, stat.st_ino)
}

/// The same, by device and inode number.
pub(super) fn file_of(device: u64, inode: u64) -> u32 {
    mix(&[device, inode]).max(FIXED + 1)
}

fn kind_of(mode: u32) -> u8 {
    (mode >> 12) as u8
}

/// A short number for a few long ones.
fn mix(numbers: &[u64]) -> u32 {
    let mut hash = 0u64;
    for number in numbers {
        hash = (hash.rotate_left(25) ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        hash ^= hash >> 29;
    }
    (hash >> 32) as u32 ^ hash as u32
}
