//! An interface, a server of it, and helpers that the tests share.
#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used)]

use std::future::{Future, IntoFuture};
use std::io;
use std::sync::{Arc, Mutex};
use std::task::{Context as TaskContext, Poll, Wake};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hurdle_wire::{Bytes, Channel, Context, End, Fd, Refused, ServeOptions, serve};

hurdle_wire::interface! {
    /// For tests.
    pub mod demo = 1000 {
        retired 90, 91;
        /// Adds.
        1 idempotent fn add(a: u32, b: u32) -> u32;
        /// Refuses.
        2 fn refuse(errno: i32, reason: String);
        /// Nobody implements it.
        3 fn left_out() -> String;
        /// Gives back the open files among its arguments.
        4 fn pass(list: Vec<(String, Option<Fd>)>) -> Vec<Fd>;
        5 fn serve_this(channel: Channel);
        6 fn echo(data: Bytes) -> Bytes;
        /// Answers `n` after some milliseconds.
        7 fn sleep(ms: u32, n: u32) -> u32;
        /// The same, and may be repeated.
        8 idempotent fn sleep_again(ms: u32, n: u32) -> u32;
        9 oneway fn note(n: u32);
        10 fn noted() -> Vec<u32>;
        11 fn about() -> (String, u64, u64);
        12 fn open_null() -> Fd;
        /// How many calls of `hang` were given up.
        13 fn dropped() -> u32;
        /// Never answers.
        14 fn hang();
        /// How many calls of `hang` were started.
        15 fn started() -> u32;
    }
}

hurdle_wire::interface! {
    /// Served by nobody.
    pub mod other = 1001 {
        1 fn ping();
    }
}

/// The server.
#[derive(Default)]
pub struct Demo {
    pub noted: Mutex<Vec<u32>>,
    /// How many calls of `hang` were started and dropped.
    pub hanging: Arc<Mutex<(u32, u32)>>,
    /// `sleep_again` does not sleep.
    pub hurried: bool,
}

struct CountDrop(Arc<Mutex<(u32, u32)>>);

impl Drop for CountDrop {
    fn drop(&mut self) {
        self.0.lock().unwrap().1 += 1;
    }
}

impl demo::Server for Demo {
    async fn add(&self, _: &Context, a: u32, b: u32) -> Result<u32, Refused> {
        a.checked_add(b).ok_or_else(|| Refused::new(libc::ERANGE, "too large"))
    }
    async fn refuse(&self, _: &Context, errno: i32, reason: String) -> Result<(), Refused> {
        Err(Refused::new(errno, reason))
    }
    async fn pass(&self, _: &Context, list: Vec<(String, Option<Fd>)>) -> Result<Vec<Fd>, Refused> {
        Ok(list.into_iter().filter_map(|(_, fd)| fd).collect())
    }
    async fn serve_this(&self, _: &Context, channel: Channel) -> Result<(), Refused> {
        serve_on(channel, Demo::default(), ServeOptions::default());
        Ok(())
    }
    async fn echo(&self, _: &Context, data: Bytes) -> Result<Bytes, Refused> {
        Ok(data)
    }
    async fn sleep(&self, _: &Context, ms: u32, n: u32) -> Result<u32, Refused> {
        tokio::time::sleep(Duration::from_millis(ms.into())).await;
        Ok(n)
    }
    async fn sleep_again(&self, context: &Context, ms: u32, n: u32) -> Result<u32, Refused> {
        self.sleep(context, if self.hurried { 0 } else { ms }, n).await
    }
    async fn note(&self, _: &Context, n: u32) -> Result<(), Refused> {
        self.noted.lock().unwrap().push(n);
        Ok(())
    }
    async fn noted(&self, _: &Context) -> Result<Vec<u32>, Refused> {
        Ok(self.noted.lock().unwrap().clone())
    }
    async fn about(&self, context: &Context) -> Result<(String, u64, u64), Refused> {
        let peer = context.peer();
        let left = context.deadline().map_or(u64::MAX, |at| (at - Instant::now()).as_millis() as u64);
        Ok((format!("{} {} {} {}", peer.pid, peer.uid, peer.gid, peer.badge), left, context.trace()))
    }
    async fn open_null(&self, _: &Context) -> Result<Fd, Refused> {
        Ok(std::fs::File::open("/dev/null")?.into())
    }
    async fn dropped(&self, _: &Context) -> Result<u32, Refused> {
        Ok(self.hanging.lock().unwrap().1)
    }
    async fn hang(&self, _: &Context) -> Result<(), Refused> {
        self.hanging.lock().unwrap().0 += 1;
        let _count = CountDrop(Arc::clone(&self.hanging));
        std::future::pending().await
    }
    async fn started(&self, _: &Context) -> Result<u32, Refused> {
        Ok(self.hanging.lock().unwrap().0)
    }
}

/// Serves on a thread.
pub fn serve_on(channel: Channel, server: Demo, options: ServeOptions) -> JoinHandle<io::Result<End>> {
    // With the caller's subscriber, so that a test can read the lines of both sides.
    let dispatch = tracing::dispatcher::get_default(Clone::clone);
    std::thread::spawn(move || {
        tracing::dispatcher::with_default(&dispatch, || serve(&channel, &demo::service(server).into(), &options))
    })
}

/// A client of a new server.
pub fn connect() -> demo::Client {
    let (ours, theirs) = Channel::pair().unwrap();
    serve_on(theirs, Demo::default(), ServeOptions::default());
    ours.into()
}

struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// The smallest executor.
pub fn block_on<F: IntoFuture<IntoFuture: Unpin>>(future: F) -> F::Output {
    let mut future = future.into_future();
    let waker = Arc::new(Unpark(std::thread::current())).into();
    loop {
        if let Poll::Ready(result) = std::pin::Pin::new(&mut future).poll(&mut TaskContext::from_waker(&waker)) {
            return result;
        }
        std::thread::park();
    }
}

/// Asks until it is so, or ten seconds are over.
pub fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !so() {
        assert!(Instant::now() < deadline, "it never came true that {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Where a test's trace goes.
#[derive(Clone, Default)]
pub struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    pub fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> tracing_subscriber::fmt::MakeWriter<'a> for Lines {
    type Writer = Lines;
    fn make_writer(&'a self) -> Lines {
        self.clone()
    }
}
