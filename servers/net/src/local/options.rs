//! setsockopt(2) and getsockopt(2): what TCP and IP know and AF_UNIX does not, checked, remembered and read back.
//!
//! Where an option is kept: frequent ones in the socket's mark, so that they outlive this server; the others in a file that does (`memory`).

use super::memory::set;
use super::state::{Answer, Errno, Extra, Handled, State, Trap};
use hurdle_netstack::address::Family;
use hurdle_netstack::mark::{
    CORK, EXTRA, Field, KEEP_COUNT, KEEP_IDLE, KEEP_INTERVAL, LINGER_ZERO, Mark, NO_DELAY, QUICK_ACK, REUSE_PORT, TOS,
    V6_ONLY,
};
use hurdle_sys::target::socket;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

const TCP: i32 = libc::IPPROTO_TCP;
const IP: i32 = libc::IPPROTO_IP;
const IPV6: i32 = libc::IPPROTO_IPV6;

/// Where an option's number is kept.
#[derive(Clone, Copy)]
enum Kept {
    Mark(Field),
    Memory,
}

/// An option that is a number.
struct Number {
    level: i32,
    name: i32,
    kept: Kept,
    default: i32,
    least: i32,
    most: i32,
}

const fn number(level: i32, name: i32, kept: Kept, default: i32, least: i32, most: i32) -> Number {
    Number { level, name, kept, default, least, most }
}

/// A switch: any number sets it, and 0 or 1 is read back.
const fn switch(level: i32, name: i32, kept: Kept, default: i32) -> Number {
    Number { level, name, kept, default, least: 1, most: 0 }
}

// What libc does not name, from linux/tcp.h, linux/in.h and linux/in6.h.
const TCP_NOTSENT_LOWAT: i32 = 25;
const TCP_FASTOPEN_NO_COOKIE: i32 = 34;
const TCP_INQ: i32 = 36;
const TCP_TX_DELAY: i32 = 37;
const TCP_THIN_LINEAR_TIMEOUTS: i32 = 16;
const TCP_THIN_DUPACK: i32 = 17;
const IP_BIND_ADDRESS_NO_PORT: i32 = 24;
const IP_LOCAL_PORT_RANGE: i32 = 51;
const IPV6_MTU: i32 = 24;
const IPV6_AUTOFLOWLABEL: i32 = 70;
const IPV6_ADDR_PREFERENCES: i32 = 72;
const IPV6_MINHOPCOUNT: i32 = 73;
const IPV6_FREEBIND: i32 = 78;

