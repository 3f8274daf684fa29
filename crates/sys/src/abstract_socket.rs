//! Abstract AF_UNIX names (unix(7)): they belong to a network namespace, cost no file, and are gone with their socket, however
//! its owner ends.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, connect as connect_to, getsockopt,
    listen as listen_on, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

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

/// A connection to the listener under `name`. ECONNREFUSED: there is none; EAGAIN: its queue was full for two seconds.
pub fn connect(name: &str) -> io::Result<OwnedFd> {
    let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
    // Whoever has the name can leave its queue full: nobody is held up by that.
    setsockopt(&fd, sockopt::SendTimeout, &TimeVal::seconds(2))?;
    connect_to(fd.as_raw_fd(), &UnixAddr::new_abstract(name.as_bytes())?)?;
    setsockopt(&fd, sockopt::SendTimeout, &TimeVal::seconds(0))?;
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

/// The process that [`peer`] names, held by a pidfd (SO_PEERPIDFD, Linux 6.5), so that its number can't come to mean another.
/// ENOPROTOOPT on older kernels; ESRCH or EINVAL: it has ended, and was reaped.
pub fn peer_pidfd(socket: impl AsFd) -> io::Result<OwnedFd> {
    let mut fd: libc::c_int = -1;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: SO_PEERPIDFD stores one int, a new fd.
    let done = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PEERPIDFD,
            (&raw mut fd).cast(),
            &raw mut length,
        )
    };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new fd, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// From asm-generic/socket.h; libc has no name for it.
const SO_PEERPIDFD: libc::c_int = 77;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peer_is_this_process() {
        let name = format!("hurdle-test/{}", std::process::id());
        let listener = listen(&name).unwrap();
        let client = connect(&name).unwrap();
        let server = accept(&listener).unwrap().unwrap();
        for end in [&client, &server] {
            assert_eq!(peer(end).unwrap().0, std::process::id() as i32);
            assert_eq!(crate::process::pid_of(peer_pidfd(end).unwrap()).unwrap(), std::process::id() as i32);
        }
    }

    #[test]
    fn a_full_queue_holds_up_nobody_for_long() {
        let name = format!("hurdle-full/{}", std::process::id());
        let _listener = listen(&name).unwrap();
        let full = std::iter::repeat_with(|| connect(&name)).take(200).collect::<io::Result<Vec<_>>>();
        assert_eq!(full.unwrap_err().raw_os_error(), Some(libc::EAGAIN));
    }
}
