//! A program in an environment, as `std::process` has one outside.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::time::Instant;

use hurdle_proto::init::{self, Group};
use hurdle_proto::process::proc;
use hurdle_sys::process::{self, State, Status, Until, numbers};
use hurdle_wire::Fd;

use crate::Error;

/// A program about to be. It gets this process's environment variables and standard files where nothing else is said.
#[derive(Debug)]
pub struct Program {
    argv: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    cwd: Option<OsString>,
    stdio: [Option<OwnedFd>; 3],
    fds: Vec<(i32, OwnedFd)>,
}

impl Program {
    /// Looked up in `PATH`, in the environment.
    pub fn new(program: impl Into<OsString>) -> Program {
        Program {
            argv: vec![program.into()],
            env: std::env::vars_os().collect(),
            cwd: None,
            stdio: [None, None, None],
            fds: Vec::new(),
        }
    }

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, argument: impl Into<OsString>) -> Program {
        self.argv.push(argument.into());
        self
    }

    /// More arguments.
    #[must_use]
    pub fn args<A: Into<OsString>>(mut self, arguments: impl IntoIterator<Item = A>) -> Program {
        self.argv.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// An environment variable.
    #[must_use]
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl Into<OsString>) -> Program {
        self.env.retain(|(other, _)| other != key.as_ref());
        self.env.push((key.as_ref().into(), value.into()));
        self
    }

    /// No environment variables but those that follow.
    #[must_use]
    pub fn env_clear(mut self) -> Program {
        self.env.clear();
        self
    }

    /// Its working directory, inside; else that of this process, if it is there.
    #[must_use]
    pub fn current_dir(mut self, directory: impl Into<OsString>) -> Program {
        self.cwd = Some(directory.into());
        self
    }

    /// Its standard input: a file, an end of a pipe, a socket.
    #[must_use]
    pub fn stdin(mut self, file: impl Into<OwnedFd>) -> Program {
        self.stdio[0] = Some(file.into());
        self
    }

    /// Its standard output.
    #[must_use]
    pub fn stdout(mut self, file: impl Into<OwnedFd>) -> Program {
        self.stdio[1] = Some(file.into());
        self
    }

    /// Its standard error.
    #[must_use]
    pub fn stderr(mut self, file: impl Into<OwnedFd>) -> Program {
        self.stdio[2] = Some(file.into());
        self
    }

    /// Grants it an open file, directory or socket, under this number (3 to 255), whatever the environment itself can reach.
    #[must_use]
    pub fn fd(mut self, number: i32, file: impl Into<OwnedFd>) -> Program {
        self.fds.push((number, file.into()));
        self
    }

    pub(crate) fn message(self, status: OwnedFd) -> io::Result<init::Program> {
        let bytes = OsString::into_vec;
        let [input, output, errors] = self.stdio;
        let file =
            |chosen: Option<OwnedFd>, number| chosen.map_or_else(|| process::duplicate(number), Ok).map(Fd::from);
        let cwd = match self.cwd {
            Some(directory) => directory,
            None => std::env::current_dir().map_or_else(|_| "/".into(), OsString::from),
        };
        Ok(init::Program {
            argv: self.argv.into_iter().map(bytes).collect(),
            env: self.env.into_iter().map(|(key, value)| (bytes(key), bytes(value))).collect(),
            cwd: bytes(cwd),
            stdio: [file(input, 0)?, file(output, 1)?, file(errors, 2)?],
            fds: self.fds.into_iter().map(|(number, fd)| (number, Fd::from(fd))).collect(),
            status: Fd::from(status),
            group: Group::Session,
        })
    }
}

/// A program that was started. It goes on when this is dropped, and ends with the environment.
#[derive(Debug)]
pub struct Child {
    pid: i32,
    status: File,
    ended: Option<ExitStatus>,
    proc: proc::Client,
}

impl Child {
    pub(crate) fn new(pid: i32, status: OwnedFd, proc: proc::Client) -> Child {
        Child { pid, status: File::from(status), ended: None, proc }
    }

    /// Its process id, as the environment has it.
    pub fn id(&self) -> i32 {
        self.pid
    }

    /// Waits for its end. If the environment ends, it was killed with it.
    ///
    /// # Errors
    /// None that a caller could cause.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        loop {
            if let Some(status) = self.ended {
                return Ok(status);
            }
            self.hear()?;
        }
    }

    /// Its status, if it has ended.
    ///
    /// # Errors
    /// None that a caller could cause.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        while self.ended.is_none() && process::poll(&[(self.status.as_fd(), Until::Readable)], Some(Instant::now()))?[0]
        {
            self.hear()?;
        }
        Ok(self.ended)
    }

    /// The next change of its state.
    fn hear(&mut self) -> io::Result<()> {
        let status = Status::read(&mut self.status)?.unwrap_or(Status(numbers::SIGKILL));
        if matches!(status.state(), State::Exited(_) | State::Killed(_)) {
            self.ended = Some(ExitStatus::from_raw(status.0));
        }
        Ok(())
    }

    /// Sends it a signal. One that has ended gets none.
    ///
    /// # Errors
    /// [`Error::Call`]: the environment has ended.
    pub fn signal(&mut self, signal: i32) -> Result<(), Error> {
        match self.try_wait()? {
            Some(_) => Ok(()),
            None => Ok(self.proc.signal(self.pid, signal).wait()?),
        }
    }

    /// SIGKILL.
    ///
    /// # Errors
    /// As [`Child::signal`].
    pub fn kill(&mut self) -> Result<(), Error> {
        self.signal(numbers::SIGKILL)
    }
}
