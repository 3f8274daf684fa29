//! All checks and tests. The closing line counts them: `N passed, N failed, N skipped`.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::docs;
use crate::shell::{Result, cargo, output, root, run as run_command, succeeds};
use crate::soak;
use crate::stage::{Stage, USER, User, alone};

/// How long one file of end-to-end tests may take.
const LIMIT: Duration = Duration::from_secs(900);

/// The package of the end-to-end tests.
const END_TO_END: &str = "hurdle-tests";

/// Files of tests that look at the source tree, which needs the owner of the checkout, or that hold one system against
/// another, which is the same for each user and takes minutes.
const ONCE: [&str; 2] = ["layout", "cpython"];

/// Files of tests that look at all the mounts, sockets and files of the host: what others make meanwhile is not theirs to see.
const ALONE: [&str; 2] = ["leaks", "cow_leaks"];

/// Where the examples are on the stage.
const EXAMPLES: &str = "examples";

/// What end-to-end tests read of the source tree.
const SOURCES: [&str; 2] = ["README.md", "servers/net/tests/cpython-differences.txt"];

#[derive(Debug, Default)]
struct Count {
    passed: usize,
    failed: usize,
    skipped: usize,
    /// What failed, and what was left out and why.
    notes: Vec<String>,
    /// How long each phase took.
    times: Vec<(String, Duration)>,
}

impl Count {
    /// Notes how long `what` took since `begin`.
    fn took(&mut self, what: &str, begin: Instant) {
        self.times.push((what.to_owned(), begin.elapsed()));
    }

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
    let phase = Instant::now();
    run_command(&mut cargo(&["build", "--release", "--package", "hurdle"]))?;
    count.took("release build", phase);
    let phase = Instant::now();
    let built = build()?;
    count.took("build of all tests", phase);
    if names.is_empty() {
        count.check("documentation", docs::run(true));
        let phase = Instant::now();
        for program in built.iter().filter(|program| program.test && program.package != END_TO_END) {
            program.run_by_itself(&mut count)?;
        }
        watch("examples in comments", &mut cargo(&["test", "--workspace", "--doc", "--quiet"]), &mut count)?;
        count.took("unit and integration tests", phase);
    }
    end_to_end(names, &built, &mut count)?;
    if names.is_empty() {
        let phase = Instant::now();
        match soak::lacks() {
            Some(program) => count.skip("soak", &format!("{program} is not installed (cargo xtask install)")),
            None => count.check("soak", soak::briefly()),
        }
        count.took("soak", phase);
    }

    for note in &count.notes {
        println!("{note}");
    }
    for (what, time) in count.times.iter().filter(|(_, time)| time.as_secs() > 0) {
        println!("{:6} s  {what}", time.as_secs());
    }
    println!("{:6} s  all of it", begin.elapsed().as_secs());
    println!("{} passed, {} failed, {} skipped", count.passed, count.failed, count.skipped);
    if count.failed == 0 { Ok(()) } else { Err("tests failed".into()) }
}

fn checks(count: &mut Count) {
    let phase = Instant::now();
    count.check("rustfmt", run_command(&mut cargo(&["fmt", "--all", "--check"])));
    let clippy = ["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"];
    count.check("clippy", run_command(&mut cargo(&clippy)));
    if root().join("fuzz/Cargo.toml").exists() {
        let fuzz = ["check", "--quiet", "--manifest-path", "fuzz/Cargo.toml"];
        count.check("fuzz targets compile", run_command(&mut cargo(&fuzz)));
    }
    count.took("rustfmt, clippy, fuzz targets", phase);
    let phase = Instant::now();
    deny(count);
    count.took("cargo deny", phase);
}

