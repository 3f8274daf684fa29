//! Each interface is held against its recorded shape: numbers, names, types and marks of its calls, and the fields of those
//! types.
//!
//! A client that was built before a change must be understood after it. So a call may be added under a new number, and a
//! number may be retired; nothing else in `shapes/` may ever change. After such an addition, `HURDLE_RECORD=1 cargo test -p
//! hurdle-proto` writes the files again, and the review sees a line added. A type on the wire does not change at all: what has
//! more to say is a new type in a new call.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use hurdle_proto::{auth, core, fs, init, net, process, server};
use hurdle_wire::{Interface, shape};

const INTERFACES: [&Interface; 11] = [
    &core::core::INTERFACE,
    &core::door::INTERFACE,
    &core::porter::INTERFACE,
    &core::tracer::INTERFACE,
    &server::server::INTERFACE,
    &server::store::INTERFACE,
    &init::init::INTERFACE,
    &net::net::INTERFACE,
    &auth::auth::INTERFACE,
    &process::proc::INTERFACE,
    &fs::fs::INTERFACE,
];

const TYPES: &str = "types.txt";

/// The declarations of all types that go over the wire, without comments.
fn types() -> String {
    let mut found = Vec::new();
    for (name, text) in sources() {
        let mut lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        while let Some(line) = lines.next() {
            if !(line.starts_with("#[derive(") && line.contains("Serialize")) {
                continue;
            }
            let mut declaration = format!("{name}: ");
            for line in lines.by_ref() {
                declaration += line;
                declaration.push('\n');
                if line == "}" || line.ends_with(';') {
                    break;
                }
            }
            found.push(declaration);
        }
    }
    found.join("")
}

/// Name and text of each source file of this crate, in order.
fn sources() -> Vec<(String, String)> {
    let files = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).unwrap();
    let paths: BTreeSet<PathBuf> = files.map(|entry| entry.unwrap().path()).collect();
    let name = |path: &Path| path.file_stem().unwrap().to_string_lossy().into_owned();
    paths.iter().map(|path| (name(path), std::fs::read_to_string(path).unwrap())).collect()
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/shapes")
}

#[track_caller]
fn hold(name: &str, now: &str) {
    let path = directory().join(name);
    if std::env::var_os("HURDLE_RECORD").is_some() {
        return std::fs::write(&path, now).unwrap();
    }
    let recorded = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert_eq!(now, recorded, "{name} is not as recorded: see the head of this file");
}

#[test]
fn each_interface_is_as_recorded() {
    INTERFACES.iter().for_each(|interface| hold(&format!("{}.txt", interface.name), &shape(interface)));
}

#[test]
fn each_type_is_as_recorded() {
    let types = types();
    assert!(types.contains("pub struct Grant {") && types.contains("pub enum RightState {"), "{types}");
    hold(TYPES, &types);
}

#[test]
fn each_record_has_its_interface_and_each_interface_its_own_number() {
    let names: BTreeSet<String> = INTERFACES.iter().map(|interface| format!("{}.txt", interface.name)).collect();
    let files = std::fs::read_dir(directory()).unwrap();
    let recorded = files.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let recorded: BTreeSet<String> = recorded.filter(|name| name != TYPES).collect();
    assert_eq!(names, recorded);
    let numbers: BTreeSet<u16> = INTERFACES.iter().map(|interface| interface.number).collect();
    assert_eq!(numbers.len(), INTERFACES.len());
    // Those from 1000 on are the users' own.
    assert!(numbers.iter().all(|number| *number < 1000));
}

/// An interface that is declared here and not in the list above is held against nothing.
#[test]
fn no_interface_is_forgotten() {
    let declared: usize = sources().iter().map(|(_, text)| text.matches("hurdle_wire::interface! {").count()).sum();
    assert_eq!(declared, INTERFACES.len());
}
