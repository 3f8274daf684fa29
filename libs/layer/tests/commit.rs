//! Commits of layers that the kernel's overlay wrote: afterwards the host's tree is what the environment saw.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::random::{self, Random};
use common::snapshot::{self, Tree, differences};
use common::{World, again_inside, host_root, meanwhile, owners};
use hurdle_layer::commit::{self, Done, How};
use hurdle_layer::{Change, Error, Layer, View};

const ALL: How = How { force: true, running: false };

/// Commits what `select` wants.
fn commit_some(world: &World, how: How, select: &mut dyn FnMut(&Change) -> bool) -> Result<Done, Error> {
    commit_at(world.layer.path(), &world.host(), how, select)
}

fn commit_at(layer: &Path, host: &Path, how: How, select: &mut dyn FnMut(&Change) -> bool) -> Result<Done, Error> {
    let layer = Layer::open(layer)?;
    let mut view = View::open(&layer, host, owners())?;
    let plan = commit::plan(&mut view, how, select)?;
    commit::commit(&view, &plan, false)
}

fn commit_all(world: &World) {
    commit_some(world, ALL, &mut |_| true).unwrap();
}

fn plan(world: &World) -> commit::Plan {
    let layer = Layer::open(world.layer.path()).unwrap();
    let mut view = View::open(&layer, &world.host(), owners()).unwrap();
    commit::plan(&mut view, How::default(), &mut |_| true).unwrap()
}

fn assert_same(wanted: &Tree, got: &Tree, context: &dyn std::fmt::Debug) {
    let differences = differences(wanted, got);
    assert!(differences.is_empty(), "{differences:#?}\n{context:#?}");
}

/// Nothing is left in the layer, and nothing of the commit on the host.
fn assert_tidy(world: &World, context: &dyn std::fmt::Debug) {
    let left: Vec<PathBuf> = snapshot::tree(&world.upper()).into_keys().filter(|path| path != Path::new("")).collect();
    assert!(left.is_empty(), "left in the layer: {left:?}\n{context:#?}");
    let own: Vec<PathBuf> = snapshot::tree(&world.host())
        .into_keys()
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(".hurdle-")))
        .collect();
    assert!(own.is_empty(), "left on the host: {own:?}\n{context:#?}");
    assert!(!world.layer.interrupted());
}

/// A world with random changes in its layer: what they were, and the tree that the environment saw.
fn changed(seed: u64, dir: tempfile::TempDir, changes: usize) -> (World, Vec<String>, Tree) {
    let mut random = Random::new(seed);
    let world = World::at(dir);
    random::grow(&world.host(), &mut random, 40);
    let was = snapshot::tree(&world.host());
    world.mount(&[], !seed.is_multiple_of(4));
    let log = (0..changes).map(|_| random::change(&world.merged(), &mut random, host_root())).collect();
    let is = as_committed(&was, snapshot::tree(&world.merged()));
    world.unmount();
    (world, log, is)
}

/// A file of which only the time is another is as it was.
fn as_committed(was: &Tree, mut is: Tree) -> Tree {
    for (path, node) in &mut is {
        if let Some(old) = was.get(path) {
            let untimed = |node: &snapshot::Node| snapshot::Node { mtime: (0, 0), first_name: None, ..node.clone() };
            if untimed(old) == untimed(node) {
                node.mtime = old.mtime;
            }
        }
    }
    is
}

/// On disk and in memory, since they differ in what they can do.
fn places() -> [PathBuf; 2] {
    [std::env::temp_dir(), "/dev/shm".into()]
}

#[test]
fn after_a_commit_the_host_is_what_the_environment_saw() {
    if again_inside("after_a_commit_the_host_is_what_the_environment_saw") {
        return;
    }
    for seed in 0..80 {
        let dir = tempfile::tempdir_in(&places()[seed as usize % 2]).unwrap();
        let (world, log, is) = changed(seed, dir, 30);
        commit_all(&world);
        assert_same(&is, &snapshot::tree(&world.host()), &(seed, &log));
        assert!(world.changes().is_empty(), "{:?}", world.lines());
        assert_tidy(&world, &(seed, &log));
    }
}

