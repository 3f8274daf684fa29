//! What an environment is to be.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use hurdle_proto::core::core;
use hurdle_sys::process::{self, Group, Launch};
use hurdle_sys::{memfd, seqpacket};
use hurdle_wire::{CallError, Channel};

use crate::environment::{Held, Holder};
use crate::{Environment, Error};

/// The number under which `hurdle` finds its end of the channel.
const OWNER: i32 = 3;

/// An environment about to be. Each choice reads as the option of `hurdle run` that has its name.
#[derive(Debug, Clone, Default)]
pub struct Builder {
    options: Vec<OsString>,
    binary: Option<PathBuf>,
}

impl Builder {
    fn option(mut self, name: &str, value: impl Into<OsString>) -> Builder {
        self.options.extend([name.into(), value.into()]);
        self
    }

    /// Its files: `share`, `cow`, `ro`, `root:DIR`.
    #[must_use]
    pub fn fs(self, spec: &str) -> Builder {
        self.option("--fs", spec)
    }

    /// Its network: `share`, `none`, `local`, `./mine+local`.
    #[must_use]
    pub fn net(self, spec: &str) -> Builder {
        self.option("--net", spec)
    }

    /// Who it is: `same`, `root`.
    #[must_use]
    pub fn auth(self, spec: &str) -> Builder {
        self.option("--auth", spec)
    }

    /// Its processes: `own`, `own,hostname=NAME`.
    #[must_use]
    pub fn proc(self, spec: &str) -> Builder {
        self.option("--proc", spec)
    }

    /// An interface that a program of the user's serves.
    #[must_use]
    pub fn server(self, name: &str, program: impl AsRef<Path>) -> Builder {
        let mut value = OsString::from(format!("{name}="));
        value.push(program.as_ref());
        self.option("--server", value)
    }

    /// Its name, by which `hurdle ls` and the others find it.
    #[must_use]
    pub fn name(self, name: &str) -> Builder {
        self.option("--name", name)
    }

    /// Traps what a later swap of the network needs, though `share` needs none.
    #[must_use]
    pub fn swappable(mut self) -> Builder {
        self.options.push("--swappable".into());
        self
    }

    /// The `hurdle` to run. Else it is `$HURDLE_BIN`, one beside this program or in the directory above, or one in `PATH`.
    #[must_use]
    pub fn binary(mut self, path: impl Into<PathBuf>) -> Builder {
        self.binary = Some(path.into());
        self
    }

    /// Launches it, and returns once it stands. Programs in it start with [`Environment::spawn`].
    ///
    /// # Errors
    /// [`Error::Binary`], or [`Error::Launch`] with what `hurdle` said.
    pub fn launch(&self) -> Result<Environment, Error> {
        let binary = self.binary.clone().unwrap_or_else(found);
        let (ours, theirs) = seqpacket::pair()?;
        let words = File::from(memfd::create(c"hurdle-words")?);
        let null =
            || -> std::io::Result<OwnedFd> { Ok(File::options().read(true).write(true).open("/dev/null")?.into()) };
        let argv: Vec<OsString> = [binary.clone().into(), "run".into(), "--owner".into(), OWNER.to_string().into()]
            .into_iter()
            .chain(self.options.iter().cloned())
            .chain(["--", "/proc/self/exe", "idle"].map(OsString::from))
            .collect();
        let env: Vec<(OsString, OsString)> = std::env::vars_os().collect();
        let stdio = [null()?, null()?, words.try_clone()?.into()];
        // A session of its own: what is typed on the terminal is for this program.
        let launch = Launch::new(&argv, &env, stdio)?.fd(theirs, OWNER).group(Group::Session).or_stay();
        let pid = launch.start().map_err(|e| Error::Binary(binary, e))?;
        let held = Held::new(pid, core::Client::from(Channel::from(ours)))?;
        match held.core.info().wait() {
            Ok(info) => Ok(Environment::new(held, info.name)),
            Err(CallError::Dead) => {
                drop(held);
                Err(Error::Launch(said(words)))
            }
            Err(e) => Err(e.into()),
        }
    }
}

/// The `hurdle` of this machine.
fn found() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    let beside = own.ancestors().skip(1).take(2).map(|dir| dir.join("hurdle"));
    let named = std::env::var_os("HURDLE_BIN").map(PathBuf::from);
    named.or_else(|| beside.into_iter().find(|path| path.is_file())).unwrap_or_else(|| "hurdle".into())
}

/// What it wrote to its standard error.
fn said(mut words: File) -> String {
    let mut text = String::new();
    // It wrote to the same open file, so the position is at the end.
    let _ = words.rewind().and_then(|()| words.read_to_string(&mut text));
    let text = text.trim().trim_start_matches("hurdle: ");
    if text.is_empty() { "hurdle ended without a word".into() } else { text.into() }
}

impl Held {
    /// Of a child that was just started.
    fn new(pid: i32, core: core::Client) -> Result<Held, Error> {
        match process::pidfd(pid) {
            Ok(pidfd) => Ok(Held { core, _child: Holder { pid, pidfd } }),
            Err(e) => {
                // It ends with the channel.
                drop(core);
                let _ = process::wait_end(pid);
                Err(e.into())
            }
        }
    }
}
