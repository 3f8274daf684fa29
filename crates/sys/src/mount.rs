//! Mounts of an environment's own mount namespace: mount(2), pivot_root(2).

use std::io;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

const NONE: Option<&str> = None;

/// Mounts a new instance of file system `kind` (`proc`, `sysfs`, `tmpfs`, `devpts`) at `target`.
/// EPERM: the host's own instance is partly hidden (a container), or the namespace that the kind needs is not owned.
pub fn instance(kind: &str, target: &Path, options: &str) -> io::Result<()> {
    let mut flags = MsFlags::MS_NOSUID;
    if kind != "tmpfs" {
        flags |= MsFlags::MS_NOEXEC;
    }
    if matches!(kind, "proc" | "sysfs" | "tmpfs") {
        flags |= MsFlags::MS_NODEV;
    }
    Ok(mount(Some(kind), target, Some(kind), flags, Some(options))?)
}

/// Binds `source`, a file or a directory with all that is mounted below it, to `target`.
pub fn bind(source: &Path, target: &Path) -> io::Result<()> {
    Ok(mount(Some(source), target, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE)?)
}

/// Makes the mount at `target` (not those below it) read-only. Flags that the host locked on it are kept.
pub fn read_only(target: &Path) -> io::Result<()> {
    let old = nix::sys::statvfs::statvfs(target)?.flags();
    let mut flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    for (held, keep) in [
        (nix::sys::statvfs::FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (nix::sys::statvfs::FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (nix::sys::statvfs::FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (nix::sys::statvfs::FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (nix::sys::statvfs::FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
    ] {
        if old.contains(held) {
            flags |= keep;
        }
    }
    Ok(mount(NONE, target, NONE, flags, NONE)?)
}

/// Makes `root` (a mount point) the caller's `/`, and lets go of the old one: pivot_root(2) with both at one place.
pub fn pivot(root: &Path) -> io::Result<()> {
    std::env::set_current_dir(root)?;
    nix::unistd::pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    std::env::set_current_dir("/")
}
