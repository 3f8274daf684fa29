//! The places where a program has a socket: the numbers of its fds, and the epoll sets that watch it (epoll(7)). With them another
//! socket can be put in its place.
//!
//! A registration in an epoll set belongs to a file and a number, and goes with the file. So the new socket is registered under the same
//! number, with the same events and data, before it is put there.

use super::Tasks;
use crate::process::run_aside;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;

/// Where a thread's table of fds has a socket.
#[derive(Debug)]
pub struct Held {
    /// The fds, and which of them are close-on-exec.
    pub numbers: Vec<(RawFd, bool)>,
    watches: Vec<Watch>,
    inode: u64,
}

/// A registration.
#[derive(Debug)]
struct Watch {
    set: OwnedFd,
    number: RawFd,
    events: u32,
    data: u64,
}

fn identity(file: BorrowedFd<'_>) -> io::Result<(u64, u64)> {
    let metadata = File::from(file.try_clone_to_owned()?).metadata()?;
    Ok((metadata.dev(), metadata.ino()))
}

impl Tasks {
    /// Looks for `socket` in the thread's table of fds, where its number is `number`. What /proc does not show of a process of another
    /// user is left out; `number` is there in any case.
    ///
    /// # Errors
    /// EMFILE, ENFILE.
    pub fn held(&mut self, tid: u32, number: RawFd, socket: BorrowedFd<'_>) -> io::Result<Held> {
        let (device, inode) = identity(socket)?;
        let mut held = Held { numbers: Vec::new(), watches: Vec::new(), inode };
        let link = format!("socket:[{inode}]");
        for entry in fs::read_dir(format!("/proc/{tid}/fd")).into_iter().flatten().flatten() {
            let Some(fd) = entry.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok()) else { continue };
            let Ok(target) = fs::read_link(entry.path()) else { continue };
            if target.as_os_str() == link.as_str() {
                held.numbers.push((fd, closes_on_exec(tid, fd)));
            } else if target.as_os_str() == "anon_inode:[eventpoll]"
                && let Ok(set) = self.fd(tid, fd)
            {
                let found = fs::read_to_string(format!("/proc/{tid}/fdinfo/{fd}")).unwrap_or_default();
                // The kernel prints its own form of a device number; that of sockets has no major part.
                let wanted = (inode, libc::minor(device).into());
                for (number, events, data) in found.lines().filter_map(|line| registration(line, wanted)) {
                    held.watches.push(Watch { set: set.try_clone()?, number, events, data });
                }
            }
        }
        if held.numbers.iter().all(|(known, _)| *known != number) {
            held.numbers.push((number, closes_on_exec(tid, number)));
        }
        Ok(held)
    }

    /// Whether the thread's fd `number` is still that socket.
    pub fn still_holds(&mut self, tid: u32, number: RawFd, held: &Held) -> bool {
        self.fd(tid, number).is_ok_and(|fd| identity(fd.as_fd()).is_ok_and(|(_, inode)| inode == held.inode))
    }
}

fn closes_on_exec(tid: u32, number: RawFd) -> bool {
    let text = fs::read_to_string(format!("/proc/{tid}/fdinfo/{number}")).unwrap_or_default();
    let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
    flags.and_then(|text| i32::from_str_radix(text.trim(), 8).ok()).is_some_and(|flags| flags & libc::O_CLOEXEC != 0)
}

/// Number, events and data of a line of an epoll set's fdinfo (proc(5)), if it is about the file with this inode and device.
fn registration(line: &str, wanted: (u64, u64)) -> Option<(RawFd, u32, u64)> {
    let field = |name: &str| {
        let rest = line.split_once(name)?.1.trim_start();
        rest.split(char::is_whitespace).next()
    };
    let hex = |name: &str| u64::from_str_radix(field(name)?, 16).ok();
    let number = field("tfd:")?.parse().ok()?;
    ((hex("ino:")?, hex("sdev:")?) == wanted).then_some(())?;
    Some((number, hex("events:")? as u32, hex("data:")?))
}

impl Held {
    /// Has the epoll sets that watch `old` watch `new` instead, under the same numbers. One that is disarmed (EPOLLONESHOT) is told of
    /// errors and hang-ups again.
    ///
    /// # Errors
    /// EAGAIN, ENOMEM; ENOSPC at the user's limit of registrations.
    pub fn transplant(&self, old: BorrowedFd<'_>, new: BorrowedFd<'_>) -> io::Result<()> {
        if self.watches.is_empty() {
            return Ok(());
        }
        let mut failed = 0;
        run_aside(&mut || {
            for watch in &self.watches {
                if let Err(errno) = watch.transplant(old.as_raw_fd(), new.as_raw_fd()) {
                    failed = errno;
                }
            }
        })?;
        if failed == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(failed)) }
    }
}