/// The options that are numbers, with the kernel's defaults and ranges (tcp(7), ip(7), ipv6(7)).
const NUMBERS: &[Number] = &[
    switch(TCP, libc::TCP_NODELAY, Kept::Mark(NO_DELAY), 0),
    switch(TCP, libc::TCP_CORK, Kept::Mark(CORK), 0),
    switch(TCP, libc::TCP_QUICKACK, Kept::Mark(QUICK_ACK), 1),
    number(TCP, libc::TCP_KEEPIDLE, Kept::Mark(KEEP_IDLE), 7200, 1, 32767),
    number(TCP, libc::TCP_KEEPINTVL, Kept::Mark(KEEP_INTERVAL), 75, 1, 32767),
    number(TCP, libc::TCP_KEEPCNT, Kept::Mark(KEEP_COUNT), 9, 1, 127),
    number(TCP, libc::TCP_SYNCNT, Kept::Memory, 6, 1, 127),
    number(TCP, libc::TCP_USER_TIMEOUT, Kept::Memory, 0, 0, i32::MAX),
    number(TCP, libc::TCP_DEFER_ACCEPT, Kept::Memory, 0, i32::MIN, i32::MAX),
    number(TCP, libc::TCP_LINGER2, Kept::Memory, 60, i32::MIN, i32::MAX),
    number(TCP, libc::TCP_WINDOW_CLAMP, Kept::Memory, 0, 0, i32::MAX),
    number(TCP, libc::TCP_FASTOPEN, Kept::Memory, 0, 0, i32::MAX),
    number(TCP, TCP_NOTSENT_LOWAT, Kept::Memory, 0, i32::MIN, i32::MAX),
    number(TCP, TCP_TX_DELAY, Kept::Memory, 0, 0, i32::MAX),
    switch(TCP, libc::TCP_FASTOPEN_CONNECT, Kept::Memory, 0),
    switch(TCP, TCP_FASTOPEN_NO_COOKIE, Kept::Memory, 0),
    switch(TCP, TCP_INQ, Kept::Memory, 0),
    switch(TCP, TCP_THIN_LINEAR_TIMEOUTS, Kept::Memory, 0),
    switch(TCP, TCP_THIN_DUPACK, Kept::Memory, 0),
    number(IP, libc::IP_TOS, Kept::Mark(TOS), 0, 0, 255),
    number(IP, libc::IP_TTL, Kept::Memory, 64, 1, 255),
    number(IP, libc::IP_MINTTL, Kept::Memory, 0, 0, 255),
    number(IP, libc::IP_MTU_DISCOVER, Kept::Memory, 1, 0, 5),
    switch(IP, libc::IP_PKTINFO, Kept::Memory, 0),
    switch(IP, libc::IP_RECVERR, Kept::Memory, 0),
    switch(IP, libc::IP_RECVTTL, Kept::Memory, 0),
    switch(IP, libc::IP_RECVTOS, Kept::Memory, 0),
    switch(IP, libc::IP_RECVOPTS, Kept::Memory, 0),
    switch(IP, libc::IP_RETOPTS, Kept::Memory, 0),
    switch(IP, libc::IP_FREEBIND, Kept::Memory, 0),
    switch(IP, IP_BIND_ADDRESS_NO_PORT, Kept::Memory, 0),
    switch(IP, libc::IP_MULTICAST_LOOP, Kept::Memory, 1),
    number(IP, IP_LOCAL_PORT_RANGE, Kept::Memory, 0, i32::MIN, i32::MAX),
    switch(IPV6, libc::IPV6_V6ONLY, Kept::Mark(V6_ONLY), 0),
    number(IPV6, libc::IPV6_UNICAST_HOPS, Kept::Memory, 64, -1, 255),
    number(IPV6, libc::IPV6_TCLASS, Kept::Memory, 0, -1, 255),
    number(IPV6, libc::IPV6_MTU_DISCOVER, Kept::Memory, 1, 0, 5),
    number(IPV6, IPV6_MINHOPCOUNT, Kept::Memory, 0, 0, 255),
    number(IPV6, IPV6_ADDR_PREFERENCES, Kept::Memory, 0, i32::MIN, i32::MAX),
    switch(IPV6, IPV6_AUTOFLOWLABEL, Kept::Memory, 1),
    switch(IPV6, libc::IPV6_RECVERR, Kept::Memory, 0),
    switch(IPV6, libc::IPV6_RECVPKTINFO, Kept::Memory, 0),
    switch(IPV6, libc::IPV6_RECVHOPLIMIT, Kept::Memory, 0),
    switch(IPV6, libc::IPV6_RECVTCLASS, Kept::Memory, 0),
    switch(IPV6, libc::IPV6_DONTFRAG, Kept::Memory, 0),
    switch(IPV6, IPV6_FREEBIND, Kept::Memory, 0),
];

/// What loopback carries in one segment, and its MTU.
const SEGMENT: i32 = 65483;
const MTU: i32 = 65536;
/// TCP_MAXSEG before a connection.
const FIRST_SEGMENT: i32 = 536;
/// The kernel's default congestion control, and those that anybody may choose (tcp(7)).
const CONGESTION: &str = "/proc/sys/net/ipv4/tcp_congestion_control";
const CONGESTION_ALLOWED: &str = "/proc/sys/net/ipv4/tcp_allowed_congestion_control";
/// TCP_CA_NAME_MAX of linux/tcp.h.
const CONGESTION_NAME: usize = 16;

