//! Walls that a server puts around itself once it has what it needs: afterwards a mistake in it, or a caller that found one, reaches less.
//!
//! [`confine_files`] (Landlock) is the stronger one, and right for every server that need not trace the environment's programs, which
//! Landlock forbids: also by process_vm_readv(2) and pidfd_getfd(2). [`confine_calls`] (seccomp) is for those that must, net servers above
//! all. Both last for good, hold for all threads and processes that the calling thread starts from then on, and need no privilege,
//! since a core starts servers with no_new_privs. Call them at the beginning of what [`run`](crate::run) is given, while the process
//! has one thread.

use std::io;
use std::path::Path;

use hurdle_sys::landlock;
use hurdle_sys::seccomp::{Action, ArgMatch, Filter, Rule, interrupt_number};

pub use hurdle_sys::landlock::Reads;

/// Which sockets a server behind [`confine_calls`] may make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sockets {
    /// AF_UNIX and netlink alone.
    Local,
    /// Of every family: it hands them to programs.
    Any,
}

/// From now on the server opens files to read only, but `writes`, and only where `reads` says so; it executes nothing, changes no directory, makes
/// and accepts no TCP connection, and reaches no process outside by signals, ptrace(2) or its abstract sockets. What is open
/// already stays as it is. False: this kernel has no Landlock, and nothing has changed (`hurdle doctor` says so).
///
/// # Errors
/// ENOENT: one of the paths is not there; E2BIG.
pub fn confine_files(reads: Reads<'_>, writes: &[&Path]) -> io::Result<bool> {
    landlock::restrict(reads, writes).map(|version| version > 0)
}

/// From now on the server has no capability: for one that root started, and that needs no more than the ids that it has.
///
/// # Errors
/// None are known.
pub fn drop_capabilities() -> io::Result<()> {
    hurdle_sys::process::drop_capabilities()
}

/// From now on the server executes nothing, opens no file for writing and changes none by its name, makes no sockets but
/// `sockets`, ptraces nobody, sends other processes no signal but SIGURG, which is ignored by default, makes and enters no
/// namespace, and does nothing that asks for privileges:
/// these calls fail with EPERM.
///
/// # Errors
/// ENOMEM; EINVAL on a kernel without seccomp filters.
pub fn confine_calls(sockets: Sockets) -> io::Result<()> {
    Filter::wall(&rules(sockets))?.install_alone()
}

fn rules(sockets: Sockets) -> Vec<Rule> {
    let deny = Action::Errno(libc::EPERM);
    let mut rules: Vec<Rule> = DENIED.iter().map(|call| Rule::new(*call, [], deny)).collect();
    // Its flags are in memory; who gets this takes openat(2).
    rules.push(Rule::new(libc::SYS_openat2, [], Action::Errno(libc::ENOSYS)));
    let (mode, write, both) = (libc::O_ACCMODE as u32, libc::O_WRONLY as u32, libc::O_RDWR as u32);
    for (call, flags) in OPEN {
        for (mask, value) in [(mode, write), (mode, both), (CREATES, CREATES), (EMPTIES, EMPTIES)] {
            rules.push(Rule::new(*call, [ArgMatch::Masked(*flags, mask, value)], deny));
        }
    }
    if sockets == Sockets::Local {
        let families = vec![libc::AF_UNIX as u32, libc::AF_NETLINK as u32];
        rules.push(Rule::new(libc::SYS_socket, [ArgMatch::In(0, families)], Action::Allow));
        rules.push(Rule::new(libc::SYS_socket, [], deny));
    }
    // New threads and processes, but no new namespaces, in which it would have capabilities. The flags of clone3(2) are in memory; who
    // gets this takes clone(2).
    rules.push(Rule::new(libc::SYS_clone3, [], Action::Errno(libc::ENOSYS)));
    for flag in NAMESPACES.map(|flag| flag as u32) {
        rules.push(Rule::new(libc::SYS_clone, [ArgMatch::Masked(0, flag, flag)], deny));
        rules.push(Rule::new(libc::SYS_unshare, [ArgMatch::Masked(0, flag, flag)], deny));
    }
    // A signal of its choice to whom it likes, once something happens on a file.
    let owners = vec![libc::F_SETOWN as u32, F_SETSIG, F_SETOWN_EX];
    rules.push(Rule::new(libc::SYS_fcntl, [ArgMatch::In(1, owners)], deny));
    // Its own threads; and its worker, a process whose number nobody knows yet, by a signal that all others ignore.
    let harmless = vec![0, interrupt_number()];
    rules.push(Rule::new(libc::SYS_kill, [ArgMatch::In(1, harmless.clone())], Action::Allow));
    rules.push(Rule::new(libc::SYS_kill, [], deny));
    rules.push(Rule::new(libc::SYS_tgkill, [ArgMatch::In(0, vec![std::process::id()])], Action::Allow));
    rules.push(Rule::new(libc::SYS_tgkill, [ArgMatch::In(2, harmless)], Action::Allow));
    rules.push(Rule::new(libc::SYS_tgkill, [], deny));
    rules
}

const NAMESPACES: [i32; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];
/// Of asm-generic/fcntl.h.
const F_SETSIG: u32 = 10;
const F_SETOWN_EX: u32 = 15;
const CREATES: u32 = libc::O_CREAT as u32;
const EMPTIES: u32 = libc::O_TRUNC as u32;

/// Calls that open a file, and which argument their flags are.
const OPEN: &[(i64, u8)] = &[
    (libc::SYS_openat, 2),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_open, 1),
];

const FCHMODAT2: i64 = 452;
const SETXATTRAT: i64 = 463;
const REMOVEXATTRAT: i64 = 466;

const DENIED: &[i64] = &[
    // Other programs, and other processes.
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_tkill,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_pidfd_send_signal,
    // Files by their names.
    libc::SYS_unlinkat,
    libc::SYS_renameat2,
    libc::SYS_mkdirat,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_mknodat,
    libc::SYS_fchmodat,
    libc::SYS_fchownat,
    libc::SYS_truncate,
    libc::SYS_utimensat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
    libc::SYS_fchmod,
    libc::SYS_fchown,
    libc::SYS_open_by_handle_at,
    libc::SYS_mount_setattr,
    // Of Linux 6.6 and 6.13; the same numbers everywhere.
    FCHMODAT2,
    SETXATTRAT,
    REMOVEXATTRAT,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_utime,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_utimes,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_futimesat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_creat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rename,
    libc::SYS_renameat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mkdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rmdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_link,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_symlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mknod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chmod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chown,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lchown,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_utimes,
    // What changes the system, or is a way around a filter.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsmount,
    libc::SYS_setns,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_io_uring_setup,
    libc::SYS_userfaultfd,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_kexec_load,
    libc::SYS_setuid,
    libc::SYS_setresuid,
];
