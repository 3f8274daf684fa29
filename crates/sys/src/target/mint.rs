//! Makes sockets in a network namespace of their own.
//!
//! Abstract AF_UNIX names are per network namespace, and a socket stays in the one it was made in. A process that serves
//! other users' namespaces must stay outside them, so a child process stands in the private one for it, makes sockets
//! in batches and passes them out. The child ends with the last copy of its channel.

use super::socket;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// How many sockets come in one batch.
const BATCH: usize = 16;

/// The parent's end.
#[derive(Debug)]
pub struct Mint {
    channel: std::mem::ManuallyDrop<OwnedFd>,
    pid: libc::pid_t,
    namespaces: (OwnedFd, OwnedFd),
    diagnosis: OwnedFd,
}

/// One batch of sockets and what it was asked with.
#[derive(Debug)]
pub struct Made {
    /// The number that the batch was asked with.
    pub kind: u8,
    /// Stream sockets.
    pub sockets: Vec<OwnedFd>,
}

/// What the child makes for one kind.
#[derive(Clone, Copy, Debug)]
pub struct Recipe {
    /// AF_UNIX, AF_INET or AF_INET6.
    pub family: i32,
    /// Whether the file gets O_NONBLOCK.
    pub nonblocking: bool,
    /// The mark of an AF_UNIX socket, see [`socket::mark`].
    pub mark: u64,
}

/// A child that is on its way.
#[derive(Debug)]
pub struct Begun {
    channel: OwnedFd,
    pid: libc::pid_t,
}

impl Begun {
    /// Waits until it is there.
    ///
    /// # Errors
    /// EPERM or ENOSPC where user namespaces are forbidden; EMFILE.
    pub fn mint(self) -> io::Result<Mint> {
        let first = receive(self.channel.as_fd(), true)?;
        let Ok([user, network, diagnosis]) = <[OwnedFd; 3]>::try_from(first.sockets) else {
            let mut status = 0;
            // SAFETY: reaps the child.
            unsafe { libc::waitpid(self.pid, &raw mut status, 0) };
            return Err(io::Error::from_raw_os_error(libc::WEXITSTATUS(status)));
        };
        let channel = std::mem::ManuallyDrop::new(self.channel);
        Ok(Mint { channel, pid: self.pid, namespaces: (user, network), diagnosis })
    }
}

impl Mint {
    /// Starts the child, in new user and network namespaces, or in the given ones (user, network). `recipes` is what it can
    /// make: a kind is an index into it. To be called while the process has one thread.
    ///
    /// # Errors
    /// EMFILE, EAGAIN, ENOMEM.
    pub fn begin(namespaces: Option<(OwnedFd, OwnedFd)>, recipes: &[Recipe]) -> io::Result<Begun> {
        let mut pair = [0; 2];
        // SAFETY: `pair` has room for two fds.
        check(unsafe {
            libc::socketpair(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0, pair.as_mut_ptr())
        })?;
        // SAFETY: socketpair returned two new fds that nobody else owns.
        let (ours, theirs) = unsafe { (OwnedFd::from_raw_fd(pair[0]), OwnedFd::from_raw_fd(pair[1])) };
        // SAFETY: the child calls only async-signal-safe functions and ends with _exit.
        match check(unsafe { libc::fork() })? {
            0 => {
                drop(ours);
                let code = child(&theirs, namespaces.as_ref(), recipes).err().and_then(|error| error.raw_os_error());
                // SAFETY: ends the child without running the parent's exit handlers.
                unsafe { libc::_exit(code.unwrap_or(0)) }
            }
            pid => {
                drop(theirs);
                Ok(Begun { channel: ours, pid })
            }
        }
    }

    /// The user and the network namespace, to be kept for a successor.
    pub fn namespaces(&self) -> (BorrowedFd<'_>, BorrowedFd<'_>) {
        (self.namespaces.0.as_fd(), self.namespaces.1.as_fd())
    }

