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

/// What it is at: number, state, where in the kernel, in which system call, command.
pub(crate) fn described(pid: i32) -> String {
    let state = read(pid, "stat").rsplit_once(") ").map_or(String::new(), |(_, rest)| rest.chars().take(1).collect());
    let [at, call] = ["wchan", "syscall"].map(|file| read(pid, file).trim().to_owned());
    format!("{pid} {state} {at} [{call}] {}", command_line(pid))
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
    rollup(pid, &["Pss:"])
}

/// Of that, what is its own making, and no page of a file that others have in memory too.
pub(crate) fn own_memory(pid: i32) -> Result<u64> {
    rollup(pid, &["Pss_Anon:", "Pss_Shmem:"])
}

/// The sum of these lines of /proc/PID/smaps_rollup, in KiB.
fn rollup(pid: i32, names: &[&str]) -> Result<u64> {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))
        .map_err(|error| format!("memory of {pid} ({}): {error}", command_line(pid)))?;
    let line = |name: &&str| rollup.lines().find_map(|line| line.strip_prefix(*name)?.trim().strip_suffix(" kB"));
    let all: Option<Vec<&str>> = names.iter().map(line).collect();
    all.ok_or("no Pss line")?.into_iter().try_fold(0, |sum, number| Ok(sum + number.trim().parse::<u64>()?))
}
