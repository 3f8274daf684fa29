//! The runtime behind handlers that have to wait: one for the process, one thread, started by the first of them.
//!
//! Until then it is only a context: timers and tasks made in it are registered, and begin to move when the thread does.

use std::future::Future;
use std::io;
use std::sync::{Mutex, OnceLock, PoisonError};

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::AbortHandle;

struct Shared {
    handle: Handle,
    /// The runtime, until its thread takes it.
    idle: Mutex<Option<Runtime>>,
}

fn shared() -> io::Result<&'static Shared> {
    static SHARED: OnceLock<Result<Shared, i32>> = OnceLock::new();
    let built = SHARED.get_or_init(|| {
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| error.raw_os_error().unwrap_or(libc::EIO))?;
        Ok(Shared { handle: runtime.handle().clone(), idle: Mutex::new(Some(runtime)) })
    });
    built.as_ref().map_err(|errno| io::Error::from_raw_os_error(*errno))
}

/// The runtime, to be entered. Starts no thread.
pub(crate) fn handle() -> io::Result<Handle> {
    Ok(shared()?.handle.clone())
}

/// Runs a task. Called within the runtime's context, so it exists.
pub(crate) fn spawn(task: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
    start();
    tokio::spawn(task).abort_handle()
}

/// Starts the thread, if it does not run yet.
fn start() {
    let Ok(shared) = shared() else { return };
    let mut idle = shared.idle.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(runtime) = idle.take() {
        let run = move || runtime.block_on(std::future::pending::<()>());
        // Without a thread no such call is answered before its deadline; the log says why.
        if let Err(error) = std::thread::Builder::new().name("hurdle-tasks".into()).spawn(run) {
            tracing::error!("no thread can be started for calls that wait: {error}");
        }
    }
}
