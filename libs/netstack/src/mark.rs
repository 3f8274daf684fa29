//! What a stream socket remembers beside its name: 64 bits that the kernel keeps in the socket itself
//! (`hurdle_sys::target::socket::mark`), so that they outlive the server and follow dup, fork and SCM_RIGHTS.
//!
//! A socket that nobody marked (from an accept(2) that went natively) has all bits set. A mark has a pattern in its top bits that
//! no socket paced by its program has, since it would mean some 800 petabytes a second.

use crate::address::Family;

/// The seven top bits of a mark.
const PATTERN: u64 = 0b010_1101 << 57;

/// The 64 bits, named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark(pub u64);

/// A number in the mark: where its bits start and how many they are.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    shift: u32,
    bits: u32,
    default: u64,
}

const fn field(shift: u32, bits: u32, default: u64) -> Field {
    Field { shift, bits, default }
}

/// Set on an AF_INET6 socket.
pub const V6: Field = field(0, 1, 0);
/// IPV6_V6ONLY.
pub const V6_ONLY: Field = field(1, 1, 0);
/// The program bound it, so its name has the bound form.
pub const BOUND: Field = field(2, 1, 0);
/// It came from accept(2).
pub const ACCEPTED: Field = field(3, 1, 0);
/// It is connected, but connect(2) did not say so yet: the next one returns 0.
pub const PENDING: Field = field(4, 1, 0);
/// SO_REUSEPORT.
pub const REUSE_PORT: Field = field(5, 1, 0);
/// TCP_NODELAY.
pub const NO_DELAY: Field = field(6, 1, 0);
/// TCP_CORK.
pub const CORK: Field = field(7, 1, 0);
/// TCP_QUICKACK.
pub const QUICK_ACK: Field = field(8, 1, 1);
/// It connected, rather than accepted or listened.
pub const CLIENT: Field = field(9, 1, 0);
/// TCP_KEEPCNT, 1 to 127.
pub const KEEP_COUNT: Field = field(10, 7, 9);
/// TCP_KEEPIDLE in seconds, 1 to 32767.
pub const KEEP_IDLE: Field = field(17, 15, 7200);
/// TCP_KEEPINTVL in seconds, 1 to 32767.
pub const KEEP_INTERVAL: Field = field(32, 15, 75);
/// IP_TOS.
pub const TOS: Field = field(47, 8, 0);
/// Other options were set; the server has them in memory.
pub const EXTRA: Field = field(55, 1, 0);
/// SO_LINGER is on with time 0: the last close is a reset.
pub const LINGER_ZERO: Field = field(56, 1, 0);

/// What an accepted socket takes over from its listener.
const INHERITED: [Field; 8] = [V6, V6_ONLY, NO_DELAY, KEEP_COUNT, KEEP_IDLE, KEEP_INTERVAL, TOS, EXTRA];

impl Field {
    const fn mask(self) -> u64 {
        (1 << self.bits) - 1
    }

    /// The largest number it holds.
    pub fn largest(self) -> u64 {
        self.mask()
    }
}

impl Mark {
    /// The mark of a new socket. Fields hold the difference (exclusive or) to their defaults, so it is nearly zero.
    pub const fn new(family: Family) -> Mark {
        Mark(PATTERN | matches!(family, Family::V6) as u64)
    }

    /// From the kernel; `None` for a socket that nobody marked.
    pub fn from_kernel(bits: u64) -> Option<Mark> {
        (bits >> 57 == PATTERN >> 57).then_some(Mark(bits))
    }

    /// A field's number.
    pub fn get(self, field: Field) -> u64 {
        ((self.0 >> field.shift) & field.mask()) ^ field.default
    }

    /// Whether a one-bit field is 1.
    pub fn has(self, field: Field) -> bool {
        self.get(field) != 0
    }

    /// The mark with a field changed. A number that is too large for it becomes the largest.
    #[must_use]
    pub fn with(self, field: Field, value: u64) -> Mark {
        let stored = value.min(field.mask()) ^ field.default;
        Mark(self.0 & !(field.mask() << field.shift) | stored << field.shift)
    }

    /// The socket's family.
    pub fn family(self) -> Family {
        if self.has(V6) { Family::V6 } else { Family::V4 }
    }

    /// The mark of a socket accepted from a listener with this one.
    pub fn accepted(self) -> Mark {
        let new = INHERITED.iter().fold(Mark(PATTERN), |mark, field| mark.with(*field, self.get(*field)));
        new.with(ACCEPTED, 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Field; 16] = [
        V6,
        V6_ONLY,
        BOUND,
        ACCEPTED,
        PENDING,
        REUSE_PORT,
        NO_DELAY,
        CORK,
        QUICK_ACK,
        CLIENT,
        KEEP_COUNT,
        KEEP_IDLE,
        KEEP_INTERVAL,
        TOS,
        EXTRA,
        LINGER_ZERO,
    ];

    #[test]
    fn fields_do_not_overlap_and_leave_the_pattern() {
        for (index, one) in ALL.iter().enumerate() {
            let full = Mark::new(Family::V4).with(*one, one.largest());
            assert_eq!(full.get(*one), one.largest());
            assert!(Mark::from_kernel(full.0).is_some());
            for (_, other) in ALL.iter().enumerate().filter(|(at, _)| *at != index) {
                assert_eq!(full.get(*other), other.default, "{one:?} changes {other:?}");
            }
        }
    }

    #[test]
    fn a_new_socket_has_the_defaults() {
        let mark = Mark::new(Family::V6);
        assert_eq!(
            (mark.family(), mark.get(KEEP_IDLE), mark.get(KEEP_COUNT), mark.has(QUICK_ACK)),
            (Family::V6, 7200, 9, true)
        );
        assert!(Mark::from_kernel(u64::MAX).is_none() && Mark::from_kernel(1_000_000).is_none());
    }

    #[test]
    fn an_accepted_socket_inherits_options_but_not_the_binding() {
        let listener = Mark::new(Family::V6).with(BOUND, 1).with(NO_DELAY, 1).with(KEEP_IDLE, 60).with(REUSE_PORT, 1);
        let socket = listener.accepted();
        assert_eq!((socket.family(), socket.has(NO_DELAY), socket.get(KEEP_IDLE)), (Family::V6, true, 60));
        assert!(socket.has(ACCEPTED) && !socket.has(BOUND) && !socket.has(REUSE_PORT));
    }
}
