//! All checks and tests. The closing line counts them: `N passed, N failed, N skipped`.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::docs;
use crate::shell::{Result, cargo, output, root, run as run_command, succeeds};
use crate::stage::{Stage, USER, User};

/// How long one file of end-to-end tests may take.
const LIMIT: Duration = Duration::from_secs(900);

/// What end-to-end tests read of the source tree.
const SOURCES: [&str; 2] = ["README.md", "servers/net/tests/cpython-differences.txt"];

#[derive(Debug, Default)]
struct Count {
    passed: usize,
    failed: usize,
    skipped: usize,
    /// What failed, and what was left out and why.
    notes: Vec<String>,
}

impl Count {
    fn fail(&mut self, what: impl std::fmt::Display) {
        self.failed += 1;
        self.notes.push(format!("FAILED {what}"));
    }

    fn skip(&mut self, what: &str, reason: &str) {
        self.skipped += 1;
        self.notes.push(format!("SKIP {what}: {reason}"));
    }

    /// A check that counts as one test.
    fn check(&mut self, what: &str, done: Result) {
        match done {
            Ok(()) => self.passed += 1,
            Err(error) => self.fail(format_args!("{what}: {error}")),
        }
    }
}

/// The chore. With `names`, only these files of end-to-end tests.
pub(crate) fn run(names: &[String]) -> Result {
    let begin = Instant::now();
    let mut count = Count::default();
    if names.is_empty() {
        checks(&mut count);
    }
    run_command(&mut cargo(&["build", "--release", "--package", "hurdle"]))?;
    if names.is_empty() {
        count.check("documentation", docs::run(true));
        let mut command = cargo(&["test", "--workspace", "--exclude", "hurdle-tests", "--no-fail-fast"]);
        watch("unit and integration tests", &mut command, &mut count)?;
    }
    end_to_end(names, &mut count)?;

    for note in &count.notes {
        println!("{note}");
    }
    println!("all of it took {} s", begin.elapsed().as_secs());
    println!("{} passed, {} failed, {} skipped", count.passed, count.failed, count.skipped);
    if count.failed == 0 { Ok(()) } else { Err("tests failed".into()) }
}

fn checks(count: &mut Count) {
    count.check("rustfmt", run_command(&mut cargo(&["fmt", "--all", "--check"])));
    let clippy = ["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"];
    count.check("clippy", run_command(&mut cargo(&clippy)));
    if root().join("fuzz/Cargo.toml").exists() {
        let fuzz = ["check", "--quiet", "--manifest-path", "fuzz/Cargo.toml"];
        count.check("fuzz targets compile", run_command(&mut cargo(&fuzz)));
    }
    if std::env::var_os("HURDLE_NO_DENY").is_some() {
        return count.skip("cargo deny", "HURDLE_NO_DENY is set");
    }
    if !succeeds(&mut cargo(&["deny", "--version"])) {
        return count.skip("cargo deny", "cargo-deny is not installed (cargo xtask install)");
    }
    count.check(
        "cargo deny",
        run_command(&mut cargo(&["deny", "check", "--hide-inclusion-graph", "bans", "licenses", "sources"])),
    );
    if succeeds(Command::new("timeout").arg("60").args(["cargo", "deny", "fetch", "db"]).current_dir(root())) {
        count.check("advisories", run_command(&mut cargo(&["deny", "check", "--hide-inclusion-graph", "advisories"])));
    } else {
        count.skip("cargo deny check advisories", "the advisory database cannot be fetched here");
    }
}

