//! A table of rules, compiled to the BPF program that decides for each system call.
//!
//! The program: check the architecture, search the call's number in a binary tree of the numbers that have rules, then
//! try that number's rules in their order. What no rule names is allowed. The kernel runs the tree once per number at
//! installation and remembers which numbers are allowed whatever their arguments, so those never run it again.
//!
//! Calls of another architecture (32-bit programs, x32) are allowed: a trap gives, it does not deny.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// What happens to a system call that a rule matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The call is trapped: the listener's holder answers it.
    Notify,
    /// The call fails with this errno without anybody being asked; 0 makes it return 0.
    Errno(i32),
    /// The call goes on natively.
    Allow,
}

/// A condition on one argument (0 to 5) of a system call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ArgMatch {
    /// The low 32 bits are one of these values. The kernel ignores the high half of an `int` argument, and so must we.
    In(u8, Vec<u32>),
    /// The low 32 bits under this mask (second) have this value (third).
    Masked(u8, u32, u32),
    /// All 64 bits are zero: a null pointer.
    Null(u8),
    /// Some of the 64 bits is set.
    NotNull(u8),
}

/// One line of a filter: if the number is `syscall` and every condition holds, `action` happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The call's number on this architecture (`libc::SYS_…`).
    pub syscall: i64,
    /// All of these must hold; none means always.
    pub when: Vec<ArgMatch>,
    /// What to do then.
    pub action: Action,
}

impl Rule {
    /// A rule that is shorter to write.
    pub fn new(syscall: i64, when: impl Into<Vec<ArgMatch>>, action: Action) -> Rule {
        Rule { syscall, when: when.into(), action }
    }
}

/// How a listener is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ListenerFlags {
    /// Let only fatal signals cancel a call that was received (SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV). Never for calls
    /// that may be parked: no other signal reaches the program meanwhile.
    pub wait_killable: bool,
}

/// A compiled filter.
#[derive(Clone, Debug)]
pub struct Filter {
    program: Box<[libc::sock_filter]>,
    notifies: bool,
}

// linux/seccomp.h: struct seccomp_data { int nr; u32 arch; u64 instruction_pointer; u64 args[6]; }
const NR: u32 = 0;
const ARCH: u32 = 4;
const fn low(arg: u8) -> u32 {
    16 + 8 * arg as u32 + if cfg!(target_endian = "big") { 4 } else { 0 }
}
const fn high(arg: u8) -> u32 {
    16 + 8 * arg as u32 + if cfg!(target_endian = "big") { 0 } else { 4 }
}

// linux/audit.h: the ELF machine, 64-bit and little-endian flags.
#[cfg(target_arch = "x86_64")]
const NATIVE: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const NATIVE: u32 = 0xC000_00B7;
// The 32-bit one that the same machine runs: i386, ARM.
#[cfg(target_arch = "x86_64")]
const SMALL: u32 = 0x4000_0003;
#[cfg(target_arch = "aarch64")]
const SMALL: u32 = 0x4000_0028;
/// ioctl(2) on both of these.
const SMALL_IOCTL: u32 = 54;
/// add_key(2), request_key(2) and keyctl(2) there.
#[cfg(target_arch = "x86_64")]
const SMALL_KEYS: [u32; 3] = [286, 287, 288];
#[cfg(target_arch = "aarch64")]
const SMALL_KEYS: [u32; 3] = [309, 310, 311];
/// The bit of a call by x32 programs, and its ioctl (asm/unistd_x32.h).
const X32: u32 = 0x4000_0000;
const X32_IOCTL: u32 = X32 | 514;

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
const JEQ: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const JGE: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;

const RET_ALLOW: u32 = 0x7fff_0000;
const RET_NOTIFY: u32 = 0x7fc0_0000;
const RET_ERRNO: u32 = 0x0005_0000;

const SET_MODE_FILTER: libc::c_ulong = 1;
const FLAG_NEW_LISTENER: libc::c_ulong = 1 << 3;
const FLAG_WAIT_KILLABLE: libc::c_ulong = 1 << 5;

/// A place in the program that is not known yet.
type Label = usize;

/// Instructions with labels. Only the unconditional jump reaches far (a conditional one spans 255 instructions), so every
/// branch is a conditional skip over one such jump.
#[derive(Default)]
struct Assembler {
    code: Vec<libc::sock_filter>,
    jumps: Vec<(usize, Label)>,
    places: Vec<usize>,
}

impl Assembler {
    fn put(&mut self, code: u16, k: u32) {
        self.code.push(libc::sock_filter { code, jt: 0, jf: 0, k });
    }