/// A copy of `fd` with a number that is not `taken`.
fn clear_of(fd: RawFd, taken: RawFd) -> RawFd {
    // SAFETY: plain numbers. The lowest free number is not one that is open.
    if fd == taken { unsafe { libc::dup(fd) } } else { fd }
}

impl Watch {
    /// In a table of fds of its own: the numbers are the target's, whatever they are here.
    fn transplant(&self, old: RawFd, new: RawFd) -> Result<(), i32> {
        // Copies above the number, which is put back: other registrations come after this one.
        let (set, old, new) =
            (clear_of(self.set.as_raw_fd(), self.number), clear_of(old, self.number), clear_of(new, self.number));
        let mut event = libc::epoll_event { events: self.events, u64: self.data };
        // SAFETY: plain numbers, and a live event.
        unsafe {
            let before = libc::dup(self.number);
            libc::dup2(new, self.number);
            let added = libc::epoll_ctl(set, libc::EPOLL_CTL_ADD, self.number, &raw mut event);
            let errno = *libc::__errno_location();
            libc::dup2(old, self.number);
            libc::epoll_ctl(set, libc::EPOLL_CTL_DEL, self.number, std::ptr::null_mut());
            libc::close(self.number);
            if before >= 0 {
                libc::dup2(before, self.number);
                libc::close(before);
            }
            if added == 0 || errno == libc::EEXIST { Ok(()) } else { Err(errno) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::FromRawFd;
    use std::os::unix::net::UnixStream;

    fn epoll() -> OwnedFd {
        // SAFETY: returns a new fd that nobody else owns.
        unsafe { OwnedFd::from_raw_fd(libc::epoll_create1(libc::EPOLL_CLOEXEC)) }
    }

    fn add(set: &OwnedFd, fd: RawFd, events: i32, data: u64) {
        let mut event = libc::epoll_event { events: events as u32, u64: data };
        // SAFETY: plain numbers, and a live event.
        assert_eq!(unsafe { libc::epoll_ctl(set.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &raw mut event) }, 0);
    }

    fn ready(set: &OwnedFd) -> Vec<(u32, u64)> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 8];
        // SAFETY: room for eight events.
        let count = unsafe { libc::epoll_wait(set.as_raw_fd(), events.as_mut_ptr(), 8, 0) };
        events[..count as usize].iter().map(|event| (event.events, event.u64)).collect()
    }

    #[test]
    fn a_registration_goes_over_with_its_number_events_and_data() {
        let (old, _peer) = UnixStream::pair().unwrap();
        let (new, other) = UnixStream::pair().unwrap();
        let copy = old.try_clone().unwrap();
        let (one, two) = (epoll(), epoll());
        let number = old.as_raw_fd();
        add(&one, number, libc::EPOLLIN, 7);
        add(&one, copy.as_raw_fd(), libc::EPOLLIN, 8);
        add(&two, number, libc::EPOLLIN | libc::EPOLLET, u64::MAX);
        // SAFETY: takes no arguments.
        let own = unsafe { libc::gettid() } as u32;
        let mut tasks = Tasks::new();
        let held = tasks.held(own, number, old.as_fd()).unwrap();
        let mut numbers = held.numbers.clone();
        numbers.sort_unstable();
        assert_eq!(numbers, [(number, true), (copy.as_raw_fd(), true)]);
        assert!(tasks.still_holds(own, number, &held));
        held.transplant(old.as_fd(), new.as_fd()).unwrap();
        for at in [number, copy.as_raw_fd()] {
            // SAFETY: both are open; each is owned by the value that it was made for.
            unsafe { libc::dup3(new.as_raw_fd(), at, libc::O_CLOEXEC) };
        }
        assert!(!tasks.still_holds(own, number, &held));
        assert_eq!((ready(&one), ready(&two)), (vec![], vec![]));
        io::Write::write_all(&mut &other, b"x").unwrap();
        let mut seen = ready(&one);
        seen.sort_unstable();
        assert_eq!(seen, [(1, 7), (1, 8)]);
        assert_eq!((ready(&two), ready(&two)), (vec![(1, u64::MAX)], vec![]), "edge-triggered");
        // The program's own number and file are what the kernel looks for.
        // SAFETY: plain numbers.
        unsafe {
            assert_eq!(libc::epoll_ctl(one.as_raw_fd(), libc::EPOLL_CTL_DEL, number, std::ptr::null_mut()), 0);
        }
        assert_eq!(ready(&one), [(1, 8)]);
    }
}
