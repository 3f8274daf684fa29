//! What /proc tells of processes. One that has ended meanwhile has nothing.

use crate::shell::Result;

fn read(pid: i32, file: &str) -> String {
    std::fs::read(format!("/proc/{pid}/{file}")).map_or(String::new(), |bytes| String::from_utf8_lossy(&bytes).into())
}

/// All numbers of processes.
pub(crate) fn all() -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

fn parent(pid: i32) -> Option<i32> {
    // The name, in parentheses, may contain anything.
    read(pid, "stat").rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

/// What the main thread of a process has started.
pub(crate) fn children(pid: i32) -> Vec<i32> {
    read(pid, &format!("task/{pid}/children")).split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// A process and all its descendants.
pub(crate) fn family(root: i32) -> Vec<i32> {
    let pids = all();
    let mut found = vec![root];
    let mut next = 0;
    while next < found.len() {
        let above = found[next];
        found.extend(pids.iter().copied().filter(|pid| parent(*pid) == Some(above)));
        next += 1;
    }
    found
}

/// Its arguments, as a person would read them.
pub(crate) fn command_line(pid: i32) -> String {
    read(pid, "cmdline").replace('\0', " ")
}

/// The name of its main thread.
pub(crate) fn name(pid: i32) -> String {
    read(pid, "comm").trim().to_owned()
}

/// Its environment variables.
pub(crate) fn variables(pid: i32) -> String {
    read(pid, "environ")
}

/// How many fds it has open.
pub(crate) fn fds(pid: i32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// How many mounts it sees.
pub(crate) fn mounts(pid: i32) -> usize {
    read(pid, "mountinfo").lines().count()
}

/// PSS in KiB.
pub(crate) fn pss(pid: i32) -> Result<u64> {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))
        .map_err(|error| format!("memory of {pid} ({}): {error}", command_line(pid)))?;
    let pss = rollup.lines().find_map(|line| line.strip_prefix("Pss:")?.trim().strip_suffix(" kB"));
    Ok(pss.ok_or("no Pss line")?.trim().parse()?)
}
