//! Calls on TCP sockets of a program (tcp(7)), and the kernel's list of a namespace's TCP listeners (sock_diag(7), inet_diag).

use super::diag::{ask, split, word};
use super::{check, get};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Whether this is a TCP socket over IPv4 or IPv6, and which: AF_INET or AF_INET6.
pub fn tcp_family(socket: BorrowedFd<'_>) -> Option<i32> {
    let is = |name, wanted| get(socket, name, 0i32).is_ok_and(|value| value == wanted);
    let family = get(socket, libc::SO_DOMAIN, 0i32).ok()?;
    let inet = [libc::AF_INET, libc::AF_INET6].contains(&family);
    (inet && is(libc::SO_TYPE, libc::SOCK_STREAM) && is(libc::SO_PROTOCOL, libc::IPPROTO_TCP)).then_some(family)
}

/// The first byte of `struct tcp_info` for a socket that is not connected, nor on the way to be, nor listening.
const CLOSED: u8 = 7;

/// Whether a TCP socket is neither connected, nor connecting, nor listening.
pub fn is_closed(socket: BorrowedFd<'_>) -> bool {
    let mut state = [0; 1];
    option_bytes(socket, (libc::IPPROTO_TCP, libc::TCP_INFO), &mut state).is_ok_and(|_| state[0] == CLOSED)
}

/// An option as bytes (getsockopt(2)); returns how many of `into` it has.
///
/// # Errors
/// ENOPROTOOPT, EOPNOTSUPP, EINVAL, ENOTSOCK.
pub fn option_bytes(socket: BorrowedFd<'_>, (level, name): (i32, i32), into: &mut [u8]) -> io::Result<usize> {
    let mut length = into.len() as libc::socklen_t;
    // SAFETY: `into` is live and has the length that is passed.
    check(unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, into.as_mut_ptr().cast(), &raw mut length) })?;
    Ok(length as usize)
}

/// Sets an option from bytes (setsockopt(2)).
///
/// # Errors
/// ENOPROTOOPT, EINVAL, EPERM.
pub fn set_option_bytes(socket: BorrowedFd<'_>, (level, name): (i32, i32), value: &[u8]) -> io::Result<()> {
    let length = value.len() as libc::socklen_t;
    // SAFETY: `value` is live and has the length that is passed.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value.as_ptr().cast(), length) }).map(drop)
}

/// The socket's own sockaddr, whatever its family (getsockname(2)): bytes and their number.
///
/// # Errors
/// ENOTSOCK.
pub fn address(socket: BorrowedFd<'_>) -> io::Result<([u8; 128], usize)> {
    let mut bytes = [0; 128];
    let mut length = bytes.len() as libc::socklen_t;
    // SAFETY: a live buffer and its length.
    check(unsafe { libc::getsockname(socket.as_raw_fd(), bytes.as_mut_ptr().cast(), &raw mut length) })?;
    Ok((bytes, (length as usize).min(128)))
}

/// Binds to a sockaddr (bind(2)).
///
/// # Errors
/// EADDRINUSE, EADDRNOTAVAIL, EINVAL, EACCES.
pub fn bind_address(socket: BorrowedFd<'_>, address: &[u8]) -> io::Result<()> {
    let length = address.len() as libc::socklen_t;
    // SAFETY: live bytes and their length.
    check(unsafe { libc::bind(socket.as_raw_fd(), address.as_ptr().cast(), length) }).map(drop)
}

/// Connects to a sockaddr (connect(2)).
///
/// # Errors
/// ECONNREFUSED, EINPROGRESS; EINTR by a signal: the connection goes on being made.
pub fn connect_address(socket: BorrowedFd<'_>, address: &[u8]) -> io::Result<()> {
    let length = address.len() as libc::socklen_t;
    // SAFETY: live bytes and their length.
    check(unsafe { libc::connect(socket.as_raw_fd(), address.as_ptr().cast(), length) }).map(drop)
}

/// A TCP listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listening {
    /// AF_INET or AF_INET6.
    pub family: i32,
    /// Its address, in network order: 4 bytes of it, or 16.
    pub address: [u8; 16],
    /// Its port.
    pub port: u16,
    /// IPV6_V6ONLY.
    pub v6_only: bool,
    /// SO_COOKIE.
    pub cookie: u64,
    /// Its inode number.
    pub inode: u32,
}

// linux/inet_diag.h.
const REQUEST: usize = 56;
const ANSWER: usize = 72;
const NO_COOKIE: [u8; 8] = [0xff; 8];
const ATTRIBUTE_V6_ONLY: u16 = 11;
const LISTEN: u8 = 10;

