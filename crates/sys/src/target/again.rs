//! Has trapped calls made again that a server received and never answered: nobody else can answer those, since nobody else knows them.

use std::io;

use nix::errno::Errno;

/// Interrupts each thread of process `init`, and of all below it, that sleeps in one of the system calls `calls` (ptrace(2): SEIZE,
/// INTERRUPT, DETACH). If that one waits for the answer of a trapped call, the kernel restarts it, and it is received anew; one that
/// is under way natively goes on. Who holds the listener must not receive any more. Returns how many there were; threads that
/// somebody else traces are left alone.
///
/// # Errors
/// Those of reading /proc/PID/task of `init`.
pub fn call_again(init: i32, calls: &[i64]) -> io::Result<usize> {
    let mut found = 0;
    let mut pending = vec![init];
    while let Some(pid) = pending.pop() {
        let tasks = match std::fs::read_dir(format!("/proc/{pid}/task")) {
            Err(error) if pid == init => return Err(error),
            // It has ended meanwhile.
            Err(_) => continue,
            Ok(tasks) => tasks,
        };
        for task in tasks.flatten() {
            let read = |file: &str| std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
            pending.extend(read("children").split_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
            let tid = task.file_name().to_str().and_then(|tid| tid.parse::<i32>().ok());
            // The number, and arguments; a word for one that is in none (proc_pid_syscall(5)).
            let sleeps = read("syscall").split(' ').next().and_then(|number| number.parse::<i64>().ok());
            if let Some(tid) = tid.filter(|_| sleeps.is_some_and(|call| calls.contains(&call))) {
                found += usize::from(interrupt(tid).is_ok());
            }
        }
    }
    Ok(found)
}

fn interrupt(tid: i32) -> io::Result<()> {
    let ask = |request: libc::c_uint| {
        let none = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: none of the three requests reads or writes memory.
        Errno::result(unsafe { libc::ptrace(request, tid, none, none) })
    };
    ask(libc::PTRACE_SEIZE)?;
    ask(libc::PTRACE_INTERRUPT)?;
    let mut status = 0;
    // SAFETY: waitpid(2) stores one int.
    crate::process::retry(|| Errno::result(unsafe { libc::waitpid(tid, &raw mut status, libc::__WALL) }))?;
    if libc::WIFSTOPPED(status) {
        ask(libc::PTRACE_DETACH)?;
    }
    Ok(())
}
