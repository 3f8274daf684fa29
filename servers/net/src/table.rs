//! The syscall table of `local`: which call is trapped under which condition, who answers it, and how far it goes.
//!
//! The filter, the dispatcher and docs/compatibility.md derive from [`rows`]. As little as possible is trapped: what moves
//! data, waits for it or closes it never is.

use hurdle_netstack::table::{By, Row, Support, markdown};
use hurdle_sys::seccomp::ArgMatch;
use libc::c_long;

/// What the server does for a trapped call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handler {
    /// socket(2)
    Socket,
    /// bind(2)
    Bind,
    /// listen(2)
    Listen,
    /// connect(2)
    Connect,
    /// accept(2)
    Accept,
    /// accept4(2)
    Accept4,
    /// getsockname(2)
    GetSockName,
    /// getpeername(2)
    GetPeerName,
    /// setsockopt(2)
    SetSockOpt,
    /// getsockopt(2)
    GetSockOpt,
    /// shutdown(2)
    Shutdown,
    /// unshare(2), setns(2): goes on natively, and is known of.
    Move,
}

/// The families of IP sockets.
pub(crate) const INET: [u32; 2] = [libc::AF_INET as u32, libc::AF_INET6 as u32];
const LEVELS: [u32; 3] = [libc::IPPROTO_IP as u32, libc::IPPROTO_TCP as u32, libc::IPPROTO_IPV6 as u32];
const SOL_SOCKET: u32 = libc::SOL_SOCKET as u32;

/// How long the address of a core's door is: family, NUL, name (unix(7)).
const KNOCK: u32 = 3 + hurdle_proto::core::DOOR.len() as u32;

/// Of the calls that take a thread to another network namespace. As a 32-bit program makes them they are not seen.
const MOVES: &str = "native. From then on each thread that makes a socket is asked where it is";

/// CLONE_NEWNET among the flags of this argument.
fn moves(flags: u8) -> ArgMatch {
    ArgMatch::Masked(flags, libc::CLONE_NEWNET as u32, libc::CLONE_NEWNET as u32)
}

fn stream() -> Vec<ArgMatch> {
    vec![ArgMatch::In(0, INET.to_vec()), ArgMatch::Masked(1, 0xf, libc::SOCK_STREAM as u32)]
}

fn row(
    name: &'static str,
    syscall: c_long,
    condition: &'static str,
    when: Vec<ArgMatch>,
    by: By<Handler>,
    support: Support,
    note: &'static str,
) -> Row<Handler> {
    Row { name, syscall: Some(syscall), condition, when, by, support, note }
}

/// A difference that no filter can see.
fn difference(name: &'static str, condition: &'static str, note: &'static str) -> Row<Handler> {
    let (by, support) = (By::Kernel, Support::Partial);
    Row { name, syscall: None, condition, when: Vec::new(), by, support, note }
}

