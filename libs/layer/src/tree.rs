//! Directory trees by fd: nothing here follows a symbolic link, and a deep tree needs no long path.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir};
use rustix::io::Errno;

use crate::at;

/// How a directory is opened to be read.
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Opens directory `name` in `dir` for reading. ENOTDIR, ELOOP: it is none.
pub(crate) fn open_dir(dir: impl AsFd, name: &CStr) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(dir, name, DIRECTORY, Mode::empty())
}

/// The names in a directory that is open for reading, in the file system's own order, with the types that it knows. The fd's
/// position must be at the start.
pub(crate) fn names(dir: impl AsFd) -> Result<Vec<(CString, FileType)>, Errno> {
    let mut found = Vec::new();
    let mut buffer = Vec::with_capacity(32 * 1024);
    let mut raw = RawDir::new(dir, buffer.spare_capacity_mut());
    while let Some(entry) = raw.next() {
        let entry = match entry {
            // It was removed meanwhile (getdents(2)).
            Err(Errno::NOENT) => break,
            entry => entry?,
        };
        let name = entry.file_name();
        if name != c"." && name != c".." {
            found.push((name.to_owned(), entry.file_type()));
        }
    }
    Ok(found)
}

/// Makes a directory that its owner has closed to himself (the overlay's own `work` is) readable to him.
fn unlock_dir(dir: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    match open_dir(dir, name) {
        Err(Errno::ACCESS) => {
            rustix::fs::chmodat(dir, name, Mode::RWXU, AtFlags::empty())?;
            open_dir(dir, name)
        }
        other => other,
    }
}

/// Removes `name` in `dir` and all below it (rm -rf); what is gone already is no error.
pub(crate) fn remove(dir: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(e) => return Err(e),
    }
    let inner = unlock_dir(dir, name)?;
    for (child, _) in names(&inner)? {
        remove_in(inner.as_fd(), dir, name, &child)?;
    }
    drop(inner);
    match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

/// Removes `child` of `inner`, which is `name` in `dir`; its owner may have made it read-only to himself.
fn remove_in(inner: BorrowedFd<'_>, dir: BorrowedFd<'_>, name: &CStr, child: &CStr) -> Result<(), Errno> {
    match remove(inner, child) {
        Err(Errno::ACCESS) => {
            rustix::fs::chmodat(dir, name, Mode::RWXU, AtFlags::empty())?;
            remove(inner, child)
        }
        other => other,
    }
}

/// What a tree takes on disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) bytes: u64,
    pub(crate) files: u64,
    pub(crate) unreadable: u64,
}

/// Adds up all that lies in the open directory `dir`.
pub(crate) fn usage(dir: BorrowedFd<'_>, sum: &mut Usage) -> Result<(), Errno> {
    for (name, _) in names(dir)? {
        let stat = match rustix::fs::statat(dir, &*name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            // The environment goes on meanwhile.
            Err(Errno::NOENT) => continue,
            Err(e) => return Err(e),
        };
        sum.files += 1;
        // What has several names counts once: a share for each, rounded up.
        let blocks = u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
        let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        sum.bytes += if is_dir { blocks } else { blocks.div_ceil(u64::from(stat.st_nlink as u32).max(1)) };
        if is_dir {
            match open_dir(dir, &name) {
                Ok(inner) => usage(inner.as_fd(), sum)?,
                Err(Errno::ACCESS) => sum.unreadable += 1,
                Err(e) if at::is_of_moving(e) => {}
                Err(e) => return Err(e),
            }
        }
    }
    Ok(())
}

/// Whether the open `dir`, or something in the tree below it, belongs to another than `me`; if `read`, also whether something is
/// closed to him.
pub(crate) fn foreign(dir: BorrowedFd<'_>, me: u32, read: bool) -> Result<bool, Errno> {
    if rustix::fs::fstat(dir)?.st_uid != me {
        return Ok(true);
    }
    for (name, _) in names(dir)? {
        let stat = match rustix::fs::statat(dir, &*name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => continue,
            other => other?,
        };
        let needed = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => 0o500,
            FileType::RegularFile => 0o400,
            _ => 0,
        };
        if stat.st_uid != me || (read && stat.st_mode & needed != needed) {
            return Ok(true);
        }
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            continue;
        }
        match open_dir(dir, &name) {
            Ok(inner) if foreign(inner.as_fd(), me, read)? => return Ok(true),
            // What its owner has closed to himself he can open again.
            Ok(_) | Err(Errno::ACCESS) => {}
            Err(e) if at::is_of_moving(e) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(false)
}
