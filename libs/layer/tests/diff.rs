//! The diff of layers that the kernel's overlay wrote, held against a plain comparison of the two trees.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use common::random::{self, Random};
use common::snapshot::{self, Tree};
use common::{World, again_inside, host_root, line, meanwhile, owners};
use hurdle_layer::{Change, Options, View};

/// What a comparison of the trees says, in the form of [`line`], without what changed; what is below a deleted directory is
/// left out.
fn plainly(was: &Tree, is: &Tree) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let text = |path: &Path| hurdle_layer::text::path(&Path::new("/").join(path));
    for (path, old) in was {
        match is.get(path) {
            None => {
                let inside = path
                    .ancestors()
                    .skip(1)
                    .any(|above| was.contains_key(above) && is.get(above).is_none_or(|now| now.kind != "dir"));
                if !inside {
                    found.insert(format!("D {}", text(path)));
                }
            }
            Some(now) if now.kind != old.kind => {
                found.insert(format!("T {}", text(path)));
            }
            Some(now) => {
                let same = (now.mode, now.uid, now.gid, &now.content, &now.xattrs)
                    == (old.mode, old.uid, old.gid, &old.content, &old.xattrs);
                if !same {
                    found.insert(format!("M {}", text(path)));
                }
            }
        }
    }
    found.extend(is.keys().filter(|path| !was.contains_key(*path)).map(|path| format!("A {}", text(path))));
    found
}

fn letters(changes: &[Change]) -> BTreeSet<String> {
    let brief = |c: &Change| format!("{} {}", c.kind.letter(), hurdle_layer::text::path(&c.path));
    changes.iter().map(brief).collect()
}

#[test]
fn what_the_kernel_wrote_is_told_as_two_trees_compare() {
    if again_inside("what_the_kernel_wrote_is_told_as_two_trees_compare") {
        return;
    }
    for seed in 0..60 {
        let mut random = Random::new(seed);
        let world = World::new();
        random::grow(&world.host(), &mut random, 40);
        let was = snapshot::tree(&world.host());
        world.mount(&[], false);
        let log: Vec<String> = (0..30).map(|_| random::change(&world.merged(), &mut random, host_root())).collect();
        let is = snapshot::tree(&world.merged());
        world.unmount();
        let changes = world.changes();
        let (wanted, got) = (plainly(&was, &is), letters(&changes));
        let missing: Vec<_> = wanted.difference(&got).collect();
        let extra: Vec<_> = got.difference(&wanted).collect();
        assert!(missing.is_empty() && extra.is_empty(), "seed {seed}: missing {missing:?}, extra {extra:?}\n{log:#?}");
        let sorted = changes.windows(2).all(|two| two[0].path <= two[1].path);
        assert!(sorted && wanted.len() == changes.len(), "seed {seed}: not sorted, or told twice");
    }
}

#[test]
fn a_base_is_part_of_what_is_below() {
    if again_inside("a_base_is_part_of_what_is_below") {
        return;
    }
    for seed in 0..30 {
        let mut random = Random::new(1000 + seed);
        let world = World::new();
        random::grow(&world.host(), &mut random, 30);
        // The base is written by an environment of its own, with renames where the kernel marks them.
        let base = world.dir.path().join("base");
        world.mount(&[], true);
        (0..20).for_each(|_| drop(random::change(&world.merged(), &mut random, host_root())));
        let was = snapshot::tree(&world.merged());
        world.unmount();
        fs::rename(world.layer.path(), &base).unwrap();
        let meta = hurdle_layer::Meta { base: Some("base".into()), ..hurdle_layer::Meta::new(common::ids()) };
        let mut layer = hurdle_layer::Layer::create(&world.dir.path().join("layer"), meta).unwrap();
        layer.add_mount(Path::new("/")).unwrap();
        let world = World { layer, ..world };
        world.mount(&[base.join("m0/upper")], false);
        let log: Vec<String> = (0..20).map(|_| random::change(&world.merged(), &mut random, host_root())).collect();
        let is = snapshot::tree(&world.merged());
        world.unmount();
        let (wanted, got) = (plainly(&was, &is), letters(&world.changes()));
        let missing: Vec<_> = wanted.difference(&got).collect();
        let extra: Vec<_> = got.difference(&wanted).collect();
        assert!(missing.is_empty() && extra.is_empty(), "seed {seed}: missing {missing:?}, extra {extra:?}\n{log:#?}");
    }
}