impl State {
    pub(super) fn set_option(&mut self, trap: &Trap<'_>) -> Handled {
        let Some((fd, mark)) = self.fetch(trap)? else { return Ok(Answer::Native) };
        let (level, name, address) = (trap.int(1), trap.int(2), trap.call.args[3]);
        let Ok(length) = usize::try_from(trap.int(4)) else { return Err(Errno(libc::EINVAL)) };
        if level == libc::SOL_SOCKET {
            return self.set_socket_option(trap, fd, mark, name, address, length);
        }
        if level == TCP && name == libc::TCP_CONGESTION {
            let mut text = [0; CONGESTION_NAME];
            let length = length.min(CONGESTION_NAME - 1);
            trap.read(address, &mut text[..length])?;
            let text = text[..length].split(|byte| *byte == 0).next().unwrap_or_default();
            if length == 0 {
                return Err(Errno(libc::EINVAL));
            }
            let allowed = std::fs::read(CONGESTION_ALLOWED).unwrap_or_else(|_| b"reno cubic".to_vec());
            if !allowed.split(u8::is_ascii_whitespace).any(|one| one == text) {
                return Err(Errno(libc::ENOENT));
            }
            self.remember(fd.as_fd(), mark, (level, name), text.to_vec())?;
            return Ok(Answer::Value(0));
        }
        if !applies(mark, level) {
            return Err(Errno(libc::ENOPROTOOPT));
        }
        let value = match length {
            // IP takes a single byte too (ip(7)).
            1..4 if level == IP => {
                let mut byte = [0; 1];
                trap.read(address, &mut byte)?;
                byte[0].into()
            }
            ..4 => return Err(Errno(libc::EINVAL)),
            _ => trap.read_int(address)?,
        };
        if level == TCP && name == libc::TCP_MAXSEG {
            if value != 0 && !(88..=32767).contains(&value) {
                return Err(Errno(libc::EINVAL));
            }
            self.remember(fd.as_fd(), mark, (level, name), value.to_ne_bytes().to_vec())?;
            return Ok(Answer::Value(0));
        }
        let Some(number) = NUMBERS.iter().find(|number| (number.level, number.name) == (level, name)) else {
            return Err(Errno(libc::ENOPROTOOPT));
        };
        let value = number.checked(value)?;
        if (level, name) == (IPV6, libc::IPV6_V6ONLY) && !socket::name(fd.as_fd())?.bytes().is_empty() {
            return Err(Errno(libc::EINVAL));
        }
        match number.kept {
            Kept::Mark(field) => socket::set_mark(fd.as_fd(), mark.with(field, value as u64).0)?,
            Kept::Memory => self.remember(fd.as_fd(), mark, (level, name), value.to_ne_bytes().to_vec())?,
        }
        Ok(Answer::Value(0))
    }

    fn set_socket_option(
        &mut self,
        trap: &Trap<'_>,
        fd: OwnedFd,
        mark: Mark,
        name: i32,
        address: u64,
        length: usize,
    ) -> Handled {
        if length < 4 {
            return Err(Errno(libc::EINVAL));
        }
        let value = trap.read_int(address)?;
        match name {
            libc::SO_REUSEPORT => {
                socket::set_mark(fd.as_fd(), mark.with(REUSE_PORT, u64::from(value != 0)).0)?;
                Ok(Answer::Value(0))
            }
            libc::SO_LINGER if length >= 8 => {
                let zero = value != 0 && trap.read_int(address + 4)? == 0;
                if zero != mark.has(LINGER_ZERO) {
                    socket::set_mark(fd.as_fd(), mark.with(LINGER_ZERO, u64::from(zero)).0)?;
                }
                if zero {
                    self.arm_reset(fd.as_fd());
                }
                // The kernel keeps the value itself.
                Ok(Answer::Native)
            }
            libc::SO_LINGER => Err(Errno(libc::EINVAL)),
            // The mark lives there.
            _ => Ok(Answer::Value(0)),
        }
    }

    pub(super) fn option(&mut self, trap: &Trap<'_>) -> Handled {
        let Some((fd, mark)) = self.fetch(trap)? else { return Ok(Answer::Native) };
        let (level, name) = (trap.int(1), trap.int(2));
        let (address, length) = (trap.call.args[3], trap.call.args[4]);
        let room = trap.read_int(length)?;
        if room < 0 {
            return Err(Errno(libc::EINVAL));
        }
        let bytes: Vec<u8> = match (level, name) {
            (libc::SOL_SOCKET, libc::SO_REUSEPORT) => int(mark.get(REUSE_PORT) as i32),
            (libc::SOL_SOCKET, libc::SO_DOMAIN) => {
                int(if mark.family() == Family::V4 { libc::AF_INET } else { libc::AF_INET6 })
            }
            (libc::SOL_SOCKET, libc::SO_PROTOCOL) => int(TCP),
            (libc::SOL_SOCKET, _) => u64::MAX.to_ne_bytes()[..if room < 8 { 4 } else { 8 }].to_vec(),
            (TCP, libc::TCP_INFO) => info(&fd)?,
            (TCP, libc::TCP_CONGESTION) => {
                let mut text = self.extra(fd.as_fd(), mark, (level, name)).map_or_else(
                    || {
                        std::fs::read(CONGESTION)
                            .map_or_else(|_| b"cubic".to_vec(), |text| text.trim_ascii_end().to_vec())
                    },
                    <[u8]>::to_vec,
                );
                text.resize(CONGESTION_NAME, 0);
                text
            }
            (TCP, libc::TCP_MAXSEG) => {
                let set = self.extra(fd.as_fd(), mark, (level, name));
                let connected = socket::peer_name(fd.as_fd()).is_ok();
                set.map_or(int(if connected { SEGMENT } else { FIRST_SEGMENT }), <[u8]>::to_vec)
            }
            (IP, libc::IP_MTU) | (IPV6, IPV6_MTU) if applies(mark, level) => {
                socket::peer_name(fd.as_fd())?;
                int(MTU)
            }
            _ => {
                if !applies(mark, level) {
                    return Err(Errno(libc::EOPNOTSUPP));
                }
                let number = NUMBERS.iter().find(|number| (number.level, number.name) == (level, name));
                let Some(number) = number else {
                    return Err(Errno(libc::ENOPROTOOPT));
                };
                match number.kept {
                    Kept::Mark(field) => int(mark.get(field) as i32),
                    Kept::Memory => {
                        self.extra(fd.as_fd(), mark, (level, name)).map_or_else(|| int(number.default), <[u8]>::to_vec)
                    }
                }
            }
        };
        // Here the length that is written is what fitted, and IP answers in one byte where there is no room for four.
        let fits = if level == IP && (1..4).contains(&room) { 1 } else { bytes.len().min(room as usize) };
        trap.write_sized(address, length, fits as i32, &bytes[..fits])?;
        Ok(Answer::Value(0))
    }

