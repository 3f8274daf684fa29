//! The mount points of `--fs root:DIR`: what DIR lacks is made for the environment, and taken away after it.
//!
//! A directory can't go before: to remove one that something is mounted on takes the mount away, wherever it is. So each that was
//! made has a mark, and environments on one DIR share a lock: the last one to end removes what is marked, also what one that was
//! killed has left.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, RawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hurdle_proto::plan::{MountStep, Plan, Root};
use rustix::fs::{FlockOperation, Mode, XattrFlags};
use rustix::io::Errno;

/// Of a directory that was made (xattr(7)).
const MARK: &str = "user.hurdle.mount-point";

/// How long another environment may take to remove its own.
const PATIENCE: Duration = Duration::from_millis(100);

/// The mount points of an environment in a tree; those that nobody needs any more go when this is dropped.
#[derive(Debug)]
pub struct MountPoints {
    tree: File,
    all: Vec<PathBuf>,
    /// Made here, where the file system takes no marks.
    unmarked: Vec<PathBuf>,
}

impl MountPoints {
    /// Makes those that are missing in the tree of `plan`, if it has one. What the user may not make is left to who may, inside.
    pub fn make(plan: &Plan) -> io::Result<Option<MountPoints>> {
        let Root::Directory(root) = &plan.root else { return Ok(None) };
        // A tree that can't be read, or locked in this moment: what is missing is made inside, and stays.
        let tree = match File::open(root) {
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => return Ok(None),
            tree => tree?,
        };
        // Nobody removes any meanwhile. Another one does so for a moment only; who holds the lock for longer is somebody else.
        let end = Instant::now() + PATIENCE;
        while rustix::fs::flock(&tree, FlockOperation::NonBlockingLockShared).is_err() {
            if Instant::now() > end {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut points = MountPoints { tree, all: Vec::new(), unmarked: Vec::new() };
        for step in &plan.mounts {
            let (MountStep::Instance { target, .. } | MountStep::Bind { target, .. }) = step else { continue };
            // What lies deeper is in what is mounted there.
            let name = target.strip_prefix("/").ok().and_then(|path| path.components().next());
            let Some(point) = name.map(|name| root.join(name)).filter(|point| !points.all.contains(point)) else {
                continue;
            };
            if rustix::fs::mkdir(&point, Mode::from_raw_mode(0o755)).is_ok()
                && rustix::fs::lsetxattr(&point, MARK, b"", XattrFlags::empty()).is_err()
            {
                points.unmarked.push(point.clone());
            }
            points.all.push(point);
        }
        Ok(Some(points))
    }

    /// An fd that must stay open as long as the environment lives.
    pub fn fd(&self) -> RawFd {
        self.tree.as_raw_fd()
    }

    fn marked(point: &Path) -> bool {
        rustix::fs::lgetxattr(point, MARK, &mut [0; 1]).is_ok()
    }
}

impl Drop for MountPoints {
    fn drop(&mut self) {
        // Without locks nobody else is known.
        if rustix::fs::flock(&self.tree, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK) {
            return;
        }
        for point in self.all.iter().filter(|point| self.unmarked.contains(point) || MountPoints::marked(point)) {
            // What somebody has put there meanwhile stays, and the directory with it.
            let _ = std::fs::remove_dir(point);
        }
    }
}