/// The table. For each call the first row whose condition holds decides.
pub fn rows() -> Vec<Row<Handler>> {
    use By::{Filter, Kernel, Server};
    use Support::{Full, No, Partial};
    let socket = |protocols: &[i32]| {
        let mut when = stream();
        when.push(ArgMatch::In(2, protocols.iter().map(|protocol| *protocol as u32).collect()));
        when
    };
    let options = |names: &[i32]| {
        vec![ArgMatch::In(1, vec![SOL_SOCKET]), ArgMatch::In(2, names.iter().map(|name| *name as u32).collect())]
    };
    let set = [libc::SO_REUSEPORT, libc::SO_LINGER, libc::SO_MAX_PACING_RATE];
    let get = [libc::SO_REUSEPORT, libc::SO_DOMAIN, libc::SO_PROTOCOL, libc::SO_MAX_PACING_RATE];
    vec![
        row(
            "socket",
            libc::SYS_socket,
            "AF_INET or AF_INET6, SOCK_STREAM, protocol 0 or TCP",
            socket(&[0, libc::IPPROTO_TCP]),
            Server(Handler::Socket),
            Full,
            "an AF_UNIX stream socket that answers as TCP. In a network namespace that a program has made further inside: native",
        ),
        row(
            "socket",
            libc::SYS_socket,
            "the same, MPTCP",
            socket(&[libc::IPPROTO_MPTCP]),
            Filter,
            No(libc::EPROTONOSUPPORT),
            "there is one path only; libraries fall back to TCP",
        ),
        row(
            "socket",
            libc::SYS_socket,
            "any other",
            Vec::new(),
            Kernel,
            Full,
            "UDP, ICMP, raw, netlink and packet sockets are those of the environment's own network namespace",
        ),
        row(
            "bind",
            libc::SYS_bind,
            "always",
            Vec::new(),
            Server(Handler::Bind),
            Full,
            "127.0.0.0/8, ::1 and the wildcards; else EADDRNOTAVAIL. Ports below 1024 need no privilege, the ports being \
             the environment's own. A port is free again as soon as its listener is closed: there is no TIME_WAIT",
        ),
        row(
            "listen",
            libc::SYS_listen,
            "always",
            Vec::new(),
            Server(Handler::Listen),
            Full,
            "a socket that is not bound gets an ephemeral port",
        ),
        row(
            "connect",
            libc::SYS_connect,
            "an address of 14 bytes",
            vec![ArgMatch::In(2, vec![KNOCK])],
            Kernel,
            Partial,
            "a `hurdle run` inside knocks at its core's door with one as long, at once; none of inet has that length. EINVAL, as over TCP, \
             but for AF_UNSPEC, which ends a connection of TCP's, and AF_UNIX, to which the socket is connected",
        ),
        row(
            "connect",
            libc::SYS_connect,
            "any other",
            Vec::new(),
            Server(Handler::Connect),
            Partial,
            "a non-blocking connect that is refused says ECONNREFUSED at once, not EINPROGRESS first; one to a full backlog \
             succeeds at once. Connecting a socket to itself is refused. After a swap, and with AF_UNSPEC, another socket takes the \
             place of the program's, in its table of fds and its epoll sets; not in those of a child that has inherited it",
        ),
        row(
            "accept",
            libc::SYS_accept,
            "without an address",
            vec![ArgMatch::Null(1)],
            Kernel,
            Full,
            "native: the listener's queue is the kernel's",
        ),
        row("accept", libc::SYS_accept, "with an address", Vec::new(), Server(Handler::Accept), Full, ""),
        row("accept4", libc::SYS_accept4, "without an address", vec![ArgMatch::Null(1)], Kernel, Full, "as accept"),
        row("accept4", libc::SYS_accept4, "with an address", Vec::new(), Server(Handler::Accept4), Full, ""),
        row("getsockname", libc::SYS_getsockname, "always", Vec::new(), Server(Handler::GetSockName), Full, ""),
        row(
            "getpeername",
            libc::SYS_getpeername,
            "always",
            Vec::new(),
            Server(Handler::GetPeerName),
            Partial,
            "the name stays when both directions have ended; TCP says ENOTCONN then",
        ),
        row(
            "setsockopt",
            libc::SYS_setsockopt,
            "levels IPPROTO_TCP, IPPROTO_IP, IPPROTO_IPV6",
            vec![ArgMatch::In(1, LEVELS.to_vec())],
            Server(Handler::SetSockOpt),
            Partial,
            "checked, remembered and read back; without effect, since no packets are made. What TCP does not know: \
             ENOPROTOOPT",
        ),
        row(
            "setsockopt",
            libc::SYS_setsockopt,
            "SO_REUSEPORT, SO_LINGER, SO_MAX_PACING_RATE",
            options(&set),
            Server(Handler::SetSockOpt),
            Full,
            "SO_MAX_PACING_RATE is accepted and has no effect",
        ),
        row("setsockopt", libc::SYS_setsockopt, "any other", Vec::new(), Kernel, Full, "those of AF_UNIX"),
        row(
            "getsockopt",
            libc::SYS_getsockopt,
            "levels IPPROTO_TCP, IPPROTO_IP, IPPROTO_IPV6",
            vec![ArgMatch::In(1, LEVELS.to_vec())],
            Server(Handler::GetSockOpt),
            Partial,
            "TCP_INFO has the state and plausible numbers",
        ),
        row(
            "getsockopt",
            libc::SYS_getsockopt,
            "SO_REUSEPORT, SO_DOMAIN, SO_PROTOCOL, SO_MAX_PACING_RATE",
            options(&get),
            Server(Handler::GetSockOpt),
            Full,
            "",
        ),
        row(
            "getsockopt",
            libc::SYS_getsockopt,
            "any other",
            Vec::new(),
            Kernel,
            Partial,
            "those of AF_UNIX: SO_RCVBUF has its default, SO_SNDBUF is 2 MiB, or what net.core.wmem_max allows, SO_PEERCRED names the peer",
        ),
        row(
            "shutdown",
            libc::SYS_shutdown,
            "SHUT_RD, SHUT_RDWR",
            vec![ArgMatch::In(1, vec![libc::SHUT_RD as u32, libc::SHUT_RDWR as u32])],
            Server(Handler::Shutdown),
            Partial,
            "after SHUT_RD the peer's next write fails with EPIPE; TCP takes it and drops it. A listener that was shut down \
             refuses connections also when it listens anew",
        ),
        row("unshare", libc::SYS_unshare, "CLONE_NEWNET", vec![moves(0)], Server(Handler::Move), Full, MOVES),
        row("setns", libc::SYS_setns, "0, as type", vec![ArgMatch::In(1, vec![0])], Server(Handler::Move), Full, MOVES),
        row("setns", libc::SYS_setns, "CLONE_NEWNET", vec![moves(1)], Server(Handler::Move), Full, MOVES),
        row(
            "io_uring_setup",
            libc::SYS_io_uring_setup,
            "always",
            Vec::new(),
            Filter,
            No(libc::ENOSYS),
            "its calls would go past the traps; libraries fall back",
        ),
        difference(
            "close",
            "SO_LINGER with time 0",
            "the peer sees a reset if its end was found when the option was set; reading from the socket afterwards makes it an ordinary close",
        ),
        difference("sendto, sendmsg", "with an address on a connected socket", "EISCONN; TCP ignores the address"),
        difference("recvfrom, recvmsg", "with room for an address", "an AF_UNIX address; TCP writes none"),
        difference(
            "write, send",
            "on a socket whose peer has closed",
            "EPIPE at once; over TCP the first one still succeeds",
        ),
        difference(
            "send, recv",
            "on a socket that was never connected",
            "ENOTCONN and EINVAL; TCP says EPIPE and ENOTCONN",
        ),
        difference("sendto, sendmsg", "MSG_FASTOPEN", "EOPNOTSUPP; libraries connect first then"),
        difference("sendmsg", "SCM_RIGHTS", "passes fds, as AF_UNIX does; TCP ignores it"),
        difference("recv", "MSG_TRUNC", "the bytes arrive; TCP drops them"),
        difference("recvmsg", "MSG_ERRQUEUE", "data, as without it; TCP's empty queue says EAGAIN"),
        difference("recvmsg", "SO_TIMESTAMP, TCP_INQ", "no control message comes"),
        difference(
            "poll, epoll",
            "on a socket whose peer has closed",
            "POLLHUP at once; TCP says so when this end is shut down, too",
        ),
        difference("shutdown", "SHUT_WR on a socket that is not connected", "0; TCP says ENOTCONN"),
        difference("setsockopt", "SO_ZEROCOPY", "EOPNOTSUPP; AF_UNIX has none"),
        difference("setsockopt", "SO_MARK; SO_PRIORITY above 6", "EPERM, for root inside, too"),
        difference(
            "ioctl",
            "SIOCGIFADDR and others that ask for interfaces",
            "a stream socket knows a network without addresses: ENOTTY; one for datagrams answers as Linux does",
        ),
        difference("ioctl", "SIOCOUTQ", "bytes that the peer has not read, as over TCP those not acknowledged"),
        difference(
            "any trapped call",
            "a signal whose handler was set without SA_RESTART comes while it is answered (some microseconds)",
            "EINTR, also where TCP never says so; with SA_RESTART nothing is seen",
        ),
        difference("any call", "of a 32-bit program", "native: it sees an empty network, in which nothing listens"),
        difference(
            "bind, connect",
            "an address that was added to an interface",
            "not local here: only loopback carries streams",
        ),
    ]
}

