//! Mounts: of an environment's own mount namespace (mount(2), pivot_root(2)), and mounts that are held by an fd before they
//! are attached anywhere (fsopen(2), open_tree(2), move_mount(2)).

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, mkdirat};

mod list;
mod renew;

pub use renew::renew;

const NONE: Option<&str> = None;

/// A directory tree that somebody else may have written: its links lead nowhere outside.
#[derive(Debug)]
pub struct Tree(OwnedFd);

/// A file or a directory of a [`Tree`], held open; what follows is done to it, wherever names lead meanwhile.
#[derive(Debug)]
pub struct Place(OwnedFd);

impl Tree {
    /// The tree below `root`.
    pub fn open(root: &Path) -> io::Result<Tree> {
        Ok(Tree(File::open(root)?.into()))
    }

    /// The directory at `path`, where `/`, `..` and links mean what they would with the tree as `/` (openat2(2),
    /// RESOLVE_IN_ROOT); made if missing. ENOENT: a link on the way leads nowhere; EACCES, EROFS: it can't be made.
    pub fn directory(&self, path: &Path) -> io::Result<Place> {
        let missing = match self.find(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => e,
            found => return found,
        };
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(missing) };
        match mkdirat(&self.directory(parent)?.0, name, Mode::from_bits_truncate(0o755)) {
            Ok(()) | Err(Errno::EEXIST) => self.find(path),
            Err(e) => Err(e.into()),
        }
    }

    /// As [`directory`](Tree::directory), for a file.
    pub fn file(&self, path: &Path) -> io::Result<Place> {
        let missing = match self.find(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => e,
            found => return found,
        };
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(missing) };
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        match openat(&self.directory(parent)?.0, name, flags, Mode::from_bits_truncate(0o644)) {
            Ok(_) | Err(Errno::EEXIST) => self.find(path),
            Err(e) => Err(e.into()),
        }
    }

    /// Makes a symbolic link. EEXIST: there is something.
    pub fn symlink(&self, text: &Path, path: &Path) -> io::Result<()> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(Errno::EINVAL.into()) };
        Ok(nix::unistd::symlinkat(text, &self.directory(parent)?.0, name)?)
    }

    /// What is at `path`, of any kind.
    pub fn find(&self, path: &Path) -> io::Result<Place> {
        let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_IN_ROOT);
        Ok(Place(openat2(&self.0, path, how)?))
    }
}

impl Place {
    /// A path that means this place and nothing else, for as long as it is held.
    pub fn path(&self) -> PathBuf {
        path_of(&self.0)
    }
}

/// Mounts a new instance of file system `kind` (`proc`, `sysfs`, `tmpfs`, `devpts`) at `target`.
/// EPERM: the host's own instance is partly hidden (a container), or the namespace that the kind needs is not owned.
pub fn instance(kind: &str, target: &Path, options: &str) -> io::Result<()> {
    let mut flags = MsFlags::MS_NOSUID;
    if kind != "tmpfs" {
        flags |= MsFlags::MS_NOEXEC;
    }
    if matches!(kind, "proc" | "sysfs" | "tmpfs") {
        flags |= MsFlags::MS_NODEV;
    }
    Ok(mount(Some(kind), target, Some(kind), flags, Some(options))?)
}

/// Binds `source`, a file or a directory with all that is mounted below it, to `target`.
pub fn bind(source: &Path, target: &Path) -> io::Result<()> {
    Ok(mount(Some(source), target, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE)?)
}

/// Makes `root` (a mount point) the caller's `/`, and lets go of the old one: pivot_root(2) with both at one place.
pub fn pivot(root: &Path) -> io::Result<()> {
    std::env::set_current_dir(root)?;
    nix::unistd::pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    std::env::set_current_dir("/")
}

/// A path that means the file behind an fd and nothing else, for as long as the fd is open.
pub fn path_of(fd: impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()))
}