    fn remember(&mut self, fd: BorrowedFd<'_>, mark: Mark, option: (i32, i32), value: Vec<u8>) -> Result<(), Errno> {
        let cookie = socket::cookie(fd)?;
        self.memory.note_option(cookie, option, &value)?;
        set(self.extras.entry(cookie).or_default(), option, value);
        self.tidy()?;
        Ok(socket::set_mark(fd, mark.with(EXTRA, 1).0)?)
    }

    fn extra(&self, fd: BorrowedFd<'_>, mark: Mark, option: (i32, i32)) -> Option<&[u8]> {
        if !mark.has(EXTRA) {
            return None;
        }
        let extras = self.extras.get(&socket::cookie(fd).ok()?)?;
        extras.iter().find(|(known, _)| *known == option).map(|(_, value)| value.as_slice())
    }

    /// Gives the fresh socket `to` the options of `from`. Each is one of ours with its mark, or TCP. Returns the new mark.
    pub(super) fn copy_options(
        &mut self,
        from: BorrowedFd<'_>,
        old: Option<Mark>,
        to: BorrowedFd<'_>,
        new: Option<Mark>,
        family: Family,
    ) -> Result<Option<Mark>, Errno> {
        copy_plain(from, to);
        let mut copied = new;
        let mut extras: Vec<Extra> = Vec::new();
        for number in NUMBERS.iter().filter(|number| number.level != IPV6 || family == Family::V6) {
            let option = (number.level, number.name);
            let value = match (old, number.kept) {
                (Some(mark), Kept::Mark(field)) => mark.get(field) as i32,
                // Those in memory follow.
                (Some(_), Kept::Memory) => continue,
                (None, _) => match tcp_number(from, option) {
                    Some(value) => value,
                    None => continue,
                },
            };
            if value == number.default {
                continue;
            }
            match (&mut copied, number.kept) {
                (Some(mark), Kept::Mark(field)) => *mark = mark.with(field, value as u64),
                (Some(_), Kept::Memory) => extras.push((option, int(value))),
                // What a socket of its kind does not take, it goes without.
                (None, _) => _ = socket::set_option_bytes(to, option, &value.to_ne_bytes()),
            }
        }
        if old.is_some_and(|mark| mark.has(EXTRA)) {
            extras.extend(self.extras.get(&socket::cookie(from)?).into_iter().flatten().cloned());
        }
        let shared = match old {
            Some(mark) => mark.has(REUSE_PORT),
            None => socket::option(from, libc::SO_REUSEPORT)? != 0,
        };
        match &mut copied {
            Some(mark) => {
                *mark = mark.with(REUSE_PORT, shared.into());
                if !extras.is_empty() {
                    let cookie = socket::cookie(to)?;
                    extras.iter().try_for_each(|(option, value)| self.memory.note_option(cookie, *option, value))?;
                    self.extras.insert(cookie, extras);
                    *mark = mark.with(EXTRA, 1);
                }
                socket::set_mark(to, mark.0)?;
            }
            None => {
                for (option, value) in extras {
                    let _ = socket::set_option_bytes(to, option, &value);
                }
                if shared {
                    socket::set_option(to, libc::SO_REUSEPORT, 1)?;
                }
            }
        }
        Ok(copied)
    }

    /// What an accepted socket takes over beside the mark.
    pub(super) fn inherit(
        &mut self,
        listener: BorrowedFd<'_>,
        mark: Mark,
        accepted: BorrowedFd<'_>,
    ) -> Result<(), Errno> {
        if mark.has(EXTRA)
            && let Some(extras) = self.extras.get(&socket::cookie(listener)?).cloned()
        {
            let cookie = socket::cookie(accepted)?;
            extras.iter().try_for_each(|(option, value)| self.memory.note_option(cookie, *option, value))?;
            self.extras.insert(cookie, extras);
            self.tidy()?;
        }
        Ok(())
    }
}

