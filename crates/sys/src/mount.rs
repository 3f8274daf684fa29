//! Mounts of an environment's own mount namespace: mount(2), pivot_root(2).

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, mkdirat};

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

    fn find(&self, path: &Path) -> io::Result<Place> {
        let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_IN_ROOT);
        Ok(Place(openat2(&self.0, path, how)?))
    }
}

impl Place {
    /// A path that means this place and nothing else, for as long as it is held.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
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

/// Makes the mount at `target` (not those below it) read-only. Flags that the host locked on it are kept.
pub fn read_only(target: &Path) -> io::Result<()> {
    let old = nix::sys::statvfs::statvfs(target)?.flags();
    let mut flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    for (held, keep) in [
        (nix::sys::statvfs::FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (nix::sys::statvfs::FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (nix::sys::statvfs::FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (nix::sys::statvfs::FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (nix::sys::statvfs::FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
    ] {
        if old.contains(held) {
            flags |= keep;
        }
    }
    Ok(mount(NONE, target, NONE, flags, NONE)?)
}

/// Makes `root` (a mount point) the caller's `/`, and lets go of the old one: pivot_root(2) with both at one place.
pub fn pivot(root: &Path) -> io::Result<()> {
    std::env::set_current_dir(root)?;
    nix::unistd::pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    std::env::set_current_dir("/")
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
