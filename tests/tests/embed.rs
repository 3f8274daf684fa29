//! An environment as a value of a Rust program: this one, with its threads, and the example.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use hurdle_embed::proto::net::net;
use hurdle_embed::wire::{CallError, Context, Refused};
use hurdle_embed::{Builder, Environment, Error, Program};
use hurdle_tests::{Hurdle, finish, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const LIMIT: Duration = Duration::from_secs(30);

/// One whose environments the leak check of `hurdle` does not see: what is gone, `drop` has waited for.
fn builder(hurdle: &Hurdle) -> Builder {
    Environment::builder().binary(hurdle.binary())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn sh(script: &str) -> Program {
    Program::new("/bin/sh").args(["-c", script])
}

#[test]
fn programs_are_spawned_waited_for_and_ended() {
    let hurdle = Hurdle::new();
    let env = builder(&hurdle).launch().expect("it stands");
    let done =
        env.output(sh("echo $X; pwd; echo err >&2; exit 7").env("X", "word").current_dir("/usr")).expect("it runs");
    assert_eq!(
        (text(&done.stdout), text(&done.stderr), done.status.code()),
        ("word\n/usr\n".into(), "err\n".into(), Some(7))
    );
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let mut child = env.spawn(sh("echo up; exec sleep 1000").stdout(writer)).expect("it runs");
    assert_eq!(std::io::BufRead::lines(std::io::BufReader::new(reader)).next().expect("a line").expect("text"), "up");
    assert_eq!(child.try_wait().expect("it can be asked"), None);
    assert!(child.id() > 1);
    child.signal(15).expect("it runs");
    assert_eq!(child.wait().expect("it ends").signal(), Some(15));
    child.kill().expect("one that has ended gets no signal");
    let refused = env.spawn(Program::new("/nonexistent")).expect_err("no such program");
    assert!(matches!(&refused, Error::Call(CallError::Refused(r)) if r.errno == 2), "{refused}");
}

#[test]
fn it_is_gone_when_it_is_dropped() {
    let hurdle = Hurdle::new();
    let env = builder(&hurdle).net("local").name(&hurdle.name("value")).launch().expect("it stands");
    let mut child = env.spawn(Program::new("sleep").arg("1000")).expect("it runs");
    let info = env.info().expect("it stands");
    assert_eq!(hurdle.call(&["ls", env.name()]).success().stdout.lines().count(), 2);
    drop(env);
    for pid in [info.core, info.init] {
        assert!(kill(Pid::from_raw(pid), None).is_err(), "{pid} is there");
    }
    assert_eq!(child.wait().expect("the end is told").signal(), Some(9));
    hurdle.call(&["ls", &info.name]).exits(125);
}

#[test]
fn it_says_why_it_can_not_be() {
    let hurdle = Hurdle::new();
    let said = builder(&hurdle).net("nonsense").launch().expect_err("no such kind").to_string();
    assert!(said.contains("nonsense"), "{said}");
    let said = Environment::builder().binary("/nonexistent/hurdle").launch().expect_err("no binary").to_string();
    assert!(said.contains("/nonexistent/hurdle"), "{said}");
}

#[test]
fn many_threads_have_one_each() {
    let hurdle = Hurdle::new();
    // Each on the same port; one thread launches, another uses and drops it.
    let serve = "import socket; s = socket.create_server(('127.0.0.1', 80)); c = socket.create_connection(('127.0.0.1', 80)); print(1)";
    let launch = || std::thread::scope(|scope| scope.spawn(|| builder(&hurdle).net("local").launch()).join());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let env = launch().expect("no panic").expect("it stands");
                let done = env.output(Program::new("python3").args(["-c", serve])).expect("it runs");
                assert_eq!(text(&done.stdout), "1\n", "{}", text(&done.stderr));
            });
        }
    });
}

hurdle_embed::wire::interface! {
    /// Adds up.
    pub mod sum = 1002 {
        /// Adds a number; the sum, and who asks.
        1 fn add(number: u64) -> u64;
    }
}

#[derive(Default)]
struct Sum(std::sync::atomic::AtomicU64);

impl sum::Server for Sum {
    async fn add(&self, _: &Context, number: u64) -> Result<u64, Refused> {
        Ok(self.0.fetch_add(number, std::sync::atomic::Ordering::Relaxed) + number)
    }
}

