//! Landlock (landlock(7)): a process gives up rights over files, networks and other processes, for itself and all that it starts.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

// linux/landlock.h.
const CREATE_RULESET: libc::c_long = 444;
const ADD_RULE: libc::c_long = 445;
const RESTRICT_SELF: libc::c_long = 446;
const VERSION: u32 = 1;
const PATH_BENEATH: u32 = 1;
const EXECUTE: u64 = 1;
const WRITE_FILE: u64 = 1 << 1;
const READ_FILE: u64 = 1 << 2;
const READ_DIR: u64 = 1 << 3;
const DEVICE_IOCTL: u64 = 1 << 15;
/// By version: which rights over files are known, the first one's in front.
const FILE_RIGHTS: [u64; 5] = [(1 << 13) - 1, (1 << 14) - 1, (1 << 15) - 1, (1 << 15) - 1, (1 << 16) - 1];
/// Of TCP: bind and connect (version 4).
const NET_RIGHTS: u64 = 3;
/// Abstract sockets of others, and signals to others (version 6).
const SCOPES: u64 = 3;

#[repr(C)]
struct Ruleset {
    files: u64,
    net: u64,
    scoped: u64,
}

#[repr(C, packed)]
struct PathBeneath {
    allowed: u64,
    parent: libc::c_int,
}

/// What the calling thread may still read.
#[derive(Debug, Clone, Copy)]
pub enum Reads<'a> {
    /// All that it could.
    All,
    /// What lies below these.
    Below(&'a [&'a Path]),
}

/// The version of Landlock that the kernel has; 0: none.
pub fn version() -> u32 {
    // SAFETY: with this flag the call takes no structure.
    let version = unsafe { libc::syscall(CREATE_RULESET, std::ptr::null::<Ruleset>(), 0, VERSION) };
    u32::try_from(version).unwrap_or(0)
}

/// From now on the calling thread, and those that it starts, open no file for writing but `writes`, and none to execute, change no directory,
/// read what `reads` says, bind and connect no TCP socket, and reach no process outside by a signal, by ptrace(2) or by its abstract
/// sockets; as far as the kernel's version goes. What is open stays as it is. The caller has NO_NEW_PRIVS set. Returns the version;
/// 0: the kernel has no Landlock, and nothing has changed.
///
/// # Errors
/// EPERM without NO_NEW_PRIVS; E2BIG for a thread that has done so 16 times; ENOENT: one of the paths is not there.
pub fn restrict(reads: Reads<'_>, writes: &[&Path]) -> io::Result<u32> {
    let version = version();
    let Some(known) = (version as usize).checked_sub(1).map(|v| FILE_RIGHTS[v.min(FILE_RIGHTS.len() - 1)]) else {
        return Ok(0);
    };
    let reading = READ_FILE | READ_DIR;
    let files = if matches!(reads, Reads::All) { known & !reading } else { known };
    let net = if version >= 4 { NET_RIGHTS } else { 0 };
    let scoped = if version >= 6 { SCOPES } else { 0 };
    let size = match version {
        1..4 => 8,
        4..6 => 16,
        _ => size_of::<Ruleset>(),
    };
    let ruleset = Ruleset { files: files | EXECUTE, net, scoped };
    // SAFETY: a live structure of at least `size` bytes.
    let fd = unsafe { libc::syscall(CREATE_RULESET, &raw const ruleset, size, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new fd, owned by nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let below = if let Reads::Below(paths) = reads { paths } else { &[] };
    let rights = below.iter().map(|path| (path, reading));
    let file = READ_FILE | WRITE_FILE | DEVICE_IOCTL;
    for (path, allowed) in rights.chain(writes.iter().map(|path| (path, file & files))) {
        use std::os::unix::fs::OpenOptionsExt as _;
        let parent = std::fs::File::options().read(true).custom_flags(libc::O_PATH).open(path)?;
        let rule = PathBeneath { allowed, parent: parent.as_raw_fd() };
        // SAFETY: a live structure of the kind that the third argument names.
        if unsafe { libc::syscall(ADD_RULE, fd.as_raw_fd(), PATH_BENEATH, &raw const rule, 0) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: takes integers only.
    match unsafe { libc::syscall(RESTRICT_SELF, fd.as_raw_fd(), 0) } {
        0 => Ok(version),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn a_restricted_thread_reads_what_it_named_and_writes_nothing() {
        let tried = std::thread::spawn(|| {
            crate::ns::no_new_privileges().unwrap();
            let version = restrict(Reads::Below(&[Path::new("/proc")]), &[Path::new("/dev/zero")]).unwrap();
            let write = |path| File::options().write(true).open(path).map(drop).map_err(|e| e.kind());
            write("/dev/zero").unwrap();
            (version, File::open("/proc/self/status").is_ok(), File::open("/etc/passwd").is_ok(), write("/dev/null"))
        });
        let (version, named, other, write) = tried.join().unwrap();
        match version {
            0 => println!("SKIP: no Landlock in this kernel"),
            _ => assert_eq!((named, other, write), (true, false, Err(io::ErrorKind::PermissionDenied))),
        }
    }
}