/// SO_BUF_LOCK of asm-generic/socket.h, and its bit for SO_RCVBUF: the program has set it.
const SO_BUF_LOCK: i32 = 72;
const RECEIVE_LOCK: i32 = 2;

/// Options that every kind of socket keeps by itself (socket(7)).
fn copy_plain(from: BorrowedFd<'_>, to: BorrowedFd<'_>) {
    for name in [
        libc::SO_REUSEADDR,
        libc::SO_KEEPALIVE,
        libc::SO_OOBINLINE,
        libc::SO_RCVLOWAT,
        libc::SO_PRIORITY,
        libc::SO_LINGER,
        libc::SO_RCVTIMEO,
        libc::SO_SNDTIMEO,
    ] {
        let option = (libc::SOL_SOCKET, name);
        let (mut value, mut fresh) = ([0; 16], [0; 16]);
        if let Ok(length) = socket::option_bytes(from, option, &mut value)
            && socket::option_bytes(to, option, &mut fresh).is_ok()
            && value != fresh
        {
            let _ = socket::set_option_bytes(to, option, &value[..length]);
        }
    }
    if socket::option(from, SO_BUF_LOCK).is_ok_and(|locks| locks & RECEIVE_LOCK != 0)
        && let Ok(room) = socket::option(from, libc::SO_RCVBUF)
    {
        // The kernel doubles what it is told.
        let _ = socket::set_option(to, libc::SO_RCVBUF, room / 2);
    }
}

/// An option of a TCP socket that is a number.
fn tcp_number(fd: BorrowedFd<'_>, option: (i32, i32)) -> Option<i32> {
    let mut value = [0; 4];
    socket::option_bytes(fd, option, &mut value).ok()?;
    Some(i32::from_ne_bytes(value))
}

impl Number {
    fn checked(&self, value: i32) -> Result<i32, Errno> {
        if self.least > self.most {
            return Ok(i32::from(value != 0));
        }
        // -1 asks IPv6 for the default.
        if self.level == IPV6 && value == -1 && self.least == -1 {
            return Ok(self.default);
        }
        if (self.least..=self.most).contains(&value) { Ok(value) } else { Err(Errno(libc::EINVAL)) }
    }
}

/// Whether a socket knows the level at all.
fn applies(mark: Mark, level: i32) -> bool {
    level != IPV6 || mark.family() == Family::V6
}

fn int(value: i32) -> Vec<u8> {
    value.to_ne_bytes().to_vec()
}

/// A `struct tcp_info` of linux/tcp.h with the state, and the numbers of a loopback connection at rest.
fn info(fd: &OwnedFd) -> Result<Vec<u8>, Errno> {
    const ESTABLISHED: u8 = 1;
    const CLOSE: u8 = 7;
    const CLOSE_WAIT: u8 = 8;
    const LISTEN: u8 = 10;
    let connected = socket::peer_name(fd.as_fd()).is_ok();
    let state = if socket::option(fd.as_fd(), libc::SO_ACCEPTCONN)? != 0 {
        LISTEN
    } else if !connected {
        CLOSE
    } else if socket::poll_now(fd.as_fd(), libc::POLLRDHUP)? & (libc::POLLRDHUP | libc::POLLHUP) != 0 {
        CLOSE_WAIT
    } else {
        ESTABLISHED
    };
    let mut info = vec![0; 248];
    info[0] = state;
    // tcpi_options: timestamps, SACK, window scaling; tcpi_snd_wscale and tcpi_rcv_wscale 7.
    (info[5], info[6]) = (7, 0x77);
    let mut put = |at: usize, value: i32| info[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    let segment = if connected { SEGMENT } else { FIRST_SEGMENT };
    // rto and ato (µs); snd_mss and rcv_mss.
    put(8, if connected { 201_000 } else { 1_000_000 });
    put(12, if connected { 40_000 } else { 0 });
    put(16, segment);
    put(20, segment);
    if connected {
        // pmtu, rcv_ssthresh, rtt, rttvar (µs).
        put(60, MTU);
        put(64, 65_483);
        put(68, 20);
        put(72, 10);
    }
    // snd_ssthresh, snd_cwnd, advmss, reordering; rcv_space.
    put(76, i32::MAX);
    put(80, 10);
    put(84, segment);
    put(88, 3);
    put(96, 65_483);
    Ok(info)
}
