//! Layers on disk: made, opened, locked, listed, removed.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use hurdle_layer::{Error, Extent, Ids, Layer, Meta, list};
use tempfile::TempDir;

fn directory() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

fn meta() -> Meta {
    Meta::new(Ids::same())
}

#[test]
fn a_layer_comes_back_as_it_was_made() {
    let dir = directory();
    let path = dir.path().join("deep/er/one");
    let extent = Extent { inside: 0, outside: 1001, count: 1 };
    let ids = Ids { users: vec![extent], groups: vec![extent], mirrored: true };
    let mut made = Layer::create(&path, Meta::new(ids)).unwrap();
    assert_eq!(made.add_mount(Path::new("/")).unwrap(), 0);
    assert_eq!(made.add_mount(dir.path()).unwrap(), 1);
    assert_eq!(made.add_mount(Path::new("/")).unwrap(), 0, "a mount that is known is not added again");
    let opened = Layer::open(&path).unwrap();
    assert_eq!(opened.meta(), made.meta());
    assert_eq!(opened.meta().mounts[1].path, dir.path());
    for number in 0..2 {
        assert!(opened.upper(number).is_dir() && opened.work(number).is_dir());
    }
    // The environment sees the upper directory's own attributes at the mount's root.
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode();
    assert_eq!(mode(&opened.upper(1)), mode(dir.path()));
    assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o700);
    assert!(matches!(Layer::create(&path, meta()), Err(Error::Exists(_))));
    assert!(matches!(Layer::open(&dir.path().join("none")), Err(Error::Missing(_))));
    assert!(matches!(Layer::open(dir.path()), Err(Error::Damaged { .. })));
}

/// Whoever looks while others make it sees no layer, or a whole one; and one of those who make it gets it.
#[test]
fn a_layer_that_is_being_made_is_not_seen() {
    let dir = directory();
    let path = dir.path().join("one");
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(std::sync::atomic::Ordering::Relaxed) {
                let opened = Layer::open(&path);
                assert!(matches!(opened, Ok(_) | Err(Error::Missing(_))), "{opened:?}");
            }
        });
        for _ in 0..500 {
            drop(Layer::create(&path, meta()).unwrap());
            assert!(matches!(Layer::create(&path, meta()), Err(Error::Exists(_))));
            std::fs::rename(&path, dir.path().join("other")).unwrap();
            std::fs::remove_dir_all(dir.path().join("other")).unwrap();
        }
        over.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_later_version_is_refused_by_name() {
    let dir = directory();
    let path = dir.path().join("new");
    drop(Layer::create(&path, meta()).unwrap());
    std::fs::write(path.join("layer.json"), r#"{"version": 2, "created": "in another form"}"#).unwrap();
    let error = Layer::open(&path).unwrap_err();
    assert!(matches!(error, Error::Newer { found: 2, .. }), "{error}");
    assert!(error.to_string().contains("version 2"), "{error}");
    std::fs::write(
        path.join("layer.json"),
        r#"{"version": 1, "created": 0, "ids": {"users":[],"groups":[],"mirrored":false},
        "mounts": [{"path": "/", "dir": "../../etc"}]}"#,
    )
    .unwrap();
    assert!(matches!(Layer::open(&path), Err(Error::Damaged { .. })), "nothing leads out of a layer");
}

#[test]
fn a_lock_keeps_others_out_and_says_who_has_it() {
    let dir = directory();
    let path = dir.path().join("one");
    let first = Layer::create(&path, meta()).unwrap();
    let second = Layer::open(&path).unwrap();
    assert_eq!(second.in_use().unwrap(), None);
    let lock = first.lock_exclusive("environment try").unwrap();
    for error in [second.lock_exclusive("x").unwrap_err(), second.lock_shared().unwrap_err()] {
        assert!(error.to_string().contains("in use by environment try"), "{error}");
    }
    assert_eq!(second.in_use().unwrap().as_deref(), Some("environment try"));
    drop(lock);
    let shared = [second.lock_shared().unwrap(), first.lock_shared().unwrap()];
    assert!(matches!(first.lock_exclusive("x"), Err(Error::Busy { .. })));
    drop(shared);
    first.lock_exclusive("x").unwrap();
}

#[test]
fn a_base_stays_as_it_is() {
    let dir = directory();
    let at = |name: &str| dir.path().join(name);
    let base = Layer::create(&at("base"), meta()).unwrap();
    let on = |name: &str| Meta { base: Some(name.into()), ..meta() };
    Layer::create(&at("middle"), on("base")).unwrap();
    let top = Layer::create(&at("top"), on("middle")).unwrap();
    let names: Vec<String> = top.bases().unwrap().iter().map(Layer::name).collect();
    assert_eq!(names, ["middle", "base"]);
    let error = base.lock_exclusive("x").unwrap_err();
    assert!(matches!(&error, Error::Frozen { by, .. } if by == &["middle"]), "{error}");
    top.lock_exclusive("x").unwrap();
    assert!(Layer::create(&at("bad"), on("none")).is_err());
    assert!(!at("bad").exists(), "a layer that can't be made leaves nothing");
    // A loop, which no call makes.
    let json = at("base").join("layer.json");
    let text = std::fs::read_to_string(&json).unwrap();
    std::fs::write(&json, text.replacen('{', r#"{"base": "top","#, 1)).unwrap();
    assert!(matches!(top.bases(), Err(Error::Damaged { .. })));
}

#[test]
fn a_removed_layer_is_gone_with_what_it_held() {
    let dir = directory();
    let path = dir.path().join("one");
    let mut layer = Layer::create(&path, meta()).unwrap();
    layer.add_mount(dir.path()).unwrap();
    std::fs::create_dir_all(layer.upper(0).join("a/b")).unwrap();
    std::fs::write(layer.upper(0).join("a/b/file"), vec![1; 100_000]).unwrap();
    // As the kernel leaves it.
    std::fs::create_dir(layer.work(0).join("work")).unwrap();
    std::fs::set_permissions(layer.work(0).join("work"), std::fs::Permissions::from_mode(0o0)).unwrap();
    let size = layer.size().unwrap();
    assert!(size.bytes >= 100_000 && size.entries == 3, "{size:?}");
    let listed = list(dir.path()).unwrap();
    assert_eq!(listed.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(), ["one"]);
    let lock = layer.lock_exclusive("the test").unwrap();
    layer.remove(lock).unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    assert!(list(&dir.path().join("none")).unwrap().is_empty());
}
