//! SEQPACKET pairs that carry fds (unix(7)), and the way to wake a thread that is blocked on one.
//!
//! A message is sent and received whole, so there is no framing to do and no partial read. [`send`] and [`receive`]
//! are one system call each: channels are built so that a round trip costs two on each side.
//!
//! **Interrupting a receiver without a lost wake-up.** A signal alone may arrive just before the thread enters the
//! kernel, and is then lost. So whoever interrupts first sets the socket's receive timeout to its smallest value, then
//! sends the signal ([`interrupt`]): a thread that already waits is woken by the signal, one that is about to wait
//! finds the timeout. The receiver sets the timeout anew before it goes on ([`set_receive_timeout`]).

mod buffer;

use std::cell::Cell;
use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::OnceLock;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, Shutdown, SockFlag, SockType, socketpair, sockopt};

pub use buffer::Buffer;

/// The most fds that one message can carry: the kernel's SCM_MAX_FD (unix(7)).
pub const MAX_FDS: usize = 253;

/// Room for a control message with [`MAX_FDS`] fds, in words: more never arrives, so a cut control message can only
/// mean that this process has no fd left.
const CONTROL_WORDS: usize = (size_of::<libc::cmsghdr>() + MAX_FDS * size_of::<RawFd>()).div_ceil(8) + 2;

/// A buffer for control messages, aligned as `cmsghdr` wants it.
#[repr(C, align(8))]
struct Control([MaybeUninit<u64>; CONTROL_WORDS]);

impl Control {
    const fn new() -> Control {
        Control([MaybeUninit::uninit(); CONTROL_WORDS])
    }
}

/// What [`receive`] got, besides the bytes.
#[derive(Debug)]
pub struct Received {
    /// The fds of the message, close-on-exec, in the order in which they were sent.
    pub fds: Vec<OwnedFd>,
    /// The message was larger than the buffer; its rest is lost (MSG_TRUNC).
    pub bytes_cut: bool,
    /// Fds of the message are lost, since this process is at its limit of open files (MSG_CTRUNC).
    pub fds_cut: bool,
}

/// A connected pair of sockets, close-on-exec (socketpair(2)). Fails with EMFILE or ENFILE at the limit of open files.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?)
}

/// Says whether `fd` is an AF_UNIX SEQPACKET socket (SO_TYPE in socket(7), getsockname(2)).
pub fn is_seqpacket(fd: BorrowedFd<'_>) -> bool {
    use nix::sys::socket::{UnixAddr, getsockname, getsockopt};
    getsockopt(&fd, sockopt::SockType) == Ok(SockType::SeqPacket) && getsockname::<UnixAddr>(fd.as_raw_fd()).is_ok()
}