    fn label(&mut self) -> Label {
        self.places.push(usize::MAX);
        self.places.len() - 1
    }

    fn place(&mut self, label: Label) {
        self.places[label] = self.code.len();
    }

    fn jump(&mut self, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.put(JUMP, 0);
    }

    /// Goes to `to` if the comparison's outcome is `outcome`, else falls through.
    fn branch(&mut self, test: u16, k: u32, outcome: bool, to: Label) {
        let (jt, jf) = if outcome { (0, 1) } else { (1, 0) };
        self.code.push(libc::sock_filter { code: test, jt, jf, k });
        self.jump(to);
    }

    fn finish(mut self) -> io::Result<Box<[libc::sock_filter]>> {
        for (at, label) in &self.jumps {
            self.code[*at].k = (self.places[*label] - at - 1) as u32;
        }
        // BPF_MAXINSNS of linux/bpf_common.h.
        if self.code.len() > 4096 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the seccomp filter is longer than 4096 instructions",
            ));
        }
        Ok(self.code.into_boxed_slice())
    }
}

impl Filter {
    /// Compiles rules. For one call the first rule that matches decides.
    ///
    /// # Errors
    /// `InvalidInput` for an argument index above 5, a number out of range, or a program too long for the kernel.
    pub fn new(rules: &[Rule]) -> io::Result<Filter> {
        Filter::compile(rules, RET_ALLOW)
    }

    /// The same, for rules that refuse: what is called as a 32-bit or an x32 program would, under other numbers, fails with ENOSYS. For
    /// a process that is known to be none.
    ///
    /// # Errors
    /// As [`Filter::new`].
    pub fn wall(rules: &[Rule]) -> io::Result<Filter> {
        Filter::compile(rules, RET_ERRNO | libc::ENOSYS as u32)
    }

    /// `foreign`: what becomes of calls by the numbers of another architecture.
    fn compile(rules: &[Rule], foreign: u32) -> io::Result<Filter> {
        let invalid = |what| io::Error::new(io::ErrorKind::InvalidInput, what);
        let mut numbers = Vec::new();
        for rule in rules {
            let number = u32::try_from(rule.syscall).map_err(|_| invalid("a system call's number is out of range"))?;
            numbers.push(number);
            let index = |condition: &ArgMatch| match condition {
                ArgMatch::In(arg, _) | ArgMatch::Masked(arg, ..) | ArgMatch::Null(arg) | ArgMatch::NotNull(arg) => *arg,
            };
            if rule.when.iter().any(|condition| index(condition) > 5) {
                return Err(invalid("a system call has six arguments, 0 to 5"));
            }
        }
        numbers.sort_unstable();
        numbers.dedup();

        let mut asm = Assembler::default();
        let (allow, other) = (asm.label(), asm.label());
        asm.put(LOAD, ARCH);
        asm.branch(JEQ, NATIVE, false, other);
        asm.put(LOAD, NR);
        if cfg!(target_arch = "x86_64") {
            asm.branch(JGE, X32, true, other);
        }
        let blocks: Vec<(u32, Label)> = numbers.iter().map(|number| (*number, asm.label())).collect();
        search(&mut asm, &blocks, allow);
        for (number, block) in &blocks {
            asm.place(*block);
            for rule in rules.iter().filter(|rule| rule.syscall == i64::from(*number)) {
                compile_rule(&mut asm, rule);
            }
            asm.put(RETURN, RET_ALLOW);
        }
        asm.place(allow);
        asm.put(RETURN, RET_ALLOW);
        asm.place(other);
        asm.put(RETURN, foreign);
        let notifies = rules.iter().any(|rule| rule.action == Action::Notify);
        Ok(Filter { program: asm.finish()?, notifies })
    }

    /// A filter that keeps programs from typing on their controlling terminal (TIOCSTI, and pasting by TIOCLINUX,
    /// ioctl_tty(2)): these fail with EPERM, for 32-bit programs too. It has no listener.
    ///
    /// # Errors
    /// None are known.
    pub fn without_typing() -> io::Result<Filter> {
        let mut asm = Assembler::default();
        let [native, request, refuse, allow] = [(); 4].map(|()| asm.label());
        asm.put(LOAD, ARCH);
        asm.branch(JEQ, NATIVE, true, native);
        asm.branch(JEQ, SMALL, false, allow);
        asm.put(LOAD, NR);
        asm.branch(JEQ, SMALL_IOCTL, true, request);
        asm.jump(allow);
        asm.place(native);
        asm.put(LOAD, NR);
        for number in [libc::SYS_ioctl as u32, libc::SYS_ioctl as u32 | X32, X32_IOCTL] {
            asm.branch(JEQ, number, true, request);
        }
        asm.jump(allow);
        asm.place(request);
        asm.put(LOAD, low(1));
        for number in [libc::TIOCSTI as u32, libc::TIOCLINUX as u32] {
            asm.branch(JEQ, number, true, refuse);
        }
        asm.place(allow);
        asm.put(RETURN, RET_ALLOW);
        asm.place(refuse);
        asm.put(RETURN, RET_ERRNO | libc::EPERM as u32);
        Ok(Filter { program: asm.finish()?, notifies: false })
    }

