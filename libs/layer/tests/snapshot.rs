//! Snapshots of layers, taken while the kernel's overlay writes them.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use common::random::{self, Random};
use common::snapshot::{differences, tree};
use common::{World, again_inside, host_root, meanwhile};
use hurdle_layer::{Error, Layer, list, snapshot, sweep};

#[test]
fn a_snapshot_shows_what_the_layer_showed() {
    if again_inside("a_snapshot_shows_what_the_layer_showed") {
        return;
    }
    for seed in 0..20 {
        let mut random = Random::new(seed);
        let world = World::new();
        random::grow(&world.host(), &mut random, 40);
        world.mount(&[], true);
        (0..30).for_each(|_| drop(random::change(&world.merged(), &mut random, host_root())));
        let _lock = world.layer.lock_exclusive("environment try").unwrap();
        let is = tree(&world.merged());
        let path = world.dir.path().join("copy");
        let done = snapshot(&world.layer, &path).unwrap();
        assert!(done.settled && done.copied > 0, "{done:?}");
        // What the environment does now is not in it.
        (0..10).for_each(|_| drop(random::change(&world.merged(), &mut random, host_root())));
        world.unmount();
        let copy = World { layer: Layer::open(&path).unwrap(), ..world };
        assert_eq!(copy.layer.in_use().unwrap(), None);
        copy.mount(&[], true);
        let shown = tree(&copy.merged());
        copy.unmount();
        let differences = differences(&is, &shown);
        assert!(differences.is_empty(), "seed {seed}: {differences:#?}");
        assert!(matches!(snapshot(&copy.layer, &path), Err(Error::Exists(_))));
    }
}

/// A program renames, writes and deletes all the time: what it leaves alone is whole, and nothing fails.
#[test]
fn what_moves_meanwhile_does_no_harm() {
    if again_inside("what_moves_meanwhile_does_no_harm") {
        return;
    }
    let world = World::new();
    world.mount(&[], true);
    let at = |name: &str| world.merged().join(name);
    fs::create_dir_all(at("still/a/b")).unwrap();
    for n in 0..300 {
        fs::write(at(&format!("still/a/b/{n}")), format!("{n}")).unwrap();
    }
    fs::create_dir(at("busy")).unwrap();
    let still = tree(&at("still"));
    let mut random = Random::new(1);
    meanwhile(
        || drop(random::change(&at("busy"), &mut random, false)),
        || {
            for n in 0..10 {
                let path = world.dir.path().join(format!("copy{n}"));
                let done = snapshot(&world.layer, &path).unwrap_or_else(|e| panic!("{e}"));
                assert!(done.copied >= 300, "{done:?}");
                let layer = Layer::open(&path).unwrap();
                assert_eq!(layer.meta().created, world.layer.meta().created);
                let differences = differences(&still, &tree(&layer.upper(0).join("still")));
                // Of attributes, the kernel's own lie there too.
                let real: Vec<_> = differences.iter().filter(|line| !line.contains("overlay")).collect();
                assert!(real.is_empty(), "{real:#?}");
            }
        },
    );
    world.unmount();
}

#[test]
fn what_a_killed_snapshot_leaves_is_swept() {
    let dir = tempfile::tempdir().unwrap();
    let meta = hurdle_layer::Meta::new(common::ids());
    let left = Layer::create(&dir.path().join(".new-1-copy"), meta.clone()).unwrap();
    fs::create_dir(dir.path().join(".removed-1-old")).unwrap();
    Layer::create(&dir.path().join("whole"), meta).unwrap();
    assert_eq!(list(dir.path()).unwrap().len(), 1, "it is no layer yet");
    let lock = left.lock_exclusive("a snapshot").unwrap();
    sweep(dir.path()).unwrap();
    assert!(dir.path().join(".new-1-copy").exists(), "one that is being made stays");
    drop(lock);
    let swept = || {
        sweep(dir.path()).unwrap();
        fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>()
    };
    // What another test starts has the lock too until its exec.
    let end = Instant::now() + Duration::from_secs(10);
    while swept() != ["whole"] && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(swept(), ["whole"]);
    sweep(Path::new("/nonexistent")).unwrap();
}
