//! Rows of copy-on-write files: against native, the kernel's own overlay, fuse-overlayfs and bubblewrap.
//!
//! *Warm* is measured in an environment that has done the same before, so the caches of the kernel are all it needs. *Cold* is a fresh
//! environment after the kernel has dropped its caches. A layer is in memory, but for rows that say so.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use super::rows::{Bound, Found, Measure, Place, Row, Side};
use super::workload;
use crate::install::PACKAGES;
use crate::shell::{Result, output};

const COW: Side = Side::Hurdle(&["--fs", "cow"]);
const COW_ROOT: Side = Side::Hurdle(&["--fs", "cow", "--auth", "root"]);
const COW_DISK: Side = Side::Hurdle(&["--fs", "cow:bench", "--on-exit", "discard"]);
const BWRAP: Side = Side::Bwrap(&["--unshare-all", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"]);
const READ: &[Side] = &[Side::Native, COW, Side::Overlay { disk: false }, Side::FuseOverlayfs { disk: false }];
const DISK: &[Side] = &[Side::Native, COW_DISK, Side::Overlay { disk: true }, Side::FuseOverlayfs { disk: true }];

const fn row(name: &'static str, what: &'static str, measure: Measure, sides: &'static [Side], bound: Bound) -> Row {
    Row { name, what, unit: "ms", place: Place::Anywhere, measure, sides, bound }
}

const fn warm(work: fn(&Path) -> Result<f64>, prepare: fn(&Path) -> Result, rounds: usize) -> Measure {
    Measure::Inside { work, prepare, rounds }
}

const fn cold(work: fn(&Path) -> Result<f64>, prepare: fn(&Path) -> Result) -> Measure {
    Measure::Cold { work, prepare, rounds: 5 }
}

/// What is read: at most 5 % above the kernel's own overlay as root, 15 % as a user.
const AS_OVERLAY: Bound = Bound::AtMostFor { root: 1.05, user: 1.15, against: "overlay" };
const HALF: Bound = Bound::AtMost(0.5, "fuse-overlayfs");
const WRITTEN: Bound = Bound::AtMost(1.3, "overlay");

/// All of them, in the order of docs/performance.md.
pub(crate) const ROWS: &[Row] = &[
    row(
        "cow-launch",
        "`hurdle run --fs cow -- true`",
        Measure::Launch,
        &[Side::Native, COW, BWRAP],
        Bound::AtMostFor { root: 1.5, user: 2.0, against: "bwrap" },
    ),
    row(
        "cow-c-build",
        "a C build, make -j2, warm",
        warm(c_build, workload::c_project, 9),
        &[Side::Native, COW, Side::Overlay { disk: false }],
        Bound::AtMostFor { root: 1.03, user: 1.10, against: "native" },
    ),
    row("cow-find", "find over /usr, warm", warm(find_again, nothing, 15), READ, AS_OVERLAY),
    row("cow-tar", "tar of /usr/share, warm", warm(tar_again, nothing, 7), READ, AS_OVERLAY),
    row("cow-git", "git status, 20,000 files, warm", warm(git_again, repository, 21), READ, AS_OVERLAY),
    row("cow-find-cold", "find over /usr, cold", cold(find, nothing), READ, HALF),
    row("cow-tar-cold", "tar of /usr/share, cold", cold(tar, nothing), READ, HALF),
    row("cow-git-cold", "git status, 20,000 files, cold", cold(git, repository), READ, HALF),
    row("cow-untar", "untar of 20,000 files", warm(untar, tarball, 9), READ, WRITTEN),
    row("cow-rm", "rm -rf of 20,000 files just made", warm(remove, tarball, 9), READ, WRITTEN),
    row(
        "cow-rm-host",
        "rm -rf of 20,000 files of the host",
        warm(remove_old, tree, 9),
        &[COW, Side::Overlay { disk: false }, Side::FuseOverlayfs { disk: false }],
        WRITTEN,
    ),
    row("cow-untar-disk", "untar of 20,000 files, layer on disk", warm(untar, tarball, 9), DISK, WRITTEN),
    row("cow-rm-disk", "rm -rf of 20,000 files just made, layer on disk", warm(remove, tarball, 9), DISK, WRITTEN),
    row(
        "cow-apt",
        "apt-get install of about 50 packages (against an overlay: natively it would change the machine)",
        warm(apt, packages, 3),
        &[COW_ROOT, Side::RootOverlay],
        WRITTEN,
    ),
    row(
        "cow-diff",
        "`hurdle diff` of 20,000 changed files",
        Measure::Own { measure: diff, work: change },
        &[],
        Bound::Below(1000.0),
    ),
    row(
        "cow-commit",
        "`hurdle commit` of 20,000 files, against `cp -a` of them",
        Measure::Own { measure: commit, work: add },
        &[],
        Bound::AtMost(1.2, "cp -a"),
    ),
];

/// Files of the trees.
const FILES: usize = 20_000;

fn nothing(_: &Path) -> Result {
    Ok(())
}

fn milliseconds(work: impl FnOnce() -> Result) -> Result<f64> {
    let begin = Instant::now();
    work()?;
    Ok(begin.elapsed().as_secs_f64() * 1e3)
}

/// The best of three after one that is not counted: how fast it is when all is in the caches.
fn again(work: fn(&Path) -> Result<f64>, files: &Path) -> Result<f64> {
    work(files)?;
    let times: Result<Vec<f64>> = (0..3).map(|_| work(files)).collect();
    times?.into_iter().min_by(f64::total_cmp).ok_or_else(|| "no time".into())
}

fn c_build(files: &Path) -> Result<f64> {
    workload::c_build(files)?;
    workload::c_build(files)
}

fn find(_: &Path) -> Result<f64> {
    // A user may not look into each directory, which find says at its end.
    milliseconds(|| Ok(Command::new("find").args(["/usr", "-size", "+100000k"]).output().map(drop)?))
}

fn find_again(files: &Path) -> Result<f64> {
    again(find, files)
}

fn tar(_: &Path) -> Result<f64> {
    // Through a pipe: tar does not read what goes to /dev/null.
    let command = "tar -cf - -C / usr/share | wc -c";
    milliseconds(|| output(Command::new("/bin/sh").args(["-c", command])).map(drop))
}

fn tar_again(files: &Path) -> Result<f64> {
    again(tar, files)
}

fn git(files: &Path) -> Result<f64> {
    milliseconds(|| workload::git(&files.join("tree20k"), &["status", "--porcelain"]).map(drop))
}

fn git_again(files: &Path) -> Result<f64> {
    again(git, files)
}

/// 20,000 small files in 400 directories.
fn grow(root: &Path, text: &str) -> Result {
    for directory in 0..400 {
        let path = root.join(format!("{}/{}", directory / 20, directory % 20));
        std::fs::create_dir_all(&path)?;
        for file in 0..FILES / 400 {
            std::fs::write(path.join(format!("{file}.txt")), format!("{directory} {file} {text}\n").repeat(10 + file))?;
        }
    }
    Ok(())
}

fn tree(files: &Path) -> Result {
    let root = files.join("tree20k");
    if root.exists() { Ok(()) } else { grow(&root, "host") }
}

fn repository(files: &Path) -> Result {
    tree(files)?;
    let root = files.join("tree20k");
    if !root.join(".git").exists() {
        workload::git(&root, &["init", "-q"])?;
        workload::git(&root, &["add", "."])?;
        workload::git(&root, &["commit", "-q", "-m", "all"])?;
    }
    Ok(())
}

fn tarball(files: &Path) -> Result {
    tree(files)?;
    if !files.join("tree20k.tar").exists() {
        output(
            Command::new("tar")
                .arg("-C")
                .arg(files)
                .args(["--exclude=.git", "-cf"])
                .arg(files.join("tree20k.tar"))
                .arg("tree20k"),
        )?;
    }
    Ok(())
}

fn untar(files: &Path) -> Result<f64> {
    let out = files.join("out");
    std::fs::create_dir(&out)?;
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(&out).args(["--no-same-owner", "-xf"]).arg(files.join("tree20k.tar"));
    let time = milliseconds(|| output(&mut tar).map(drop))?;
    // Natively it would stay.
    std::fs::remove_dir_all(&out)?;
    Ok(time)
}

fn remove(files: &Path) -> Result<f64> {
    let out = files.join("out");
    std::fs::create_dir(&out)?;
    output(Command::new("tar").arg("-C").arg(&out).args(["--no-same-owner", "-xf"]).arg(files.join("tree20k.tar")))?;
    milliseconds(|| output(Command::new("rm").arg("-rf").arg(&out)).map(drop))
}

fn remove_old(files: &Path) -> Result<f64> {
    milliseconds(|| output(Command::new("rm").arg("-rf").arg(files.join("tree20k"))).map(drop))
}

fn packages(_: &Path) -> Result {
    let there = std::fs::read_dir(PACKAGES).is_ok_and(|mut entries| entries.next().is_some());
    if there { Ok(()) } else { Err(format!("no packages in {PACKAGES} (cargo xtask install)").into()) }
}

fn apt(_: &Path) -> Result<f64> {
    let script = format!(
        "printf '#!/bin/sh\\nexit 101\\n' > /usr/sbin/policy-rc.d && chmod 755 /usr/sbin/policy-rc.d
        export DEBIAN_FRONTEND=noninteractive; exec apt-get install -q -y --no-install-recommends {PACKAGES}/*.deb"
    );
    milliseconds(|| output(Command::new("/bin/sh").args(["-c", &script])).map(drop))
}

/// Inside: changes half of the tree's files twice over, by what they hold and by a new one beside each.
fn change(files: &Path) -> Result<f64> {
    for directory in 0..200 {
        let path = files.join(format!("tree20k/{}/{}", directory / 20, directory % 20));
        for file in 0..FILES / 400 {
            std::fs::write(path.join(format!("{file}.txt")), "changed\n")?;
            std::fs::write(path.join(format!("{file}.new")), "new\n")?;
        }
    }
    Ok(0.0)
}

/// Inside: a tree of new files.
fn add(files: &Path) -> Result<f64> {
    grow(&files.join("added"), "added")?;
    Ok(0.0)
}

/// Runs the work of `row` in the layer `bench`.
fn in_layer(stage: &Path, row: &str) -> Result {
    let mut command = Command::new(stage.join("hurdle"));
    command.args(["run", "--fs", "cow:bench", "--on-exit", "keep", "--"]).arg(stage.join("xtask"));
    output(command.arg("inside").arg(row).arg(stage.join("files"))).map(drop)
}

fn hurdle(stage: &Path, arguments: &[&str]) -> Result {
    output(Command::new(stage.join("hurdle")).args(arguments)).map(drop)
}

fn diff(stage: &Path, quick: bool) -> Result<Found> {
    tree(&stage.join("files"))?;
    in_layer(stage, "cow-diff")?;
    let times: Result<Vec<f64>> =
        (0..if quick { 1 } else { 7 }).map(|_| milliseconds(|| hurdle(stage, &["diff", "bench"]))).collect();
    hurdle(stage, &["discard", "bench"])?;
    Ok(vec![("hurdle".to_owned(), times?)])
}

fn commit(stage: &Path, quick: bool) -> Result<Found> {
    let (added, copy) = (stage.join("files/added"), stage.join("files/copy"));
    let (mut committed, mut copied) = (Vec::new(), Vec::new());
    for _ in 0..if quick { 1 } else { 5 } {
        in_layer(stage, "cow-commit")?;
        committed.push(milliseconds(|| hurdle(stage, &["commit", "bench"]))?);
        let _ = hurdle(stage, &["discard", "bench"]);
        copied.push(milliseconds(|| output(Command::new("cp").arg("-a").arg(&added).arg(&copy)).map(drop))?);
        std::fs::remove_dir_all(&added)?;
        std::fs::remove_dir_all(&copy)?;
    }
    Ok(vec![("hurdle".to_owned(), committed), ("cp -a".to_owned(), copied)])
}