    /// What refuses all that has to do with keys (keyrings(7)), as a kernel without them, to 32-bit programs too.
    ///
    /// # Errors
    /// None are known.
    pub fn without_keys() -> io::Result<Filter> {
        let mut asm = Assembler::default();
        let [native, allow, refuse] = [(); 3].map(|()| asm.label());
        asm.put(LOAD, ARCH);
        asm.branch(JEQ, NATIVE, true, native);
        asm.branch(JEQ, SMALL, false, allow);
        asm.put(LOAD, NR);
        for number in SMALL_KEYS {
            asm.branch(JEQ, number, true, refuse);
        }
        asm.jump(allow);
        asm.place(native);
        asm.put(LOAD, NR);
        // x32 programs have the same numbers.
        asm.put(AND, !X32);
        for number in [libc::SYS_add_key, libc::SYS_request_key, libc::SYS_keyctl] {
            asm.branch(JEQ, number as u32, true, refuse);
        }
        asm.place(allow);
        asm.put(RETURN, RET_ALLOW);
        asm.place(refuse);
        asm.put(RETURN, RET_ERRNO | libc::ENOSYS as u32);
        Ok(Filter { program: asm.finish()?, notifies: false })
    }

    /// Whether any rule traps, so that somebody must hold the listener.
    pub fn notifies(&self) -> bool {
        self.notifies
    }

    /// Puts the filter on the calling thread for good and returns its listener (close-on-exec). It allocates nothing, so
    /// a forked child may call it before exec. The caller has NO_NEW_PRIVS set or CAP_SYS_ADMIN in its user namespace.
    /// See seccomp(2).
    ///
    /// # Errors
    /// EACCES without either of those; EBUSY if a filter of this thread already has a listener; ENOMEM for a chain of
    /// filters that is too long.
    pub fn install(&self, flags: ListenerFlags) -> io::Result<OwnedFd> {
        let mut bits = FLAG_NEW_LISTENER;
        if flags.wait_killable {
            bits |= FLAG_WAIT_KILLABLE;
        }
        let fd = self.put(bits)?;
        // SAFETY: with NEW_LISTENER the call returns a new fd that nobody else owns.
        Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
    }

    /// The same without a listener: what it would trap fails with ENOSYS. Beside a filter that has one.
    ///
    /// # Errors
    /// As [`Filter::install`], but for EBUSY.
    pub fn install_alone(&self) -> io::Result<()> {
        self.put(0).map(drop)
    }

    fn put(&self, bits: libc::c_ulong) -> io::Result<libc::c_long> {
        let program =
            libc::sock_fprog { len: self.program.len() as libc::c_ushort, filter: self.program.as_ptr().cast_mut() };
        // SAFETY: `program` points at live instructions; the kernel copies them and writes nothing.
        match unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, bits, &raw const program) } {
            -1 => Err(io::Error::last_os_error()),
            result => Ok(result),
        }
    }
}

/// A binary search for the number in the accumulator.
fn search(asm: &mut Assembler, blocks: &[(u32, Label)], allow: Label) {
    match blocks {
        [] => asm.jump(allow),
        [(number, block)] => {
            asm.branch(JEQ, *number, true, *block);
            asm.jump(allow);
        }
        _ => {
            let (left, right) = blocks.split_at(blocks.len() / 2);
            let upper = asm.label();
            asm.branch(JGE, right[0].0, true, upper);
            search(asm, left, allow);
            asm.place(upper);
            search(asm, right, allow);
        }
    }
}

