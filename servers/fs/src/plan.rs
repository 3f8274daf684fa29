//! What each kind of fs server asks of a launch.

use std::path::{Path, PathBuf};

use hurdle_proto::plan::{MountStep, Plan};
use hurdle_proto::spec::{Spec, SpecError};

/// The kinds there are.
pub const KINDS: &[&str] = &["share", "root:DIR"];

/// Device nodes that programs expect to find in any system.
const DEVICES: &[&str] = &["null", "zero", "full", "random", "urandom", "tty"];

/// Links that udev makes on any system.
const LINKS: &[(&str, &str)] = &[
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
    ("pts/ptmx", "/dev/ptmx"),
];

/// Adds what `spec` needs to `plan`. `share` needs nothing: the parent's files, at native speed.
pub fn plan(spec: &Spec, plan: &mut Plan) -> Result<(), SpecError> {
    let layer = spec.single()?;
    match layer.kind.as_str() {
        "share" => layer.check(false, &[]),
        "root" => {
            layer.check(true, &[])?;
            let dir = Path::new(layer.argument.as_deref().unwrap_or_default());
            let dir = dir.canonicalize().map_err(|e| spec.error(format!("{} can't be a root: {e}", dir.display())))?;
            if !dir.is_dir() {
                return Err(spec.error(format!("{} is not a directory", dir.display())));
            }
            system_tree(dir, plan);
            Ok(())
        }
        _ => Err(spec.unknown("fs", KINDS)),
    }
}

/// Another system's tree, with what its programs expect from a running kernel. /proc comes from the proc server.
fn system_tree(root: PathBuf, plan: &mut Plan) {
    let instance = |kind, target: &str, options: &str| MountStep::Instance {
        kind,
        target: target.into(),
        options: options.to_string(),
    };
    plan.root = Some(root);
    plan.mounts.push(MountStep::Bind { source: "/sys".into(), target: "/sys".into() });
    plan.mounts.push(instance("tmpfs", "/dev", "mode=755"));
    for name in DEVICES {
        let path = PathBuf::from(format!("/dev/{name}"));
        plan.mounts.push(MountStep::Bind { source: path.clone(), target: path });
    }
    for (text, target) in LINKS {
        plan.mounts.push(MountStep::Symlink { text: text.into(), target: target.into() });
    }
    plan.mounts.push(instance("devpts", "/dev/pts", "newinstance,ptmxmode=0666,mode=620"));
    for target in ["/dev/shm", "/tmp"] {
        plan.mounts.push(instance("tmpfs", target, "mode=1777"));
    }
    plan.mounts.push(instance("tmpfs", "/run", "mode=755"));
}