/// A layer on one file system, the host's files on another: nothing can move, all is copied.
#[test]
fn a_commit_across_file_systems_copies() {
    if again_inside("a_commit_across_file_systems_copies") {
        return;
    }
    for seed in 0..40 {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let host = tempfile::tempdir().unwrap();
        let mut random = Random::new(seed);
        let world = World::at(dir);
        // The lower tree may lie anywhere.
        fs::remove_dir(world.host()).unwrap();
        symlink(host.path(), world.host()).unwrap();
        random::grow(host.path(), &mut random, 40);
        let was = snapshot::tree(host.path());
        world.mount(&[], true);
        let log: Vec<String> = (0..30).map(|_| random::change(&world.merged(), &mut random, host_root())).collect();
        let is = as_committed(&was, snapshot::tree(&world.merged()));
        world.unmount();
        commit_all(&world);
        assert_same(&is, &snapshot::tree(host.path()), &(seed, &log));
        assert_tidy(&world, &(seed, &log));
    }
}

/// A part of the changes leaves the layer, and what the environment would see through the rest is still the same.
#[test]
fn a_commit_of_some_changes_leaves_the_view_as_it_was() {
    if again_inside("a_commit_of_some_changes_leaves_the_view_as_it_was") {
        return;
    }
    let mut partly = 0;
    for seed in 0..60 {
        let (world, log, is) = changed(2000 + seed, tempfile::tempdir().unwrap(), 25);
        let mut random = Random::new(seed);
        let before = world.changes().len();
        let mut chosen = Vec::new();
        let done = commit_some(&world, ALL, &mut |change| {
            let wanted = random.below(2) == 0;
            if wanted {
                chosen.push(common::line(change));
            }
            wanted
        });
        if let Err(e) = done {
            // Parts of renames can't be had apart.
            assert!(e.to_string().contains("name that one too"), "{e}");
            continue;
        }
        let left = world.changes().len();
        partly += usize::from(left > 0 && left < before);
        world.mount(&[], true);
        let now = snapshot::tree(&world.merged());
        world.unmount();
        // Other names of a file, and times that no commit carries over, may be on the other side now; and of the host's files
        // the kernel hides attributes that look like its own.
        let plain = |tree: Tree| -> Tree {
            let all = tree.into_iter().map(|(path, mut node)| {
                node.xattrs.retain(|(name, _)| host_root() || name != "user.overlay.opaque");
                (path, snapshot::Node { first_name: None, mtime: (0, 0), ..node })
            });
            all.collect()
        };
        assert_same(&plain(is.clone()), &plain(now), &(seed, &log, &chosen));
        commit_all(&world);
        assert_same(&plain(is), &plain(snapshot::tree(&world.host())), &(seed, &log));
        assert_tidy(&world, &(seed, &log));
    }
    assert!(partly > 20, "only {partly} commits were of a part");
}

const VICTIM: &str = "HURDLE_LAYER_TEST_VICTIM";

/// Killed at any point and run again, a commit ends as if nothing had been.
#[test]
fn a_killed_commit_is_ended_by_the_next() {
    if let Some(path) = std::env::var_os(VICTIM) {
        // The one that is killed.
        let path = PathBuf::from(path);
        commit_at(&path.join("layer"), &path.join("host"), ALL, &mut |_| true).unwrap();
        return;
    }
    if again_inside("a_killed_commit_is_ended_by_the_next") {
        return;
    }
    let (mut interrupted, mut random) = (0, Random::new(7));
    for seed in 0..40 {
        let dir = tempfile::tempdir_in(&places()[seed as usize % 2]).unwrap();
        let (world, log, is) = changed(3000 + seed, dir, 60);
        let mut resumed = None;
        for _ in 0..20 {
            let mut victim = Command::new(std::env::current_exe().unwrap())
                .args(["a_killed_commit_is_ended_by_the_next", "--exact", "--test-threads=1"])
                .env(VICTIM, world.dir.path())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            // Once the journal is there, at some moment of the next milliseconds.
            let begun = |world: &World| world.layer.interrupted();
            let limit = Instant::now() + Duration::from_secs(20);
            while !begun(&world) && victim.try_wait().unwrap().is_none() {
                assert!(Instant::now() < limit, "the commit does not begin");
                std::hint::spin_loop();
            }
            let moment = Instant::now() + Duration::from_micros(random.below(3000) as u64);
            while Instant::now() < moment && victim.try_wait().unwrap().is_none() {
                std::hint::spin_loop();
            }
            victim.kill().unwrap();
            victim.wait().unwrap();
            if !world.layer.interrupted() {
                break;
            }
            interrupted += 1;
            assert!(matches!(commit_some(&world, ALL, &mut |_| true), Err(Error::Damaged { .. })));
            let layer = Layer::open(world.layer.path()).unwrap();
            let view = View::open(&layer, &world.host(), owners()).unwrap();
            resumed = commit::resume(&view, false).unwrap();
            assert!(resumed.is_some_and(|done| done.resumed));
        }
        let _ = resumed;
        commit_all(&world);
        assert_same(&is, &snapshot::tree(&world.host()), &(seed, &log));
        assert_tidy(&world, &(seed, &log));
    }
    assert!(interrupted > 5, "only {interrupted} commits were killed in the middle");
}

