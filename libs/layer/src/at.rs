//! Files named by a directory fd and a name: attributes, extended attributes, contents. No symbolic link is followed.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::io::Errno;

/// A moment: seconds since 1970, nanoseconds.
pub(crate) type Time = (i64, u32);

/// What statx(2) says of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) kind: FileType,
    /// The twelve bits of permission.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) size: u64,
    /// What it takes on disk, in units of 512 bytes.
    pub(crate) blocks: u64,
    /// Of a device node: major, minor.
    pub(crate) rdev: (u32, u32),
    pub(crate) nlink: u32,
    pub(crate) ino: u64,
    pub(crate) dev: (u32, u32),
    pub(crate) mtime: Time,
    pub(crate) ctime: Time,
    /// When it came to be, where the file system knows.
    pub(crate) btime: Option<Time>,
}

impl Stat {
    /// The overlay's mark that what lies below is deleted.
    pub(crate) fn is_whiteout(&self) -> bool {
        self.kind == FileType::CharacterDevice && self.rdev == (0, 0)
    }

    pub(crate) fn is_dir(&self) -> bool {
        self.kind == FileType::Directory
    }

    pub(crate) fn is_file(&self) -> bool {
        self.kind == FileType::RegularFile
    }
}

/// The mount that an open file or directory lies on (statx(2)); `None` if the kernel does not tell.
pub(crate) fn mount_of(fd: impl AsFd) -> Option<u64> {
    let stat = rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).ok()?;
    (stat.stx_mask & StatxFlags::MNT_ID.bits() != 0).then_some(stat.stx_mnt_id)
}

fn read_stat(dir: BorrowedFd<'_>, name: &CStr, flags: AtFlags) -> Result<Stat, Errno> {
    let s = rustix::fs::statx(dir, name, flags, StatxFlags::BASIC_STATS | StatxFlags::BTIME)?;
    let time = |t: rustix::fs::StatxTimestamp| (t.tv_sec, t.tv_nsec);
    let mode = u32::from(s.stx_mode);
    Ok(Stat {
        kind: FileType::from_raw_mode(mode),
        mode: mode & 0o7777,
        uid: s.stx_uid,
        gid: s.stx_gid,
        size: s.stx_size,
        blocks: s.stx_blocks,
        rdev: (s.stx_rdev_major, s.stx_rdev_minor),
        nlink: s.stx_nlink,
        ino: s.stx_ino,
        dev: (s.stx_dev_major, s.stx_dev_minor),
        mtime: time(s.stx_mtime),
        ctime: time(s.stx_ctime),
        btime: (s.stx_mask & StatxFlags::BTIME.bits() != 0).then(|| time(s.stx_btime)),
    })
}

/// `name` in `dir`; `None` if there is nothing.
pub(crate) fn stat(dir: impl AsFd, name: &CStr) -> Result<Option<Stat>, Errno> {
    match read_stat(dir.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(e) => Err(e),
    }
}

/// An open file.
pub(crate) fn stat_fd(fd: impl AsFd) -> Result<Stat, Errno> {
    read_stat(fd.as_fd(), c"", AtFlags::EMPTY_PATH)
}

/// Whether the kernel's answer is one that a name gives which goes, or becomes another file's, while it is looked at. EXDEV: openat2(2) of
/// what the overlay moves out of the tree to delete it; the last ones are of another kind of file: readlink(2), open(2).
pub(crate) fn is_of_moving(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::NOENT | Errno::NOTDIR | Errno::STALE | Errno::LOOP | Errno::XDEV | Errno::INVAL | Errno::NXIO
    )
}

/// A name with its value.
pub(crate) type Xattr = (CString, Vec<u8>);

/// The path under which system calls that take no directory fd know `name` in `dir`.
fn proc_path(dir: BorrowedFd<'_>, name: &CStr) -> CString {
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend_from_slice(name.to_bytes());
    // A name from the kernel holds no NUL.
    CString::new(path).unwrap_or_default()
}

/// The names of the extended attributes of `name` in `dir` (llistxattr(2)); none where the file system has none.
pub(crate) fn xattr_names(dir: impl AsFd, name: &CStr) -> Result<Vec<CString>, Errno> {
    let path = proc_path(dir.as_fd(), name);
    let mut buffer = vec![0; 1024];
    loop {
        match rustix::fs::llistxattr(&path, &mut buffer[..]) {
            Ok(length) => {
                let names = buffer[..length].split(|b| *b == 0).filter(|name| !name.is_empty());
                return Ok(names.filter_map(|name| CString::new(name).ok()).collect());
            }
            Err(Errno::RANGE) => buffer.resize(buffer.len() * 8, 0),
            Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
            Err(e) => return Err(e),
        }
    }
}