/// One rule: each condition that fails goes on to the next rule.
fn compile_rule(asm: &mut Assembler, rule: &Rule) {
    let next = asm.label();
    for condition in &rule.when {
        match condition {
            ArgMatch::In(arg, values) => {
                let matched = asm.label();
                asm.put(LOAD, low(*arg));
                for value in values {
                    asm.branch(JEQ, *value, true, matched);
                }
                asm.jump(next);
                asm.place(matched);
            }
            ArgMatch::Masked(arg, mask, value) => {
                asm.put(LOAD, low(*arg));
                asm.put(AND, *mask);
                asm.branch(JEQ, *value, false, next);
            }
            ArgMatch::Null(arg) => {
                asm.put(LOAD, low(*arg));
                asm.branch(JEQ, 0, false, next);
                asm.put(LOAD, high(*arg));
                asm.branch(JEQ, 0, false, next);
            }
            ArgMatch::NotNull(arg) => {
                let matched = asm.label();
                asm.put(LOAD, low(*arg));
                asm.branch(JEQ, 0, false, matched);
                asm.put(LOAD, high(*arg));
                asm.branch(JEQ, 0, true, next);
                asm.place(matched);
            }
        }
    }
    asm.put(
        RETURN,
        match rule.action {
            Action::Allow => RET_ALLOW,
            Action::Notify => RET_NOTIFY,
            Action::Errno(errno) => RET_ERRNO | (errno as u32 & 0xffff),
        },
    );
    asm.place(next);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::State;

    /// Runs a program as the kernel would, on the instructions that the assembler emits.
    fn run(filter: &Filter, nr: u32, arch: u32, args: [u64; 6]) -> u32 {
        let mut data = Vec::new();
        data.extend(nr.to_ne_bytes());
        data.extend(arch.to_ne_bytes());
        data.extend(0u64.to_ne_bytes());
        args.iter().for_each(|arg| data.extend(arg.to_ne_bytes()));
        let (mut at, mut a) = (0usize, 0u32);
        loop {
            let i = filter.program[at];
            at += 1;
            match i.code {
                LOAD => a = u32::from_ne_bytes(data[i.k as usize..i.k as usize + 4].try_into().unwrap()),
                AND => a &= i.k,
                RETURN => return i.k,
                JUMP => at += i.k as usize,
                JEQ => at += usize::from(if a == i.k { i.jt } else { i.jf }),
                JGE => at += usize::from(if a >= i.k { i.jt } else { i.jf }),
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    #[test]
    fn the_first_matching_rule_decides() {
        let filter = Filter::new(&[
            Rule::new(41, [ArgMatch::In(0, vec![2, 10]), ArgMatch::Masked(1, 0xf, 1)], Action::Notify),
            Rule::new(41, [ArgMatch::In(0, vec![2])], Action::Errno(93)),
            Rule::new(43, [ArgMatch::Null(1)], Action::Allow),
            Rule::new(43, [], Action::Notify),
            Rule::new(42, [ArgMatch::NotNull(2)], Action::Errno(1)),
            Rule::new(425, [], Action::Errno(38)),
        ])
        .unwrap();
        let case = |nr, args| run(&filter, nr, NATIVE, args);
        assert_eq!(case(41, [2, 0x80801, 0, 0, 0, 0]), RET_NOTIFY);
        assert_eq!(case(41, [0xdead_0000_0002, 1, 0, 0, 0, 0]), RET_NOTIFY, "the high half of an int is not looked at");
        assert_eq!(case(41, [10, 2, 0, 0, 0, 0]), RET_ALLOW);
        assert_eq!(case(41, [2, 2, 0, 0, 0, 0]), RET_ERRNO | 93);
        assert_eq!(case(43, [3, 0, 0, 0, 0, 0]), RET_ALLOW);
        assert_eq!(case(43, [3, 1 << 40, 0, 0, 0, 0]), RET_NOTIFY, "a pointer is all 64 bits");
        assert_eq!(case(42, [3, 0, 0, 0, 0, 0]), RET_ALLOW);
        assert_eq!(case(42, [3, 0, 1 << 32, 0, 0, 0]), RET_ERRNO | 1);
        assert_eq!(case(425, [0; 6]), RET_ERRNO | 38);
        for other in [0, 1, 40, 44, 424, 426, u32::MAX] {
            assert_eq!(case(other, [2, 1, 0, 0, 0, 0]), RET_ALLOW);
        }
        assert_eq!(run(&filter, 41, 0x4000_0003, [2, 1, 0, 0, 0, 0]), RET_ALLOW, "another architecture");
    }

    #[test]
    fn nobody_types_on_the_terminal() {
        let filter = Filter::without_typing().unwrap();
        let case = |nr, arch, request| run(&filter, nr, arch, [0, request, 0, 0, 0, 0]);
        let ioctl = libc::SYS_ioctl as u32;
        for (nr, arch) in [(ioctl, NATIVE), (X32_IOCTL, NATIVE), (SMALL_IOCTL, SMALL)] {
            // TIOCSTI, the same with a high half that the kernel does not look at, TIOCLINUX.
            for request in [0x5412, 0xffff_ffff_0000_5412, 0x541c] {
                assert_eq!(case(nr, arch, request), RET_ERRNO | 1, "{nr} {arch:#x} {request:#x}");
            }
            for request in [0x5401, 0x5410, 0x5413, 0] {
                assert_eq!(case(nr, arch, request), RET_ALLOW);
            }
        }
        assert_eq!(case(ioctl + 1, NATIVE, 0x5412), RET_ALLOW);
        assert_eq!(case(SMALL_IOCTL, NATIVE, 0x5412), RET_ALLOW);
        assert_eq!(case(ioctl, SMALL, 0x5412), RET_ALLOW);
    }

    #[test]
    fn nobody_has_keys() {
        let filter = Filter::without_keys().unwrap();
        let case = |nr: u32, arch| run(&filter, nr, arch, [0; 6]);
        let refused = RET_ERRNO | libc::ENOSYS as u32;
        for call in [libc::SYS_add_key, libc::SYS_request_key, libc::SYS_keyctl].map(|call| call as u32) {
            assert_eq!((case(call, NATIVE), case(call | X32, NATIVE)), (refused, refused), "{call}");
            assert_eq!(case(call, SMALL), RET_ALLOW, "there it is another one");
        }
        for call in SMALL_KEYS {
            assert_eq!((case(call, SMALL), case(call, NATIVE)), (refused, RET_ALLOW), "{call}");
        }
        for other in [0, SMALL_KEYS[0] - 1, SMALL_KEYS[2] + 1, u32::MAX] {
            assert_eq!((case(other, NATIVE), case(other, SMALL)), (RET_ALLOW, RET_ALLOW), "{other}");
        }
    }

    /// A 64-bit process that calls as a 32-bit one does (int 0x80): the filter is asked about that, too.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn keys_are_out_of_reach_by_small_numbers() {
        let keyctl = |number: u32| {
            let mut result = i64::from(number);
            // SAFETY: KEYCTL_GET_KEYRING_ID of the session's, without making one: numbers only. The kernel clobbers r8 to r11 there.
            unsafe {
                std::arch::asm!(
                    "push rbx", "xor ebx, ebx", "int 0x80", "pop rbx",
                    inlateout("rax") result, in("rcx") -3_i64, in("rdx") 0_i64,
                    out("r8") _, out("r9") _, out("r10") _, out("r11") _
                );
            }
            result as i32
        };
        let filter = Filter::without_keys().unwrap();
        // SAFETY: the child makes system calls only, and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let before = keyctl(SMALL_KEYS[2]);
            let stands = crate::ns::no_new_privileges().is_ok() && filter.install_alone().is_ok();
            let after = keyctl(SMALL_KEYS[2]);
            // SAFETY: ends the child.
            unsafe {
                libc::_exit(if before == -libc::ENOSYS { 2 } else { i32::from(!stands || after != -libc::ENOSYS) })
            }
        }
        match crate::process::wait_end(child).unwrap().state() {
            State::Exited(0) => {}
            // Killed: it has no 32-bit calls at all.
            State::Exited(2) | State::Killed(_) => println!("SKIP: a kernel without keys, or without 32-bit programs"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_large_table_compiles_and_is_searched() {
        let rules: Vec<Rule> =
            (0..200).map(|n| Rule::new(n * 2, [ArgMatch::In(0, vec![n as u32])], Action::Errno(n as i32))).collect();
        let filter = Filter::new(&rules).unwrap();
        for n in 0..200u32 {
            assert_eq!(run(&filter, n * 2, NATIVE, [u64::from(n), 0, 0, 0, 0, 0]), RET_ERRNO | n);
            assert_eq!(run(&filter, n * 2 + 1, NATIVE, [u64::from(n), 0, 0, 0, 0, 0]), RET_ALLOW);
        }
    }

    #[test]
    fn wrong_rules_are_refused() {
        assert!(Filter::new(&[Rule::new(1, [ArgMatch::Null(6)], Action::Notify)]).is_err());
        assert!(Filter::new(&[Rule::new(-1, [], Action::Notify)]).is_err());
        let long: Vec<Rule> = (0..3000).map(|n| Rule::new(n, [], Action::Notify)).collect();
        assert!(Filter::new(&long).is_err());
    }
}