#[test]
fn what_changed_on_the_host_meanwhile_is_listed_and_kept() {
    if again_inside("what_changed_on_the_host_meanwhile_is_listed_and_kept") {
        return;
    }
    let world = World::new();
    for name in ["changed", "deleted", "gone", "fine"] {
        fs::write(world.host().join(name), name).unwrap();
    }
    fs::create_dir(world.host().join("dir")).unwrap();
    fs::write(world.host().join("dir/old"), "x").unwrap();
    world.mount(&[], false);
    let at = |name: &str| world.merged().join(name);
    for name in ["changed", "gone", "fine", "added"] {
        fs::write(at(name), "ours").unwrap();
    }
    fs::remove_file(at("deleted")).unwrap();
    fs::remove_dir_all(at("dir")).unwrap();
    world.unmount();
    // Times on the host come from a clock that ticks every few milliseconds.
    let clock = world.host().join("clock");
    fs::write(&clock, "x").unwrap();
    let start = clock.metadata().unwrap().ctime_nsec();
    let limit = Instant::now() + Duration::from_secs(5);
    while clock.metadata().unwrap().ctime_nsec() == start {
        assert!(Instant::now() < limit);
        fs::write(&clock, "x").unwrap();
    }
    fs::remove_file(&clock).unwrap();
    for name in ["changed", "deleted", "added", "dir/new"] {
        fs::write(world.host().join(name), "theirs").unwrap();
    }
    let was = snapshot::tree(&world.host());
    let conflicts: Vec<PathBuf> = plan(&world).conflicts.into_iter().map(|conflict| conflict.path).collect();
    let wanted: Vec<PathBuf> = ["/added", "/changed", "/deleted", "/dir/new"].iter().map(PathBuf::from).collect();
    assert_eq!(conflicts, wanted);
    assert!(commit_some(&world, How::default(), &mut |_| true).is_err());
    assert_same(&was, &snapshot::tree(&world.host()), &"a refused commit touches nothing");
    // What is not in the way can go.
    commit_some(&world, How::default(), &mut |change| change.path == Path::new("/fine")).unwrap();
    assert_eq!(fs::read(world.host().join("fine")).unwrap(), b"ours");
    commit_all(&world);
    assert_eq!(fs::read(world.host().join("changed")).unwrap(), b"ours");
    assert!(!world.host().join("dir").exists() && !world.host().join("deleted").exists());
}

#[test]
fn a_file_that_is_gone_from_the_host_is_a_conflict() {
    // Only host root's overlays tell for sure where a file came from.
    if !host_root() || again_inside("a_file_that_is_gone_from_the_host_is_a_conflict") {
        return;
    }
    let world = World::new();
    for name in ["gone", "renamed"] {
        fs::write(world.host().join(name), name).unwrap();
    }
    world.mount(&[], false);
    fs::write(world.merged().join("gone"), "ours").unwrap();
    world.unmount();
    fs::remove_file(world.host().join("gone")).unwrap();
    let conflicts = plan(&world).conflicts;
    assert_eq!(conflicts.len(), 1);
    assert_eq!(conflicts[0].path, Path::new("/gone"));
    commit_all(&world);
    // One that the environment renamed is none.
    world.mount(&[], false);
    fs::rename(world.merged().join("renamed"), world.merged().join("new")).unwrap();
    fs::write(world.merged().join("new"), "ours").unwrap();
    world.unmount();
    assert_eq!(plan(&world).conflicts, []);
}

/// The host's directory became a link to somewhere else: nothing is written there.
#[test]
fn no_link_is_followed() {
    if again_inside("no_link_is_followed") {
        return;
    }
    let world = World::new();
    let outside = tempfile::tempdir().unwrap();
    fs::create_dir_all(world.host().join("a/b")).unwrap();
    fs::write(world.host().join("a/b/old"), "x").unwrap();
    world.mount(&[], false);
    fs::write(world.merged().join("a/b/new"), "secret").unwrap();
    fs::write(world.merged().join("a/b/old"), "secret").unwrap();
    world.unmount();
    fs::rename(world.host().join("a/b"), outside.path().join("b")).unwrap();
    symlink(outside.path().join("b"), world.host().join("a/b")).unwrap();
    let was = snapshot::tree(outside.path());
    let error = commit_some(&world, How::default(), &mut |_| true).unwrap_err();
    assert!(error.to_string().contains("changed meanwhile"), "{error}");
    // One of its files alone can't be had: the directory takes the link's place.
    let error = commit_some(&world, ALL, &mut |change| change.path.ends_with("new")).unwrap_err();
    assert!(error.to_string().contains("takes another's place"), "{error}");
    commit_all(&world);
    assert_same(&was, &snapshot::tree(outside.path()), &"what the link leads to is as it was");
    assert!(world.host().join("a/b").symlink_metadata().unwrap().is_dir());
}