/// One extended attribute (lgetxattr(2)); `None` if there is none of this name.
pub(crate) fn xattr(dir: impl AsFd, name: &CStr, key: &CStr) -> Result<Option<Vec<u8>>, Errno> {
    let path = proc_path(dir.as_fd(), name);
    let mut buffer = vec![0; 256];
    loop {
        match rustix::fs::lgetxattr(&path, key, &mut buffer[..]) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(Some(buffer));
            }
            // As large as the kernel lets one be (XATTR_SIZE_MAX).
            Err(Errno::RANGE) => buffer.resize(64 * 1024, 0),
            Err(Errno::NODATA | Errno::OPNOTSUPP) => return Ok(None),
            Err(e) => return Err(e),
        }
    }
}

/// lsetxattr(2).
pub(crate) fn set_xattr(dir: impl AsFd, name: &CStr, key: &CStr, value: &[u8]) -> Result<(), Errno> {
    rustix::fs::lsetxattr(proc_path(dir.as_fd(), name), key, value, rustix::fs::XattrFlags::empty())
}

/// lremovexattr(2); what is gone, or can't be there (user attributes of what is neither file nor directory), is no error.
pub(crate) fn remove_xattr(dir: impl AsFd, name: &CStr, key: &CStr) -> Result<(), Errno> {
    match rustix::fs::lremovexattr(proc_path(dir.as_fd(), name), key) {
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
        Err(Errno::PERM) if key.to_bytes().starts_with(b"user.") => {
            let special = |stat: Stat| !stat.is_dir() && !stat.is_file();
            if stat(dir, name)?.is_none_or(special) { Ok(()) } else { Err(Errno::PERM) }
        }
        other => other,
    }
}

/// What a symbolic link says.
pub(crate) fn read_link(dir: impl AsFd, name: &CStr) -> Result<CString, Errno> {
    rustix::fs::readlinkat(dir, name, Vec::new())
}

/// Opens a regular file for reading. A FIFO or a device in its place is not waited for; ESTALE: the name is of another kind of file by
/// now.
pub(crate) fn open_file(dir: impl AsFd, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir, name, flags, Mode::empty())?;
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode);
    if kind == FileType::RegularFile { Ok(file) } else { Err(Errno::STALE) }
}

/// Longer paths than this are walked in parts.
const LONGEST: usize = 3000;

/// Opens the directory at `path` below `root`, with none of its parts a symbolic link (openat2(2)). ELOOP: one is.
pub(crate) fn open_below(root: impl AsFd, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = flags | OFlags::DIRECTORY | OFlags::CLOEXEC;
    if path.is_empty() {
        return rustix::fs::openat2(root, c".", flags, Mode::empty(), resolve);
    }
    if path.len() <= LONGEST {
        return rustix::fs::openat2(root, path, flags, Mode::empty(), resolve);
    }
    let Some(cut) = path[..LONGEST].iter().rposition(|b| *b == b'/') else { return Err(Errno::NAMETOOLONG) };
    let near = rustix::fs::openat2(root, &path[..cut], OFlags::PATH | flags, Mode::empty(), resolve)?;
    open_below(near, &path[cut + 1..], flags)
}

/// The directory part and the last part of a relative path.
pub(crate) fn split(path: &[u8]) -> (&[u8], CString) {
    let (dir, name) = match path.iter().rposition(|b| *b == b'/') {
        Some(cut) => (&path[..cut], &path[cut + 1..]),
        None => (&path[..0], path),
    };
    (dir, c_name(name))
}

/// A name from the kernel, or of a path that was checked, as C has it.
pub(crate) fn c_name(name: &[u8]) -> CString {
    CString::new(if name.is_empty() { b"." } else { name }).unwrap_or_default()
}

/// `name` in directory `dir`, both relative.
pub(crate) fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(dir.len() + name.len() + 1);
    path.extend_from_slice(dir);
    if !dir.is_empty() && !name.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

/// Whether `path` is `dir` or lies below it; both relative.
pub(crate) fn is_below(path: &[u8], dir: &[u8]) -> bool {
    dir.is_empty() || path.strip_prefix(dir).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_regular_file_any_more_is_not_opened() {
        let dir = tempfile::tempdir().unwrap();
        let fd = std::fs::File::open(dir.path()).unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        std::fs::create_dir(dir.path().join("dir")).unwrap();
        std::os::unix::fs::symlink("file", dir.path().join("link")).unwrap();
        rustix::fs::mknodat(&fd, "fifo", FileType::Fifo, Mode::RUSR, 0).unwrap();
        let open = |name: &CStr| open_file(&fd, name).map(drop);
        assert_eq!(open(c"file"), Ok(()));
        assert_eq!(
            [c"dir", c"fifo", c"link", c"none"].map(open),
            [Errno::STALE, Errno::STALE, Errno::LOOP, Errno::NOENT].map(Err)
        );
    }
}
