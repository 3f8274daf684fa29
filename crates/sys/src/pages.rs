//! Mapped memory with one owner, who gives it back (mmap(2), munmap(2)).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{NonNull, null_mut};

/// A mapping at an address of the kernel's choice. What may be done with it, and by how many threads, is its holder's to say.
#[derive(Debug)]
pub(crate) struct Pages {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: an address and a length; each access to the memory is its holder's, with reasons of its own.
unsafe impl Send for Pages {}
// SAFETY: as above.
unsafe impl Sync for Pages {}

const BOTH: libc::c_int = libc::PROT_READ | libc::PROT_WRITE;

impl Pages {
    /// So many zeroes for this process alone. EINVAL: none; ENOMEM.
    pub(crate) fn private(len: usize) -> io::Result<Pages> {
        Pages::map(len, BOTH, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)
    }

    /// The first bytes of a file, to be changed for all who map it. As [`Pages::private`]; EACCES, ENODEV: there can be no mapping.
    /// Where the file ends earlier an access is SIGBUS.
    pub(crate) fn shared(file: BorrowedFd<'_>, len: usize) -> io::Result<Pages> {
        Pages::map(len, BOTH, libc::MAP_SHARED, file.as_raw_fd())
    }

    /// As [`Pages::shared`], to be read, and read in at once.
    pub(crate) fn readable(file: BorrowedFd<'_>, len: usize) -> io::Result<Pages> {
        Pages::map(len, libc::PROT_READ, libc::MAP_PRIVATE | libc::MAP_POPULATE, file.as_raw_fd())
    }

    fn map(len: usize, protection: libc::c_int, flags: libc::c_int, fd: libc::c_int) -> io::Result<Pages> {
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours. The result is checked.
        let start = unsafe { libc::mmap(null_mut(), len, protection, flags, fd, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        Ok(Pages { start, len })
    }

    /// Its first byte, at the start of a page.
    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// So many bytes are there.
    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: this is the mapping that `map` made; whoever refers into it holds it.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}
