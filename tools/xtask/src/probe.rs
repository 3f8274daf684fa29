//! A program in an environment that makes one trapped call after the other, and tells how long the longest took.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::shell::Result;

/// How long service may be away.
const LIMIT: Duration = Duration::from_secs(20);

/// The program itself: answers each line of input by the longest call since its last answer, in ms; 0 if none has ended since. It
/// rests for `pause` between two calls, and ends with its input.
pub(crate) fn run(pause: Duration) -> Result {
    let longest = AtomicU64::new(0);
    let listener = TcpListener::bind("127.0.0.1:0")?;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in std::io::stdin().lock().lines() {
                println!("{}", longest.swap(0, Ordering::SeqCst) as f64 / 1e6);
            }
            std::process::exit(0);
        });
        loop {
            let begin = Instant::now();
            listener.local_addr()?;
            longest.fetch_max(begin.elapsed().as_nanos() as u64, Ordering::SeqCst);
            if !pause.is_zero() {
                std::thread::sleep(pause);
            }
        }
    })
}

/// One that runs, as those see it who ask. It ends with this value.
pub(crate) struct Probe {
    child: Child,
    questions: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Probe {
    /// Starts it by this command, and waits for its first calls.
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (questions, answers) = (child.stdin.take(), BufReader::new(child.stdout.take().ok_or("no pipe")?));
        let mut probe = Self { child, questions, answers };
        let end = Instant::now() + LIMIT;
        while probe.ask()? == 0.0 {
            if Instant::now() > end {
                return Err("the probe does not begin".into());
            }
        }
        Ok(probe)
    }

    /// The process that was started.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The longest call since it was asked last, in ms.
    pub(crate) fn ask(&mut self) -> Result<f64> {
        self.questions.as_mut().ok_or("no pipe")?.write_all(b"\n")?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        line.trim().parse().map_err(|_| format!("the probe answers {line:?}").into())
    }

    /// The longest call until a few have ended after `over` says that service is back.
    pub(crate) fn longest(&mut self, mut over: impl FnMut() -> bool) -> Result<f64> {
        let (end, mut most, mut again) = (Instant::now() + LIMIT, 0.0_f64, 0);
        while again < 3 {
            std::thread::sleep(Duration::from_millis(1));
            let new = over();
            let found = self.ask()?;
            most = most.max(found);
            again += usize::from(new && found > 0.0);
            if Instant::now() > end {
                return Err(format!("no service after {LIMIT:?}").into());
            }
        }
        Ok(most)
    }

    /// Ends it; how it ended.
    pub(crate) fn end(mut self) -> Result<ExitStatus> {
        drop(self.questions.take());
        Ok(self.child.wait()?)
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        if self.questions.is_some() {
            let _ = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM);
            let _ = self.child.wait();
        }
    }
}
