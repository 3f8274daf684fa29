//! Whether two files hold the same.

use std::ffi::CStr;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::FileType;
use rustix::io::Errno;

use crate::at::{self, Stat};

/// How much is read at once.
const CHUNK: usize = 128 * 1024;

/// Whether the contents of an entry of a layer (directory, name, attributes, and if it has no contents of its own) are other
/// than those of what lies below, which has the same type. Directories have none.
pub(crate) fn contents(
    (dir, name, stat, metacopy): (BorrowedFd<'_>, &CStr, &Stat, bool),
    (other_dir, other_name, other): (BorrowedFd<'_>, &CStr, &Stat),
) -> Result<bool, Errno> {
    match stat.kind {
        FileType::RegularFile if metacopy => Ok(false),
        FileType::RegularFile if stat.size != other.size => Ok(true),
        FileType::RegularFile if stat.size == 0 => Ok(false),
        FileType::RegularFile => {
            let ours = at::open_file(dir, name)?;
            let theirs = at::open_file(other_dir, other_name)?;
            Ok(!same(&ours, &theirs)?)
        }
        FileType::Symlink => Ok(at::read_link(dir, name)? != at::read_link(other_dir, other_name)?),
        FileType::CharacterDevice | FileType::BlockDevice => Ok(stat.rdev != other.rdev),
        _ => Ok(false),
    }
}

/// Whether two open files hold the same bytes.
pub(crate) fn same(a: &OwnedFd, b: &OwnedFd) -> Result<bool, Errno> {
    thread_local! {
        static BUFFERS: std::cell::RefCell<(Vec<u8>, Vec<u8>)> = std::cell::RefCell::new((vec![0; CHUNK], vec![0; CHUNK]));
    }
    BUFFERS.with_borrow_mut(|(ours, theirs)| {
        let mut offset = 0;
        loop {
            let count = fill(a, ours, offset)?;
            if count != fill(b, theirs, offset)? || ours[..count] != theirs[..count] {
                return Ok(false);
            }
            if count < CHUNK {
                return Ok(true);
            }
            offset += count as u64;
        }
    })
}

/// Reads until the buffer is full, or at the end of the file.
pub(crate) fn fill(file: &OwnedFd, buffer: &mut [u8], offset: u64) -> Result<usize, Errno> {
    let mut done = 0;
    while done < buffer.len() {
        match rustix::io::pread(file, &mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}
