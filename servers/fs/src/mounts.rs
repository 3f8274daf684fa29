//! The host's mounts, as a layered environment of the host's root sees them, and its devices.

use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use hurdle_proto::plan::MountStep;
use rustix::fs::{Access, AtFlags, CWD, accessat};

use crate::plan::{DEVICES, LINKS, TERMINALS, bind, instance};
use crate::serve::parse;

/// File systems that hold no files of anybody: the environment has its own, or sees them read-only below /sys.
const KERNELS: &[&str] = &[
    "autofs",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "efivarfs",
    "fusectl",
    "hugetlbfs",
    "mqueue",
    "nsfs",
    "proc",
    "pstore",
    "ramfs",
    "rpc_pipefs",
    "securityfs",
    "selinuxfs",
    "sysfs",
    "tracefs",
];
/// Devices that a whole system need not have, but this one may.
const MORE: &[&str] = &["fuse", "kvm", "net/tun", "dri", "snd"];

/// What the environment has of its own.
const OWN: &[&str] = &["/proc", "/sys", "/dev"];

/// The caller's mounts that hold files, outermost first, without those that others cover.
fn visible() -> io::Result<Vec<PathBuf>> {
    let text = std::fs::read_to_string("/proc/self/mountinfo")?;
    let all: Vec<(PathBuf, String)> = text.lines().filter_map(parse).map(|m| (m.target.into(), m.kind)).collect();
    let shown = |(n, (target, kind)): (usize, &(PathBuf, String))| {
        let covered = all[n + 1..].iter().any(|(later, _)| target.starts_with(later));
        let own = OWN.iter().any(|own| target.starts_with(own));
        (!covered && !own && !KERNELS.contains(&kind.as_str())).then(|| target.clone())
    };
    let mut found: Vec<PathBuf> = all.iter().enumerate().filter_map(shown).collect();
    found.sort_by_key(|target| target.components().count());
    Ok(found)
}

/// Mount points that an overlay can stand on: directories that the caller can look into, `/` first.
pub fn overlaid() -> io::Result<Vec<PathBuf>> {
    Ok(visible()?.into_iter().filter(|target| target.is_dir() && target.read_dir().is_ok()).collect())
}

/// The highest directory above `path` that nothing is mounted below: an overlay refuses one with mounts that it may not take
/// off. Never `/`.
pub fn plain_above(path: &Path) -> Option<PathBuf> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    let mounts: Vec<PathBuf> = text.lines().filter_map(parse).map(|mount| mount.target.into()).collect();
    let path = path.canonicalize().ok()?;
    let plain = |dir: &&Path| *dir != "/" && !mounts.iter().any(|at| at != dir && at.starts_with(dir));
    path.ancestors().skip(1).take_while(plain).last().map(Path::to_path_buf)
}

/// Files that something is mounted on: they are shown, and can't be written.
pub(crate) fn files() -> Vec<MountStep> {
    visible()
        .unwrap_or_default()
        .into_iter()
        .filter(|target| target.is_file())
        .map(|target| bind(target, true))
        .collect()
}

/// The parent's /dev, but for what could be written there.
pub(crate) fn shared_devices() -> Vec<MountStep> {
    let mut steps = vec![bind("/dev", false)];
    steps.extend(private());
    steps
}

/// A /dev of its own with those of the parent's devices that act for the process that opens them: no disk, no console. Of a
/// user's, all that he may open. `terminals`: of its own too, since the parent's come with a /dev of the parent's alone.
pub(crate) fn own_devices(terminals: bool) -> Vec<MountStep> {
    let mut steps = vec![instance("tmpfs", "/dev", "mode=755")];
    let named = DEVICES.iter().chain(MORE).map(|name| Path::new("/dev").join(name)).filter(|path| path.exists());
    let mut there: Vec<PathBuf> = named.collect();
    if terminals {
        there.extend(usable());
        there.sort();
        there.dedup();
    }
    steps.extend(there.into_iter().map(|path| bind(path, false)));
    steps.extend(LINKS.iter().map(|(text, target)| MountStep::Symlink { text: text.into(), target: target.into() }));
    steps.push(if terminals { instance("devpts", "/dev/pts", TERMINALS) } else { bind("/dev/pts", false) });
    steps.extend(private());
    steps
}

/// Devices of the parent's, and directories of them, that the user may open; but for those that each environment has.
fn usable() -> impl Iterator<Item = PathBuf> {
    let own = ["fd", "mqueue", "ptmx", "pts", "shm"];
    let entries = std::fs::read_dir("/dev").into_iter().flatten().flatten();
    entries.filter(move |entry| !own.iter().any(|name| entry.file_name() == *name)).filter_map(|entry| {
        let kind = entry.file_type().ok()?;
        let wanted = match kind.is_dir() {
            true => Access::READ_OK | Access::EXEC_OK,
            false => Access::READ_OK | Access::WRITE_OK,
        };
        let usable = kind.is_char_device() || kind.is_dir();
        (usable && accessat(CWD, entry.path(), wanted, AtFlags::EACCESS).is_ok()).then(|| entry.path())
    })
}

/// Memory and queues that processes share by name: the environment's own.
fn private() -> Vec<MountStep> {
    let there = |path: &str| Path::new(path).is_dir();
    let shm = there("/dev/shm").then(|| instance("tmpfs", "/dev/shm", "mode=1777"));
    shm.into_iter().chain(there("/dev/mqueue").then(|| instance("mqueue", "/dev/mqueue", ""))).collect()
}
