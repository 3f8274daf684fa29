//! accept(2) and accept4(2) with room for an address. Without one they go natively.

use super::Shared;
use super::bind::listener_name;
use super::state::{Answer, Errno, Handled, State, Trap, deadline};
use hurdle_netstack::address::{Endpoint, Family};
use hurdle_netstack::mark::{ACCEPTED, Mark};
use hurdle_netstack::name::{Meaning, Name};
use hurdle_sys::target::socket;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

impl State {
    pub(super) fn accept(&mut self, trap: &Trap<'_>, flags: i32) -> Handled {
        // Whether the caller still waits is asked before its memory is written; until then nothing is lost.
        let Some((listener, mark)) = self.fetch_unchecked(trap)? else { return Ok(Answer::Native) };
        if flags & !(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) != 0 {
            return Err(Errno(libc::EINVAL));
        }
        let nonblocking = socket::is_nonblocking(listener.as_fd())?;
        let taken = self.take(trap, &listener, nonblocking, flags & libc::SOCK_NONBLOCK != 0);
        // The kernel asks for room before it looks at the queue. A call that waits has passed that.
        if !matches!(taken, Ok(Some(_))) && !trap.recovered && self.tasks.is_full(trap.call.tid) {
            return Err(Errno(libc::EMFILE));
        }
        match taken? {
            Some(taken) => self.hand_out(trap, listener, mark, taken, flags),
            None if nonblocking => Err(Errno(libc::EAGAIN)),
            None => {
                let Some(on) = listener_name(listener.as_fd())? else { return Err(Errno(libc::EINVAL)) };
                let limit = socket::time_limit(listener.as_fd(), libc::SO_RCVTIMEO)?;
                Ok(Answer::WaitAccept { on, until: deadline(limit) })
            }
        }
    }

    /// Takes a connection off a listener, if there is one.
    fn take(
        &mut self,
        trap: &Trap<'_>,
        listener: &OwnedFd,
        nonblocking: bool,
        make_nonblocking: bool,
    ) -> Result<Option<(OwnedFd, socket::Name)>, Errno> {
        if !self.returned.is_empty()
            && let Some(name) = listener_name(listener.as_fd())?
            && let Some(queue) = self.returned.get_mut(&name)
        {
            let first = queue.pop_front();
            if queue.is_empty() {
                self.returned.remove(&name);
            }
            if let Some((fd, _)) = first {
                hurdle_sys::process::set_nonblocking(&fd, make_nonblocking)?;
                let peer = socket::peer_name(fd.as_fd())?;
                return Ok(Some((fd, peer)));
            }
        }
        let accept = || socket::accept(listener.as_fd(), make_nonblocking);
        let taken = if nonblocking {
            accept()
        } else if socket::poll_now(listener.as_fd(), libc::POLLIN)? == 0 {
            return Ok(None);
        } else {
            // Another process may take it natively between the look and the call, which would wait then.
            trap.alarm.ready().map_err(|_| Errno(libc::ENOBUFS))?;
            trap.alarm.during(accept)
        };
        match taken {
            Ok(taken) => {
                if let Some(Meaning::Connection { remote, .. }) = Meaning::decode(taken.1.bytes())
                    && let Some((queued, _)) = self.queues.get_mut(&remote.port)
                {
                    *queued = queued.saturating_sub(1);
                }
                Ok(Some(taken))
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The answer with a connection: its peer's address is written, and it inherits the listener's options.
    fn hand_out(
        &mut self,
        trap: &Trap<'_>,
        listener: OwnedFd,
        mark: Mark,
        (fd, peer): (OwnedFd, socket::Name),
        flags: i32,
    ) -> Handled {
        socket::set_room(fd.as_fd())?;
        let accepted = mark.accepted();
        // Nearly always a socket without a mark says the same.
        if accepted != Mark::new(mark.family()).with(ACCEPTED, 1) || mark.family() == Family::V6 {
            socket::set_mark(fd.as_fd(), accepted.0)?;
            self.inherit(listener.as_fd(), mark, fd.as_fd())?;
        }
        // A peer without a name cannot be: it got one before it was seen.
        let peer = Meaning::decode(peer.bytes()).map_or(Endpoint::unbound(mark.family()), Meaning::local);
        let sockaddr = Endpoint { host: peer.host.concrete(), ..peer }.sockaddr(mark.family());
        let (address, length) = (trap.call.args[1], trap.call.args[2]);
        let written = trap.read_int(length).and_then(|room| trap.write_sized(address, length, room, sockaddr.bytes()));
        match written {
            Ok(()) => Ok(Answer::Socket { fd, close_on_exec: flags & libc::SOCK_CLOEXEC != 0, accepted: true }),
            Err(errno) => {
                // As in the kernel, a connection whose address cannot be written is lost; but not one whose caller is gone.
                if errno == Errno(libc::EINTR) {
                    self.give_back(fd);
                }
                Err(errno)
            }
        }
    }

    /// A connection whose taker is gone goes to the next accept of its listener, whose name it has. Returns that.
    pub(super) fn give_back(&mut self, fd: OwnedFd) -> Option<Name> {
        let name = listener_name(fd.as_fd()).ok().flatten()?;
        self.returned.entry(name).or_default().push_back((fd, Instant::now()));
        Some(name)
    }

    /// Serves the accepts that wait on a listener, as far as there are connections.
    pub(super) fn serve_accepts(&mut self, trap: &Trap<'_>, name: Name, shared: &Shared) {
        while let Some(one) = self.accepting.get_mut(&name).and_then(std::collections::VecDeque::pop_front) {
            if !shared.listener.is_valid(one.call.id) {
                one.cancelled(shared);
                continue;
            }
            let again = Trap { call: &one.call, listener: trap.listener, alarm: trap.alarm, recovered: true };
            let flags = if i64::from(one.call.syscall) == libc::SYS_accept4 { again.int(3) } else { 0 };
            match self.accept(&again, flags) {
                Ok(Answer::WaitAccept { .. }) => {
                    // Somebody else took it.
                    self.accepting.entry(name).or_default().push_front(one);
                    return;
                }
                other => {
                    let cancelled = matches!(other, Err(Errno(libc::EINTR)));
                    self.conclude(shared, &one.call, one.seen, other);
                    shared.ledger.release(one.slot);
                    if !cancelled && !self.returned.contains_key(&name) {
                        break;
                    }
                }
            }
        }
        if self.accepting.get(&name).is_some_and(std::collections::VecDeque::is_empty) {
            self.accepting.remove(&name);
        }
    }

    /// Ends all accepts that wait on a listener.
    pub(super) fn end_accepts(&mut self, name: Name, shared: &Shared, errno: Errno) {
        for one in self.accepting.remove(&name).unwrap_or_default() {
            self.conclude(shared, &one.call, one.seen, Err(errno));
            shared.ledger.release(one.slot);
        }
    }
}