/// A mount of a new instance of file system `kind` that is attached nowhere yet (fsopen(2), fsconfig(2), fsmount(2)).
/// `options` are what mount(8) takes behind `-o`; one without a value is a flag.
///
/// # Errors
/// ENODEV: the kernel has no such file system; EPERM: the caller may not mount it here; EINVAL: an option or its value,
/// which the text says if the kernel did (at most 255 bytes a value).
pub fn detached(kind: &str, options: &[(&str, Option<&str>)]) -> io::Result<OwnedFd> {
    let context = open_context(kind)?;
    for (key, value) in options {
        configure(&context, key, *value)?;
    }
    create(&context)
}

/// fsopen(2): what [`configure`] and [`create`] act on.
pub(crate) fn open_context(kind: &str) -> io::Result<OwnedFd> {
    let name = CString::new(kind)?;
    // SAFETY: reads the string; the result is a new fd or -1.
    fd(unsafe { libc::syscall(libc::SYS_fsopen, name.as_ptr(), FSOPEN_CLOEXEC) })
}

/// fsconfig(2) with a string, or a flag.
pub(crate) fn configure(context: &OwnedFd, key: &str, value: Option<&str>) -> io::Result<()> {
    let name = CString::new(key)?;
    let text = value.map(CString::new).transpose()?;
    let (command, value) = match &text {
        Some(text) => (FSCONFIG_SET_STRING, text.as_ptr()),
        None => (FSCONFIG_SET_FLAG, std::ptr::null()),
    };
    // SAFETY: reads two strings that live over the call.
    let done = unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), command, name.as_ptr(), value, 0) };
    if done == 0 { Ok(()) } else { Err(explained(context, key)) }
}

/// fsconfig(2) with FSCONFIG_CMD_CREATE, then fsmount(2).
pub(crate) fn create(context: &OwnedFd) -> io::Result<OwnedFd> {
    let none = std::ptr::null::<libc::c_char>();
    // SAFETY: takes no pointers for this command.
    let done = unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), FSCONFIG_CMD_CREATE, none, none, 0) };
    if done != 0 {
        return Err(explained(context, "the mount"));
    }
    // SAFETY: takes integers only; the result is a new fd or -1.
    fd(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), FSMOUNT_CLOEXEC, 0) })
}

/// The last error, with what the kernel wrote about it (it can be read from the context).
fn explained(context: &OwnedFd, what: &str) -> io::Error {
    let error = io::Error::last_os_error();
    let mut text = [0; 256];
    match nix::unistd::read(context, &mut text) {
        // "e " and the like stand before the text.
        Ok(n) if n > 2 => {
            let said = String::from_utf8_lossy(&text[2..n]).trim().to_string();
            io::Error::new(error.kind(), format!("{what}: {error} ({said})"))
        }
        _ => error,
    }
}

/// A copy of the mount at `path`, or of the part of it that is below `path`; attached nowhere yet (open_tree(2)).
/// `recursive`: with all that is mounted below.
///
/// # Errors
/// EINVAL: not recursive, and something below is locked to it, being inherited from the host; EPERM without
/// CAP_SYS_ADMIN over the mount namespace.
pub fn copy_of(path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let recursive = if recursive { libc::AT_RECURSIVE } else { 0 };
    let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC as libc::c_uint | recursive as libc::c_uint;
    // SAFETY: reads the string; the result is a new fd or -1.
    fd(unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, name.as_ptr(), flags) })
}

