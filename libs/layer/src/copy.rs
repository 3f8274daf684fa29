//! A copy of one file: contents with their holes, by the fastest way that the file systems allow.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::at::Stat;

/// Up to this size a file without holes is read and written at once.
const SMALL: u64 = 64 * 1024;

/// Copies all of `from`, which `stat` describes, to the empty file `to`: shared blocks where the file systems can (FICLONE,
/// ioctl_ficlone(2)), else a copy in the kernel (copy_file_range(2)), hole by hole (lseek(2), SEEK_DATA).
pub(crate) fn copy(from: &OwnedFd, to: &OwnedFd, stat: &Stat) -> Result<(), Errno> {
    if stat.size == 0 {
        return Ok(());
    }
    let sparse = stat.blocks.saturating_mul(512) < stat.size;
    if stat.size <= SMALL && !sparse {
        return by_hand(from, to, 0, stat.size.max(1));
    }
    if rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    let mut offset = 0;
    while offset < stat.size {
        let (start, end) = if sparse {
            match rustix::fs::seek(from, SeekFrom::Data(offset)) {
                Ok(start) => (start, rustix::fs::seek(from, SeekFrom::Hole(start))?),
                // Nothing but a hole to the end.
                Err(Errno::NXIO) => break,
                Err(Errno::INVAL) => (offset, stat.size),
                Err(e) => return Err(e),
            }
        } else {
            (offset, stat.size)
        };
        range(from, to, start, end.min(stat.size))?;
        offset = end;
    }
    rustix::fs::ftruncate(to, stat.size)
}

fn range(from: &OwnedFd, to: &OwnedFd, start: u64, end: u64) -> Result<(), Errno> {
    let (mut input, mut output) = (start, start);
    while input < end {
        let length = usize::try_from(end - input).unwrap_or(usize::MAX).min(1 << 30);
        match rustix::fs::copy_file_range(from, Some(&mut input), to, Some(&mut output), length) {
            // It became shorter meanwhile.
            Ok(0) => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::BADF | Errno::PERM) => {
                return by_hand(from, to, input, end - input);
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn by_hand(from: impl AsFd, to: impl AsFd, start: u64, length: u64) -> Result<(), Errno> {
    let mut buffer = vec![0; usize::try_from(length).unwrap_or(usize::MAX).min(256 * 1024)];
    let (mut offset, end) = (start, start + length);
    while offset < end {
        let want = buffer.len().min(usize::try_from(end - offset).unwrap_or(usize::MAX));
        let count = match rustix::io::pread(&from, &mut buffer[..want], offset) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(Errno::INTR) => continue,
            Err(e) => return Err(e),
        };
        let mut written = 0;
        while written < count {
            match rustix::io::pwrite(&to, &buffer[written..count], offset + written as u64) {
                Ok(more) => written += more,
                Err(Errno::INTR) => {}
                Err(e) => return Err(e),
            }
        }
        offset += count as u64;
    }
    Ok(())
}
