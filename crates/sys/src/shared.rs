//! Memory in a memory file that outlives the process (memfd_create(2)): whoever maps the file next finds what was written,
//! however the writer ended.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

/// A memory file mapped as numbers of 64 bits. The file is sparse: what is never touched takes no memory.
///
/// Whoever holds the file must not make it shorter while it is mapped (its reader would die of SIGBUS): it is for
/// processes that trust each other.
#[derive(Debug)]
pub struct SharedWords {
    start: NonNull<AtomicU64>,
    len: usize,
}

// SAFETY: the mapping lives as long as the value, and is only ever seen as atomics.
unsafe impl Send for SharedWords {}
// SAFETY: as above.
unsafe impl Sync for SharedWords {}

impl SharedWords {
    /// Maps `file`, made `words` words long first if it is shorter (ftruncate(2), mmap(2)). What was never written is 0.
    /// EINVAL: it is no memory file, or sealed, or `words` is 0; ENOMEM: no room in the address space.
    pub fn map(file: &OwnedFd, words: usize) -> io::Result<SharedWords> {
        let bytes = words.checked_mul(size_of::<u64>()).ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
        let file = File::from(file.try_clone()?);
        if file.metadata()?.len() < bytes as u64 {
            file.set_len(bytes as u64)?;
        }
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new shared mapping at a place of the kernel's choice; the file is long enough.
        let start =
            unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        Ok(SharedWords { start, len: words })
    }
}

impl Deref for SharedWords {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: `start` is the page-aligned start of a live mapping of `len` words, which all access as atomics.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        // SAFETY: this is the mapping that `map` made; no reference into it outlives `self`.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len * size_of::<u64>()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    #[test]
    fn the_next_mapping_finds_what_was_written() {
        let file = crate::memfd::create(c"test").unwrap();
        let first = SharedWords::map(&file, 4096).unwrap();
        first[4095].store(7, Ordering::Release);
        drop(first);
        let second = SharedWords::map(&file, 4096).unwrap();
        assert_eq!((second[0].load(Ordering::Acquire), second[4095].load(Ordering::Acquire)), (0, 7));
        assert!(SharedWords::map(&file, 0).is_err());
    }
}
