//! Trapped calls as they are reported to who traces: decoded, as strace(1) prints them.
//!
//! All of it is done only while somebody traces. What is read of the caller may be another's if the call was cancelled meanwhile; then it
//! is left out.

use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Instant;

use hurdle_proto::net::Outcome;
use hurdle_sys::process::errno_name;
use hurdle_sys::seccomp::{Call, Listener};
use hurdle_sys::target::memory;
use hurdle_wire::tap::{Event, Kind, Tap, Who, microseconds};

use crate::address::{LONGEST, family_of};

/// A trapped call that is being traced.
#[derive(Debug)]
pub struct Seen {
    call: Call,
    who: Who,
    /// What stands at the address among its arguments.
    value: Option<String>,
    /// `None`: nobody traced when it came.
    begun: Option<Instant>,
}

impl Seen {
    /// A call that has just come; `None` while nobody traces.
    #[inline]
    pub fn new(tap: &Tap, call: &Call, listener: &Listener) -> Option<Box<Seen>> {
        if tap.on() { Some(Seen::look(call, listener)) } else { None }
    }

    #[cold]
    fn look(call: &Call, listener: &Listener) -> Box<Seen> {
        let mut seen = Box::new(Seen { call: *call, who: who(call.tid), value: None, begun: Some(Instant::now()) });
        if !listener.is_valid(call.id) {
            seen.who = Who::default();
        } else if let libc::SYS_bind | libc::SYS_connect | libc::SYS_setsockopt = call.syscall.into() {
            seen.read(listener);
        }
        seen
    }

    /// One that has waited since before anybody traced.
    #[cold]
    pub fn late(call: &Call, listener: &Listener) -> Box<Seen> {
        let mut seen = Seen::look(call, listener);
        seen.begun = None;
        seen
    }

    /// Looks at what the server has written for the caller. To be called before the answer, while he waits.
    pub fn written(&mut self, listener: &Listener) {
        match self.call.syscall.into() {
            libc::SYS_accept
            | libc::SYS_accept4
            | libc::SYS_getsockname
            | libc::SYS_getpeername
            | libc::SYS_getsockopt => self.read(listener),
            _ => {}
        }
    }

    fn read(&mut self, listener: &Listener) {
        self.value = value(&self.call).filter(|_| listener.is_valid(self.call.id));
    }

    /// Reports that it waits. It is reported again when it has been answered.
    pub fn waits(&self, tap: &Tap) {
        tap.report(Event { result: "waits".into(), ..self.event() });
    }

    /// Reports what became of it.
    pub fn end(&self, tap: &Tap, outcome: Outcome) {
        let (result, failed) = match outcome {
            Outcome::Returned(value) => (value.to_string(), false),
            Outcome::Failed(errno) => (errno_name(errno), true),
            Outcome::Native => ("native".into(), false),
            Outcome::Waits => ("waits".into(), false),
            Outcome::Gone => ("cancelled".into(), true),
        };
        let took_us = self.begun.map(|begun| microseconds(begun.elapsed())).filter(|_| outcome != Outcome::Waits);
        tap.report(Event { result, failed, took_us, ..self.event() });
    }

    fn event(&self) -> Event {
        Event {
            kind: Kind::Trap,
            interface: "net".into(),
            call: name(self.call.syscall).into(),
            arguments: arguments(&self.call, self.value.as_deref()),
            who: self.who.clone(),
            ..Event::default()
        }
    }
}

/// A trapped call's name: one of those in docs/compatibility.md.
pub fn name(syscall: i32) -> &'static str {
    match i64::from(syscall) {
        libc::SYS_socket => "socket",
        libc::SYS_bind => "bind",
        libc::SYS_listen => "listen",
        libc::SYS_connect => "connect",
        libc::SYS_accept => "accept",
        libc::SYS_accept4 => "accept4",
        libc::SYS_getsockname => "getsockname",
        libc::SYS_getpeername => "getpeername",
        libc::SYS_setsockopt => "setsockopt",
        libc::SYS_getsockopt => "getsockopt",
        libc::SYS_shutdown => "shutdown",
        libc::SYS_unshare => "unshare",
        libc::SYS_setns => "setns",
        _ => "another call",
    }
}