#[test]
fn holes_times_links_and_permissions_are_kept() {
    if again_inside("holes_times_links_and_permissions_are_kept") {
        return;
    }
    for across in [false, true] {
        let world = World::at(tempfile::tempdir_in(&places()[usize::from(across)]).unwrap());
        let host = tempfile::tempdir().unwrap();
        if across {
            fs::remove_dir(world.host()).unwrap();
            symlink(host.path(), world.host()).unwrap();
        }
        fs::write(world.host().join("mode"), "x").unwrap();
        fs::hard_link(world.host().join("mode"), world.host().join("other name")).unwrap();
        world.mount(&[], false);
        let at = |name: &str| world.merged().join(name);
        let file = fs::File::create(at("sparse")).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"end", 64 << 20).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"middle", 20 << 20).unwrap();
        file.set_modified(std::time::UNIX_EPOCH + Duration::from_nanos(1_234_567_890_123_456_789)).unwrap();
        drop(file);
        fs::hard_link(at("sparse"), at("second")).unwrap();
        fs::set_permissions(at("sparse"), fs::Permissions::from_mode(0o4711)).unwrap();
        fs::set_permissions(at("mode"), fs::Permissions::from_mode(0o600)).unwrap();
        let is = snapshot::tree(&world.merged());
        world.unmount();
        commit_all(&world);
        assert_same(&is, &snapshot::tree(&world.host().canonicalize().unwrap()), &across);
        let sparse = world.host().join("sparse").metadata().unwrap();
        assert!(sparse.blocks() * 512 < 1 << 20, "holes are filled: {} blocks", sparse.blocks());
        assert_eq!(sparse.mtime_nsec(), 123_456_789);
        assert_eq!(sparse.ino(), world.host().join("second").metadata().unwrap().ino());
        assert_tidy(&world, &across);
    }
}

#[test]
fn one_commit_at_a_time_and_none_of_a_layer_in_use() {
    if again_inside("one_commit_at_a_time_and_none_of_a_layer_in_use") {
        return;
    }
    let world = World::new();
    fs::write(world.host().join("file"), "old").unwrap();
    fs::create_dir(world.host().join("dir")).unwrap();
    world.mount(&[], true);
    fs::write(world.merged().join("file"), "new").unwrap();
    fs::write(world.merged().join("more"), "new").unwrap();
    let lock = world.layer.lock_exclusive("environment try").unwrap();
    let error = commit_some(&world, How::default(), &mut |_| true).unwrap_err();
    assert!(error.to_string().contains("in use by environment try"), "{error}");
    assert_eq!(fs::read(world.host().join("file")).unwrap(), b"old");
    // While it goes on, files are copied and the environment sees what it saw.
    let is = snapshot::tree(&world.merged());
    let how = How { running: true, ..How::default() };
    commit_some(&world, how, &mut |_| true).unwrap();
    assert_same(&is, &snapshot::tree(&world.host()), &"committed while it runs");
    assert_same(&is, &snapshot::tree(&world.merged()), &"what the environment sees");
    fs::write(world.merged().join("file"), "newer").unwrap();
    assert_eq!(fs::read(world.host().join("file")).unwrap(), b"new", "the layer still keeps them apart");
    assert_eq!(world.lines(), ["M /file content,size"]);
    if host_root() {
        fs::rename(world.merged().join("dir"), world.merged().join("renamed")).unwrap();
        let error = commit_some(&world, how, &mut |_| true).unwrap_err();
        assert!(error.to_string().contains("end it first"), "{error}");
    }
    drop(lock);
    world.unmount();
    commit_all(&world);
    assert_eq!(fs::read(world.host().join("file")).unwrap(), b"newer");
}

