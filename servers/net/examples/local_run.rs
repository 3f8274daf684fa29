//! Runs a command under `--net local` without the rest of hurdle: a network namespace (for others than root in a user
//! namespace), the filter, and a [`Server`] in this process. For the server's own tests and measurements:
//!
//!     local_run CMD…

use hurdle_net::local::Server;
use hurdle_sys::ns::{self, Extent, Ids, Namespaces};
use hurdle_sys::seccomp::{Filter, Ledger, ListenerFlags};
use hurdle_sys::target::Tasks;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

/// In the environment of the second stage, which becomes the command.
const STAGE: &str = "LOCAL_RUN_STAGE";

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let result = match std::env::var(STAGE) {
        Err(_) => outside(&arguments),
        Ok(_) => inside(&arguments).map(|()| ExitCode::FAILURE),
    };
    result.unwrap_or_else(|error| {
        eprintln!("local_run: {error}");
        ExitCode::from(125)
    })
}

fn outside(arguments: &[std::ffi::OsString]) -> io::Result<ExitCode> {
    let (mut ours, theirs) = UnixStream::pair()?;
    let mut child = Command::new(std::env::current_exe()?)
        .args(arguments)
        .env(STAGE, "1")
        .stdin(OwnedFd::from(theirs))
        .spawn()?;
    let mut number = [0; 4];
    if ours.read_exact(&mut number).is_err() {
        return Ok(ExitCode::from(child.wait()?.code().unwrap_or(125) as u8));
    }
    let trap = Tasks::new().fd(child.id(), i32::from_ne_bytes(number))?;
    let server = Server::start(trap, Ledger::create()?, None)?;
    ours.write_all(&[1])?;
    let status = child.wait()?;
    if std::env::var_os("LOCAL_RUN_COUNT").is_some() {
        eprintln!("{:?}", server.counters());
    }
    server.stop();
    use std::os::unix::process::ExitStatusExt;
    Ok(ExitCode::from(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)) as u8))
}

fn inside(arguments: &[std::ffi::OsString]) -> io::Result<()> {
    let mut outside = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let (uid, gid) = hurdle_sys::process::effective_ids();
    if uid == 0 {
        ns::unshare(Namespaces::NET)?;
    } else {
        ns::unshare(Namespaces::NET.with(Namespaces::USER))?;
        ns::deny_setgroups(None)?;
        ns::write_map(None, Ids::Users, &[Extent { inside: uid, outside: uid, count: 1 }])?;
        ns::write_map(None, Ids::Groups, &[Extent { inside: gid, outside: gid, count: 1 }])?;
    }
    ns::loopback_up()?;
    ns::no_new_privileges()?;
    let filter = Filter::new(&hurdle_netstack::table::rules(&hurdle_net::table::rows()))?;
    let trap = filter.install(ListenerFlags::default())?;
    outside.write_all(&trap.as_raw_fd().to_ne_bytes())?;
    outside.read_exact(&mut [0])?;
    drop((trap, outside));
    let null = std::fs::File::open("/dev/null")?;
    hurdle_sys::process::replace(null.as_fd(), 0)?;
    let Some((program, rest)) = arguments.split_first() else { return Err(io::ErrorKind::InvalidInput.into()) };
    Err(Command::new(program).args(rest).env_remove(STAGE).exec())
}
