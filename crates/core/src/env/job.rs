//! Signals that the core hands on, and its program as a job of the terminal.

use std::io;
use std::sync::mpsc::channel;

use hurdle_proto::init::init;
use hurdle_sys::{process, tty};

use super::{Env, PATIENCE, Tell};
use crate::inside::FIRST_GROUP;
use crate::os;

impl Env {
    pub(super) fn forward_signals(&mut self) {
        while let Ok(Some((signal, from_terminal))) = self.signals.next() {
            match (signal, from_terminal, self.foreground) {
                (os::SIGCONT, _, _) => self.go_on(),
                // `fg` of a job that was running: the terminal thinks of us, and means the program's group.
                (_, true, true) => {
                    self.tell(|init| _ = init.foreground().deadline(PATIENCE).wait());
                    self.tell(move |init| _ = init.signal(FIRST_GROUP, signal).deadline(PATIENCE).wait());
                }
                // It has reached a program of our own process group already.
                (_, true, false) => {}
                (_, false, _) => self.tell(move |init| _ = init.signal(0, signal).deadline(PATIENCE).wait()),
            }
        }
    }

    /// Calls init, in the order of asking, without waiting for it.
    fn tell(&mut self, call: impl FnOnce(&init::Client) + Send + 'static) {
        if self.teller.is_none() {
            let (init, (sender, calls)) = (self.init.clone(), channel::<Tell>());
            let teller = std::thread::Builder::new().spawn(move || calls.iter().for_each(|call| call(&init)));
            self.teller = teller.ok().map(|_| sender);
        }
        match &self.teller {
            Some(teller) => _ = teller.send(Box::new(call)),
            None => call(&self.init),
        }
    }

    /// The program in the foreground has stopped: so does `hurdle run`, for the shell that started it; then both go on.
    pub(super) fn stop(&mut self, signal: i32) {
        let stdin = io::stdin();
        if matches!(signal, os::SIGTTIN | os::SIGTTOU) && tty::in_foreground(&stdin) {
            // It was brought to the foreground while it ran, and has not heard of it.
            return self.go_on();
        }
        let _ = tty::set_foreground(&stdin, 0);
        // Until SIGCONT, which is heard as a signal.
        process::stop_self();
    }

    /// A job in the foreground of the terminal, or in its background, goes on.
    fn go_on(&mut self) {
        if tty::in_foreground(io::stdin()) {
            self.tell(|init| _ = init.foreground().deadline(PATIENCE).wait());
        } else {
            self.tell(|init| _ = init.signal(0, os::SIGCONT).deadline(PATIENCE).wait());
        }
    }
}
