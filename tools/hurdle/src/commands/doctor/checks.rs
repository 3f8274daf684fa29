//! What is tried, in the order in which it is told: the table of checks, and those about limits and ids. Each runs in a
//! process of its own, as the calling user, and does what the server that needs it does.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use hurdle_proto::plan::Plan;
use hurdle_proto::spec::Spec;
use hurdle_sys::ns::{self, Extent, Ids, Namespaces};
use hurdle_sys::process::{self, effective_ids, numbers::SIGKILL};

use super::trouble::{Outcome, Report, Step, Trouble};
use super::{files, traps, world};

/// One facility.
pub(crate) struct Check {
    pub(crate) name: &'static str,
    /// Without it a standard server or a part of every environment fails.
    pub(crate) required: bool,
    pub(crate) needed_by: &'static str,
    pub(crate) run: fn(&Report) -> Outcome,
}

const fn required(name: &'static str, needed_by: &'static str, run: fn(&Report) -> Outcome) -> Check {
    Check { name, required: true, needed_by, run }
}

const fn optional(name: &'static str, needed_by: &'static str, run: fn(&Report) -> Outcome) -> Check {
    Check { name, required: false, needed_by, run }
}

/// All of them. The first is what nearly all others stand on.
pub(crate) const CHECKS: &[Check] = &[
    required("user-namespace", "every environment: one of its own, no root", world::user_namespace),
    required("fresh-proc", "proc=own: a pid namespace and its /proc", world::fresh_proc),
    required("network", "net=none, net=local: a network namespace with loopback", world::network),
    required("own-root", "fs=root:DIR: binds, tmpfs, devpts, pivot_root", world::own_root),
    required("trap", "net=local: a system call is trapped and answered", traps::answer),
    required("trap-fd", "net=local: a trapped call is answered with a socket", traps::give_fd),
    required("trap-inside", "net=local: memory and fds of a trapped program", traps::look_inside),
    required("socket-mark", "net=local: options are kept in the socket itself", files::socket_mark),
    required("memfd-seal", "every server: messages larger than a frame", files::sealed_memory),
    optional("sync-wake-up", "net=local: traps without a change of CPU", traps::sync_wake_up),
    optional("id-ranges", "auth=root: more than one id inside (chown, su, apt)", id_ranges),
    optional("limits", "hundreds of environments side by side", limits),
    optional("fuse", "fs=cow, for a user who is not root", files::fuse),
    optional("overlay", "fs=cow: changes kept apart", files::overlay),
    optional("landlock", "fs, auth, proc: servers that reach no more than they need", walls),
];

/// Landlock, whichever version.
fn walls(report: &Report) -> Outcome {
    report.at(Step::Prepare);
    match hurdle_sys::landlock::version() {
        0 => Err(report.wrong("the kernel has no Landlock, or it is not among the modules of lsm=")),
        _ => Ok(()),
    }
}

/// Id maps with ranges, written as `--auth root` has them written.
fn id_ranges(report: &Report) -> Outcome {
    let refuse = |said: String| Trouble { step: Step::Ranges, errno: 0, said };
    let root = effective_ids().0 == 0;
    let mut plan = report.try_to(Step::Prepare, Plan::new)?;
    if !root {
        report.at(Step::Ranges);
        let spec: Spec = "root,ids=range".parse().map_err(|e| report.wrong(format!("{e}")))?;
        hurdle_auth::plan(&spec, false, &mut plan).map_err(|e| refuse(e.to_string()))?;
    }
    let stay = || -> i32 {
        if ns::die_with_parent().is_err() {
            return 1;
        }
        loop {
            std::thread::park();
        }
    };
    let child = report.try_to(Step::Namespaces, || ns::clone_init(Namespaces::USER, stay))?;
    report.at(Step::Ranges);
    let both = [(Ids::Users, "newuidmap", &plan.ids.users), (Ids::Groups, "newgidmap", &plan.ids.groups)];
    let written = both.into_iter().try_for_each(|(ids, helper, extents)| {
        if root {
            return report.try_to(Step::Ranges, || ns::write_map(Some(child.pid), ids, extents));
        }
        map(helper, child.pid, extents).map_err(refuse)
    });
    let lines = fs::read_to_string(format!("/proc/{}/uid_map", child.pid)).map_or(0, |map| map.lines().count());
    let _ = process::signal(&child.pidfd, SIGKILL);
    let _ = process::wait(Some(child.pid));
    written?;
    if lines == plan.ids.users.len() { Ok(()) } else { Err(report.wrong("the map is not what was written")) }
}

