//! Attributes of the host's files: made those of an entry of the layer.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, FileType, Gid, Mode, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use super::step::Owner;
use crate::at::{self, Stat, Xattr};

const ACCESS: &[u8] = b"system.posix_acl_access";
const DEFAULT: &[u8] = b"system.posix_acl_default";

/// The permissions that a file gets: nobody runs as another than the environment's owner.
pub(crate) fn mode(stat: &Stat, owner: &Owner) -> Mode {
    let barred = if owner.instead && !stat.is_dir() { 0o6000 } else { 0 };
    Mode::from_raw_mode(stat.mode & !barred)
}

/// The times that a file gets: that of its last change; it was read when nobody knows.
pub(crate) fn times(stat: &Stat) -> Timestamps {
    let at = Timespec { tv_sec: stat.mtime.0, tv_nsec: i64::from(stat.mtime.1) };
    Timestamps { last_access: at, last_modification: at }
}

/// Gives `name` in `dir` an owner; what it has already costs nothing.
pub(crate) fn chown(dir: BorrowedFd<'_>, name: &CStr, now: &Stat, owner: &Owner) -> Result<bool, Errno> {
    if (now.uid, now.gid) == (owner.uid, owner.gid) {
        return Ok(false);
    }
    let (uid, gid) = (Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)));
    rustix::fs::chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(true)
}

/// chmod, of anything but a symbolic link, which has no permissions.
pub(crate) fn chmod(dir: BorrowedFd<'_>, name: &CStr, kind: FileType, mode: Mode) -> Result<(), Errno> {
    if kind == FileType::Symlink {
        return Ok(());
    }
    // A race with a link put in its place would be followed: the parent is one that the caller may write.
    match rustix::fs::chmodat(dir, name, mode, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
            let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::CLOEXEC;
            let fd = rustix::fs::openat(dir, name, flags, Mode::empty())?;
            rustix::fs::chmod(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd)), mode)
        }
        other => other,
    }
}

/// Makes the extended attributes of `name` in `dir`, which are `now`, those that are `wanted`. With `mirrored`, attributes that
/// the environment can't have seen stay. What only host root may set is left out for others.
pub(crate) fn xattrs(
    dir: impl AsFd,
    name: &CStr,
    now: &[Xattr],
    wanted: &[Xattr],
    mirrored: bool,
) -> Result<(), Errno> {
    let user = |key: &CStr| key.to_bytes().starts_with(b"user.");
    let lenient = |key: &CStr, result: Result<(), Errno>| match result {
        Err(Errno::PERM | Errno::OPNOTSUPP | Errno::INVAL) if !user(key) && mirrored => Ok(()),
        other => other,
    };
    for (key, _) in now {
        if !wanted.iter().any(|(other, _)| other == key) && (user(key) || !mirrored) {
            lenient(key, at::remove_xattr(&dir, name, key))?;
        }
    }
    for (key, value) in wanted {
        if !now.iter().any(|(other, same)| other == key && same == value) {
            lenient(key, at::set_xattr(&dir, name, key, value))?;
        }
    }
    Ok(())
}

/// Whether what is made in `dir` gets an access list from it.
pub(crate) fn has_default(dir: BorrowedFd<'_>) -> Result<bool, Errno> {
    Ok(at::xattr_names(dir, c".")?.iter().any(|key| key.to_bytes() == DEFAULT))
}

/// Takes away what a new file got from its directory.
pub(crate) fn drop_inherited(dir: BorrowedFd<'_>, name: &CStr, wanted: &[Xattr]) -> Result<(), Errno> {
    for key in at::xattr_names(dir, name)? {
        let inherited = [ACCESS, DEFAULT].contains(&key.to_bytes());
        if inherited && !wanted.iter().any(|(other, _)| *other == key) {
            at::remove_xattr(dir, name, &key)?;
        }
    }
    Ok(())
}
