//! While a right is failed, its trapped calls get the interface's own errno: nobody hangs.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use hurdle_sys::process::{self, Event, Until};
use hurdle_sys::seccomp::{Call, Height, Ledger, Listener};

/// A thread that refuses every trapped call, until it is dropped.
#[derive(Debug)]
pub(crate) struct Refuser {
    stop: Arc<Event>,
    thread: Option<JoinHandle<()>>,
}

impl Refuser {
    /// Refuses with `errno`, first what dead servers left in the ledger.
    pub(crate) fn start(trap: OwnedFd, ledger: OwnedFd, errno: i32) -> io::Result<Refuser> {
        let stop = Arc::new(Event::new()?);
        let heard = stop.clone();
        let ledger = Ledger::map(&ledger, Height::ALONE)?;
        let thread = std::thread::Builder::new().name("refuser".into()).spawn(move || {
            let listener = Listener::from(trap);
            for (slot, call) in ledger.recover(&listener) {
                let _ = listener.answer(call.id, Err(errno));
                ledger.clear(&slot);
            }
            let mut call = Call::default();
            loop {
                let fds = [(listener.as_fd(), Until::Readable), (heard.as_fd(), Until::Readable)];
                match process::poll(&fds, None).as_deref() {
                    Ok([true, false]) => {}
                    Ok([false, false]) => continue,
                    _ => return,
                }
                // A call that was cancelled meanwhile is nobody's loss; an end of all callers is ours.
                match listener.receive(&mut call) {
                    Ok(()) => _ = listener.answer(call.id, Err(errno)),
                    Err(_) if process::ended(listener.as_fd()) => return,
                    Err(_) => {}
                }
            }
        })?;
        Ok(Refuser { stop, thread: Some(thread) })
    }
}

impl Drop for Refuser {
    fn drop(&mut self) {
        self.stop.ring();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