    /// A sock_diag(7) socket of the private namespace.
    pub fn diagnosis(&self) -> BorrowedFd<'_> {
        self.diagnosis.as_fd()
    }

    /// Asks for a batch, without waiting for it.
    ///
    /// # Errors
    /// EPIPE if the child ended.
    pub fn ask(&self, kind: u8) -> io::Result<()> {
        // SAFETY: one live byte.
        match unsafe { libc::send(self.channel.as_raw_fd(), [kind].as_ptr().cast(), 1, libc::MSG_NOSIGNAL) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }

    /// Takes a batch that was asked for.
    ///
    /// # Errors
    /// EAGAIN if none is there yet and `wait` is false; EPIPE if the child ended; EMFILE if this process has no room for
    /// all of it.
    pub fn take(&self, wait: bool) -> io::Result<Made> {
        match receive(self.channel.as_fd(), wait) {
            Ok(made) if !made.sockets.is_empty() => Ok(made),
            // It ended and read what it was asked, or did not.
            Ok(_) => Err(io::Error::from_raw_os_error(libc::EPIPE)),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                Err(io::Error::from_raw_os_error(libc::EPIPE))
            }
            Err(error) => Err(error),
        }
    }
}

impl Drop for Mint {
    fn drop(&mut self) {
        // SAFETY: the channel is not used after this; its end is what ends the child, which is this process's own.
        unsafe {
            std::mem::ManuallyDrop::drop(&mut self.channel);
            libc::waitpid(self.pid, std::ptr::null_mut(), 0);
        }
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Room for the control message of a batch.
#[repr(C, align(8))]
struct Control([u8; 128]);

fn receive(channel: BorrowedFd<'_>, wait: bool) -> io::Result<Made> {
    let mut kind = 0u8;
    let mut control = Control([0; 128]);
    let mut part = libc::iovec { iov_base: (&raw mut kind).cast(), iov_len: 1 };
    // SAFETY: all zeros is a valid msghdr.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = control.0.len() as _;
    let flags = libc::MSG_CMSG_CLOEXEC | if wait { 0 } else { libc::MSG_DONTWAIT };
    loop {
        // SAFETY: the message's parts are live and have the lengths that it says.
        if unsafe { libc::recvmsg(channel.as_raw_fd(), &raw mut message, flags) } >= 0 {
            break;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    let mut sockets = Vec::new();
    // SAFETY: the kernel filled the control buffer; CMSG_FIRSTHDR checks its length.
    let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message).as_ref() };
    if let Some(header) = header.filter(|header| header.cmsg_type == libc::SCM_RIGHTS) {
        // SAFETY: plain arithmetic.
        let count = (header.cmsg_len - unsafe { libc::CMSG_LEN(0) } as usize) / size_of::<RawFd>();
        for index in 0..count {
            // SAFETY: the header says that so many fds follow; each is new and nobody else owns it.
            sockets.push(unsafe {
                OwnedFd::from_raw_fd(libc::CMSG_DATA(header).cast::<RawFd>().add(index).read_unaligned())
            });
        }
    }
    Ok(Made { kind, sockets })
}

fn send(channel: BorrowedFd<'_>, kind: u8, fds: &[RawFd]) -> io::Result<()> {
    let mut control = Control([0; 128]);
    let mut part = libc::iovec { iov_base: (&raw const kind).cast_mut().cast(), iov_len: 1 };
    let bytes = size_of_val(fds) as u32;
    // SAFETY: all zeros is a valid msghdr; CMSG_SPACE of a batch is below the buffer's length.
    unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE(bytes) as _;
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(bytes) as _;
        std::ptr::copy_nonoverlapping(fds.as_ptr(), libc::CMSG_DATA(header).cast(), fds.len());
        check(libc::sendmsg(channel.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) as libc::c_int).map(drop)
    }
}

/// SIOCGSKNS and NS_GET_USERNS of linux/sockios.h and linux/nsfs.h.
const SIOCGSKNS: u64 = 0x894C;
const NS_GET_USERNS: u64 = 0xb701;

/// The child: no allocation, no locks, system calls only.
fn child(channel: &OwnedFd, namespaces: Option<&(OwnedFd, OwnedFd)>, recipes: &[Recipe]) -> io::Result<()> {
    // SAFETY: system calls with plain numbers and live buffers; the fds are this process's own.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
        libc::prctl(libc::PR_SET_NAME, c"hurdle-mint".as_ptr(), 0, 0, 0);
        match namespaces {
            Some((user, network)) => {
                // EINVAL: it is this process's own user namespace already.
                if libc::setns(user.as_raw_fd(), libc::CLONE_NEWUSER) < 0 && *libc::__errno_location() != libc::EINVAL {
                    return Err(io::Error::last_os_error());
                }
                check(libc::setns(network.as_raw_fd(), libc::CLONE_NEWNET))?;
            }
            None => {
                if libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNET) < 0 {
                    // Root needs no user namespace where they are forbidden.
                    check(libc::unshare(libc::CLONE_NEWNET))?;
                }
            }
        }
        let diagnosis =
            check(libc::socket(libc::AF_NETLINK, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, libc::NETLINK_SOCK_DIAG))?;
        let network = check(libc::ioctl(diagnosis, SIOCGSKNS as _))?;
        let user = check(libc::ioctl(network, NS_GET_USERNS as _))?;
        send(channel.as_fd(), 0, &[user, network, diagnosis])?;
        // It needs nothing but its channel, and must not keep alive what its parent holds.
        let keep = check(libc::dup3(channel.as_raw_fd(), 3, libc::O_CLOEXEC).max(3))?;
        libc::syscall(libc::SYS_close_range, keep + 1, u32::MAX, 0);
        libc::syscall(libc::SYS_close_range, 0, 2, 0);
        let channel = BorrowedFd::borrow_raw(keep);
        let mut settled = false;
        loop {
            let mut kind = 0u8;
            match libc::recv(keep, (&raw mut kind).cast(), 1, 0) {
                1 => {}
                -1 if *libc::__errno_location() == libc::EINTR => continue,
                _ => return Ok(()),
            }
            let Some(recipe) = recipes.get(usize::from(kind)) else { continue };
            let mut batch = [0; BATCH];
            for fd in &mut batch {
                let flags = libc::SOCK_CLOEXEC | if recipe.nonblocking { libc::SOCK_NONBLOCK } else { 0 };
                *fd = check(libc::socket(recipe.family, libc::SOCK_STREAM | flags, 0))?;
                if recipe.family == libc::AF_UNIX {
                    socket::set_mark(BorrowedFd::borrow_raw(*fd), recipe.mark)?;
                    socket::set_room(BorrowedFd::borrow_raw(*fd))?;
                }
            }
            send(channel, kind, &batch)?;
            for fd in batch {
                libc::close(fd);
            }
            // It begins to wait.
            if !std::mem::replace(&mut settled, true) {
                crate::process::release_code();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_said_whether_or_not_it_had_read_what_it_was_asked() {
        let recipe = Recipe { family: libc::AF_UNIX, nonblocking: false, mark: 0 };
        for asked in [true, false] {
            let mint = Mint::begin(None, &[recipe]).unwrap().mint().unwrap();
            mint.ask(0).unwrap();
            assert_eq!(mint.take(true).unwrap().sockets.len(), BATCH);
            // SAFETY: the child is this test's own and not reaped before the mint is dropped.
            let signal = |signal| assert_eq!(unsafe { libc::kill(mint.pid, signal) }, 0);
            signal(libc::SIGSTOP);
            if asked {
                mint.ask(0).unwrap();
            }
            signal(libc::SIGKILL);
            assert_eq!(mint.take(true).unwrap_err().raw_os_error(), Some(libc::EPIPE), "asked: {asked}");
        }
    }
}
