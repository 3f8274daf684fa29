//! SO_LINGER with time 0: the last close resets the connection.
//!
//! AF_UNIX resets a peer when a socket is closed with unread bytes. So one is put there: out of band, which the owner's
//! reads pass over, and by the peer's own end, which alone can write to this one. Closing is not trapped, so it is
//! done when the option is set, which programs do right before they close. The peer's end is searched among all
//! processes that this one may look at: slow, and seldom needed.

use super::state::State;
use hurdle_sys::target::socket;
use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

fn inode(fd: BorrowedFd<'_>) -> Option<u64> {
    Some(File::from(fd.try_clone_to_owned().ok()?).metadata().ok()?.ino())
}

impl State {
    /// Arms the reset of a connected socket. If its peer is not found, its close will be an ordinary one.
    pub(super) fn arm_reset(&mut self, fd: BorrowedFd<'_>) -> Option<()> {
        socket::peer_name(fd).ok()?;
        let own = inode(fd)?;
        let listed = socket::list(self.pool.diagnosis()).ok()?;
        let peer = listed.iter().find(|one| u64::from(one.inode) == own)?.peer?;
        let peer = self.find(peer.into())?;
        socket::send_out_of_band(peer.as_fd()).ok()
    }

    /// Fetches a socket by its inode number from any process that holds it.
    fn find(&mut self, wanted: u64) -> Option<OwnedFd> {
        let link = format!("socket:[{wanted}]");
        for process in fs::read_dir("/proc").ok()?.flatten() {
            let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
            let Ok(fds) = fs::read_dir(process.path().join("fd")) else { continue };
            for entry in fds.flatten() {
                if fs::read_link(entry.path()).is_ok_and(|target| target.as_os_str() == link.as_str())
                    && let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok())
                    && let Ok(fd) = self.tasks.fd(pid, number)
                    && inode(fd.as_fd()) == Some(wanted)
                {
                    return Some(fd);
                }
            }
        }
        None
    }
}
