//! Built programs in a place that every user can read, and running them as another user.
//!
//! A checkout often lies where only its owner may look, so what an unprivileged user is to run is copied out of it.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::shell::{PATH, Result, succeeds, user_id};

/// The unprivileged user that `cargo xtask install` makes.
pub(crate) const USER: &str = "hurdle-test";

/// A directory that everybody may read, removed in the end.
#[derive(Debug)]
pub(crate) struct Stage(PathBuf);

impl Stage {
    /// An empty one.
    pub(crate) fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("xtask-stage-{}", std::process::id()));
        std::fs::create_dir(&path)?;
        std::fs::set_permissions(&path, Permissions::from_mode(0o755))?;
        Ok(Self(path))
    }

    /// Its path.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Copies a program to it as `name`, and returns where it is.
    pub(crate) fn program(&self, program: &Path, name: &str) -> Result<PathBuf> {
        let to = self.0.join(name);
        std::fs::copy(program, &to).map_err(|error| format!("{}: {error}", program.display()))?;
        std::fs::set_permissions(&to, Permissions::from_mode(0o755))?;
        Ok(to)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Directories that everybody writes to, of its own; what is at `$1` stays there.
const ALONE: &str = r#"exec 9<"$1"
for d in /run /tmp /var/tmp /dev/shm; do if [ -d $d ]; then mount -t tmpfs -o mode=1777 tmpfs $d; fi; done
mkdir -p "$1"; mount --no-canonicalize --bind /proc/self/fd/9 "$1"; exec 9<&-
ip link set lo up; shift; exec "$@""#;

/// `command` where nobody else makes mounts, abstract sockets or temporary files: in a mount and a network namespace of its own,
/// which root can make. For anybody else, `command` as it is.
pub(crate) fn alone(command: Command, stage: &Path) -> Command {
    let unshare = || {
        let mut unshare = Command::new("/usr/bin/unshare");
        unshare.args(["--mount", "--net", "--"]);
        unshare
    };
    if !succeeds(unshare().arg("true")) {
        return command;
    }
    let mut alone = unshare();
    alone.args(["/bin/sh", "-ec", ALONE, "sh"]).arg(stage).arg(command.get_program()).args(command.get_args());
    alone.env_clear().envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    alone
}

/// A user of this machine.
#[derive(Debug, Clone)]
pub(crate) struct User {
    /// His name.
    pub(crate) name: String,
    /// His user id.
    pub(crate) id: u32,
    group: u32,
    home: String,
}

impl User {
    /// The user called `name`; none if there is none.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::find(|fields| fields[0] == name)
    }

    /// The user who runs this.
    pub(crate) fn current() -> Self {
        let id = user_id();
        let unknown = || Self { name: id.to_string(), id, group: id, home: "/".to_owned() };
        Self::find(|fields| fields[2] == id.to_string()).unwrap_or_else(unknown)
    }

    fn find(wanted: impl Fn(&[&str]) -> bool) -> Option<Self> {
        let passwd = std::fs::read_to_string("/etc/passwd").ok()?;
        let lines = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
        let fields = lines.into_iter().find(|fields| fields.len() >= 7 && wanted(fields))?;
        let (id, group) = (fields[2].parse().ok()?, fields[3].parse().ok()?);
        Some(Self { name: fields[0].to_owned(), id, group, home: fields[5].to_owned() })
    }

    /// A command that runs as this user, with few and known environment variables.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = if self.id == user_id() {
            Command::new(program)
        } else {
            let mut setpriv = Command::new("/usr/bin/setpriv");
            let (user, group) = (format!("--reuid={}", self.id), format!("--regid={}", self.group));
            setpriv.args([&user, &group, "--init-groups", "--inh-caps=-all", "--"]).arg(program);
            setpriv
        };
        command.env_clear().env("PATH", PATH).env("HOME", &self.home).env("USER", &self.name).env("LC_ALL", "C.UTF-8");
        command.env("SHELL", "/bin/bash");
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alone_there_is_the_stage_and_nothing_else() {
        let stage = Stage::new().unwrap();
        std::fs::write(stage.path().join("here"), "").unwrap();
        let mut look = User::current().command(Path::new("/bin/sh"));
        look.args(["-c", "ls /tmp; ls \"$PLACE\"; cat /proc/net/unix | grep -c @"]).env("PLACE", stage.path());
        let seen = alone(look, stage.path()).output().unwrap();
        let seen = String::from_utf8(seen.stdout).unwrap();
        let name = stage.path().file_name().unwrap().to_str().unwrap();
        if user_id() == 0 {
            assert_eq!(seen, format!("{name}\nhere\n0\n"));
        } else {
            assert!(seen.contains("\nhere\n"), "{seen}");
        }
    }
}