fn request(family: i32, port: u16, address: &[u8]) -> [u8; REQUEST] {
    let mut request = [0; REQUEST];
    (request[0], request[1]) = (family as u8, libc::IPPROTO_TCP as u8);
    request[4..8].copy_from_slice(&(1u32 << LISTEN).to_ne_bytes());
    request[8..10].copy_from_slice(&port.to_be_bytes());
    request[12..12 + address.len()].copy_from_slice(address);
    request[48..56].copy_from_slice(&NO_COOKIE);
    request
}

fn one(body: &[u8]) -> Option<Listening> {
    let half = |at: usize| Some(u16::from_be_bytes(body.get(at..at + 2)?.try_into().ok()?));
    let cookie: [u8; 8] = body.get(44..52)?.try_into().ok()?;
    let mut found = Listening {
        family: i32::from(*body.first()?),
        address: body.get(8..24)?.try_into().ok()?,
        port: half(4)?,
        v6_only: false,
        cookie: u64::from_ne_bytes(cookie),
        inode: word(body, 68)?,
    };
    let mut rest = body.get(ANSWER..)?;
    while let Some((kind, value, next)) = split(rest, 4) {
        found.v6_only |= kind == ATTRIBUTE_V6_ONLY && value.first().is_some_and(|on| *on != 0);
        rest = next;
    }
    (body.get(1) == Some(&LISTEN)).then_some(found)
}

/// The listener that a connection to `address` (4 bytes or 16) and `port` would reach, in the namespace that `diagnosis`, a
/// NETLINK_SOCK_DIAG socket, was made in.
///
/// # Errors
/// Those of netlink; ENOENT, on a kernel without tcp_diag, is `None` too.
pub fn find_listener(diagnosis: BorrowedFd<'_>, address: &[u8], port: u16) -> io::Result<Option<Listening>> {
    let family = if address.len() == 4 { libc::AF_INET } else { libc::AF_INET6 };
    let mut found = None;
    match ask(diagnosis, libc::NLM_F_REQUEST, &request(family, port, address), |body| found = one(body)) {
        Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(error),
        _ => Ok(found),
    }
}

/// All TCP listeners of that namespace.
///
/// # Errors
/// As [`find_listener`].
pub fn listeners(diagnosis: BorrowedFd<'_>) -> io::Result<Vec<Listening>> {
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_DUMP;
        match ask(diagnosis, flags, &request(family, 0, &[]), |body| found.extend(one(body))) {
            Err(error) if error.raw_os_error() != Some(libc::ENOENT) => return Err(error),
            _ => {}
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};
    use std::os::fd::AsFd;

    #[test]
    fn a_listener_is_found_where_a_connection_would_reach_it() {
        let diagnosis = super::super::make(libc::AF_NETLINK, libc::SOCK_DGRAM, libc::NETLINK_SOCK_DIAG).unwrap();
        let find = |address: &[u8], port| find_listener(diagnosis.as_fd(), address, port).unwrap();
        let exact = TcpListener::bind((Ipv4Addr::new(127, 0, 0, 9), 0)).unwrap();
        let port = exact.local_addr().unwrap().port();
        let found = find(&[127, 0, 0, 9], port).unwrap();
        assert_eq!(found.cookie, super::super::cookie(exact.as_fd()).unwrap());
        assert_eq!((find(&[127, 0, 0, 8], port), found.family), (None, libc::AF_INET));
        assert!(listeners(diagnosis.as_fd()).unwrap().contains(&found));
        let Ok(any) = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)) else { return };
        let port = any.local_addr().unwrap().port();
        let cookie = super::super::cookie(any.as_fd()).unwrap();
        let loopback = Ipv6Addr::LOCALHOST.octets();
        assert_eq!(find(&[127, 0, 0, 1], port).unwrap().cookie, cookie);
        assert_eq!(find(&loopback, port).unwrap().cookie, cookie);
        drop(any);
        assert_eq!(find(&loopback, port), None);
    }

    #[test]
    fn a_tcp_socket_says_so_and_whether_it_is_in_use() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        assert_eq!(tcp_family(listener.as_fd()), Some(libc::AF_INET));
        assert!(!is_closed(listener.as_fd()));
        let fresh = super::super::make(libc::AF_INET6, libc::SOCK_STREAM, 0).unwrap();
        assert!(is_closed(fresh.as_fd()) && tcp_family(fresh.as_fd()) == Some(libc::AF_INET6));
        for kind in [libc::AF_UNIX, libc::AF_INET] {
            let other = super::super::make(kind, libc::SOCK_DGRAM, 0).unwrap();
            assert_eq!(tcp_family(other.as_fd()), None);
        }
    }
}