/// Attaches a mount that is held by an fd to `target` (move_mount(2)).
pub fn attach(mount: impl AsFd, target: &Path) -> io::Result<()> {
    let target = CString::new(target.as_os_str().as_bytes())?;
    // SAFETY: reads two strings that live over the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_SYMLINKS,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes the mount at `path`, with all below it, read-only (mount_setattr(2), Linux 5.12).
///
/// # Errors
/// EINVAL: no mount is there; EBUSY: something is open for writing through it.
pub fn read_only(path: &Path) -> io::Result<()> {
    set_read_only(libc::AT_FDCWD, &CString::new(path.as_os_str().as_bytes())?, 0)
}

/// The same for a mount that is attached nowhere yet.
pub fn read_only_detached(mount: &OwnedFd) -> io::Result<()> {
    set_read_only(mount.as_raw_fd(), c"", libc::AT_EMPTY_PATH)
}

fn set_read_only(at: RawFd, path: &CStr, flags: libc::c_int) -> io::Result<()> {
    let attributes = MountAttributes { set: MOUNT_ATTR_RDONLY, clear: 0, propagation: 0, user_namespace: 0 };
    let (flags, size) = (flags | libc::AT_RECURSIVE, size_of::<MountAttributes>());
    // SAFETY: reads a string and a structure of the size that is given.
    let done = unsafe { libc::syscall(libc::SYS_mount_setattr, at, path.as_ptr(), flags, &raw const attributes, size) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether the caller has all that overlays on the host's own files need: the host's root, in a mount namespace of his own,
/// and not one who is root in a user namespace only. Only he may write `trusted.*` (xattr(7)).
pub fn is_host_root() -> bool {
    let try_it = || -> io::Result<()> {
        let file = crate::memfd::create(c"hurdle-probe")?;
        // SAFETY: reads a string and one byte.
        let done = unsafe { libc::fsetxattr(file.as_raw_fd(), c"trusted.hurdle".as_ptr(), c"y".as_ptr().cast(), 1, 0) };
        if done != 0 {
            return Err(io::Error::last_os_error());
        }
        copy_of(Path::new("/"), false).map(drop)
    };
    try_it().is_ok()
}

/// A mark of deletion, as overlays read it in one of their layers (mknod(2): the character device 0:0).
pub fn whiteout(path: &Path) -> io::Result<()> {
    use nix::sys::stat::{SFlag, mknod};
    Ok(mknod(path, SFlag::S_IFCHR, Mode::empty(), 0)?)
}

/// Makes a directory in a layer of the host's root one that hides what lower layers have there.
pub fn opaque(path: &Path) -> io::Result<()> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let key = c"trusted.overlay.opaque";
    // SAFETY: reads two strings and one byte.
    let done = unsafe { libc::lsetxattr(name.as_ptr(), key.as_ptr(), c"y".as_ptr().cast(), 1, 0) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// As mount_setattr(2) has it.
#[repr(C)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

// Of linux/mount.h.
const FSOPEN_CLOEXEC: libc::c_uint = 1;
const FSMOUNT_CLOEXEC: libc::c_uint = 1;
const FSCONFIG_SET_FLAG: libc::c_uint = 0;
const FSCONFIG_SET_STRING: libc::c_uint = 1;
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
const OPEN_TREE_CLONE: libc::c_uint = 1;
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 4;
const MOVE_MOUNT_T_SYMLINKS: libc::c_uint = 0x10;
const MOUNT_ATTR_RDONLY: u64 = 1;

fn fd(result: libc::c_long) -> io::Result<OwnedFd> {
    match RawFd::try_from(result) {
        // SAFETY: the caller has just got it from a system call that makes a new fd.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_lead_nowhere_outside_a_tree() {
        let base = std::env::temp_dir().join(format!("hurdle-tree-{}", std::process::id()));
        let (root, outside) = (base.join("root"), base.join("outside"));
        std::fs::create_dir_all(root.join("inner")).unwrap();
        std::fs::create_dir(&outside).unwrap();
        symlink(&outside, root.join("absolute")).unwrap();
        symlink("../../outside", root.join("relative")).unwrap();
        symlink("/inner", root.join("good")).unwrap();
        let tree = Tree::open(&root).unwrap();
        let at = |place: Place| std::fs::read_link(place.path()).unwrap();
        // A link that stays in the tree is one like any other, as after chroot(2).
        assert_eq!(at(tree.directory(Path::new("/good/new")).unwrap()), root.join("inner/new"));
        assert_eq!(at(tree.file(Path::new("/good/null")).unwrap()), root.join("inner/null"));
        tree.symlink(Path::new("x"), Path::new("/good/link")).unwrap();
        for link in ["/absolute", "/relative"] {
            assert!(tree.directory(Path::new(link)).is_err(), "{link}");
            assert!(tree.directory(&Path::new(link).join("new")).is_err(), "{link}");
            assert!(tree.file(Path::new(link)).is_err(), "{link}");
        }
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
        std::fs::remove_dir_all(&base).unwrap();
    }
}