/// Who makes a call: a thread's process, inside and outside, its user and name (proc_pid_status(5)).
fn who(thread: u32) -> Who {
    let status = fs::read_to_string(format!("/proc/{thread}/status")).unwrap_or_default();
    let field = |key: &str, n: usize| -> u32 {
        let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        line.and_then(|line| line.split_whitespace().nth(n)?.parse().ok()).unwrap_or(0)
    };
    let name = status.lines().find_map(|line| line.strip_prefix("Name:\t")).unwrap_or_default();
    // The environment's pid namespace is the one below the server's.
    let (pid, inside) = (field("Tgid", 0), field("NStgid", 1));
    Who { pid, inside, thread, uid: field("Uid", 1), name: name.into() }
}

/// The inet endpoint that the bytes of a sockaddr name (ip(7), ipv6(7)).
pub(crate) fn endpoint(bytes: &[u8]) -> Option<SocketAddr> {
    let port = u16::from_be_bytes([*bytes.get(2)?, *bytes.get(3)?]);
    match i32::from(family_of(bytes)?) {
        libc::AF_INET => {
            let octets: [u8; 4] = bytes.get(4..8)?.try_into().ok()?;
            Some((Ipv4Addr::from(octets), port).into())
        }
        libc::AF_INET6 => {
            let octets: [u8; 16] = bytes.get(8..24)?.try_into().ok()?;
            Some((Ipv6Addr::from(octets), port).into())
        }
        _ => None,
    }
}

/// Any sockaddr as text.
fn address(bytes: &[u8]) -> String {
    if let Some(endpoint) = endpoint(bytes) {
        return endpoint.to_string();
    }
    let Some(family) = family_of(bytes).map(i32::from) else { return format!("{} bytes", bytes.len()) };
    let text = |name: &[u8]| String::from_utf8_lossy(name).replace('\0', "@");
    match (family, &bytes[2..]) {
        (libc::AF_UNIX, []) => "unix:".into(),
        (libc::AF_UNIX, [0, name @ ..]) => format!("unix:@{}", text(name)),
        (libc::AF_UNIX, path) => format!("unix:{}", text(path.split(|byte| *byte == 0).next().unwrap_or_default())),
        _ => flag(FAMILIES, family),
    }
}

/// What stands where a call's arguments point to.
fn value(call: &Call) -> Option<String> {
    let of_option = matches!(call.syscall.into(), libc::SYS_setsockopt | libc::SYS_getsockopt);
    let given = matches!(call.syscall.into(), libc::SYS_bind | libc::SYS_connect);
    let (at, length) = if of_option { (3, call.args[4]) } else { (1, call.args[2]) };
    let length = if given || i64::from(call.syscall) == libc::SYS_setsockopt {
        length as u32
    } else {
        // Where the call says how much room there is, and is told how much was used.
        let mut bytes = [0; 4];
        memory::read(call.tid, length, &mut bytes).ok()?;
        u32::from_ne_bytes(bytes)
    };
    let mut bytes = [0; LONGEST];
    let bytes = bytes.get_mut(..usize::try_from(length).ok()?)?;
    memory::read(call.tid, call.args[at], bytes).ok()?;
    Some(match (of_option, <[u8; 4]>::try_from(&*bytes)) {
        (false, _) => address(bytes),
        (true, Ok(number)) => i32::from_ne_bytes(number).to_string(),
        (true, Err(_)) => format!("{length} bytes"),
    })
}

