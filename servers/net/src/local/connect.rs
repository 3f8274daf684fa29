//! connect(2).
//!
//! The socket connects first and gets its name afterwards, so that a refused one is as fresh as before. Between the two
//! nobody looks: whoever asks for the peer's name asks this server, under its lock.

use super::Shared;
use super::bind::sockaddr;
use super::state::{Answer, Errno, Handled, State, Trap, deadline};
use hurdle_netstack::address::{Endpoint, Host, LONGEST, Written, parse};
use hurdle_netstack::mark::{BOUND, CLIENT, Mark, PENDING, V6_ONLY};
use hurdle_netstack::name::{Bound, Meaning, Name};
use hurdle_sys::target::socket;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How long a call on a blocking socket may wait in the kernel before it is parked.
pub(super) const PATIENCE: Duration = Duration::from_millis(2);

/// How far a backlog is widened for a non-blocking connect that finds it full.
const WIDENED: i32 = 4096;

impl State {
    pub(super) fn connect(&mut self, trap: &Trap<'_>, shared: &Shared) -> Handled {
        let (mut bytes, mut length) = ([0; LONGEST], 0);
        let readable = sockaddr(trap, &mut bytes, &mut length);
        let Some((fd, mark)) = self.fetch(trap)? else { return Ok(Answer::Native) };
        readable?;
        let to = match parse(mark.family(), &bytes[..length]) {
            Written::Local(to) => to,
            Written::Elsewhere => return Err(Errno(libc::ENETUNREACH)),
            Written::Short => return Err(Errno(libc::EINVAL)),
            Written::Unspecified => return self.disconnect(trap, &fd, mark),
            Written::OtherFamily(_) => return Err(Errno(libc::EAFNOSUPPORT)),
        };
        if mark.has(PENDING) {
            // It is connected already and its program was not told.
            socket::set_mark(fd.as_fd(), mark.with(PENDING, 0).0)?;
            return Ok(Answer::Value(0));
        }
        if mark.has(V6_ONLY) && matches!(to.host, Host::Four(_)) {
            return Err(Errno(libc::ENETUNREACH));
        }
        let to = Endpoint { host: to.host.concrete(), ..to };
        let mut found = std::mem::take(&mut self.found);
        self.ports.listeners(to, &mut found);
        let result = self.connect_to(trap, shared, fd.as_fd(), mark, to, &found);
        self.found = found;
        result
    }

    fn connect_to(
        &mut self,
        trap: &Trap<'_>,
        shared: &Shared,
        fd: BorrowedFd<'_>,
        mark: Mark,
        to: Endpoint,
        listeners: &[Bound],
    ) -> Handled {
        let nonblocking = socket::is_nonblocking(fd)?;
        for bound in listeners {
            let name = bound.name();
            let queue = self.queues.get(&to.port).copied();
            let mut result = if nonblocking || queue.is_some_and(|(queued, room)| queued < room) {
                socket::connect(fd, name.bytes())
            } else {
                // Most often it returns at once; the alarm bounds the wait for a full backlog.
                trap.alarm.during(|| socket::connect(fd, name.bytes()))
            };
            if nonblocking && is(&result, libc::EAGAIN) && self.widen(name) {
                result = socket::connect(fd, name.bytes());
            }
            match result {
                Ok(()) => {
                    let pending = self.christen(fd, mark, to, bound, nonblocking)?;
                    if let Some((queued, room)) = queue {
                        self.queues.insert(to.port, (queued.saturating_add(1), room));
                    }
                    shared.connections.fetch_add(1, Ordering::Relaxed);
                    return Ok(Answer::Connected { to: name, pending });
                }
                Err(error) => match error.raw_os_error() {
                    Some(libc::ECONNREFUSED) => {
                        if !State::alive(&mut self.pool, bound) {
                            self.ports.remove(bound);
                            self.seen.remove(&name);
                        }
                    }
                    Some(libc::EINTR) if !nonblocking => {
                        let limit = socket::time_limit(fd, libc::SO_SNDTIMEO)?;
                        return Ok(Answer::WaitConnect { on: name, until: deadline(limit) });
                    }
                    Some(libc::EISCONN) if trap.recovered => {
                        // An earlier server connected it, and may not have come to give it its name.
                        if socket::name(fd)?.bytes().is_empty() {
                            self.christen(fd, mark, to, bound, false)?;
                        }
                        return Ok(Answer::Value(0));
                    }
                    // What a listener gets.
                    Some(libc::EINVAL) => return Err(Errno(libc::EISCONN)),
                    _ => return Err(error.into()),
                },
            }
        }
        // Nobody listens, which a socket that is connected does not get to know.
        if socket::peer_name(fd).is_ok() || socket::option(fd, libc::SO_ACCEPTCONN)? != 0 {
            return Err(Errno(libc::EISCONN));
        }
        Err(Errno(libc::ECONNREFUSED))
    }