/// Sends one message with `fds` (sendmsg(2)), never raising SIGPIPE.
///
/// With `wait` false, a full queue fails with EAGAIN. Fails with EPIPE or ECONNRESET when the other end is closed,
/// EMSGSIZE when the message can never fit, ETOOMANYREFS when too many fds of this user are in flight, EINTR on a
/// signal.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>], wait: bool) -> io::Result<()> {
    let flags = libc::MSG_NOSIGNAL | if wait { 0 } else { libc::MSG_DONTWAIT };
    let sent = if fds.is_empty() {
        // SAFETY: `bytes` is a valid slice for the whole call, and the kernel only reads it.
        unsafe { libc::send(socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) }
    } else {
        send_with_fds(socket, bytes, fds, flags)?
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The slow half of [`send`]: builds the SCM_RIGHTS control message.
fn send_with_fds(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
    flags: libc::c_int,
) -> io::Result<isize> {
    if fds.len() > MAX_FDS {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let mut control = Control::new();
    let mut iov = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let data_len = size_of::<RawFd>() * fds.len();
    // SAFETY: `msghdr` is plain data, for which all zeroes is a valid value. CMSG_SPACE and CMSG_LEN only compute.
    // `control` has room for MAX_FDS fds, so CMSG_FIRSTHDR is not null and its data has room for `data_len` bytes. The
    // kernel only reads what `message` points to, and all of it lives until the call returns.
    unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &mut iov;
        message.msg_iovlen = 1;
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE(data_len as u32) as _;
        let header = libc::CMSG_FIRSTHDR(&message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(data_len as u32) as _;
        let data = libc::CMSG_DATA(header).cast::<RawFd>();
        for (index, fd) in fds.iter().enumerate() {
            data.add(index).write_unaligned(fd.as_raw_fd());
        }
        Ok(libc::sendmsg(socket.as_raw_fd(), &message, flags))
    }
}

/// Receives one message into the capacity of `buffer`, whose length becomes the message's (recvmsg(2)).
///
/// A length of zero is the end (or an empty message: see [`crate::process::ended`]). Waits as long as the socket's receive timeout
/// allows, then fails with EAGAIN; with EINTR on a signal; with ECONNRESET when the other end closed with messages unread.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut Vec<u8>) -> io::Result<Received> {
    buffer.clear();
    let (len, received) = receive_in(socket, buffer.spare_capacity_mut())?;
    // SAFETY: so many bytes of the capacity were written.
    unsafe { buffer.set_len(len) };
    Ok(received)
}

/// How many bytes of the message are in `room` now, and what else came.
fn receive_in(socket: BorrowedFd<'_>, room: &mut [MaybeUninit<u8>]) -> io::Result<(usize, Received)> {
    let mut control = Control::new();
    let mut iov = libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() };
    // SAFETY: `msghdr` is plain data, for which all zeroes is a valid value. The kernel writes at most `iov_len` bytes
    // to `room` and at most `msg_controllen` to `control`; both outlive the call.
    let (got, message) = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &mut iov;
        message.msg_iovlen = 1;
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = size_of::<Control>() as _;
        (libc::recvmsg(socket.as_raw_fd(), &mut message, libc::MSG_CMSG_CLOEXEC), message)
    };
    if got < 0 {
        return Err(io::Error::last_os_error());
    }
    let received = Received {
        fds: if message.msg_controllen == 0 { Vec::new() } else { take_fds(&message) },
        bytes_cut: message.msg_flags & libc::MSG_TRUNC != 0,
        fds_cut: message.msg_flags & libc::MSG_CTRUNC != 0,
    };
    Ok(((got as usize).min(room.len()), received))
}

/// Takes ownership of the fds in a received control message.
fn take_fds(message: &libc::msghdr) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    // SAFETY: the kernel has filled the control buffer up to `msg_controllen`, so the CMSG macros walk over well-formed
    // headers. Each fd in an SCM_RIGHTS message is new in this process and owned by nobody else.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(message);
        while !header.is_null() {
            if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS {
                let data = libc::CMSG_DATA(header).cast::<RawFd>();
                let bytes = ((*header).cmsg_len as usize).saturating_sub(libc::CMSG_LEN(0) as usize);
                for index in 0..bytes / size_of::<RawFd>() {
                    fds.push(OwnedFd::from_raw_fd(data.add(index).read_unaligned()));
                }
            }
            header = libc::CMSG_NXTHDR(message, header);
        }
    }
    fds
}

/// Sets how long [`receive`] waits (SO_RCVTIMEO in socket(7)); `None` waits for ever. The kernel rounds up to its
/// clock tick. The setting belongs to the socket: every holder of a duplicate sees it.
pub fn set_receive_timeout(socket: BorrowedFd<'_>, timeout: Option<Duration>) -> io::Result<()> {
    // Zero would mean for ever.
    let timeout = timeout.map_or(Duration::ZERO, |timeout| timeout.max(Duration::from_micros(1)));
    let value =
        nix::sys::time::TimeVal::new(timeout.as_secs().try_into().unwrap_or(i64::MAX), timeout.subsec_micros().into());
    Ok(nix::sys::socket::setsockopt(&socket, sockopt::ReceiveTimeout, &value)?)
}

