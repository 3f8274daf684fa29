//! FUSE without root: a connection to `/dev/fuse` and its mount (fuse(4), fsopen(2)), made inside an environment's user
//! and mount namespace and served by an ordinary process outside.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// Clones a connection's fd (linux/fuse.h, `_IOR(229, 0, uint32_t)`).
const DEV_IOC_CLONE: libc::c_ulong = 0x8004_e500;

/// A new FUSE connection and a read-only mount of it that is attached nowhere yet (move_mount(2)). The mount acts for the
/// effective ids of the caller, and serves every id of the caller's user namespace. It is for an overlay above it, which checks
/// permissions by what the server says: who mounted it may do everything here, so that to check here as well would only take
/// time. Requests may wait on the connection before anybody serves it.
///
/// The caller needs CAP_SYS_ADMIN over its mount namespace's owner, and both fds belong to the caller's user namespace for
/// good: reads of the device say its ids. ENOENT, EACCES: `/dev/fuse` is missing or closed to the user; ENODEV: the kernel
/// has no FUSE; EPERM: no capability.
pub fn create(source: &str) -> io::Result<(OwnedFd, OwnedFd)> {
    let device = OwnedFd::from(OpenOptions::new().read(true).write(true).open("/dev/fuse")?);
    let (uid, gid) = crate::process::effective_ids();
    let [fd, uid, gid] = [device.as_raw_fd().to_string(), uid.to_string(), gid.to_string()];
    let options = [
        ("source", Some(source)),
        ("fd", Some(&fd)),
        ("rootmode", Some("40000")),
        ("user_id", Some(&uid)),
        ("group_id", Some(&gid)),
        ("allow_other", None),
        // Of the whole instance, not just of the mount: reading then changes no attribute (no time of access), so the
        // kernel never has to ask for one again.
        ("ro", None),
    ];
    let mount = crate::mount::detached("fuse", &options)?;
    Ok((device, mount))
}

/// A second fd of the same connection with a queue of its own for what was read by it (FUSE_DEV_IOC_CLONE): an answer has to
/// be written to the fd that its request was read from. When the last duplicate of it closes, what was read and not answered
/// fails; so whoever keeps a connection for a successor keeps a duplicate of each.
pub fn clone(device: impl AsFd) -> io::Result<OwnedFd> {
    let other = File::from(OwnedFd::from(OpenOptions::new().read(true).write(true).open("/dev/fuse")?));
    let number = u32::try_from(device.as_fd().as_raw_fd()).map_err(io::Error::other)?;
    // SAFETY: the call reads one u32.
    match unsafe { libc::ioctl(other.as_raw_fd(), DEV_IOC_CLONE as _, &raw const number) } {
        0 => Ok(other.into()),
        _ => Err(io::Error::last_os_error()),
    }
}
