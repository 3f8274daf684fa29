//! Calls on a socket on behalf of the program that owns it: AF_UNIX stream sockets with abstract names (unix(7)).

use crate::raw::{at, call, int};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// An abstract name: the bytes after the leading NUL.
#[derive(Clone, Copy, Debug)]
pub struct Name {
    /// A sockaddr_un, whose path begins with that NUL.
    address: [u8; ADDRESS],
    /// Where the name ends in it.
    end: usize,
}

const ADDRESS: usize = size_of::<libc::sockaddr_un>();
/// Where a name begins: behind the family and the NUL.
const BEGIN: usize = size_of::<libc::sa_family_t>() + 1;

impl Name {
    /// The name's bytes; empty for a socket without an abstract name.
    pub fn bytes(&self) -> &[u8] {
        &self.address[BEGIN..self.end]
    }

    /// From a path, which begins with a NUL if it is a name.
    fn of(path: &[u8]) -> Name {
        let mut name = Name::EMPTY;
        if let [0, bytes @ ..] = path
            && bytes.len() <= ADDRESS - BEGIN
        {
            name.end += bytes.len();
            name.address[BEGIN..name.end].copy_from_slice(bytes);
        }
        name
    }

    const EMPTY: Name = Name { address: [0; ADDRESS], end: BEGIN };
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Makes a call on a socket whose second and third arguments are a sockaddr to be filled and its length, and takes the abstract name
/// out of it.
#[inline]
fn filled(number: libc::c_long, socket: BorrowedFd<'_>, flags: libc::c_int) -> io::Result<(RawFd, Name)> {
    let mut name = Name::EMPTY;
    let mut length = ADDRESS as libc::socklen_t;
    let arguments = [int(socket.as_raw_fd()), at(&raw mut name.address), at(&raw mut length), int(flags), 0, 0];
    // SAFETY: a live buffer and its length.
    let result = unsafe { call(number, arguments) }?;
    let family = libc::sa_family_t::from_ne_bytes([name.address[0], name.address[1]]);
    if i32::from(family) == libc::AF_UNIX && name.address[2] == 0 {
        name.end = (length as usize).clamp(BEGIN, ADDRESS);
    }
    Ok((result as RawFd, name))
}

/// Calls `f` with the sockaddr of an abstract name.
fn named(
    name: &[u8],
    f: impl FnOnce(*const libc::sockaddr, libc::socklen_t) -> libc::c_int,
) -> io::Result<libc::c_int> {
    // SAFETY: all zeros is a valid sockaddr_un.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    if name.len() >= address.sun_path.len() {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (to, from) in address.sun_path[1..].iter_mut().zip(name) {
        *to = *from as libc::c_char;
    }
    check(f((&raw const address).cast(), (size_of::<libc::sa_family_t>() + 1 + name.len()) as libc::socklen_t))
}

/// The socket's own abstract name (getsockname(2)).
///
/// # Errors
/// ENOTSOCK.
#[inline]
pub fn name(socket: BorrowedFd<'_>) -> io::Result<Name> {
    Ok(filled(libc::SYS_getsockname, socket, 0)?.1)
}

/// Its peer's abstract name (getpeername(2)).
///
/// # Errors
/// ENOTCONN, ENOTSOCK.
pub fn peer_name(socket: BorrowedFd<'_>) -> io::Result<Name> {
    Ok(filled(libc::SYS_getpeername, socket, 0)?.1)
}