/// What a socket is ready for, see [`wait_ready`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    /// A message, or the end, can be received.
    pub readable: bool,
    /// A message can be sent, or sending fails at once.
    pub writable: bool,
}

/// Waits until a message can be sent, or with `or_readable` received, or the other end is closed (poll(2)). Nothing is
/// ready when the time is up; `None` waits for ever. Fails with EINTR on a signal.
pub fn wait_ready(socket: BorrowedFd<'_>, or_readable: bool, timeout: Option<Duration>) -> io::Result<Ready> {
    let timeout = match timeout {
        None => PollTimeout::NONE,
        Some(timeout) => {
            let millis = timeout.as_millis() + u128::from(!timeout.subsec_nanos().is_multiple_of(1_000_000));
            PollTimeout::try_from(i32::try_from(millis).unwrap_or(i32::MAX)).unwrap_or(PollTimeout::MAX)
        }
    };
    let wanted = if or_readable { PollFlags::POLLOUT | PollFlags::POLLIN } else { PollFlags::POLLOUT };
    let mut fds = [PollFd::new(socket, wanted)];
    poll(&mut fds, timeout)?;
    let got = fds[0].revents().unwrap_or(PollFlags::empty());
    let ended = PollFlags::POLLHUP | PollFlags::POLLERR;
    Ok(Ready {
        readable: got.intersects(PollFlags::POLLIN | ended),
        writable: got.intersects(PollFlags::POLLOUT | ended),
    })
}

/// Ends the connection for every holder of this socket, in both directions (shutdown(2)).
pub fn shutdown(socket: BorrowedFd<'_>) -> io::Result<()> {
    Ok(nix::sys::socket::shutdown(socket.as_fd().as_raw_fd(), Shutdown::Both)?)
}

/// A thread that [`interrupt`] can wake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interruptible(libc::pid_t);

/// The signal that wakes a receiver: a real-time one that neither libc nor the common runtimes use.
fn wake_signal() -> libc::c_int {
    libc::SIGRTMAX() - 2
}

/// A handler that does nothing: that it ran is what makes the system call return EINTR.
extern "C" fn woken(_: libc::c_int) {}

/// Makes the calling thread one that [`interrupt`] can wake: installs an empty handler for a real-time signal, once per
/// process, and unblocks that signal in this thread (sigaction(2), pthread_sigmask(3)).
pub fn interruptible() -> io::Result<Interruptible> {
    thread_local!(static SELF: Cell<Option<Interruptible>> = const { Cell::new(None) });
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    if let Some(this) = SELF.get() {
        return Ok(this);
    }
    let installed = INSTALLED.get_or_init(|| {
        // SAFETY: the structure is plain data, filled in before use. The handler does nothing, so it is async-signal-safe.
        // Without SA_RESTART, which is the point.
        let done = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = woken as extern "C" fn(libc::c_int) as usize;
            libc::sigemptyset(&mut action.sa_mask);
            libc::sigaction(wake_signal(), &action, std::ptr::null_mut())
        };
        if done < 0 { Err(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL)) } else { Ok(()) }
    });
    installed.map_err(io::Error::from_raw_os_error)?;
    // SAFETY: the set is a local; changing this thread's mask for a signal whose handler does nothing disturbs nobody.
    let failed = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, wake_signal());
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut())
    };
    if failed != 0 {
        return Err(io::Error::from_raw_os_error(failed));
    }
    let this = Interruptible(nix::unistd::gettid().as_raw());
    SELF.set(Some(this));
    Ok(this)
}

/// Makes a thread of this process that may be blocked in [`receive`] on `socket` come back soon with EINTR or EAGAIN.
///
/// The caller makes sure that the thread is alive, and the receiver has to set the receive timeout anew before it goes
/// on; see the top of this file (setsockopt(2), tgkill(2)).
pub fn interrupt(socket: BorrowedFd<'_>, thread: Interruptible) -> io::Result<()> {
    set_receive_timeout(socket, Some(Duration::from_micros(1)))?;
    wake(thread)
}

