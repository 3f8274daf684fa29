//! A fresh instance of a kernel file system in the place of the parent's.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statvfs::{FsFlags, statvfs};

use super::{NONE, attach, copy_of, list};

/// Covers `target`, where an instance of file system `kind` is, with one of the caller's own namespaces, as read-only as it.
/// What is mounted below stays in its places. Either all of it happens or nothing.
///
/// # Errors
/// EPERM: the namespace that the kind shows is not owned (sysfs: network), or no instance can be seen whole (a container);
/// ENOENT: nothing is there.
pub fn renew(kind: &str, target: &Path) -> io::Result<()> {
    // It may be a name that only means the place (see `Place::path`).
    let target = &target.canonicalize()?;
    // A deep one has hundreds of mounts, and few of them below this one; older kernels list all of them or none.
    let below = match list::below(target) {
        Ok(points) => topmost(points),
        Err(_) => mounts_below(target, &std::fs::read("/proc/self/mountinfo")?),
    };
    let held = below.iter().map(|path| Ok((path, copy_of(path, true)?)));
    let held = held.collect::<io::Result<Vec<(&PathBuf, OwnedFd)>>>()?;
    let mut flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    if statvfs(target)?.flags().contains(FsFlags::ST_RDONLY) {
        flags |= MsFlags::MS_RDONLY;
    }
    mount(Some(kind), target, Some(kind), flags, NONE)?;
    held.iter().try_for_each(|(path, mount)| attach(mount, path)).inspect_err(|_| {
        // What was there shows again.
        let _ = umount2(target, MntFlags::MNT_DETACH);
    })
}

/// The mounts below `target` that are below no other of them, out of a mountinfo file (proc_pid_mountinfo(5)).
fn mounts_below(target: &Path, mountinfo: &[u8]) -> Vec<PathBuf> {
    let points = mountinfo.split(|byte| *byte == b'\n').filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
    let points = points.map(|point| PathBuf::from(OsString::from_vec(unescaped(point))));
    topmost(points.filter(|point| point != target && point.starts_with(target)).collect())
}

/// Those that are below no other of them.
fn topmost(mut points: Vec<PathBuf>) -> Vec<PathBuf> {
    points.sort();
    // Sorted by components: what is below another one follows it.
    points.dedup_by(|later, earlier| later.starts_with(earlier));
    points
}

/// Blanks, line ends and backslashes are written as three octal digits.
fn unescaped(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, more @ ..] = rest {
        rest = more;
        let digit = |at: usize| more.get(at).filter(|digit| (b'0'..b'8').contains(*digit)).map(|digit| digit - b'0');
        match (first, digit(0), digit(1), digit(2)) {
            (b'\\', Some(high @ 0..4), Some(middle), Some(low)) => {
                out.push(high << 6 | middle << 3 | low);
                rest = &more[3..];
            }
            _ => out.push(*first),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topmost_mounts_below_are_found() {
        let table = b"20 1 0:19 / / rw - ext4 /dev/vda rw\n\
            21 20 0:20 / /sys rw,nosuid shared:1 - sysfs sysfs rw\n\
            30 24 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
            24 21 0:24 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
            24 24 0:24 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
            31 21 0:30 / /sys/kernel/a\\040b\\134c rw - tracefs none rw\n\
            32 21 0:31 / /sysx rw - tmpfs none rw\n\
            33 21 0:31 / /sys/fs/cgroup2 rw - tmpfs none rw\n";
        let found = mounts_below(Path::new("/sys"), table);
        assert_eq!(found, ["/sys/fs/cgroup", "/sys/fs/cgroup2", "/sys/kernel/a b\\c"].map(PathBuf::from));
    }

    #[test]
    fn the_kernel_lists_the_same_ones() {
        let table = std::fs::read("/proc/self/mountinfo").unwrap();
        for target in ["/sys", "/proc", "/dev"].map(Path::new) {
            match list::below(target) {
                Ok(points) => assert_eq!(topmost(points), mounts_below(target, &table), "{target:?}"),
                // Before Linux 6.8; or no mount is there.
                Err(e) => assert!([libc::ENOSYS, libc::EINVAL].contains(&e.raw_os_error().unwrap()), "{e}"),
            }
        }
    }
}