    /// Gives a socket that has just connected its name and mark. Returns whether the program hears EINPROGRESS first.
    fn christen(
        &mut self,
        fd: BorrowedFd<'_>,
        mark: Mark,
        to: Endpoint,
        listener: &Bound,
        nonblocking: bool,
    ) -> Result<bool, Errno> {
        let mut after = mark.with(PENDING, u64::from(nonblocking));
        if mark.has(BOUND) {
            // It has a name already, which does not say where to.
            after = after.with(CLIENT, 1);
            if listener.endpoint.host != to.host
                && let Some(Meaning::Bound(own)) = Meaning::decode(socket::name(fd)?.bytes())
            {
                self.memory.note_destination(&own.name(), to)?;
                self.destinations.insert(own.name(), to);
            }
        } else {
            let host = match to.host {
                Host::Four(_) => Host::LOOPBACK4,
                other => other,
            };
            for _ in 0..=u16::MAX {
                let local = Endpoint { host, port: self.ports.ephemeral(false) };
                if self.ports.is_used(local.port) {
                    continue;
                }
                let name = Meaning::Connection { local, remote: to }.encode();
                match socket::bind(fd, name.bytes()) {
                    Ok(()) => break,
                    Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        if after != mark {
            socket::set_mark(fd, after.0)?;
        }
        Ok(nonblocking)
    }

    /// Makes room in a listener's backlog. Returns whether there is some now.
    fn widen(&mut self, name: Name) -> bool {
        let Some((tid, number)) = self.seen.get(&name).copied() else { return false };
        let Ok(fd) = self.tasks.fd(tid, number) else { return false };
        let same = self.mark(fd.as_fd()).is_some()
            && super::bind::listener_name(fd.as_fd()).is_ok_and(|found| found == Some(name));
        same && socket::listen(fd.as_fd(), WIDENED).is_ok()
    }

    /// connect(2) with AF_UNSPEC: the fd becomes a fresh socket.
    fn disconnect(&mut self, trap: &Trap<'_>, fd: &OwnedFd, mark: Mark) -> Handled {
        if socket::option(fd.as_fd(), libc::SO_ACCEPTCONN)? != 0 {
            return Err(Errno(libc::EINVAL));
        }
        if socket::peer_name(fd.as_fd()).is_err() {
            return Ok(Answer::Value(0));
        }
        let fresh = self.pool.socket(mark.family(), socket::is_nonblocking(fd.as_fd())?)?;
        let kept = mark.with(BOUND, 0).with(CLIENT, 0).with(PENDING, 0);
        socket::set_mark(fresh.as_fd(), kept.0)?;
        self.put(trap, fd.as_fd(), fresh.as_fd())?;
        let _ = socket::shutdown(fd.as_fd(), libc::SHUT_RDWR);
        Ok(Answer::Value(0))
    }

    /// Tries the connects that wait for room on any listener once more.
    pub(super) fn retry_connects(&mut self, trap: &Trap<'_>, shared: &Shared) {
        if self.connecting.is_empty() {
            return;
        }
        let names: Vec<Name> = self.connecting.keys().copied().collect();
        for name in names {
            let Some(mut waiting) = self.connecting.remove(&name) else { continue };
            while let Some(one) = waiting.pop_front() {
                if !shared.listener.is_valid(one.call.id) {
                    one.cancelled(shared);
                    continue;
                }
                let again = Trap { call: &one.call, listener: trap.listener, alarm: trap.alarm, recovered: true };
                let late = one.until.is_some_and(|until| until <= std::time::Instant::now());
                match self.connect(&again, shared) {
                    Ok(Answer::WaitConnect { .. }) if !late => {
                        waiting.push_front(one);
                        self.connecting.insert(name, waiting);
                        break;
                    }
                    Ok(Answer::WaitConnect { .. }) => {
                        self.conclude(shared, &one.call, one.seen, Err(Errno(libc::EINPROGRESS)));
                        shared.ledger.release(one.slot);
                    }
                    other => {
                        let connected = match other {
                            Ok(Answer::Connected { to, .. }) => Some(to),
                            _ => None,
                        };
                        self.conclude(shared, &one.call, one.seen, other);
                        shared.ledger.release(one.slot);
                        if let Some(to) = connected {
                            self.serve_accepts(trap, to, shared);
                        }
                    }
                }
            }
        }
    }
}

fn is<T>(result: &io::Result<T>, errno: i32) -> bool {
    result.as_ref().is_err_and(|error| error.raw_os_error() == Some(errno))
}