/// The arguments, by name where they have one. `value`: what the address among them leads to.
fn arguments(call: &Call, value: Option<&str>) -> String {
    // The kernel takes these as `int`, whatever the upper half of the register holds.
    let int = |n: usize| call.args[n] as i32;
    let pointed = value.unwrap_or(if call.args[1] == 0 { "NULL" } else { "…" });
    match call.syscall.into() {
        libc::SYS_socket => {
            let protocol = if int(2) == 0 { "0".into() } else { flag(PROTOCOLS, int(2)) };
            format!("{}, {}, {protocol}", flag(FAMILIES, int(0)), kind(int(1)))
        }
        libc::SYS_listen => format!("{}, {}", int(0), int(1)),
        libc::SYS_shutdown => format!("{}, {}", int(0), flag(HOWS, int(1))),
        libc::SYS_accept4 => format!("{}, {pointed}, {}", int(0), flags(int(3))),
        libc::SYS_setsockopt | libc::SYS_getsockopt => {
            let (level, option) = option(int(1), int(2));
            format!("{}, {level}, {option}, {}", int(0), value.unwrap_or("…"))
        }
        _ => format!("{}, {pointed}", int(0)),
    }
}

type Names = &'static [(i32, &'static str)];

macro_rules! names {
    ($($name:ident),* $(,)?) => { &[$((libc::$name as i32, stringify!($name))),*] };
}

const FAMILIES: Names = names![AF_UNSPEC, AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, AF_PACKET, AF_VSOCK];
const TYPES: Names = names![SOCK_STREAM, SOCK_DGRAM, SOCK_RAW, SOCK_SEQPACKET];
const PROTOCOLS: Names = names![IPPROTO_TCP, IPPROTO_UDP, IPPROTO_ICMP, IPPROTO_MPTCP];
const HOWS: Names = names![SHUT_RD, SHUT_WR, SHUT_RDWR];
const LEVELS: Names = names![SOL_SOCKET, IPPROTO_IP, IPPROTO_TCP, IPPROTO_IPV6];
const SOCKET: Names = names![
    SO_REUSEADDR,
    SO_REUSEPORT,
    SO_KEEPALIVE,
    SO_LINGER,
    SO_MAX_PACING_RATE,
    SO_DOMAIN,
    SO_PROTOCOL,
    SO_TYPE,
    SO_ERROR
];
const TCP: Names = names![
    TCP_NODELAY,
    TCP_MAXSEG,
    TCP_CORK,
    TCP_KEEPIDLE,
    TCP_KEEPINTVL,
    TCP_KEEPCNT,
    TCP_SYNCNT,
    TCP_LINGER2,
    TCP_DEFER_ACCEPT,
    TCP_WINDOW_CLAMP,
    TCP_INFO,
    TCP_QUICKACK,
    TCP_CONGESTION,
    TCP_USER_TIMEOUT,
    TCP_FASTOPEN,
    TCP_FASTOPEN_CONNECT,
    TCP_ULP,
    TCP_NOTSENT_LOWAT
];
const IP: Names = names![IP_TOS, IP_TTL, IP_OPTIONS, IP_RECVERR, IP_FREEBIND, IP_TRANSPARENT, IP_MTU, IP_MTU_DISCOVER];
const IPV6: Names = names![IPV6_V6ONLY, IPV6_TCLASS, IPV6_UNICAST_HOPS, IPV6_RECVERR, IPV6_MTU, IPV6_MTU_DISCOVER];

fn flag(names: Names, number: i32) -> String {
    let known = names.iter().find(|(known, _)| *known == number);
    known.map_or_else(|| number.to_string(), |(_, name)| (*name).into())
}

fn option(level: i32, name: i32) -> (String, String) {
    let names = match level {
        libc::SOL_SOCKET => SOCKET,
        libc::IPPROTO_TCP => TCP,
        libc::IPPROTO_IP => IP,
        libc::IPPROTO_IPV6 => IPV6,
        _ => &[],
    };
    (flag(LEVELS, level), flag(names, name))
}

/// The flags that socket(2) and accept4(2) take.
fn flags(given: i32) -> String {
    let mut text = String::new();
    let mut rest = given;
    for (bit, name) in [(libc::SOCK_CLOEXEC, "SOCK_CLOEXEC"), (libc::SOCK_NONBLOCK, "SOCK_NONBLOCK")] {
        if rest & bit != 0 {
            rest &= !bit;
            let bar = if text.is_empty() { "" } else { "|" };
            let _ = write!(text, "{bar}{name}");
        }
    }
    match (rest, text.is_empty()) {
        (0, false) => text,
        (_, true) => rest.to_string(),
        _ => format!("{text}|{rest:#x}"),
    }
}

