//! What each kind of fs server asks of a launch.

use std::io;
use std::path::{Path, PathBuf};

use hurdle_proto::plan::{Layered, MountStep, Plan, Root};
use hurdle_proto::spec::{Layer, Spec, SpecError};

use crate::mounts;

/// The kinds there are.
pub const KINDS: &[&str] = &["share", "cow", "cow:NAME", "ro", "root:DIR"];

/// Options that name a path, and what is done with it; each may be given often.
const PATHS: &[&str] = &["share", "hide", "ro"];

/// Device nodes that programs expect to find in any system.
pub(crate) const DEVICES: &[&str] = &["null", "zero", "full", "random", "urandom", "tty"];

/// Options of a devpts of one's own.
pub(crate) const TERMINALS: &str = "newinstance,ptmxmode=0666,mode=620";

/// Links that udev makes on any system.
pub(crate) const LINKS: &[(&str, &str)] = &[
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
    ("pts/ptmx", "/dev/ptmx"),
];

/// Whether `spec` asks for files that stand apart from the parent's, which the caller of [`plan`] must then prepare. `root`: the
/// user is root inside, who could make writable again what is only mounted read-only.
pub fn is_layered(spec: &Spec, root: bool) -> bool {
    spec.single().is_ok_and(|layer| layer.kind == "cow" || layer.kind == "ro" && root)
}

/// Adds what `spec` needs to `plan`. `share` needs nothing: the parent's files, at native speed. `layered`: where the changes
/// of a `cow` go, `layers`: where all layers of the user lie.
pub fn plan(spec: &Spec, layered: Option<Layered>, layers: Option<PathBuf>, plan: &mut Plan) -> Result<(), SpecError> {
    let layer = spec.single()?;
    match (layer.kind.as_str(), layered) {
        ("share", _) => layer.check(false, &[]),
        ("root", _) => {
            layer.check(true, &[])?;
            let dir = Path::new(layer.argument.as_deref().unwrap_or_default());
            let dir = dir.canonicalize().map_err(|e| spec.error(format!("{} can't be a root: {e}", dir.display())))?;
            if !dir.is_dir() {
                return Err(spec.error(format!("{} is not a directory", dir.display())));
            }
            system_tree(dir, plan);
            Ok(())
        }
        ("ro", None) => {
            layer.check_argument(false)?;
            layer.check_options(&[], PATHS)?;
            plan.mounts.push(MountStep::ReadOnly { target: "/".into() });
            paths(layer, plan);
            Ok(())
        }
        (kind @ ("cow" | "ro"), Some(layered)) => {
            if kind == "ro" {
                layer.check_argument(false)?;
            }
            layer.check_options(if kind == "ro" { &[] } else { &["base", "size"] }, PATHS)?;
            // Who is root inside may take off what covers a part of the parent's own /dev.
            let devices = match (layered.mirrored, plan.ids.is_root()) {
                (true, false) => mounts::shared_devices(),
                (mirrored, _) => mounts::own_devices(mirrored),
            };
            if !layered.mirrored {
                plan.mounts.extend(mounts::files());
            }
            plan.root = Root::Layered(layered);
            plan.mounts.push(bind("/sys", true));
            plan.mounts.extend(devices);
            // Where layers lie: no environment sees its own, or another's.
            plan.mounts.extend(layers.map(|target| MountStep::Hide { target }));
            paths(layer, plan);
            Ok(())
        }
        _ => Err(spec.unknown("fs", KINDS)),
    }
}

/// The parent's `path` at its own place.
pub(crate) fn bind(path: impl Into<PathBuf>, read_only: bool) -> MountStep {
    let path = path.into();
    MountStep::Bind { source: path.clone(), target: path, read_only }
}