/// Files come and go while they are carried over: what is left alone is carried whole, nothing is left beside, and at the end the host has
/// what the environment has.
#[test]
fn what_moves_meanwhile_does_no_harm() {
    if again_inside("what_moves_meanwhile_does_no_harm") {
        return;
    }
    let world = World::new();
    fs::create_dir(world.host().join("busy")).unwrap();
    world.mount(&[], true);
    let busy = world.merged().join("busy");
    fs::create_dir(world.merged().join("still")).unwrap();
    let (mut random, mut number) = (Random::new(3), 0);
    let change = || {
        number += 1;
        let [one, other] = [(); 2].map(|()| busy.join(format!("d{}/f{}", random.below(3), random.below(6))));
        let _ = match random.below(7) {
            0 => fs::create_dir(one.parent().unwrap()),
            1 | 2 => fs::remove_file(&one).and_then(|()| fs::write(&one, number.to_string())),
            3 => fs::remove_file(&one),
            4 => fs::hard_link(&one, &other),
            5 => symlink("x", &one),
            _ if random.below(20) == 0 => fs::remove_dir_all(one.parent().unwrap()),
            _ => fs::write(&one, format!("again {number}")),
        };
    };
    meanwhile(change, || {
        for n in 0..100 {
            fs::write(world.merged().join(format!("still/{n}")), format!("{n}")).unwrap();
            let how = How { force: true, running: true };
            commit_some(&world, how, &mut |_| true).unwrap_or_else(|e| panic!("{n}: {e}"));
            assert_eq!(fs::read_to_string(world.host().join(format!("still/{n}"))).unwrap(), format!("{n}"));
        }
    });
    world.unmount();
    // Without what it remembers of the host.
    world.mount(&[], true);
    let is = snapshot::tree(&world.merged());
    world.unmount();
    commit_all(&world);
    assert_same(&is, &snapshot::tree(&world.host()), &"at the end");
    assert_tidy(&world, &"at the end");
}

/// What an environment that goes on does between the plan and the commit.
#[test]
fn what_changed_since_the_plan_is_left_to_the_next_commit() {
    if again_inside("what_changed_since_the_plan_is_left_to_the_next_commit") {
        return;
    }
    let world = World::new();
    for name in ["name", "other", "again"] {
        fs::write(world.host().join(name), "host").unwrap();
    }
    world.mount(&[], true);
    let at = |name: &str| world.merged().join(name);
    fs::remove_file(at("name")).unwrap();
    fs::write(at("name"), "first").unwrap();
    fs::remove_file(at("other")).unwrap();
    fs::hard_link(at("name"), at("other")).unwrap();
    fs::write(at("gone"), "first").unwrap();
    fs::hard_link(at("gone"), at("stays")).unwrap();
    fs::create_dir_all(at("dir/in")).unwrap();
    fs::write(at("dir/in/file"), "first").unwrap();
    fs::write(at("became"), "first").unwrap();
    fs::write(at("owned"), "first").unwrap();
    fs::remove_file(at("again")).unwrap();
    let layer = Layer::open(world.layer.path()).unwrap();
    let mut view = View::open(&layer, &world.host(), owners()).unwrap();
    let plan = commit::plan(&mut view, How { force: true, running: true }, &mut |_| true).unwrap();

    fs::write(at("new"), "second").unwrap();
    fs::rename(at("new"), at("name")).unwrap();
    fs::remove_file(at("gone")).unwrap();
    fs::remove_dir_all(at("dir")).unwrap();
    fs::remove_file(at("became")).unwrap();
    fs::create_dir(at("became")).unwrap();
    fs::write(at("again"), "second").unwrap();
    // Made in its place by another of the environment's users, where there are others.
    fs::write(at("new"), "second").unwrap();
    let others = std::os::unix::fs::chown(at("new"), Some(1000), Some(1000)).is_ok();
    fs::set_permissions(at("new"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::rename(at("new"), at("owned")).unwrap();
    commit::commit(&view, &plan, false).unwrap();

    let text = |name: &str| fs::read_to_string(world.host().join(name)).ok();
    let wanted = [("name", "second"), ("other", "first"), ("stays", "first"), ("again", "host")];
    for (name, wanted) in wanted {
        assert_eq!(text(name).as_deref(), Some(wanted), "{name}");
    }
    let mode = world.host().join("owned").metadata().unwrap().mode() & 0o7777;
    assert_eq!(mode, if others { 0o755 } else { 0o4755 }, "nobody's program runs as its former owner");
    for name in ["gone", "dir", "became", "new"] {
        assert!(!world.host().join(name).exists(), "{name}");
    }
    let is = snapshot::tree(&world.merged());
    world.unmount();
    commit_all(&world);
    assert_same(&is, &snapshot::tree(&world.host()), &"at the end");
    assert_tidy(&world, &"at the end");
}
