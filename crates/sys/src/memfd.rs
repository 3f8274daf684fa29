//! Sealed memory files (memfd_create(2)): bytes handed to another process that can neither change nor shrink any more.
//!
//! A receiver must not trust a memory file before it has seen the seals: without them its owner could change bytes
//! after they were checked, or cut the file and make the reader die of SIGBUS. [`Mapping::new`] is the only way here
//! to look at one in place, and it checks first.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Write};
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::pages::Pages;

/// The seals that make a memory file immutable in content and size.
const IMMUTABLE: SealFlag = SealFlag::F_SEAL_WRITE.union(SealFlag::F_SEAL_SHRINK).union(SealFlag::F_SEAL_GROW);

/// An empty memory file, close-on-exec, that can be sealed later (memfd_create(2)). `name` shows in /proc/PID/fd.
/// Fails with EMFILE or ENFILE at the limit of open files.
pub fn create(name: &CStr) -> io::Result<OwnedFd> {
    // NOEXEC_SEAL is not asked for: kernels before 6.3 refuse it.
    Ok(memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?)
}

/// A memory file that holds `bytes` and can never change again (F_ADD_SEALS in fcntl(2)). Fails as [`create`] does,
/// or with ENOSPC or ENOMEM when there is no memory for it.
pub fn sealed(name: &CStr, bytes: &[u8]) -> io::Result<OwnedFd> {
    let mut file = File::from(create(name)?);
    file.write_all(bytes)?;
    let fd = OwnedFd::from(file);
    seal(&fd)?;
    Ok(fd)
}

/// Makes a memory file immutable for good (F_ADD_SEALS in fcntl(2)). Fails with EBUSY while it is mapped writable.
pub fn seal(file: impl AsFd) -> io::Result<()> {
    fcntl(file, FcntlArg::F_ADD_SEALS(IMMUTABLE | SealFlag::F_SEAL_SEAL))?;
    Ok(())
}

/// The content of a memory file that is proven immutable, mapped read-only (mmap(2)).
#[derive(Debug)]
pub struct Mapping(Pages);

impl Mapping {
    /// Maps a memory file of exactly `len` bytes, not zero.
    ///
    /// Fails with InvalidData, saying why, unless the file is sealed against writing, shrinking and growing and has
    /// that size; with ENOMEM when there is no room in the address space.
    pub fn new(fd: BorrowedFd<'_>, len: usize) -> io::Result<Mapping> {
        let bad = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
        let seals = fcntl(fd, FcntlArg::F_GET_SEALS)
            .map(SealFlag::from_bits_retain)
            .map_err(|_| bad("it is not a memory file that can be sealed".into()))?;
        if !seals.contains(IMMUTABLE) {
            return Err(bad("it is not sealed against writing, shrinking and growing".into()));
        }
        // Only now that the size can't change does it mean anything.
        let size = nix::sys::stat::fstat(fd)?.st_size;
        if len == 0 || u64::try_from(size).ok() != u64::try_from(len).ok() {
            return Err(bad(format!("it holds {size} bytes and {len} were announced")));
        }
        Ok(Mapping(Pages::readable(fd, len)?))
    }
}

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the start of a live mapping of so many readable bytes. The file under it is sealed, so they neither change nor
        // go away while `self` lives.
        unsafe { std::slice::from_raw_parts(self.0.start().as_ptr(), self.0.len()) }
    }
}

/// Reads a memory file whole, as [`Mapping::new`] checks it, into memory of its own.
pub fn read_sealed(fd: impl AsFd, len: usize) -> io::Result<Vec<u8>> {
    Ok(Mapping::new(fd.as_fd(), len)?.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sealed_bytes_come_back_and_do_not_change() {
        let fd = sealed(c"test", b"some bytes").unwrap();
        assert_eq!(read_sealed(&fd, 10).unwrap(), b"some bytes");
        let mut file = File::from(fd);
        assert_eq!(file.write(b"x").unwrap_err().raw_os_error(), Some(libc::EPERM));
        assert_eq!(file.set_len(3).unwrap_err().raw_os_error(), Some(libc::EPERM));
    }

    #[test]
    fn what_is_not_sealed_or_has_another_size_is_refused() {
        let fd = create(c"test").unwrap();
        File::from(fd.try_clone().unwrap()).write_all(b"abc").unwrap();
        assert!(read_sealed(&fd, 3).unwrap_err().to_string().contains("not sealed"));
        let (pipe, _other) = std::io::pipe().unwrap();
        assert!(read_sealed(&pipe, 3).unwrap_err().to_string().contains("not a memory file"));
        let fd = sealed(c"test", b"abc").unwrap();
        for wrong in [0, 2, 4, usize::MAX] {
            assert!(read_sealed(&fd, wrong).unwrap_err().to_string().contains("announced"));
        }
    }
}
