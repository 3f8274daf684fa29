//! The mounts below one, from the kernel's own list of them (listmount(2) and statmount(2), Linux 6.8).

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// `struct mnt_id_req`, as of its first version.
#[repr(C)]
struct Request {
    size: u32,
    spare: u32,
    mount: u64,
    param: u64,
}

const SYS_STATMOUNT: libc::c_long = 457;
const SYS_LISTMOUNT: libc::c_long = 458;
/// Of statx(2): a number that no other mount ever has.
const UNIQUE: u32 = 0x4000;
/// Of statmount(2): `mnt_point`, a string.
const POINT: u64 = 0x10;
/// Where `struct statmount` has the offset of that string, and where its strings begin.
const POINT_AT: usize = 108;
const STRINGS: usize = 512;
/// How many mounts are asked for; where there are more it is done otherwise.
const MOST: usize = 256;

/// The mount points of all mounts below the topmost mount at `target`, as the caller's root has them.
///
/// # Errors
/// ENOSYS: the kernel is older. EINVAL: `target` is no mount point, or there are too many.
pub(super) fn below(target: &Path) -> io::Result<Vec<PathBuf>> {
    let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
    let path = CString::new(target.as_os_str().as_bytes())?;
    // SAFETY: all zeros is a valid structure; the call reads a string and fills it.
    let found = unsafe {
        let mut found: libc::statx = std::mem::zeroed();
        match libc::statx(libc::AT_FDCWD, path.as_ptr(), 0, UNIQUE, &raw mut found) {
            0 => found,
            _ => return Err(io::Error::last_os_error()),
        }
    };
    if found.stx_mask & UNIQUE == 0 {
        return Err(io::Error::from_raw_os_error(libc::ENOSYS));
    }
    let mut ids = [0_u64; MOST];
    let request = Request { size: 24, spare: 0, mount: found.stx_mnt_id, param: 0 };
    // SAFETY: reads `request`, and fills at most MOST elements.
    let count = unsafe { libc::syscall(SYS_LISTMOUNT, &raw const request, ids.as_mut_ptr(), MOST, 0) };
    let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
    if count == MOST || point(found.stx_mnt_id)? != target {
        return Err(invalid());
    }
    ids[..count].iter().map(|id| point(*id)).collect()
}

/// Where a mount is.
fn point(mount: u64) -> io::Result<PathBuf> {
    let request = Request { size: 24, spare: 0, mount, param: POINT };
    let mut buffer = [0_u8; STRINGS + libc::PATH_MAX as usize];
    // SAFETY: reads `request`, and fills at most the buffer.
    if unsafe { libc::syscall(SYS_STATMOUNT, &raw const request, buffer.as_mut_ptr(), buffer.len(), 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut at = [0; 4];
    at.copy_from_slice(&buffer[POINT_AT..POINT_AT + 4]);
    let string = buffer.get(STRINGS + u32::from_ne_bytes(at) as usize..).unwrap_or_default();
    let string = CStr::from_bytes_until_nul(string).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    Ok(PathBuf::from(OsStr::from_bytes(string.to_bytes())))
}
