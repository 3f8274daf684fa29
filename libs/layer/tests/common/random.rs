//! Random trees, and random changes to them.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, XattrFlags};

/// A small generator of numbers, the same for the same seed (xorshift64*; Vigna 2016).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.next() >> 33) as usize % end.max(1)
    }

    pub fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }

    /// Few names, so that changes meet; one is no UTF-8.
    pub fn name(&mut self) -> OsString {
        let names: [&[u8]; 9] = [b"a", b"b", b"c", b"d", b"with space", b"\xff\xfe", b"new\nline", b".hidden", b"e"];
        OsStr::from_bytes(self.pick(&names)).to_owned()
    }

    pub fn content(&mut self) -> Vec<u8> {
        let length = match self.below(6) {
            0 => 0,
            1 => 5000 + self.below(70_000),
            _ => 1 + self.below(20),
        };
        (0..length).map(|_| b'a' + self.below(4) as u8).collect()
    }
}

/// All directories (with the root) and all other files below `root`.
pub fn all(root: &Path) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let (mut dirs, mut files) = (vec![root.to_owned()], Vec::new());
    let mut next = 0;
    while next < dirs.len() {
        let mut entries: Vec<_> = fs::read_dir(&dirs[next]).unwrap().map(|entry| entry.unwrap()).collect();
        // The order of the file system differs between runs.
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let list = if entry.file_type().unwrap().is_dir() { &mut dirs } else { &mut files };
            list.push(entry.path());
        }
        next += 1;
    }
    (dirs, files)
}

/// Fills `root` with `count` files and directories.
pub fn grow(root: &Path, random: &mut Random, count: usize) {
    for _ in 0..count {
        let (dirs, files) = all(root);
        let path = random.pick(&dirs).join(random.name());
        let made = match random.below(10) {
            0..3 => fs::create_dir(&path),
            3 => symlink(random.name(), &path),
            4 if !files.is_empty() => fs::hard_link(random.pick(&files), &path),
            _ if path.symlink_metadata().is_ok() => Ok(()),
            _ => fs::write(&path, random.content()),
        };
        // A name that is taken is no matter.
        let _ = made;
    }
}

/// One change to the tree at `root`, such as a program might make; one that can't be made is none. As `root_user` also what
/// only root may do.
pub fn change(root: &Path, random: &mut Random, root_user: bool) -> String {
    let (dirs, files) = all(root);
    let dir = random.pick(&dirs);
    let new = dir.join(random.name());
    let is_file = |path: &PathBuf| path.symlink_metadata().unwrap().is_file();
    let regular: Vec<PathBuf> = files.iter().filter(|path| is_file(path)).cloned().collect();
    let old = match files.is_empty() {
        true => new.clone(),
        false => random.pick(&files),
    };
    let plain = match regular.is_empty() {
        true => new.clone(),
        false => random.pick(&regular),
    };
    let free = new.symlink_metadata().is_err();
    let (what, done) = match random.below(21) {
        0 | 1 if free => ("write", fs::write(&new, random.content())),
        // Where there is no regular file, the name may be a pipe's, on which this would wait for ever.
        2 | 3 if !regular.is_empty() => ("overwrite", fs::write(&plain, random.content())),
        4 if !regular.is_empty() => ("append", append(&plain)),
        5 | 6 => ("unlink", fs::remove_file(&old)),
        7 if dir != root => ("remove", fs::remove_dir_all(&dir)),
        8 => ("mkdir", fs::create_dir(&new)),
        9 | 10 => ("rename", fs::rename(&old, &new)),
        11 | 12 if dir != root => {
            let to = random.pick(&dirs).join(random.name());
            ("rename directory", rename_dir(&dir, &to))
        }
        13 => ("chmod", chmod(if random.below(3) == 0 { &dir } else { &plain }, random)),
        14 => ("symlink", symlink(random.name(), &new)),
        15 => ("link", fs::hard_link(&old, &new)),
        16 => ("xattr", xattr(if random.below(3) == 0 { &dir } else { &plain }, random)),
        17 if root_user => ("chown", chown(&old, random)),
        18 => ("fifo", rustix::fs::mknodat(CWD, &new, FileType::Fifo, Mode::RUSR, 0).map_err(Into::into)),
        19 => ("touch", touch(&plain)),
        20 if dir != root => {
            // A directory replaced by an empty one, and something in it.
            let again = fs::remove_dir_all(&dir).and_then(|()| fs::create_dir(&dir));
            ("replace", again.and_then(|()| fs::write(dir.join(random.name()), random.content())))
        }
        _ => ("nothing", Ok(())),
    };
    format!("{what} {:?} {:?} {:?}: {done:?}", dir, new.file_name().unwrap(), old)
}

fn append(path: &Path) -> std::io::Result<()> {
    use std::io::Write as _;
    fs::File::options().append(true).open(path)?.write_all(b"more")
}

/// As mv(1): where the file system says EXDEV, by a copy.
fn rename_dir(from: &Path, to: &Path) -> std::io::Result<()> {
    if to.starts_with(from) {
        return Ok(());
    }
    match fs::rename(from, to) {
        Err(e) if e.kind() == std::io::ErrorKind::CrossesDevices && to.symlink_metadata().is_err() => {
            let done = std::process::Command::new("mv").arg("-T").arg(from).arg(to).status()?;
            assert!(done.success());
            Ok(())
        }
        other => other,
    }
}

fn chmod(path: &Path, random: &mut Random) -> std::io::Result<()> {
    let mode = random.pick(&[0o700, 0o755, 0o711, 0o600, 0o4755, 0o1777]);
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

fn xattr(path: &Path, random: &mut Random) -> std::io::Result<()> {
    // The second looks like a mark of the overlay, and is none.
    let name = random.pick(&["user.test", "user.overlay.opaque"]);
    if random.below(3) == 0 {
        return Ok(rustix::fs::lremovexattr(path, name)?);
    }
    let value = random.pick(&["1", "", "y"]);
    Ok(rustix::fs::lsetxattr(path, name, value.as_bytes(), XattrFlags::empty())?)
}

fn chown(path: &Path, random: &mut Random) -> std::io::Result<()> {
    let id = random.pick(&[0, 1, 33, 1001]);
    std::os::unix::fs::lchown(path, Some(id), Some(id))
}

fn touch(path: &Path) -> std::io::Result<()> {
    let times = rustix::fs::Timestamps {
        last_access: rustix::fs::Timespec { tv_sec: 1, tv_nsec: 2 },
        last_modification: rustix::fs::Timespec { tv_sec: 3, tv_nsec: 4 },
    };
    Ok(rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Whether `path` is a socket: no copy of one is a socket that somebody listens on.
pub fn is_socket(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|meta| meta.file_type().is_socket())
}