#[test]
fn each_kind_of_change_has_its_letter_and_says_what_changed() {
    if again_inside("each_kind_of_change_has_its_letter_and_says_what_changed") {
        return;
    }
    let world = World::new();
    let host = world.host();
    for name in ["content", "longer", "mode", "gone", "same", "touched", "type", "xattr"] {
        fs::write(host.join(name), name).unwrap();
    }
    fs::create_dir_all(host.join("dir/sub")).unwrap();
    fs::write(host.join("dir/sub/file"), "x").unwrap();
    fs::create_dir(host.join("emptied")).unwrap();
    fs::write(host.join("emptied/old"), "x").unwrap();
    world.mount(&[], false);
    let at = |name: &str| world.merged().join(name);
    fs::write(at("content"), "CONTENT").unwrap();
    fs::write(at("longer"), "longer than it was").unwrap();
    fs::set_permissions(at("mode"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::remove_file(at("gone")).unwrap();
    fs::write(at("same"), "SAME").unwrap();
    fs::write(at("same"), "same").unwrap();
    fs::File::options().append(true).open(at("touched")).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    fs::remove_file(at("type")).unwrap();
    fs::create_dir(at("type")).unwrap();
    fs::write(at("type/inside"), "x").unwrap();
    rustix::fs::lsetxattr(at("xattr"), "user.x", b"1", rustix::fs::XattrFlags::empty()).unwrap();
    fs::remove_dir_all(at("dir")).unwrap();
    fs::remove_dir_all(at("emptied")).unwrap();
    fs::create_dir(at("emptied")).unwrap();
    fs::create_dir(at("new")).unwrap();
    std::os::unix::fs::symlink("/nowhere", at("new/link")).unwrap();
    world.unmount();
    let wanted = [
        "M /content content",
        "D /dir",
        "D /emptied/old",
        "D /gone",
        "M /longer content,size",
        "M /mode mode",
        "A /new",
        "A /new/link",
        "T /type",
        "A /type/inside",
        "M /xattr xattrs",
    ];
    assert_eq!(world.lines(), wanted);
    let all = world.changes_with(Options { times: true, same: true });
    assert!(all.iter().any(|c| line(c) == "M /touched time"));
    assert!(all.iter().any(|c| line(c) == "= /same" || line(c) == "M /same time"));
    let was = all.iter().find(|c| c.path == Path::new("/longer")).and_then(|c| Some((c.was?.size, c.is?.size)));
    assert_eq!(was, Some((6, 18)));
}

/// Only host root's overlays rename directories of the host in place.
#[test]
fn a_renamed_directory_is_one_change() {
    if !host_root() || again_inside("a_renamed_directory_is_one_change") {
        return;
    }
    let world = World::new();
    fs::create_dir_all(world.host().join("a/b/c")).unwrap();
    fs::create_dir_all(world.host().join("target")).unwrap();
    for name in ["a/one", "a/b/two", "a/b/c/three"] {
        fs::write(world.host().join(name), name).unwrap();
    }
    world.mount(&[], true);
    let at = |name: &str| world.merged().join(name);
    fs::rename(at("a/b"), at("target/moved")).unwrap();
    fs::rename(at("target/moved/c"), at("target/moved/C")).unwrap();
    fs::write(at("target/moved/two"), "changed!").unwrap();
    fs::rename(at("a"), at("z")).unwrap();
    fs::create_dir(at("a")).unwrap();
    world.unmount();
    let wanted = [
        "A /a",
        "R /target/moved from /a/b",
        "R /target/moved/C from /a/b/c",
        "M /target/moved/two content,size",
        "R /z from /a",
    ];
    assert_eq!(world.lines(), wanted);
}

/// A program renames, writes and deletes all the time: what it leaves alone is told whole, and nothing fails.
#[test]
fn what_moves_meanwhile_does_no_harm() {
    if again_inside("what_moves_meanwhile_does_no_harm") {
        return;
    }
    let world = World::new();
    let mut random = Random::new(2);
    fs::create_dir(world.host().join("busy")).unwrap();
    random::grow(&world.host().join("busy"), &mut random, 40);
    world.mount(&[], true);
    let still = world.merged().join("still");
    fs::create_dir(&still).unwrap();
    for n in 0..100 {
        fs::write(still.join(format!("{n}")), format!("{n}")).unwrap();
    }
    let busy = world.merged().join("busy");
    meanwhile(
        || drop(random::change(&busy, &mut random, false)),
        || {
            for _ in 0..200 {
                let mut view = View::open(&world.layer, &world.host(), owners()).unwrap();
                let mut changes = hurdle_layer::walk(&mut view, Options::default()).unwrap_or_else(|e| panic!("{e}"));
                hurdle_layer::patch(&view, &changes, &mut std::io::sink()).unwrap_or_else(|e| panic!("patch: {e}"));
                hurdle_layer::tarball(&view, &changes, &mut std::io::sink()).unwrap_or_else(|e| panic!("tar: {e}"));
                hurdle_layer::join_renames(&view, &mut changes).unwrap_or_else(|e| panic!("renames: {e}"));
                world.layer.size().unwrap();
                let told = letters(&changes).into_iter().filter(|line| line.starts_with("A /still/")).count();
                assert_eq!(told, 100);
            }
        },
    );
    world.unmount();
}