fn kind(given: i32) -> String {
    let (kind, rest) = (given & 0xf, given & !0xf);
    let kind = flag(TYPES, kind);
    if rest == 0 { kind } else { format!("{kind}|{}", flags(rest)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(syscall: i64, args: [u64; 6]) -> Call {
        let mut call = Call::default();
        (call.syscall, call.args, call.tid) = (syscall as i32, args, std::process::id());
        call
    }

    fn text(syscall: i64, args: [u64; 6]) -> String {
        let call = call(syscall, args);
        arguments(&call, value(&call).as_deref())
    }

    #[test]
    fn arguments_have_names() {
        let stream = (libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) as u64;
        assert_eq!(
            text(libc::SYS_socket, [libc::AF_INET6 as u64, stream, 6, 0, 0, 0]),
            "AF_INET6, SOCK_STREAM|SOCK_CLOEXEC|SOCK_NONBLOCK, IPPROTO_TCP"
        );
        assert_eq!(text(libc::SYS_listen, [3, 128, 0, 0, 0, 0]), "3, 128");
        assert_eq!(text(libc::SYS_shutdown, [3, 2, 0, 0, 0, 0]), "3, SHUT_RDWR");
        assert_eq!(text(libc::SYS_shutdown, [3, 77, 0, 0, 0, 0]), "3, 77");
        assert_eq!(text(libc::SYS_accept4, [3, 0, 0, 0x80000, 0, 0]), "3, NULL, SOCK_CLOEXEC");
        let on = 1i32;
        let args = [5, libc::IPPROTO_TCP as u64, libc::TCP_NODELAY as u64, (&raw const on) as u64, 4, 0];
        assert_eq!(text(libc::SYS_setsockopt, args), "5, IPPROTO_TCP, TCP_NODELAY, 1");
        // The upper half of a register means nothing.
        assert_eq!(text(libc::SYS_listen, [3 | 7 << 40, 1, 0, 0, 0, 0]), "3, 1");
    }

    #[test]
    fn addresses_are_read() {
        let read = |bytes: &[u8]| text(libc::SYS_connect, [4, bytes.as_ptr() as u64, bytes.len() as u64, 0, 0, 0]);
        let inet = [2u8, 0, 0x1f, 0x90, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(read(&inet), "4, 127.0.0.1:8080");
        let mut six = [0u8; 28];
        six[0] = 10;
        six[3] = 80;
        six[23] = 1;
        assert_eq!(read(&six), "4, [::1]:80");
        assert_eq!(read(b"\x01\0/run/x\0junk"), "4, unix:/run/x");
        assert_eq!(read(b"\x01\0\0name"), "4, unix:@name");
        assert_eq!(read(b"\x01\0"), "4, unix:");
        assert_eq!(read(b"\x02"), "4, 1 bytes");
        assert_eq!(read(&inet[..4]), "4, AF_INET");
        // Where nothing is to be read, and where a length is no length.
        assert_eq!(text(libc::SYS_connect, [4, 8, 16, 0, 0, 0]), "4, …");
        assert_eq!(text(libc::SYS_connect, [4, inet.as_ptr() as u64, u64::MAX, 0, 0, 0]), "4, …");
        let length = 16u32;
        let args = [4, inet.as_ptr() as u64, (&raw const length) as u64, 0, 0, 0];
        assert_eq!(text(libc::SYS_getpeername, args), "4, 127.0.0.1:8080");
    }

    #[test]
    fn a_caller_is_named() {
        let who = who(std::process::id());
        assert_eq!((who.pid, who.thread), (std::process::id(), std::process::id()));
        assert!(!who.name.is_empty());
        assert_eq!(super::who(0), Who { thread: 0, ..Who::default() });
    }
}
