//! Which part of the host's files a mirror shows, where two of them stand below one overlay.
//!
//! An overlay asks about attributes of each file that it comes upon for the first time, and three times of each directory: that is most
//! of what a first walk costs. A connection that has none is asked once, for all. So where content is read past the mirror (`content`), [`CONTENT`]
//! is shown without attributes, *plain*, and what is worth the questions is left to the *rest*, below it.
//!
//! The overlay looks into the plain part first. There a directory that leads to such files is marked ([`LEADS`]), for as long as the
//! kernel knows it: in it they are not found, and so are looked for in the rest, which has all of it. No other directory of [`CONTENT`]
//! is in the rest. It is asked right after the plain part, whose word it takes, and shows whole what that does not know: so nothing is in neither.

use std::collections::VecDeque;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use hurdle_proto::plan::CONTENT;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, openat2, statat};
use rustix::io::Errno;

use super::content::is_large;
use super::places::path_in;
use super::show::LEADS;
use super::table::ROOT;
use super::tree::Tree;

/// Which part.
#[derive(Debug, Clone)]
pub enum Part {
    /// All.
    Whole,
    /// [`CONTENT`] alone. No file has extended attributes; who asks hears it once, for all.
    Plain,
    /// What the plain part leaves to it. Names in [`CONTENT`] it does not list: that part does.
    Rest(Above),
}

/// The plain part, as the rest sees it.
#[derive(Debug, Clone)]
pub struct Above(pub(super) Arc<Tree>);

impl Above {
    /// Whether the directory at this path is marked; `None`: it is not known.
    pub(super) fn leads<'a>(&self, path: impl IntoIterator<Item = &'a [u8]>) -> Option<bool> {
        let table = self.0.places().table();
        let found = path.into_iter().try_fold(ROOT, |parent, name| table.find(parent, name))?;
        table.get(found).map(|node| node.facts.flags & LEADS != 0)
    }
}

/// Names of attributes that say nothing of the file itself: all have them where there is such a thing.
const OF_ALL: &[&[u8]] = &[b"security.selinux", b"security.SMACK64", b"security.ima", b"security.evm"];

/// So many entries below a directory are looked at, to see where it leads. Large files of one that leads nowhere, as far as that, can be
/// read as small ones are.
const FEW: usize = 256;

/// Whether a directory leads to large files by its name: each program waits for these. `parent` is its parent's path.
fn is_of_programs(parent: &[u8], name: &[u8]) -> bool {
    parent == CONTENT.as_bytes() && matches!(name, b"bin" | b"lib") || name.windows(7).any(|part| part == b"-linux-")
}

/// Whether this name in `/` is [`CONTENT`].
pub(super) fn is_content(name: &[u8]) -> bool {
    CONTENT.as_bytes().strip_prefix(b"/") == Some(name)
}

/// Whether a directory leads to a large file, as far as [`FEW`] entries tell, the upper ones first. One is open at a time: room for more than 64
/// is made by waiting for all CPUs.
pub(super) fn leads(place: BorrowedFd<'_>, parent: &[u8], name: &[u8]) -> bool {
    if is_of_programs(parent, name) {
        return true;
    }
    let mut seen = 0;
    let mut next = VecDeque::from([name.to_vec()]);
    while let Some(path) = next.pop_front() {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let beneath = ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH | ResolveFlags::NO_XDEV;
        let Ok(directory) = openat2(place, &*path, flags, Mode::empty(), beneath) else { continue };
        let mut buffer = [MaybeUninit::uninit(); 8 << 10];
        let mut entries = RawDir::new(&directory, &mut buffer);
        while let Some(Ok(entry)) = entries.next() {
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            seen += 1;
            let mut kind = entry.file_type();
            if matches!(kind, FileType::RegularFile | FileType::Unknown)
                && let Ok(stat) = statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT)
            {
                if is_large(stat.st_mode, stat.st_size) {
                    return true;
                }
                kind = FileType::from_raw_mode(stat.st_mode);
            }
            if kind == FileType::Directory {
                next.push_back([&*path, b"/", name.to_bytes()].concat());
            }
            if seen == FEW {
                return false;
            }
        }
    }
    false
}

/// Whether a file has extended attributes of its own.
pub(super) fn has_attributes(place: BorrowedFd<'_>, name: &[u8]) -> bool {
    let mut names = [0; 1024];
    let own = |name: &[u8]| !name.is_empty() && !OF_ALL.contains(&name);
    match rustix::fs::llistxattr(path_in(place, name), &mut names) {
        Ok(len) => names[..len].split(|byte| *byte == 0).any(own),
        Err(error) => error == Errno::RANGE,
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{File, create_dir_all};
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn a_directory_leads_to_a_large_file_as_far_as_is_looked() {
        let top = tempfile::tempdir().unwrap();
        let place = File::open(top.path()).unwrap();
        let leads = |name: &str| leads(place.as_fd(), b"/usr/share", name.as_bytes());
        let file = |path: &str, size: u64| {
            let path = top.path().join(path);
            create_dir_all(path.parent().unwrap()).unwrap();
            File::create(path).unwrap().set_len(size).unwrap();
        };
        file("few/a/b/c/large", 1 << 20);
        (0..100).for_each(|n| file(&format!("few/small{n}"), 100));
        (0..FEW).for_each(|n| file(&format!("many/small{n}"), 100));
        file("many/a/large", 1 << 20);
        file("astray/small", 100);
        std::os::unix::fs::symlink(top.path().join("few"), top.path().join("astray/link")).unwrap();
        assert_eq!(["few", "many", "astray", "nothing"].map(leads), [true, false, false, false]);
        assert!(leads("x86_64-linux-gnu"), "by its name");
    }

    #[test]
    fn attributes_of_its_own_are_seen() {
        let top = tempfile::tempdir_in("/var/tmp").unwrap();
        let place = File::open(top.path()).unwrap();
        for name in ["plain", "marked"] {
            File::create(top.path().join(name)).unwrap();
        }
        let flags = rustix::fs::XattrFlags::empty();
        if let Err(e) = rustix::fs::setxattr(top.path().join("marked"), "user.mark", b"1", flags) {
            return println!("SKIP: no extended attributes in /var/tmp: {e}");
        }
        let has = |name: &str| has_attributes(place.as_fd(), name.as_bytes());
        assert_eq!([has("plain"), has("marked"), has("nothing")], [false, true, false]);
    }
}
