//! Who uses a layer: flock(2) on files in it, which the kernel lets go when the holder ends, however it ends.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::error::{At as _, Error, Result};

/// A lock held on a layer, until dropped. Copies of the process hold it too, as long as they have the fd.
#[derive(Debug)]
pub struct Lock {
    file: File,
    exclusive: bool,
}

impl Lock {
    /// Takes a lock without waiting. `by` says for others who holds it.
    pub(crate) fn take(dir: BorrowedFd<'_>, layer: &Path, name: &str, exclusive: bool, by: &str) -> Result<Lock> {
        let mut file = open(dir, layer, name)?;
        let how =
            if exclusive { FlockOperation::NonBlockingLockExclusive } else { FlockOperation::NonBlockingLockShared };
        match rustix::fs::flock(&file, how) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(Error::Busy { path: layer.into(), by: holder(&mut file) }),
            Err(e) => return Err(e).at(|| format!("flock {}", layer.join(name).display())),
        }
        if exclusive {
            // Words for others only: the lock holds without them, also on a full disk.
            let _ = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(by.as_bytes()));
        }
        Ok(Lock { file, exclusive })
    }

    /// Who holds it, if somebody does.
    pub(crate) fn holder(dir: BorrowedFd<'_>, layer: &Path, name: &str) -> Result<Option<String>> {
        match Lock::take(dir, layer, name, false, "") {
            Ok(_) => Ok(None),
            Err(Error::Busy { by, .. }) => Ok(Some(by)),
            Err(e) => Err(e),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if self.exclusive {
            let _ = self.file.set_len(0);
        }
    }
}

impl AsFd for Lock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn open(dir: BorrowedFd<'_>, layer: &Path, name: &str) -> Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let fd = rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o600));
    Ok(fd.at(|| format!("{}", layer.join(name).display()))?.into())
}

fn holder(file: &mut File) -> String {
    let mut text = String::new();
    let _ = file.rewind().and_then(|()| file.take(200).read_to_string(&mut text));
    if text.trim().is_empty() { "another process".into() } else { crate::text::escape(text.trim().as_bytes()) }
}