/// socket(2) in the caller's own network namespace. EPERM, EAFNOSUPPORT, EPROTONOSUPPORT as the man page has them.
pub fn make(family: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes integers only.
    let fd = unsafe { libc::socket(family, kind, protocol) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new fd, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Gives the socket an abstract name (bind(2)).
///
/// # Errors
/// EADDRINUSE; EINVAL if it has one.
pub fn bind(socket: BorrowedFd<'_>, to: &[u8]) -> io::Result<()> {
    // SAFETY: `named` passes a valid address and its length.
    named(to, |address, length| unsafe { libc::bind(socket.as_raw_fd(), address, length) }).map(drop)
}

/// Connects the socket to an abstract name (connect(2)).
///
/// # Errors
/// ECONNREFUSED; EISCONN; for a full backlog EAGAIN if the socket is non-blocking, else it waits (EINTR by a signal).
pub fn connect(socket: BorrowedFd<'_>, to: &[u8]) -> io::Result<()> {
    // SAFETY: `named` passes a valid address and its length.
    named(to, |address, length| unsafe { libc::connect(socket.as_raw_fd(), address, length) }).map(drop)
}

/// Takes a connection off a listener, with its peer's name (accept4(2)). The copy is close-on-exec.
///
/// # Errors
/// EINVAL if it does not listen or was shut down; EMFILE; without a connection EAGAIN if it is non-blocking, else it waits.
pub fn accept(listener: BorrowedFd<'_>, nonblocking: bool) -> io::Result<(OwnedFd, Name)> {
    let flags = libc::SOCK_CLOEXEC | if nonblocking { libc::SOCK_NONBLOCK } else { 0 };
    let (fd, name) = filled(libc::SYS_accept4, listener, flags)?;
    // SAFETY: accept4 returned a new fd that nobody else owns.
    Ok((unsafe { OwnedFd::from_raw_fd(fd) }, name))
}

/// Makes it a listener (listen(2)).
///
/// # Errors
/// EINVAL if it has no name or is connected.
pub fn listen(socket: BorrowedFd<'_>, backlog: i32) -> io::Result<()> {
    // SAFETY: plain numbers.
    check(unsafe { libc::listen(socket.as_raw_fd(), backlog) }).map(drop)
}

/// Shuts down a direction or both (shutdown(2)).
///
/// # Errors
/// EINVAL, ENOTCONN.
pub fn shutdown(socket: BorrowedFd<'_>, how: i32) -> io::Result<()> {
    // SAFETY: plain numbers.
    check(unsafe { libc::shutdown(socket.as_raw_fd(), how) }).map(drop)
}

/// Sends one byte out of band (send(2) with MSG_OOB), without waiting and without SIGPIPE.
///
/// # Errors
/// EAGAIN, EPIPE, EOPNOTSUPP on a kernel without CONFIG_AF_UNIX_OOB.
pub fn send_out_of_band(socket: BorrowedFd<'_>) -> io::Result<()> {
    let flags = libc::MSG_OOB | libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: one live byte.
    match unsafe { libc::send(socket.as_raw_fd(), [0u8].as_ptr().cast(), 1, flags) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Whether its file has O_NONBLOCK set (fcntl(2)).
///
/// # Errors
/// None are known for a live fd.
pub fn is_nonblocking(socket: BorrowedFd<'_>) -> io::Result<bool> {
    // SAFETY: plain numbers.
    Ok(check(unsafe { libc::fcntl(socket.as_raw_fd(), libc::F_GETFL) })? & libc::O_NONBLOCK != 0)
}

/// Which of the poll(2) events of `events` hold now.
///
/// # Errors
/// ENOMEM.
pub fn poll_now(socket: BorrowedFd<'_>, events: i16) -> io::Result<i16> {
    poll(socket, events, &libc::timespec { tv_sec: 0, tv_nsec: 0 })
}

/// As [`poll_now`], once one of them holds, or an error or a hang-up.
///
/// # Errors
/// EINTR: a signal came; ENOMEM.
pub fn poll_wait(fd: BorrowedFd<'_>, events: i16) -> io::Result<i16> {
    poll(fd, events, std::ptr::null())
}

fn poll(fd: BorrowedFd<'_>, events: i16, limit: *const libc::timespec) -> io::Result<i16> {
    let mut one = libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 };
    // SAFETY: one pollfd, a live limit or none, and no set of signals.
    unsafe { call(libc::SYS_ppoll, [at(&raw mut one), 1, at(limit), 0, 0, 0]) }?;
    Ok(one.revents)
}

/// An option that is a plain value (getsockopt(2)). `T` is an integer or a C structure of integers.
#[inline]
fn get<T: Copy>(socket: BorrowedFd<'_>, name: libc::c_int, mut value: T) -> io::Result<T> {
    let mut length = size_of::<T>() as libc::socklen_t;
    let (value_at, length_at) = (at(&raw mut value), at(&raw mut length));
    let arguments = [int(socket.as_raw_fd()), int(libc::SOL_SOCKET), int(name), value_at, length_at, 0];
    // SAFETY: `value` has the length that is passed; its types here accept any bytes.
    unsafe { call(libc::SYS_getsockopt, arguments) }?;
    Ok(value)
}

fn set<T: Copy>(socket: BorrowedFd<'_>, name: libc::c_int, value: T) -> io::Result<()> {
    let arguments =
        [int(socket.as_raw_fd()), int(libc::SOL_SOCKET), int(name), at(&raw const value), size_of::<T>(), 0];
    // SAFETY: `value` has the length that is passed.
    unsafe { call(libc::SYS_setsockopt, arguments) }.map(drop)
}

/// An integer option of level SOL_SOCKET.
///
/// # Errors
/// ENOPROTOOPT, ENOTSOCK, EBADF.
pub fn option(socket: BorrowedFd<'_>, name: i32) -> io::Result<i32> {
    get(socket, name, 0i32)
}

/// Sets an integer option of level SOL_SOCKET.
///
/// # Errors
/// ENOPROTOOPT, EPERM, EINVAL.
pub fn set_option(socket: BorrowedFd<'_>, name: i32, value: i32) -> io::Result<()> {
    set(socket, name, value)
}

/// A time limit, SO_RCVTIMEO or SO_SNDTIMEO (socket(7)); `None` for none.
///
/// # Errors
/// As [`option`].
pub fn time_limit(socket: BorrowedFd<'_>, name: i32) -> io::Result<Option<Duration>> {
    let limit = get(socket, name, libc::timeval { tv_sec: 0, tv_usec: 0 })?;
    let limit = Duration::new(limit.tv_sec as u64, limit.tv_usec as u32 * 1000);
    Ok((limit != Duration::ZERO).then_some(limit))
}

/// 64 bits that the kernel keeps in the socket for its owner's server. They live in SO_MAX_PACING_RATE, which means
/// nothing to an AF_UNIX socket and needs no privilege; `u64::MAX` if they were never set.
///
/// # Errors
/// ENOTSOCK, EBADF.
#[inline]
pub fn mark(socket: BorrowedFd<'_>) -> io::Result<u64> {
    get(socket, libc::SO_MAX_PACING_RATE, u64::MAX)
}

/// Sets those 64 bits.
///
/// # Errors
/// None are known for a live socket.
pub fn set_mark(socket: BorrowedFd<'_>, mark: u64) -> io::Result<()> {
    set(socket, libc::SO_MAX_PACING_RATE, mark)
}

/// Bytes that may be under way from a socket before its sender waits: the kernel's default is what fits a datagram. A stream
/// that fills it changes from its sender to its receiver for each; natively TCP grows its own to 2.5 MiB (tcp_wmem).
const ROOM: i32 = 1 << 20;

/// Gives a socket the room of a stream (SO_SNDBUF). What /proc/sys/net/core/wmem_max does not allow is left out.
///
/// # Errors
/// None are known for a live socket.
pub fn set_room(socket: BorrowedFd<'_>) -> io::Result<()> {
    set(socket, libc::SO_SNDBUF, ROOM)
}

/// SO_NETNS_COOKIE of asm-generic/socket.h.
const SO_NETNS_COOKIE: i32 = 71;

/// Which network namespace the socket belongs to, as a number that is never reused (Linux 5.14).
///
/// # Errors
/// As [`option`].
pub fn namespace(socket: BorrowedFd<'_>) -> io::Result<u64> {
    get(socket, SO_NETNS_COOKIE, 0u64)
}

/// The socket's own number, never reused (SO_COOKIE).
///
/// # Errors
/// As [`option`].
pub fn cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    get(socket, libc::SO_COOKIE, 0u64)
}

mod diag;
mod inet;
pub use diag::{ESTABLISHED, LISTENING, Listed, list, list_listeners};
pub use inet::{
    Listening, address, bind_address, connect_address, find_listener, is_closed, listeners, option_bytes,
    set_option_bytes, tcp_family,
};