#[test]
fn servers_are_called_swapped_and_granted() {
    let hurdle = Hurdle::new();
    let env = builder(&hurdle).net("local").name(&hurdle.name("value")).launch().expect("it stands");
    let client: net::Client = env.client("net").expect("it has a network");
    assert!(client.sockets().wait().expect("an answer").is_empty());
    assert_eq!(env.swap("net", "none").expect("it can").to.to_string(), "none");
    assert!(env.swap("net", "nonsense").is_err());

    env.grant("sum", sum::service(Sum::default())).expect("nobody serves it");
    let mine: sum::Client = env.client("sum").expect("it is granted");
    assert_eq!((mine.add(1).wait(), mine.add(2).wait()), (Ok(1), Ok(3)));
    assert_eq!(hurdle.call(&["rpc", env.name(), "sum.add", "4"]).success().stdout, "7\n");
    assert!(hurdle.call(&["rpc", env.name()]).success().stdout.lines().any(|line| line == "sum"));
    let twice = env.grant("sum", sum::service(Sum::default())).expect_err("it has one");
    assert!(twice.to_string().contains("already"), "{twice}");
    assert!(env.grant("net", sum::service(Sum::default())).is_err());
    drop(env);
    assert_eq!(mine.add(1).wait(), Err(CallError::Dead));
}

#[test]
fn a_program_gets_an_open_directory_that_it_could_not_reach() {
    let hurdle = Hurdle::new();
    let secret = hurdle.logs().join("shown");
    std::fs::write(&secret, "by grant").expect("own file");
    let env = builder(&hurdle).fs(&format!("ro,hide={}", hurdle.logs().display())).launch().expect("it stands");
    let directory = File::open(hurdle.logs()).expect("own directory");
    let read = |program: Program| text(&env.output(program).expect("it runs").stdout);
    assert_eq!(read(Program::new("cat").arg(&secret)), "");
    assert_eq!(read(Program::new("cat").arg("/proc/self/fd/9/shown").fd(9, directory)), "by grant");
}

#[test]
fn one_that_another_ends_is_waited_for() {
    let hurdle = Hurdle::new();
    let env = builder(&hurdle).name(&hurdle.name("value")).launch().expect("it stands");
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| env.wait());
        hurdle.call(&["kill", env.name()]).success();
        // It hears the status, or that it was too late for that.
        match waiter.join().expect("no panic") {
            Ok(status) => assert_eq!(status.signal(), Some(9)),
            Err(error) => assert!(matches!(error, Error::Call(CallError::Dead)), "{error}"),
        }
    });
    assert!(env.spawn(Program::new("true")).is_err());
}

/// The example with the marks of `hurdle`, natively or in an environment.
fn example(hurdle: &Hurdle, outer: Option<&[&str]>) -> Command {
    let path = hurdle_tests::command::example("embed");
    let mut command = match outer {
        Some(options) => hurdle.run(options, path),
        None => {
            let mut command = Command::new(path);
            command.envs(hurdle.command().get_envs().filter_map(|(key, value)| Some((key, value?))));
            command
        }
    };
    command.env("HURDLE_BIN", hurdle.binary());
    command
}

#[test]
fn the_example_does_what_the_page_says() {
    let hurdle = Hurdle::new();
    for outer in [None, Some(&[][..]), Some(&["--net", "local"])] {
        let done = finish(&mut example(&hurdle, outer), LIMIT).success();
        let expected = "port 80\nsum 3 7\nlisted true\nnone\nsignal: 9 (SIGKILL)\n";
        assert_eq!(done.stdout, expected, "{outer:?}: {done}");
        hurdle.assert_nothing_left();
    }
}

#[test]
fn it_ends_with_the_program_that_holds_it() {
    let hurdle = Hurdle::new();
    for outer in [None, Some(&["--net", "local"][..])] {
        let mut child = example(&hurdle, outer).arg("stay").stdout(Stdio::piped()).spawn().expect("it runs");
        let mut said = String::new();
        let mut out = child.stdout.take().expect("a pipe");
        let mut buffer = [0; 256];
        until("it stands", || {
            let got = out.read(&mut buffer).expect("it says so");
            said += &text(&buffer[..got]);
            said.contains("none\n").then_some(())
        });
        kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL).expect("it runs");
        child.wait().expect("own child");
        hurdle.assert_nothing_left();
    }
}
