//! A terminal to type on: what an interactive shell in an environment is tested with.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::finish::{stop_group, wait};
use crate::poll::{SOON, within};

/// A program on a pseudo-terminal of its own, in a session of its own.
#[derive(Debug)]
pub struct Terminal {
    child: Child,
    keyboard: File,
    screen: Arc<Mutex<String>>,
    seen: usize,
}

impl Terminal {
    /// Starts `command` with a new terminal as its controlling terminal and as its standard files.
    ///
    /// # Panics
    /// Panics if there is no pseudo-terminal to be had, or the program cannot be started.
    pub fn start(command: &Command) -> Self {
        let pty = nix::pty::openpty(None, None).expect("a pseudo-terminal");
        let copy = |fd: &OwnedFd| fd.try_clone().expect("a duplicate");
        // setsid(1) makes its standard input the controlling terminal of the new session.
        let mut setsid = Command::new("/usr/bin/setsid");
        setsid.args(["--ctty", "--wait"]).arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => setsid.env(name, value),
                None => setsid.env_remove(name),
            };
        }
        if let Some(directory) = command.get_current_dir() {
            setsid.current_dir(directory);
        }
        setsid.stdin(Stdio::from(copy(&pty.slave))).stdout(Stdio::from(copy(&pty.slave)));
        setsid.stderr(Stdio::from(pty.slave));
        let child = setsid.spawn().expect("setsid of util-linux");
        drop(setsid);
        let mut master = File::from(copy(&pty.master));
        let screen = Arc::new(Mutex::new(String::new()));
        let shown = Arc::clone(&screen);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // EIO tells that the last process has closed the terminal.
            while let Ok(count @ 1..) = master.read(&mut buffer) {
                shown.lock().expect("no reader panics").push_str(&String::from_utf8_lossy(&buffer[..count]));
            }
        });
        Self { child, keyboard: File::from(pty.master), screen, seen: 0 }
    }

    /// Types `keys`.
    pub fn keys(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).expect("the terminal is open");
    }

    /// Types a line.
    pub fn line(&mut self, line: &str) {
        self.keys(&format!("{line}\n"));
    }

    /// Waits until `text` has appeared since the last call, and returns what was shown up to its end.
    ///
    /// # Panics
    /// Panics with what is on the screen after the deadline.
    #[track_caller]
    pub fn expect(&mut self, text: &str) -> String {
        let found = within(SOON, || {
            let screen = self.screen.lock().expect("no reader panics");
            let fresh = &screen[self.seen..];
            fresh.find(text).map(|at| fresh[..at + text.len()].to_owned())
        });
        let Some(shown) = found else { panic!("no {text:?} on the terminal. All of it:\n{}", self.screen()) };
        self.seen += shown.len();
        shown
    }

    /// All that was shown so far.
    pub fn screen(&self) -> String {
        self.screen.lock().expect("no reader panics").clone()
    }

    /// The id of the program's session leader.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the end of the program.
    ///
    /// # Panics
    /// Panics with what is on the screen if it does not end soon.
    #[track_caller]
    pub fn join(mut self) -> ExitStatus {
        let Some(status) = wait(&mut self.child, Duration::from_secs(20)) else {
            panic!("the program on the terminal has not ended:\n{}", self.screen())
        };
        status
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Hanging up is what a closed window does.
        stop_group(&mut self.child, nix::sys::signal::Signal::SIGHUP);
    }
}
