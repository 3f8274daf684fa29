//! A process that has executed nothing of its own, a copy of another: how it is made, and how it comes to arguments and environment
//! variables.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::sync::OnceLock;

/// struct prctl_mm_map of linux/prctl.h: what of a process's memory is what.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Map {
    start_code: u64,
    end_code: u64,
    start_data: u64,
    end_data: u64,
    start_brk: u64,
    brk: u64,
    start_stack: u64,
    arg_start: u64,
    arg_end: u64,
    env_start: u64,
    env_end: u64,
    auxv: u64,
    auxv_size: u32,
    exe_fd: u32,
}

/// From linux/prctl.h.
const PR_SET_MM_MAP: libc::c_ulong = 14;

/// fork(2), but the copy is the child of the caller's parent, and dies with that one's thread. True in the copy, which has sent a pidfd of
/// itself on `channel`, a SEQPACKET socket: all other fds above 2 are closed in it, and whoever owned one forgets it. One whose word
/// nobody hears has ended.
///
/// # Errors
/// InvalidInput if the caller has more than one thread; EAGAIN at the limit of processes.
pub fn twin(channel: &OwnedFd) -> io::Result<bool> {
    super::one_thread()?;
    // The same in all copies, and looked up in none of them.
    let _ = layout();
    // SAFETY: all-zero is a valid clone_args.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = libc::CLONE_PARENT as u64;
    // SAFETY: no stack and no CLONE_VM, so this is fork(2) in effect, and no other thread holds a lock.
    match unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) } {
        -1 => return Err(io::Error::last_os_error()),
        0 => {}
        _ => return Ok(false),
    }
    super::close_all_but(&mut [channel.as_raw_fd()]);
    let told = crate::ns::die_with_parent()
        .and_then(|()| super::pidfd(std::process::id().cast_signed()))
        .and_then(|own| crate::seqpacket::send(channel.as_fd(), b"!", &[own.as_fd()], false));
    if told.is_err() {
        // SAFETY: ends a process that nobody knows of.
        unsafe { libc::_exit(127) }
    }
    Ok(true)
}

/// The environment variable `name`, which is none from here on. InvalidInput: the caller has more than one thread, and the variable
/// stays.
pub fn take_variable(name: &str) -> io::Result<Option<OsString>> {
    let value = std::env::var_os(name);
    if value.is_some() {
        super::one_thread()?;
        // SAFETY: nobody else reads or writes them meanwhile.
        unsafe { std::env::remove_var(name) };
    }
    Ok(value)
}

/// Gives the calling process these arguments and environment variables, as others see them in /proc; and the variables for itself (its
/// own arguments it has to remember). InvalidInput if it has more than one thread.
pub fn rename(argv: &[OsString], env: &[(OsString, OsString)]) -> io::Result<()> {
    super::one_thread()?;
    let legal = |key: &OsStr| !key.is_empty() && !key.as_bytes().contains(&b'=');
    // SAFETY: nobody else reads or writes them meanwhile. No key has a `=` in it, and none a NUL: they came through a `Launch`.
    unsafe {
        for (key, _) in std::env::vars_os() {
            std::env::remove_var(key);
        }
        for (key, value) in env.iter().filter(|(key, _)| legal(key)) {
            std::env::set_var(key, value);
        }
    }
    // A kernel without CONFIG_CHECKPOINT_RESTORE shows what was there before.
    let _ = show(argv, env);
    Ok(())
}

/// The fields of /proc/self/stat (proc_pid_stat(5)) from the third on: where code, data and stack lie, which a program's exec decides for
/// good, is among them.
fn layout() -> io::Result<&'static [u64]> {
    static FIELDS: OnceLock<Vec<u64>> = OnceLock::new();
    if let Some(fields) = FIELDS.get() {
        return Ok(fields);
    }
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // The second is the name, which may hold anything.
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    Ok(FIELDS.get_or_init(|| rest.split_whitespace().map(|word| word.parse().unwrap_or(0)).collect()))
}

/// PR_SET_MM_MAP (PR_SET_MM(2const)).
fn show(argv: &[OsString], env: &[(OsString, OsString)]) -> io::Result<()> {
    let fields = layout()?;
    let field = |number: usize| fields.get(number - 3).copied().unwrap_or(0);
    let mut text = Vec::new();
    for argument in argv {
        text.extend_from_slice(argument.as_bytes());
        text.push(0);
    }
    let arguments = text.len() as u64;
    for (key, value) in env {
        text.extend_from_slice(&[key.as_bytes(), b"=", value.as_bytes(), b"\0"].concat());
    }
    // The kernel reads it as long as this process lives.
    let text = Vec::leak(text);
    let start = text.as_ptr().addr() as u64;
    // SAFETY: takes an integer.
    let brk = unsafe { libc::sbrk(0) }.addr() as u64;
    let map = Map {
        start_code: field(26),
        end_code: field(27),
        start_data: field(45),
        end_data: field(46),
        start_brk: field(47),
        brk,
        start_stack: field(28),
        arg_start: start,
        arg_end: start + arguments,
        env_start: start + arguments,
        env_end: start + text.len() as u64,
        auxv: 0,
        auxv_size: 0,
        exe_fd: u32::MAX,
    };
    // SAFETY: reads one structure. Only what is shown changes: the break and the rest are as they were.
    match unsafe { libc::prctl(libc::PR_SET_MM, PR_SET_MM_MAP, &raw const map, size_of::<Map>(), 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::{State, wait_end};

    #[test]
    fn a_copy_shows_what_it_is_given() {
        // SAFETY: the child reads and writes its own memory and /proc, and ends without a return. The parent's other threads hold no lock
        // that it takes but that of malloc(3), which fork(3) hands on.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let (argv, env) = (["one".into(), "two".into()], [("KEY".into(), "value".into())]);
            let renamed = rename(&argv, &env).is_ok();
            let read = |file: &str| std::fs::read(format!("/proc/self/{file}")).unwrap_or_default();
            let shown = read("cmdline") == b"one\0two\0" && read("environ") == b"KEY=value\0";
            let own = std::env::vars_os().collect::<Vec<_>>() == env && std::env::var_os("PATH").is_none();
            let taken = take_variable("KEY").is_ok_and(|value| value.is_some_and(|value| value == "value"));
            let gone = std::env::var_os("KEY").is_none();
            // SAFETY: ends the child.
            unsafe { libc::_exit(i32::from(!(renamed && shown && own && taken && gone))) }
        }
        assert_eq!(wait_end(pid).unwrap().state(), State::Exited(0));
    }
}
