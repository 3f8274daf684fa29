//! What the tests share: a kernel overlay on made-up trees, random changes to it, and trees as maps to be compared.
//!
//! A test that needs mounts runs itself again in a mount namespace of its own (and as an unprivileged user in a user namespace),
//! so that nothing of it is left however it ends.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

pub mod random;
pub mod snapshot;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use hurdle_layer::{Change, Extent, Ids, Layer, Meta, Options, Owners, View};
use tempfile::TempDir;

/// Set in the process that has namespaces of its own.
const INSIDE: &str = "HURDLE_LAYER_TEST_INSIDE";

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Runs test `name` again with namespaces of its own and tells how it ended; `false`: the caller is in there already.
pub fn again_inside(name: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return false;
    }
    let user: &[&str] = if is_root() { &[] } else { &["--user", "--map-root-user"] };
    let output = Command::new("unshare")
        .args(user)
        .args(["--mount", "--propagation", "private"])
        .arg(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(INSIDE, if is_root() { "root" } else { "user" })
        .output()
        .expect("unshare(1) runs");
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    let text = String::from_utf8_lossy(&text);
    assert!(output.status.success() && text.contains("1 passed"), "inside:\n{text}");
    true
}

/// Whether this process is host root, and not root of a user namespace alone.
pub fn host_root() -> bool {
    match std::env::var(INSIDE) {
        Ok(who) => who == "root",
        Err(_) => is_root(),
    }
}

/// The ids of layers made here: as host root each is itself; in a user namespace the caller is root.
pub fn ids() -> Ids {
    if host_root() {
        return Ids::same();
    }
    let one = |file| {
        let text = std::fs::read_to_string(file).unwrap();
        let outside = text.split_whitespace().nth(1).unwrap().parse().unwrap();
        vec![Extent { inside: 0, outside, count: 1 }]
    };
    Ids { users: one("/proc/self/uid_map"), groups: one("/proc/self/gid_map"), mirrored: true }
}

pub fn owners() -> Owners {
    if host_root() { Owners::outside() } else { Owners::inside(ids(), Vec::new(), None) }
}

/// A host of the test's own, with a layer on it.
pub struct World {
    pub dir: TempDir,
    pub layer: Layer,
}

impl World {
    /// With `/` and no other mount.
    pub fn new() -> World {
        World::at(tempfile::tempdir().unwrap())
    }

    /// In this directory.
    pub fn at(dir: TempDir) -> World {
        std::fs::create_dir(dir.path().join("host")).unwrap();
        std::fs::create_dir(dir.path().join("merged")).unwrap();
        let mut layer = Layer::create(&dir.path().join("layer"), Meta::new(ids())).unwrap();
        layer.add_mount(Path::new("/")).unwrap();
        World { dir, layer }
    }

    pub fn host(&self) -> PathBuf {
        self.dir.path().join("host")
    }

    pub fn upper(&self) -> PathBuf {
        self.layer.upper(0)
    }

    pub fn merged(&self) -> PathBuf {
        self.dir.path().join("merged")
    }

    /// Mounts the layer above the host's tree (and `bases` between, the nearest first), as an environment would.
    pub fn mount(&self, bases: &[PathBuf], redirect: bool) {
        let mut lower: Vec<String> = bases.iter().map(|base| base.display().to_string()).collect();
        lower.push(self.host().display().to_string());
        let mut options = format!(
            "lowerdir={},upperdir={},workdir={}",
            lower.join(":"),
            self.upper().display(),
            self.layer.work(0).display()
        );
        options.push_str(match (host_root(), redirect) {
            (true, true) => ",redirect_dir=on,metacopy=off,index=off",
            (true, false) => ",redirect_dir=off,metacopy=off,index=off",
            (false, _) => ",userxattr",
        });
        let done = Command::new("mount").args(["-t", "overlay", "-o", &options, "overlay"]).arg(self.merged()).output();
        let done = done.unwrap();
        assert!(done.status.success(), "{options}: {}", String::from_utf8_lossy(&done.stderr));
    }

    pub fn unmount(&self) {
        assert!(Command::new("umount").arg(self.merged()).status().unwrap().success());
    }

    pub fn changes(&self) -> Vec<Change> {
        self.changes_with(Options::default())
    }

    pub fn changes_with(&self, options: Options) -> Vec<Change> {
        let layer = Layer::open(self.layer.path()).unwrap();
        let mut view = View::open(&layer, &self.host(), owners()).unwrap();
        hurdle_layer::walk(&mut view, options).unwrap()
    }

    /// The changes in one line each.
    pub fn lines(&self) -> Vec<String> {
        self.changes().iter().map(line).collect()
    }
}

/// `M /path content,size`.
pub fn line(change: &Change) -> String {
    let mut text = format!("{} {}", change.kind.letter(), hurdle_layer::text::path(&change.path));
    if let Some(from) = &change.from {
        text.push_str(&format!(" from {}", hurdle_layer::text::path(from)));
    }
    if !change.what.is_empty() {
        let what: Vec<&str> = change.what.iter().map(|aspect| aspect.name()).collect();
        text.push_str(&format!(" {}", what.join(",")));
    }
    text
}

/// Runs `test` while somebody changes something, all the time.
pub fn meanwhile(mut change: impl FnMut() + Send, test: impl FnOnce()) {
    struct Stop<'s>(&'s AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                change();
            }
        });
        // Also if the test fails.
        let _stop = Stop(&stop);
        test();
    });
}
