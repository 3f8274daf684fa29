//! What the tests and benchmarks need on a bare Debian machine. Does nothing where it is there.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::shell::{self, Result, cargo, installed, succeeds, user_id};
use crate::stage::USER;

/// What is needed, and the Debian package that has it. A name without `/` is a program.
const NEEDED: &[(&str, &str)] = &[
    ("bwrap", "bubblewrap"),
    ("fuse-overlayfs", "fuse-overlayfs"),
    ("newuidmap", "uidmap"),
    ("redis-server", "redis-server"),
    ("redis-benchmark", "redis-tools"),
    ("nginx", "nginx-light"),
    ("wrk", "wrk"),
    ("curl", "curl"),
    ("iperf3", "iperf3"),
    ("/usr/lib/postgresql", "postgresql"),
    ("pgbench", "postgresql-client-common"),
    ("/usr/bin/python3", "python3"),
    ("/usr/bin/pip3", "python3-pip"),
    ("/usr/lib/python3.11/test/test_socket.py", "libpython3.11-testsuite"),
    ("node", "nodejs"),
    ("npm", "npm"),
    ("go", "golang-go"),
    ("javac", "default-jdk-headless"),
    ("busybox", "busybox-static"),
    ("git", "git"),
    ("gcc", "gcc"),
    ("make", "make"),
    ("ip", "iproute2"),
    ("ps", "procps"),
    ("hostname", "hostname"),
    ("useradd", "passwd"),
    ("setsid", "util-linux"),
    ("mkfs.xfs", "xfsprogs"),
    ("mkfs.ext4", "e2fsprogs"),
    ("find", "findutils"),
    ("tar", "tar"),
];

/// Programs that cargo builds. The versions are pinned: a newer one may refuse what this one allows.
const DENY: &str = "cargo-deny@0.20.2";
const PJDFSTEST: &str = "pjdfstest@0.2.2";

/// Where Debian packages lie that are downloaded here, and installed by tests and benchmarks alone, inside.
pub(crate) const PACKAGES: &str = "/var/cache/hurdle-test/packages";

/// A set of about fifty with what they depend on: programs, libraries, servers with users and settings of their own.
const SET: &str = "apache2 bc cmatrix cowsay dc ed exim4-daemon-light figlet fish hello indent lua5.4 mc nano ncdu php-cli rlwrap ruby \
                   screen sl socat tree uuid-runtime zsh";

fn packages(missing: &[&str]) -> Result {
    // Debian starts a service when it installs one; these tests start their own.
    let policy = Path::new("/usr/sbin/policy-rc.d");
    let ours = !policy.exists();
    if ours {
        std::fs::write(policy, "#!/bin/sh\nexit 101\n")?;
        std::fs::set_permissions(policy, Permissions::from_mode(0o755))?;
    }
    let apt = |arguments: &[&str]| {
        shell::run(Command::new("apt-get").args(arguments).env("DEBIAN_FRONTEND", "noninteractive"))
    };
    let done = apt(&["update", "-q"])
        .and_then(|()| apt(&[&["install", "-q", "-y", "--no-install-recommends"], missing].concat()));
    if ours {
        std::fs::remove_file(policy)?;
    }
    done
}

/// The chore.
pub(crate) fn run() -> Result {
    let there = |name: &str| if name.contains('/') { Path::new(name).exists() } else { installed(name).is_some() };
    let missing: Vec<&str> = NEEDED.iter().filter(|(name, _)| !there(name)).map(|(_, package)| *package).collect();
    if user_id() != 0 {
        if !missing.is_empty() {
            return Err(format!("as root: apt-get install {}", missing.join(" ")).into());
        }
        eprintln!("not root: the user {USER} and the devices are left as they are");
        return Ok(());
    }
    if !missing.is_empty() {
        packages(&missing)?;
    }
    user()?;
    // As distributions with udev have them.
    for device in ["/dev/fuse", "/dev/net/tun"] {
        if Path::new(device).exists() {
            std::fs::set_permissions(device, Permissions::from_mode(0o666))?;
        }
    }
    downloads()?;
    pjdfstest()?;
    deny()
}

/// Packages for the tests and benchmarks that install some.
fn downloads() -> Result {
    let directory = Path::new(PACKAGES);
    let complete = directory.join("complete");
    if std::fs::read_to_string(&complete).is_ok_and(|set| set == SET) {
        return Ok(());
    }
    std::fs::create_dir_all(directory.join("partial"))?;
    shell::run(Command::new("apt-get").args(["update", "-q"]))?;
    let mut apt = Command::new("apt-get");
    apt.args(["install", "-q", "-y", "--no-install-recommends", "--download-only"]);
    apt.arg(format!("-oDir::Cache::archives={PACKAGES}")).args(SET.split_whitespace());
    shell::run(&mut apt)?;
    std::fs::write(complete, SET)?;
    Ok(())
}

/// The suite of POSIX file system calls, where every user can run it. A debug build is done in half a minute.
fn pjdfstest() -> Result {
    if installed("pjdfstest").is_some() {
        return Ok(());
    }
    let arguments = ["install", "--quiet", "--locked", "--debug", "--no-track", "--root", "/usr/local", PJDFSTEST];
    // Elsewhere, so that this workspace's settings are not used to build it.
    shell::run(cargo(&arguments).current_dir("/").env_remove("CARGO_TARGET_DIR"))
}

/// The unprivileged user of the tests, with ranges of ids of its own.
fn user() -> Result {
    let passwd = std::fs::read_to_string("/etc/passwd")?;
    if !passwd.lines().any(|line| line.starts_with(&format!("{USER}:"))) {
        shell::run(Command::new("useradd").args(["--create-home", "--shell", "/bin/bash", USER]))?;
    }
    for (file, option) in [("/etc/subuid", "--add-subuids"), ("/etc/subgid", "--add-subgids")] {
        let ranges = std::fs::read_to_string(file).unwrap_or_default();
        if !ranges.lines().any(|line| line.starts_with(&format!("{USER}:"))) {
            shell::run(Command::new("usermod").args([option, "700000-765535", USER]))?;
        }
    }
    Ok(())
}

/// cargo-deny. Its debug build is done in a minute, an optimized one in many, and it runs for seconds only.
fn deny() -> Result {
    if std::env::var_os("HURDLE_NO_DENY").is_some() || succeeds(&mut cargo(&["deny", "--version"])) {
        return Ok(());
    }
    // Elsewhere, so that this workspace's settings are not used to build it.
    shell::run(
        cargo(&["install", "--quiet", "--locked", "--debug", DENY]).current_dir("/").env_remove("CARGO_TARGET_DIR"),
    )
}
