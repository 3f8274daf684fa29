//! What a body works with: a directory, ports, programs that end with it.

use std::fs::{File, Permissions};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::finish::{Finished, finish, stop_group, wait};
use crate::poll::until;
use crate::skip;

/// A port that nobody uses here, nor any client: not one of those that Linux gives to clients, whose ends would keep it for a minute
/// (TIME_WAIT). Others might take it before its user does; two ask for the same one in 20,000.
pub fn port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let random = std::process::id().wrapping_mul(7919);
    let mut ports =
        std::iter::repeat_with(|| 10_000 + random.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % 20_000);
    let free = ports
        .find_map(|port| TcpListener::bind(("0.0.0.0", u16::try_from(port).ok()?)).and_then(|it| it.local_addr()).ok());
    free.expect("a free port").port()
}

/// How long a program of a body may take.
const LIMIT: Duration = Duration::from_secs(60);

/// The stage of one body in one world. Dropping it removes its directory.
#[derive(Debug)]
pub struct Scene {
    name: String,
    inside: bool,
    dir: TempDir,
}

impl Scene {
    /// A fresh stage for the test called `name`; `inside` says that this process is in an environment.
    pub fn new(name: &str, inside: bool) -> Self {
        let dir = tempfile::Builder::new().prefix("hurdle-scene-").tempdir().expect("a temporary directory");
        // Servers that give up root on their own look into it too.
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).expect("own directory");
        Self { name: name.to_owned(), inside, dir }
    }

    /// True in an environment, false natively. For what Linux and an environment may rightly answer differently.
    pub fn inside(&self) -> bool {
        self.inside
    }

    /// The scene's own directory, empty at first.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A path in the scene's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    /// Writes `text` to a file of the scene's directory.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).expect("own directory");
        }
        std::fs::write(&path, text).expect("own file");
        path
    }

    /// What a file of the scene's directory holds; empty if it is not there.
    pub fn read(&self, name: &str) -> String {
        std::fs::read(self.path(name)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// True, with a `SKIP` line, if one of `programs` is not installed.
    pub fn lacks(&self, programs: &[&str]) -> bool {
        let missing = skip::missing(programs);
        if let Some(program) = missing {
            skip::skip(&self.name, &format!("{program} is not installed (cargo xtask install)"));
        }
        missing.is_some()
    }

    /// Reports that this test is not run here.
    pub fn skip(&self, reason: &str) {
        skip::skip(&self.name, reason);
    }

    /// A [`port`] that nobody uses.
    pub fn port(&self) -> u16 {
        port()
    }

    /// A command in the scene's directory with a small, known set of environment variables.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.dir()).env("PATH", skip::PATH).env("LC_ALL", "C.UTF-8").env("HOME", self.dir());
        command.env("TMPDIR", self.dir());
        command
    }

    /// A command as an ordinary user, for programs that refuse to run as root: `setpriv` gives root up.
    pub fn ordinary(&self, program: &str) -> Command {
        if !nix::unistd::geteuid().is_root() {
            return self.command(program);
        }
        let id = ordinary_id().to_string();
        let mut command = self.command("setpriv");
        command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "--", program]);
        command
    }

    /// Makes a directory that the user of [`Scene::ordinary`] owns.
    pub fn ordinary_dir(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(&path).expect("own directory");
        if nix::unistd::geteuid().is_root() {
            let id = ordinary_id();
            std::os::unix::fs::chown(&path, Some(id), Some(id)).expect("root of a range of ids may chown");
        }
        path
    }

    /// Runs a program to its end, for up to a minute.
    #[track_caller]
    pub fn run(&self, program: &str, arguments: &[&str]) -> Finished {
        finish(self.command(program).args(arguments), LIMIT)
    }

    /// Starts a program that ends with the value returned. What it writes goes to the file `log` of the scene.
    #[track_caller]
    pub fn start(&self, mut command: Command, log: &str) -> Running {
        Running::start(&mut command, &self.path(log))
    }

    /// Starts a server, and returns once it accepts connections at `port` of `127.0.0.1`.
    #[track_caller]
    pub fn serve(&self, command: Command, log: &str, port: u16) -> Running {
        let mut running = self.start(command, log);
        until(&format!("{log} listens at port {port}"), || {
            running.assert_alive();
            TcpStream::connect(("127.0.0.1", port)).ok()
        });
        running
    }
}

/// The id that [`Scene::ordinary`] uses where the body runs as root: nobody's, which every range of ids contains.
fn ordinary_id() -> u32 {
    65534
}

/// A program in the background, in a process group of its own that is ended when this is dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    /// Starts `command` without input; what it writes goes to the file `log`.
    ///
    /// # Panics
    /// Panics if it cannot be started.
    #[track_caller]
    pub fn start(command: &mut Command, log: &Path) -> Self {
        let out = File::create(log).expect("own file");
        let err = out.try_clone().expect("a duplicate");
        command.stdin(Stdio::null()).stdout(out).stderr(err).process_group(0);
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self { child, log: log.to_owned() }
    }

    /// Its process id.
    pub fn id(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// What it has written so far.
    pub fn log(&self) -> String {
        std::fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// # Panics
    /// Panics with what it wrote if it has ended.
    #[track_caller]
    pub fn assert_alive(&mut self) {
        if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
            panic!("{} ended early: {status}\n{}", self.log.display(), self.log());
        }
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.id()), signal).expect("it has not been reaped");
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// Panics with what it wrote if it has not ended soon.
    #[track_caller]
    pub fn join(mut self) -> ExitStatus {
        match wait(&mut self.child, LIMIT) {
            Some(status) => status,
            None => panic!("{} has not ended\n{}", self.log.display(), self.log()),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        stop_group(&mut self.child, Signal::SIGTERM);
    }
}
