//! Abstract AF_UNIX names (unix(7)): they belong to a network namespace, cost no file, and are gone with their socket, however
//! its owner ends.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, connect as connect_to, getsockopt,
    listen as listen_on, socket, sockopt,
};

/// A SEQPACKET listener under `name`. EADDRINUSE: somebody has it.
pub fn listen(name: &str) -> io::Result<OwnedFd> {
    let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    bind(fd.as_raw_fd(), &UnixAddr::new_abstract(name.as_bytes())?)?;
    listen_on(&fd, Backlog::new(64)?)?;
    Ok(fd)
}

/// The next connection of a listener, if one waits.
pub fn accept(listener: impl AsFd) -> io::Result<Option<OwnedFd>> {
    match accept4(listener.as_fd().as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
        // SAFETY: accept4 made a new fd, owned by nobody else.
        Ok(fd) => Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) })),
        Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::ECONNABORTED | nix::errno::Errno::EINTR) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// A connection to the listener under `name`. ECONNREFUSED: there is none.
pub fn connect(name: &str) -> io::Result<OwnedFd> {
    let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
    connect_to(fd.as_raw_fd(), &UnixAddr::new_abstract(name.as_bytes())?)?;
    Ok(fd)
}

/// The names with this prefix that listeners have, from /proc/net/unix.
pub fn names(prefix: &str) -> io::Result<Vec<String>> {
    let prefix = format!("@{prefix}");
    let text = io::read_to_string(File::open("/proc/net/unix")?)?;
    let mut names: Vec<String> = text
        .lines()
        // Num RefCount Protocol Flags Type St Inode Path; bit 16 of Flags marks a listener.
        .filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let listens = u32::from_str_radix(words.get(3)?, 16).ok()? & 0x1_0000 != 0;
            (listens && words.get(7)?.starts_with(&prefix)).then(|| words[7][1..].to_string())
        })
        .collect();
    names.sort();
    Ok(names)
}

/// Who connected, or listened (SO_PEERCRED): (pid, uid), as the caller's namespaces have them.
pub fn peer(socket: impl AsFd) -> io::Result<(i32, u32)> {
    let who = getsockopt(&socket, sockopt::PeerCredentials)?;
    Ok((who.pid(), who.uid()))
}
