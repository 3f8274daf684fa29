//! One file of a layer, copied to the host beside its place.

use std::ffi::CStr;
use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::attrs;
use super::step::Owner;
use crate::at::{self, Stat};
use crate::copy;
use crate::marks::plain_xattrs;
use crate::view::View;

/// Makes `temporary` on the host what `name` is in the layer, with the extended attributes `wanted`; `inherits`: what
/// is made there gets an access list.
pub(super) fn copy(
    view: &View<'_>,
    (dir, upper): (BorrowedFd<'_>, BorrowedFd<'_>),
    (name, temporary): (&CStr, &CStr),
    stat: &Stat,
    owner: &Owner,
    mut wanted: Vec<at::Xattr>,
    inherits: bool,
) -> Result<(), Errno> {
    let mirrored = view.ids().mirrored;
    make(dir, upper, name, temporary, stat, owner)?;
    if !mirrored && wanted.is_empty() && !inherits {
        return Ok(());
    }
    let mut now = plain_xattrs(dir, temporary)?;
    attrs::drop_inherited(dir, temporary, &wanted)?;
    now.retain(|(key, _)| !key.to_bytes().starts_with(b"system.posix_acl"));
    if mirrored {
        let mut unseen = match at::stat(dir, name)?.filter(|old| old.kind == stat.kind) {
            Some(_) => plain_xattrs(dir, name)?,
            None => Vec::new(),
        };
        unseen.retain(|(key, _)| !key.to_bytes().starts_with(b"user."));
        unseen.retain(|(key, _)| !wanted.iter().any(|(own, _)| own == key));
        wanted.append(&mut unseen);
    }
    // What the system itself gives to each new file (a label) is kept where the layer has none.
    now.retain(|(key, _)| wanted.iter().any(|(own, _)| own == key));
    attrs::xattrs(dir, temporary, &now, &wanted, mirrored)?;
    attrs::chmod(dir, temporary, stat.kind, attrs::mode(stat, owner))?;
    rustix::fs::utimensat(dir, temporary, &attrs::times(stat), AtFlags::SYMLINK_NOFOLLOW)
}

/// Makes `temporary` on the host what `name` is in the layer, but for extended attributes.
fn make(
    dir: BorrowedFd<'_>,
    upper: BorrowedFd<'_>,
    name: &CStr,
    temporary: &CStr,
    stat: &Stat,
    owner: &Owner,
) -> Result<(), Errno> {
    let mode = attrs::mode(stat, owner);
    let ids = (Some(rustix::fs::Uid::from_raw(owner.uid)), Some(rustix::fs::Gid::from_raw(owner.gid)));
    match stat.kind {
        FileType::RegularFile => {
            let from = at::open_file(upper, name)?;
            let opened = at::stat_fd(&from)?;
            if (opened.dev, opened.ino) != (stat.dev, stat.ino) {
                return Err(Errno::STALE);
            }
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let to = rustix::fs::openat(dir, temporary, flags, Mode::RUSR | Mode::WUSR)?;
            copy::copy(&from, &to, stat)?;
            rustix::fs::fchown(&to, ids.0, ids.1)?;
            rustix::fs::fchmod(&to, mode)?;
            return rustix::fs::futimens(&to, &attrs::times(stat));
        }
        FileType::Symlink => rustix::fs::symlinkat(at::read_link(upper, name)?, dir, temporary)?,
        kind => {
            let device = rustix::fs::makedev(stat.rdev.0, stat.rdev.1);
            rustix::fs::mknodat(dir, temporary, kind, Mode::RUSR | Mode::WUSR, device)?;
        }
    }
    rustix::fs::chownat(dir, temporary, ids.0, ids.1, AtFlags::SYMLINK_NOFOLLOW)?;
    attrs::chmod(dir, temporary, stat.kind, mode)?;
    rustix::fs::utimensat(dir, temporary, &attrs::times(stat), AtFlags::SYMLINK_NOFOLLOW)
}

/// Whether a file was written while it was copied.
pub(super) fn moved_on(now: &Option<Stat>, before: &Stat) -> bool {
    now.is_none_or(|now| {
        (now.ino, now.size, now.mtime, now.ctime) != (before.ino, before.size, before.mtime, before.ctime)
    })
}
