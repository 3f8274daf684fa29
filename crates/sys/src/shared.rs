//! Memory in a memory file that outlives the process (memfd_create(2)): whoever maps the file next finds what was written,
//! however the writer ended.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::AtomicU64;

use crate::pages::Pages;

/// A memory file mapped as numbers of 64 bits. The file is sparse: what is never touched takes no memory.
///
/// Whoever holds the file must not make it shorter while it is mapped (its reader would die of SIGBUS): it is for
/// processes that trust each other.
#[derive(Debug)]
pub struct SharedWords {
    /// Only ever seen as atomics.
    pages: Pages,
}

impl SharedWords {
    /// Maps `file`, made `words` words long first if it is shorter (ftruncate(2), mmap(2)). What was never written is 0.
    /// EINVAL: it is no memory file, or sealed, or `words` is 0; ENOMEM: no room in the address space.
    pub fn map(file: &OwnedFd, words: usize) -> io::Result<SharedWords> {
        let bytes = words.checked_mul(size_of::<u64>()).ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
        let file = File::from(file.try_clone()?);
        if file.metadata()?.len() < bytes as u64 {
            file.set_len(bytes as u64)?;
        }
        Ok(SharedWords { pages: Pages::shared(file.as_fd(), bytes)? })
    }
}

impl Deref for SharedWords {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        let words = self.pages.len() / size_of::<u64>();
        // SAFETY: the page-aligned start of a live mapping of so many words, which all access as atomics.
        unsafe { std::slice::from_raw_parts(self.pages.start().as_ptr().cast(), words) }
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