/// Makes the system call that a thread of this process is blocked in, if any, come back with EINTR (tgkill(2)). One that is
/// about to block is not stopped by it: the caller repeats this until it sees an effect. ESRCH: the thread has ended.
pub fn wake(thread: Interruptible) -> io::Result<()> {
    // SAFETY: tgkill takes numbers only; the thread group is our own, so no other process can be hit.
    let done = unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread.0, wake_signal()) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn inode(fd: impl AsFd) -> u64 {
        std::fs::File::from(fd.as_fd().try_clone_to_owned().unwrap()).metadata().unwrap().ino()
    }

    #[test]
    fn a_message_arrives_whole_with_its_fds() {
        let (a, b) = pair().unwrap();
        let (x, y) = pair().unwrap();
        send(a.as_fd(), b"hello", &[x.as_fd(), y.as_fd()], true).unwrap();
        let mut buffer = Vec::with_capacity(16);
        let got = receive(b.as_fd(), &mut buffer).unwrap();
        assert_eq!(buffer, b"hello");
        assert!(!got.bytes_cut && !got.fds_cut);
        assert_eq!(got.fds.iter().map(inode).collect::<Vec<_>>(), [inode(&x), inode(&y)]);
    }

    #[test]
    fn the_most_fds_fit_and_one_more_is_refused() {
        let (a, b) = pair().unwrap();
        let many = vec![a.as_fd(); MAX_FDS];
        send(a.as_fd(), b"x", &many, true).unwrap();
        let got = receive(b.as_fd(), &mut Vec::with_capacity(8)).unwrap();
        assert_eq!((got.fds.len(), got.fds_cut), (MAX_FDS, false));
        let error = send(a.as_fd(), b"x", &vec![a.as_fd(); MAX_FDS + 1], true).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    }

    #[test]
    fn a_long_message_is_cut_and_said_to_be() {
        let (a, b) = pair().unwrap();
        send(a.as_fd(), &[7; 4096], &[], true).unwrap();
        let mut buffer = Vec::with_capacity(16);
        let got = receive(b.as_fd(), &mut buffer).unwrap();
        assert!(got.bytes_cut && buffer.len() < 4096);
    }

    #[test]
    fn an_end_is_told_from_an_empty_message() {
        let (a, b) = pair().unwrap();
        let mut buffer = Vec::with_capacity(16);
        send(a.as_fd(), b"", &[], true).unwrap();
        receive(b.as_fd(), &mut buffer).unwrap();
        assert!(buffer.is_empty() && !crate::process::ended(b.as_fd()));
        drop(a);
        receive(b.as_fd(), &mut buffer).unwrap();
        assert!(buffer.is_empty() && crate::process::ended(b.as_fd()));
    }

    #[test]
    fn an_interrupt_is_never_lost() {
        // The receiver comes back each time, whether it was already waiting or about to.
        let (a, b) = pair().unwrap();
        let (ready, on_ready) = std::sync::mpsc::channel();
        let receiver = std::thread::spawn(move || {
            let this = interruptible().unwrap();
            for _ in 0..200 {
                set_receive_timeout(b.as_fd(), None).unwrap();
                ready.send((this, b.try_clone().unwrap())).unwrap();
                let error = receive(b.as_fd(), &mut Vec::with_capacity(8)).unwrap_err();
                assert!(matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock), "{error}");
            }
        });
        for (thread, socket) in on_ready {
            interrupt(socket.as_fd(), thread).unwrap();
        }
        receiver.join().unwrap();
        drop(a);
    }

    #[test]
    fn what_is_not_a_channel_is_seen() {
        let (a, _b) = pair().unwrap();
        assert!(is_seqpacket(a.as_fd()));
        let (s, _t) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(!is_seqpacket(s.as_fd()));
        assert!(!is_seqpacket(std::io::stdin().as_fd()));
    }
}
