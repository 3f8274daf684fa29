//! An environment that stands.

use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitStatus, Output};
use std::time::{Duration, Instant};

use hurdle_proto::core::{EnvInfo, Swapped, core};
use hurdle_proto::process::proc;
use hurdle_proto::spec::Spec;
use hurdle_sys::process::{self, Until, numbers};
use hurdle_wire::{Channel, Router};

use crate::grant::{self, Granted};
use crate::{Builder, Child, Error, Program};

/// How long a core has to take its environment down; then it is killed, which does the same.
const PATIENCE: Duration = Duration::from_secs(5);

/// A child `hurdle run`, and the channel that holds it.
#[derive(Debug)]
pub(crate) struct Held {
    /// Dropped first: its end is that of the environment, for which the child is then waited.
    pub(crate) core: core::Client,
    pub(crate) _child: Holder,
}

/// The child.
#[derive(Debug)]
pub(crate) struct Holder {
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
}

impl Drop for Holder {
    fn drop(&mut self) {
        if !process::poll(&[(self.pidfd.as_fd(), Until::Readable)], Some(Instant::now() + PATIENCE))
            .is_ok_and(|ended| ended[0])
        {
            let _ = process::signal(&self.pidfd, numbers::SIGKILL);
        }
        let _ = process::wait_end(self.pid);
    }
}

/// An environment. It ends when this is dropped, or with the process: every process, mount and socket of it is gone then.
#[derive(Debug)]
pub struct Environment {
    held: Held,
    name: String,
    granted: std::sync::Mutex<Vec<Granted>>,
}

impl Environment {
    /// One about to be: everything is shared where nothing else is said.
    pub fn builder() -> Builder {
        Builder::default()
    }

    pub(crate) fn new(held: Held, name: String) -> Environment {
        Environment { held, name, granted: std::sync::Mutex::default() }
    }

    /// Its name, for the `hurdle` command.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What `hurdle ls` shows.
    ///
    /// # Errors
    /// [`Error::Call`]: it has ended.
    pub fn info(&self) -> Result<EnvInfo, Error> {
        Ok(self.held.core.info().wait()?)
    }

    /// Starts a program in it.
    ///
    /// # Errors
    /// [`Error::Call`] with the errno of the exec, or because it has ended.
    pub fn spawn(&self, program: Program) -> Result<Child, Error> {
        let (status, status_end) = process::pipe()?;
        let message = program.message(status_end)?;
        let pid = self.held.core.spawn(message).wait()?;
        Ok(Child::new(pid, status, proc::Client::from(self.server("proc")?)))
    }

    /// Runs a program to its end, and returns what it wrote.
    ///
    /// # Errors
    /// As [`Environment::spawn`].
    pub fn output(&self, program: Program) -> Result<Output, Error> {
        let read = |(reader, writer): (std::io::PipeReader, std::io::PipeWriter)| {
            let mut text = Vec::new();
            let thread = std::thread::Builder::new()
                .spawn(move || std::io::Read::read_to_end(&mut { reader }, &mut text).map(|_| text))?;
            Ok::<_, Error>((writer, thread))
        };
        let ((out, stdout), (err, stderr)) = (read(std::io::pipe()?)?, read(std::io::pipe()?)?);
        let mut child = self.spawn(program.stdout(out).stderr(err))?;
        let status = child.wait()?;
        let text = |thread: std::thread::JoinHandle<std::io::Result<Vec<u8>>>| {
            thread.join().unwrap_or_else(|_| Err(std::io::Error::other("the reader ended")))
        };
        Ok(Output { status, stdout: text(stdout)?, stderr: text(stderr)? })
    }

    /// Waits until it ends by another's hand (`hurdle kill`): the status of its first program, which does nothing.
    ///
    /// # Errors
    /// [`Error::Call`]: it ended before it could say so.
    pub fn wait(&self) -> Result<ExitStatus, Error> {
        Ok(ExitStatus::from_raw(self.held.core.wait().deadline(Duration::MAX).wait()?))
    }

    /// Gives an interface to another server while programs run: `swap("net", "none")`.
    ///
    /// # Errors
    /// [`Error::Spec`], or [`Error::Call`] with the reason.
    pub fn swap(&self, interface: &str, spec: &str) -> Result<Swapped, Error> {
        let spec = spec.parse::<Spec>()?.from_directory(&std::env::current_dir()?);
        Ok(self.held.core.swap(interface.into(), spec).wait()?)
    }

    /// Grants it an interface that this process serves, for as long as the environment is: who may call the environment's servers
    /// (`hurdle rpc`, [`Environment::client`]) can call it.
    ///
    /// # Errors
    /// [`Error::Call`]: it has a server for this interface already.
    pub fn grant(&self, interface: &str, service: impl Into<Router>) -> Result<(), Error> {
        let granted = grant::start(&self.held.core, interface, service.into())?;
        self.granted.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(granted);
        Ok(())
    }

    /// A client of one of its servers: `env.client::<net::Client>("net")`.
    ///
    /// # Errors
    /// [`Error::Call`]: it has none of this name, or it can't be called.
    pub fn client<C: From<Channel>>(&self, interface: &str) -> Result<C, Error> {
        Ok(C::from(self.server(interface)?))
    }

    fn server(&self, interface: &str) -> Result<Channel, Error> {
        Ok(Channel::from(self.held.core.lookup(interface.into()).wait()?.into_owned()?))
    }
}