/// The end-to-end tests, as this user, and as an unprivileged one if this is root.
fn end_to_end(names: &[String], count: &mut Count) -> Result {
    let built = cargo(&["test", "--package", "hurdle-tests", "--no-run", "--message-format=json-render-diagnostics"])
        .stderr(Stdio::inherit())
        .output()?;
    if !built.status.success() {
        return Err("the end-to-end tests do not compile".into());
    }
    let programs = executables(&String::from_utf8_lossy(&built.stdout));
    let hurdle = release_directory()?.join("hurdle");
    let stage = Stage::new()?;
    stage.program(&hurdle, "hurdle")?;
    let source = stage.path().join("source");
    for name in SOURCES.iter().filter(|name| root().join(name).exists()) {
        let copy = source.join(name);
        std::fs::create_dir_all(copy.parent().unwrap_or(&source))?;
        std::fs::copy(root().join(name), copy)?;
    }
    let mut users = vec![User::current()];
    if users[0].id == 0 {
        match User::named(USER) {
            Some(user) => users.push(user),
            None => count.skip("end-to-end tests as an unprivileged user", "no such user (cargo xtask install)"),
        }
    } else {
        count.skip("end-to-end tests as root", "not started by root");
    }
    let mut found = false;
    for (name, program) in &programs {
        if !names.is_empty() && !names.contains(name) {
            continue;
        }
        found = true;
        let staged = stage.program(program, name)?;
        for (index, user) in users.iter().enumerate() {
            // What looks at the source tree needs the owner of the checkout, once.
            if index > 0 && name == "layout" {
                continue;
            }
            let mut command = user.command(&staged);
            let skips = stage.path().join(format!("skips-{name}-{}", user.name));
            std::fs::write(&skips, "")?;
            std::os::unix::fs::chown(&skips, Some(user.id), None)?;
            command.env("HURDLE_BIN", stage.path().join("hurdle")).env("HURDLE_SKIPS", &skips);
            command.env("HURDLE_SOURCE", &source);
            if let Some(cargo) = std::env::var_os("CARGO").filter(|_| index == 0) {
                command.env("CARGO", cargo);
                for name in ["CARGO_HOME", "RUSTUP_HOME"] {
                    command.envs(std::env::var_os(name).map(|value| (name, value)));
                }
            }
            command.current_dir(stage.path());
            watch(&format!("{name} as {}", user.name), &mut command, count)?;
            for line in std::fs::read_to_string(&skips)?.lines() {
                count.passed = count.passed.saturating_sub(1);
                count.skipped += 1;
                count.notes.push(format!("{line} (as {})", user.name));
            }
        }
        std::fs::remove_file(&staged)?;
    }
    if found { Ok(()) } else { Err(format!("no file of end-to-end tests is called {}", names.join(" or ")).into()) }
}

/// The test programs that cargo built: each one's name and path.
fn executables(messages: &str) -> Vec<(String, PathBuf)> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let test = |message: serde_json::Value| {
        let path = message["executable"].as_str().filter(|_| message["profile"]["test"] == true)?;
        Some((message["target"]["name"].as_str()?.to_owned(), PathBuf::from(path)))
    };
    let mut found: Vec<(String, PathBuf)> = messages.filter_map(test).collect();
    found.sort();
    found
}

/// Where cargo puts release builds of this workspace.
pub(crate) fn release_directory() -> Result<PathBuf> {
    let metadata = output(&mut cargo(&["metadata", "--format-version", "1", "--no-deps", "--offline"]))?;
    let metadata: serde_json::Value = serde_json::from_str(&metadata)?;
    let target = metadata["target_directory"].as_str().ok_or("cargo names no target directory")?;
    let version = output(Command::new("rustc").arg("-vV").current_dir(root()))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).ok_or("rustc names no host")?;
    Ok(Path::new(target).join(host).join("release"))
}

/// Runs tests, shows what they print, and counts the closing lines of libtest in it.
fn watch(what: &str, command: &mut Command, count: &mut Count) -> Result {
    println!("==== {what}");
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let lines = BufReader::new(child.stdout.take().ok_or("no pipe")?).lines();
    let late = Arc::new(AtomicBool::new(false));
    let guard = guard(&child, &late);
    let failed = count.failed;
    for line in lines {
        let line = line?;
        println!("{line}");
        if let Some(result) = line.strip_prefix("test result: ") {
            let number = |word: &str| {
                let at = result.split(['.', ';']).find_map(|part| part.trim().strip_suffix(word))?;
                at.trim().parse::<usize>().ok()
            };
            count.passed += number("passed").unwrap_or(0);
            count.failed += number("failed").unwrap_or(0);
            count.skipped += number("ignored").unwrap_or(0);
        } else if let Some(name) = line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED")) {
            count.notes.push(format!("FAILED {name} ({what})"));
        }
    }
    let status = child.wait()?;
    late.store(true, Ordering::Relaxed);
    let _ = guard.join();
    // A test program that died closed with no line.
    if !status.success() && count.failed == failed {
        count.fail(format_args!("{what}: {status}"));
    }
    Ok(())
}

/// A thread that kills `child` when it takes too long; setting `done` ends it.
fn guard(child: &Child, done: &Arc<AtomicBool>) -> std::thread::JoinHandle<()> {
    let (pid, done) = (child.id().to_string(), Arc::clone(done));
    std::thread::spawn(move || {
        let end = Instant::now() + LIMIT;
        while !done.load(Ordering::Relaxed) {
            if Instant::now() > end {
                eprintln!("not done after {LIMIT:?}: killed");
                let _ = Command::new("kill").args(["-9", &pid]).status();
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    })
}
