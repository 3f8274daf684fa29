//! What holds for the source tree itself: arrows point down, unsafe code in one crate, short files, none forgotten.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use hurdle_tests::source::root;
use serde_json::Value;

/// A file this long is asking to be split.
const LONGEST: usize = 700;

/// All files of the source tree whose name ends with `suffix`.
fn files(suffix: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut pending = vec![root().to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in std::fs::read_dir(&directory).expect("the source tree can be read") {
            let path = entry.expect("the source tree can be read").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                if name != "target" && name != ".git" {
                    pending.push(path);
                }
            } else if name.ends_with(suffix) {
                found.push(path);
            }
        }
    }
    assert!(!found.is_empty(), "the source tree has files *{suffix}");
    found
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

struct Package {
    floor: Option<u64>,
    manifest: PathBuf,
    /// Packages of this workspace that it uses, tests and benchmarks apart.
    uses: Vec<String>,
}

/// The workspace as cargo sees it.
fn packages() -> BTreeMap<String, Package> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["metadata", "--format-version", "1", "--no-deps", "--offline"]).current_dir(root());
    let output = command.output().expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo prints JSON");
    let package = |package: &Value| {
        let text = |value: &Value| value.as_str().expect("a string").to_owned();
        let inside = |dependency: &&Value| dependency["path"].is_string() && dependency["kind"] != "dev";
        let dependencies = package["dependencies"].as_array().expect("a list");
        let uses = dependencies.iter().filter(inside).map(|dependency| text(&dependency["name"])).collect();
        let floor = package["metadata"]["hurdle"]["floor"].as_u64();
        (text(&package["name"]), Package { floor, manifest: text(&package["manifest_path"]).into(), uses })
    };
    metadata["packages"].as_array().expect("a list").iter().map(package).collect()
}

#[test]
fn dependencies_point_down() {
    let packages = packages();
    assert!(packages.len() > 10);
    let mut wrong = Vec::new();
    for (name, package) in &packages {
        let Some(floor) = package.floor else {
            wrong.push(format!("{name} has no [package.metadata.hurdle] floor"));
            continue;
        };
        for used in &package.uses {
            match packages[used].floor {
                Some(below) if below < floor => {}
                other => wrong.push(format!("{name} (floor {floor}) uses {used} (floor {other:?})")),
            }
        }
        let server = package.manifest.components().any(|part| part.as_os_str() == "servers");
        if server && package.uses.iter().any(|used| used == "hurdle-core") {
            wrong.push(format!("{name} is a server and uses the core"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn unsafe_code_is_in_one_crate() {
    let mut wrong = Vec::new();
    for (name, package) in packages() {
        let manifest = read(&package.manifest);
        if !manifest.contains("[lints]\nworkspace = true") {
            wrong.push(format!("{name} does not take the workspace's lints, which deny unsafe code"));
        }
    }
    let sys = root().join("crates/sys");
    // Spelled so that this file does not find itself.
    let exceptions = ["allow", "expect", "warn"].map(|level| format!("{level}(unsafe{}code", '_'));
    for path in files(".rs").iter().filter(|path| !path.starts_with(&sys)) {
        let text = read(path);
        if exceptions.iter().any(|exception| text.contains(exception)) {
            wrong.push(format!("{} makes an exception", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn files_are_short() {
    let long = |path: &PathBuf| {
        let lines = read(path).lines().count();
        (lines > LONGEST).then(|| format!("{}: {lines} lines", path.display()))
    };
    let wrong: Vec<String> = files(".rs").iter().filter_map(long).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A source file that no `mod` names is compiled and tested by nobody.
#[test]
fn no_source_file_is_forgotten() {
    let mut wrong = Vec::new();
    for path in files(".rs") {
        let name = path.file_stem().expect("a file").to_string_lossy().into_owned();
        let directory = path.parent().expect("a file");
        let directory_name = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // Cargo finds these by itself: crate roots, build scripts, and each test, example, benchmark and fuzz target.
        let entry = ["lib", "main", "build"].contains(&name.as_str());
        let target = ["tests", "examples", "benches", "bin", "fuzz_targets"];
        // trybuild's cases are named by a pattern in their test.
        let case =
            path.components().any(|part| ["ui", "cases", "compile"].iter().any(|name| part.as_os_str() == *name));
        if entry || case || target.contains(&directory_name.as_str()) {
            continue;
        }
        let (module, parents) = if name == "mod" {
            let above = directory.parent().expect("a module");
            (directory_name.clone(), candidates(above))
        } else {
            (name, candidates(directory))
        };
        let declared = |parent: &PathBuf| {
            let text = std::fs::read_to_string(parent).unwrap_or_default();
            text.lines().any(|line| line.trim().ends_with(&format!("mod {module};")))
        };
        if !parents.iter().any(declared) {
            wrong.push(format!("{}: no `mod {module};`", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The files that may declare the modules of a directory.
fn candidates(directory: &Path) -> Vec<PathBuf> {
    let mut found = vec![directory.join("lib.rs"), directory.join("main.rs"), directory.join("mod.rs")];
    found.push(directory.with_extension("rs"));
    // A test, an example or a benchmark with modules beside it.
    let siblings = std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    found.extend(siblings.filter(|path| path.extension().is_some_and(|extension| extension == "rs")));
    found
}

#[test]
fn no_test_target_is_switched_off() {
    for (name, package) in packages() {
        let manifest = read(&package.manifest);
        for switch in ["autotests = false", "test = false", "doctest = false", "harness = false"] {
            assert!(!manifest.contains(switch), "{name}: {switch}");
        }
    }
}

/// The README, the continuous integration and this project's own command for it agree.
#[test]
fn ci_runs_what_the_readme_says() {
    let command = "cargo xtask ci";
    assert!(read(&root().join("README.md")).contains(command), "README.md tells of `{command}`");
    assert!(read(&root().join(".ci/run")).contains(command), ".ci/run calls `{command}`");
}

/// What a user has to write for a server of his own: at most 40 lines, in one file.
#[test]
fn a_server_of_ones_own_is_short() {
    let text = read(&root().join("libs/server/examples/greet.rs"));
    assert!(text.lines().count() <= 40, "{} lines", text.lines().count());
    assert!(text.contains("fn main()") && text.contains("interface!") && !text.contains("\nmod "));
}

/// The same of a net server, alone or between others: at most 60 lines.
#[test]
fn a_net_server_of_ones_own_is_short() {
    for name in ["refuse", "slow", "count"] {
        let text = read(&root().join(format!("libs/netstack/examples/{name}.rs")));
        assert!(
            text.lines().count() <= 60 && text.contains("impl Between for"),
            "{name}: {} lines",
            text.lines().count()
        );
    }
}

/// What docs/security.md says is held is held by a test: each that it names is there.
#[test]
fn security_names_tests_that_exist() {
    let text = read(&root().join("docs/security.md"));
    let plain = |word: &&str| {
        word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_') && word.matches('_').count() > 2
    };
    let names: Vec<&str> = text.split('`').skip(1).step_by(2).filter(plain).collect();
    assert!(names.len() > 20, "{names:?}");
    let tests: String = files(".rs").iter().map(|path| read(path)).collect();
    let missing: Vec<&&str> = names.iter().filter(|name| !tests.contains(&format!("#[test]\nfn {name}()"))).collect();
    assert_eq!(missing, [&""; 0], "docs/security.md names tests that are not there");
}