fn map(helper: &str, pid: i32, extents: &[Extent]) -> Result<(), String> {
    let numbers = extents.iter().flat_map(|e| [e.inside, e.outside, e.count]).map(|n| n.to_string());
    let output = Command::new(helper)
        .arg(pid.to_string())
        .args(numbers)
        .env("PATH", "/usr/bin:/bin:/usr/local/bin")
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("{helper} can't be run: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{helper} refused: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

/// What an environment takes of each limit is small: a hundred of them need a few hundred.
const ENOUGH: u64 = 512;

fn limits(report: &Report) -> Outcome {
    report.at(Step::Limits);
    let host = super::host::Host::read();
    let own = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let cgroup = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mut all = host.namespace_limits;
    let of = |name: &str, limit: Option<u64>| limit.map(|limit| (name.to_string(), limit));
    // The hard one: hurdle raises the other to it by itself.
    all.extend(of("files", limit(&own, "Max open files", 1)));
    if effective_ids().0 != 0 {
        all.extend(of("processes", limit(&own, "Max processes", 0)));
    }
    all.extend(of("pids.max", most_pids(&cgroup, pids_max)));
    match all.iter().filter(|(_, limit)| *limit < ENOUGH).min_by_key(|(_, limit)| *limit) {
        Some((name, limit)) => Err(report.wrong(format!("{name} is {limit}"))),
        None => Ok(()),
    }
}

/// The soft (0) or the hard (1) limit in /proc/PID/limits; `None` if it is unlimited.
fn limit(limits: &str, name: &str, column: usize) -> Option<u64> {
    limits.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().nth(column)?.parse().ok())
}

/// The lowest limit of the caller's control group and those above it; `None` if none is set.
fn most_pids(cgroup: &str, pids_max: impl Fn(&Path) -> Option<u64>) -> Option<u64> {
    let group = Path::new(cgroup.lines().find_map(|line| line.strip_prefix("0::"))?);
    group.ancestors().filter_map(pids_max).min()
}

fn pids_max(group: &Path) -> Option<u64> {
    let dir = Path::new("/sys/fs/cgroup").join(group.strip_prefix("/").unwrap_or(group));
    fs::read_to_string(dir.join("pids.max")).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_by_column() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
                    Max processes             unlimited            63204                processes \n\
                    Max open files            1024                 524288               files     \n";
        assert_eq!(limit(text, "Max open files", 0), Some(1024));
        assert_eq!(limit(text, "Max open files", 1), Some(524_288));
        assert_eq!(limit(text, "Max processes", 0), None, "unlimited is no limit");
        assert_eq!(limit(text, "Max threads", 0), None);
    }

    #[test]
    fn the_lowest_control_group_counts() {
        let groups = "1:name=systemd:/x\n0::/user.slice/session.scope\n";
        let limits = |session, slice| {
            move |group: &Path| match group.to_str() {
                Some("/user.slice/session.scope") => session,
                Some("/user.slice") => slice,
                _ => None,
            }
        };
        assert_eq!(most_pids(groups, limits(None, None)), None);
        assert_eq!(most_pids(groups, limits(None, Some(300))), Some(300));
        assert_eq!(most_pids(groups, limits(Some(20), Some(300))), Some(20));
        assert_eq!(most_pids("4:memory:/a\n", |_| Some(1)), None, "only version 2 is read");
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<&str> = CHECKS.iter().map(|check| check.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), CHECKS.len());
    }
}