/// docs/compatibility.md, whole.
pub fn compatibility_markdown() -> String {
    let names = [(libc::ENOSYS, "ENOSYS"), (libc::EPROTONOSUPPORT, "EPROTONOSUPPORT")];
    let errno = |errno: i32| {
        names
            .iter()
            .find(|(number, _)| *number == errno)
            .map_or_else(|| errno.to_string(), |(_, name)| (*name).to_owned())
    };
    format!(
        "# System calls under `--net local`\n\nPrinted from the syscall table of `servers/net`; do not edit. The first row of a \
         call whose condition holds decides.\nA call that is not here is native. Sockets that are not inet streams are \
         answered by the kernel, also where a row says *server*.\n\n{}",
        markdown(&rows(), errno)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use hurdle_netstack::table::rules;
    use hurdle_sys::seccomp::Filter;

    #[test]
    fn the_table_compiles_to_a_filter() {
        assert!(Filter::new(&rules(&rows())).is_ok_and(|filter| filter.notifies()));
    }

    #[test]
    fn what_moves_data_or_closes_is_never_trapped() {
        let native = [libc::SYS_close, libc::SYS_read, libc::SYS_sendto, libc::SYS_recvfrom, libc::SYS_clone];
        assert!(rows().iter().all(|row| !native.contains(&row.syscall.unwrap_or(-1))));
    }

    #[test]
    fn every_refusal_is_named_on_the_page() {
        let page = compatibility_markdown();
        assert!(page.contains("no: ENOSYS") && page.contains("no: EPROTONOSUPPORT"));
        for row in rows().iter().filter(|row| row.support == Support::Partial) {
            assert!(!row.note.is_empty(), "{} says partial and not why", row.name);
        }
    }
}