/// What the user wants shown, hidden or protected; what lies deeper comes later, so that it counts.
fn paths(layer: &Layer, plan: &mut Plan) {
    let layered = matches!(plan.root, Root::Layered(_));
    let steps = layer.options.iter().filter_map(|(key, value)| match key.as_str() {
        "hide" => Some(MountStep::Hide { target: value.into() }),
        // What is only mounted read-only, root inside may mount otherwise.
        // Devices can't be opened through an overlay of a user's, nor is /proc or /sys for one.
        "ro" if layered
            && plan.ids.is_root()
            && !["/dev", "/proc", "/sys"].iter().any(|top| Path::new(value).starts_with(top)) =>
        {
            let target = PathBuf::from(value);
            Some(MountStep::Frozen { directory: target.is_dir(), target })
        }
        "share" | "ro" => Some(bind(value, key == "ro")),
        _ => None,
    });
    let depth = |step: &MountStep| match step {
        MountStep::Hide { target } | MountStep::Bind { target, .. } | MountStep::Frozen { target, .. } => {
            target.components().count()
        }
        _ => 0,
    };
    let mut steps: Vec<MountStep> = steps.collect();
    steps.sort_by_key(depth);
    if let Root::Layered(layered) = &mut plan.root {
        // Not covered, which env root could undo, but missing in what lies below.
        layered.hidden = hidden(layer).collect();
        // In what is the parent's own it has to be a cover.
        let shared: Vec<PathBuf> = steps.iter().filter_map(MountStep::shared).map(PathBuf::from).collect();
        steps.retain(|step| match step {
            MountStep::Hide { target } => shared.iter().any(|share| target.starts_with(share)),
            _ => true,
        });
    }
    plan.mounts.extend(steps);
}

/// What `hide=` names.
pub(crate) fn hidden(layer: &Layer) -> impl Iterator<Item = PathBuf> {
    layer.options.iter().filter(|(key, _)| key == "hide").map(|(_, value)| value.into())
}

/// The same spec with absolute paths, as a shell would read them: `~/` is the user's home, the rest is relative to where he is;
/// links are followed.
pub fn resolve(spec: Spec) -> Result<Spec, SpecError> {
    spec.change_options(|key, value| {
        if !PATHS.contains(&key) {
            return Ok(value.to_string());
        }
        let path = match absolute(value) {
            Ok(path) => path,
            // What is not there needs no cover.
            Err(e) if key == "hide" && !value.is_empty() && e.kind() == io::ErrorKind::NotFound => value.into(),
            Err(e) => return Err(e.to_string()),
        };
        path.into_os_string().into_string().map_err(|_| "a path that is not UTF-8 can't be said here".into())
    })
}

fn absolute(value: &str) -> io::Result<PathBuf> {
    let home = || std::env::home_dir().ok_or_else(|| io::Error::other("there is no home directory"));
    let path = match value.strip_prefix("~/") {
        Some(rest) => home()?.join(rest),
        None if value == "~" => home()?,
        None => value.into(),
    };
    path.canonicalize()
}

/// Another system's tree, with what its programs expect from a running kernel. /proc comes from the proc server.
fn system_tree(root: PathBuf, plan: &mut Plan) {
    plan.root = Root::Directory(root);
    plan.mounts.push(bind("/sys", false));
    plan.mounts.push(instance("tmpfs", "/dev", "mode=755"));
    for name in DEVICES {
        plan.mounts.push(bind(format!("/dev/{name}"), false));
    }
    for (text, target) in LINKS {
        plan.mounts.push(MountStep::Symlink { text: text.into(), target: target.into() });
    }
    plan.mounts.push(instance("devpts", "/dev/pts", TERMINALS));
    for target in ["/dev/shm", "/tmp"] {
        plan.mounts.push(instance("tmpfs", target, "mode=1777"));
    }
    plan.mounts.push(instance("tmpfs", "/run", "mode=755"));
}

/// A new instance of a kernel file system.
pub(crate) fn instance(kind: &'static str, target: &str, options: &str) -> MountStep {
    MountStep::Instance { kind, target: target.into(), options: options.to_string() }
}