fn deny(count: &mut Count) {
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
fn end_to_end(names: &[String], built: &[Program], count: &mut Count) -> Result {
    let programs: Vec<&Program> =
        built.iter().filter(|program| program.test && program.package == END_TO_END).collect();
    if let Some(name) = names.iter().find(|name| !programs.iter().any(|program| program.name == **name)) {
        return Err(format!("no file of end-to-end tests is called {name}").into());
    }
    let stage = Stage::new()?;
    stage.program(&release_directory()?.join("hurdle"), "hurdle")?;
    // Apart: a file of tests may be called as the example that it tests.
    std::fs::create_dir(stage.path().join(EXAMPLES))?;
    for example in built.iter().filter(|program| !program.test) {
        stage.program(&example.path, &format!("{EXAMPLES}/{}", example.name))?;
    }
    let source = stage.path().join("source");
    for name in SOURCES.iter().filter(|name| root().join(name).exists()) {
        let copy = source.join(name);
        std::fs::create_dir_all(copy.parent().unwrap_or(&source))?;
        std::fs::copy(root().join(name), copy)?;
    }
    for (index, user) in users(count).iter().enumerate() {
        let phase = Instant::now();
        for program in programs.iter().filter(|program| names.is_empty() || names.contains(&program.name)) {
            if index > 0 && ONCE.contains(&program.name.as_str()) {
                continue;
            }
            let begin = Instant::now();
            program.run_as(user, &stage, count)?;
            count.took(&format!("  {} as {}", program.name, user.name), begin);
        }
        count.took(&format!("end-to-end tests as {}", user.name), phase);
    }
    Ok(())
}

/// Who runs the end-to-end tests: this user first.
fn users(count: &mut Count) -> Vec<User> {
    let mut users = vec![User::current()];
    if users[0].id != 0 {
        count.skip("end-to-end tests as root", "not started by root");
        return users;
    }
    match User::named(USER) {
        Some(user) => users.push(user),
        None => count.skip("end-to-end tests as an unprivileged user", "no such user (cargo xtask install)"),
    }
    users
}

/// A test or an example that cargo built.
#[derive(Debug)]
struct Program {
    name: String,
    package: String,
    /// Where the package's Cargo.toml is.
    directory: PathBuf,
    path: PathBuf,
    test: bool,
}

/// Builds all tests and examples of the workspace. All at once, so that nothing is built twice for another choice of features.
fn build() -> Result<Vec<Program>> {
    let mut command = cargo(&["test", "--workspace", "--no-run", "--message-format=json-render-diagnostics"]);
    let output = command.stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err("the tests do not compile".into());
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let program = |message: serde_json::Value| {
        let directory = Path::new(message["manifest_path"].as_str()?).parent()?.to_owned();
        let manifest = std::fs::read_to_string(directory.join("Cargo.toml")).ok()?;
        let package = manifest.lines().find_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"'))?;
        let test = message["profile"]["test"] == true;
        // Programs of the workspace come along, built for tests.
        if !test && message["target"]["kind"][0] != "example" {
            return None;
        }
        Some(Program {
            name: message["target"]["name"].as_str()?.to_owned(),
            package: package.to_owned(),
            directory,
            path: message["executable"].as_str()?.into(),
            test,
        })
    };
    let mut found: Vec<Program> = messages.filter_map(program).collect();
    found.sort_by(|one, other| (&one.package, &one.name).cmp(&(&other.package, &other.name)));
    Ok(found)
}

impl Program {
    /// Runs it where and as `cargo test` does.
    fn run_by_itself(&self, count: &mut Count) -> Result {
        let mut command = Command::new(&self.path);
        command.current_dir(&self.directory).env("CARGO_MANIFEST_DIR", &self.directory);
        command.env("CARGO_PKG_NAME", &self.package);
        watch(&format!("{} of {}", self.name, self.package), &mut command, count)
    }

    /// Runs it as `user`, in a place that he can read.
    fn run_as(&self, user: &User, stage: &Stage, count: &mut Count) -> Result {
        let program = stage.program(&self.path, &self.name)?;
        let skips = stage.path().join(format!("skips-{}-{}", self.name, user.name));
        std::fs::write(&skips, "")?;
        std::os::unix::fs::chown(&skips, Some(user.id), None)?;
        let mut command = user.command(&program);
        if ALONE.contains(&self.name.as_str()) {
            command = alone(command, stage.path());
        }
        command.env("HURDLE_BIN", stage.path().join("hurdle")).env("HURDLE_SKIPS", &skips);
        command.env("HURDLE_EXAMPLES", stage.path().join(EXAMPLES)).env("HURDLE_SOURCE", stage.path().join("source"));
        command.envs(std::env::var_os("HURDLE_DEATHS").map(|often| ("HURDLE_DEATHS", often)));
        if ONCE.contains(&self.name.as_str()) {
            for name in ["CARGO", "CARGO_HOME", "RUSTUP_HOME"] {
                command.envs(std::env::var_os(name).map(|value| (name, value)));
            }
        }
        watch(&format!("{} as {}", self.name, user.name), command.current_dir(stage.path()), count)?;
        for line in std::fs::read_to_string(&skips)?.lines() {
            count.passed = count.passed.saturating_sub(1);
            count.skipped += 1;
            count.notes.push(format!("{line} (as {})", user.name));
        }
        std::fs::remove_file(program)?;
        Ok(())
    }
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
