//! The kernel's list of a namespace's AF_UNIX sockets (sock_diag(7), unix_diag).

use super::{Name, check};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// The state of a connected socket.
pub const ESTABLISHED: u8 = 1;
/// The state of a listener.
pub const LISTENING: u8 = 10;

/// One socket.
#[derive(Clone, Copy, Debug)]
pub struct Listed {
    /// Its abstract name; empty for none.
    pub name: Name,
    /// [`ESTABLISHED`], [`LISTENING`] or 7 for neither.
    pub state: u8,
    /// Its inode number.
    pub inode: u32,
    /// Its cookie, as `cookie` tells it.
    pub cookie: u64,
    /// Its peer's inode number.
    pub peer: Option<u32>,
    /// Bytes that wait to be read; for a listener, connections that wait to be accepted.
    pub queued: u32,
}

// linux/netlink.h, linux/sock_diag.h, linux/unix_diag.h.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SHOW_NAME: u32 = 1;
const SHOW_PEER: u32 = 4;
const SHOW_QUEUE: u32 = 0x10;
const ATTRIBUTE_NAME: u16 = 0;
const ATTRIBUTE_PEER: u16 = 2;
const ATTRIBUTE_QUEUE: u16 = 4;
const HEADER: usize = 16;

/// Lists the stream sockets of the namespace that `diagnosis`, a NETLINK_SOCK_DIAG socket, was made in.
///
/// # Errors
/// ENOENT on a kernel without unix_diag; `InvalidData` for an answer that is not understood.
pub fn list(diagnosis: BorrowedFd<'_>) -> io::Result<Vec<Listed>> {
    list_in(diagnosis, u32::MAX)
}

/// Only those that listen.
///
/// # Errors
/// As [`list`].
pub fn list_listeners(diagnosis: BorrowedFd<'_>) -> io::Result<Vec<Listed>> {
    list_in(diagnosis, 1 << LISTENING)
}

fn list_in(diagnosis: BorrowedFd<'_>, states: u32) -> io::Result<Vec<Listed>> {
    let mut request = Vec::with_capacity(24);
    request.extend([libc::AF_UNIX as u8, 0, 0, 0]);
    request.extend(states.to_ne_bytes());
    request.extend(0u32.to_ne_bytes());
    request.extend((SHOW_NAME | SHOW_PEER | SHOW_QUEUE).to_ne_bytes());
    request.extend(u64::MAX.to_ne_bytes());
    let mut found = Vec::new();
    ask(diagnosis, libc::NLM_F_REQUEST | libc::NLM_F_DUMP, &request, |body| found.extend(one(body)))?;
    Ok(found)
}

/// Sends a request, and hands each answer to `each`: all until the end of a dump, or the only one.
pub(super) fn ask(diagnosis: BorrowedFd<'_>, flags: i32, body: &[u8], mut each: impl FnMut(&[u8])) -> io::Result<()> {
    let mut request = Vec::with_capacity(HEADER + body.len());
    request.extend(((HEADER + body.len()) as u32).to_ne_bytes());
    request.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request.extend((flags as u16).to_ne_bytes());
    request.extend([0; 8]);
    request.extend(body);
    // SAFETY: a live buffer and its length.
    let sent = unsafe { libc::send(diagnosis.as_raw_fd(), request.as_ptr().cast(), request.len(), 0) };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut buffer = vec![0u8; if flags & libc::NLM_F_DUMP == libc::NLM_F_DUMP { 32 * 1024 } else { 1024 }];
    loop {
        // SAFETY: a live buffer and its length.
        let length = unsafe { libc::recv(diagnosis.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
        let length = check(length as libc::c_int)? as usize;
        let mut rest = &buffer[..length];
        while let Some((kind, body, next)) = split(rest, HEADER) {
            match i32::from(kind) {
                libc::NLMSG_DONE => return Ok(()),
                libc::NLMSG_ERROR => {
                    let errno = word(body, 0).map_or(libc::EIO, |errno| -(errno as i32));
                    return Err(io::Error::from_raw_os_error(errno));
                }
                _ => each(body),
            }
            rest = next;
        }
        if flags & libc::NLM_F_DUMP != libc::NLM_F_DUMP {
            return Ok(());
        }
        if length == 0 {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
}

pub(super) fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Splits off a netlink message (`header` 16) or attribute (`header` 4): kind, body, the rest.
pub(super) fn split(bytes: &[u8], header: usize) -> Option<(u16, &[u8], &[u8])> {
    let half = |at: usize| Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    let (length, kind) =
        if header == HEADER { (word(bytes, 0)? as usize, half(4)?) } else { (half(0)?.into(), half(2)?) };
    let body = bytes.get(header..length)?;
    Some((kind, body, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

fn one(body: &[u8]) -> Option<Listed> {
    let mut listed = Listed {
        name: Name::EMPTY,
        state: *body.get(2)?,
        inode: word(body, 4)?,
        cookie: u64::from(word(body, 8)?) | u64::from(word(body, 12)?) << 32,
        peer: None,
        queued: 0,
    };
    let mut rest = body.get(16..)?;
    while let Some((kind, value, next)) = split(rest, 4) {
        match kind {
            ATTRIBUTE_NAME => listed.name = Name::of(value),
            ATTRIBUTE_PEER => listed.peer = word(value, 0),
            ATTRIBUTE_QUEUE => listed.queued = word(value, 0).unwrap_or(0),
            _ => {}
        }
        rest = next;
    }
    Some(listed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{AsFd, FromRawFd, OwnedFd};

    #[test]
    fn a_listener_is_listed_with_its_name_and_its_queue() {
        // SAFETY: plain numbers; the new fd is owned by nobody else.
        let diagnosis =
            unsafe { OwnedFd::from_raw_fd(libc::socket(libc::AF_NETLINK, libc::SOCK_DGRAM, libc::NETLINK_SOCK_DIAG)) };
        let stream = || {
            // SAFETY: as above.
            unsafe { OwnedFd::from_raw_fd(libc::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0)) }
        };
        let name = format!("diag\0test{}", std::process::id());
        let (listener, client) = (stream(), stream());
        super::super::bind(listener.as_fd(), name.as_bytes()).unwrap();
        super::super::listen(listener.as_fd(), 5).unwrap();
        super::super::connect(client.as_fd(), name.as_bytes()).unwrap();
        let found = list(diagnosis.as_fd()).unwrap();
        let ours: Vec<_> = found.iter().filter(|one| one.name.bytes() == name.as_bytes()).collect();
        assert!(ours.iter().any(|one| one.state == LISTENING && one.queued == 1), "{ours:?}");
        let cookie = super::super::cookie(listener.as_fd()).unwrap();
        assert!(ours.iter().any(|one| one.cookie == cookie), "{ours:?} {cookie}");
    }
}
