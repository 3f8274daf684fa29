//! Servers that break every rule, for tests: what such a one does is the name that it is started under.
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Duration;

use hurdle_proto::server::{BOOTSTRAP, ClientChannel, Grant, Stored, server, store};
use hurdle_sys::process::{self, numbers::SIGKILL};
use hurdle_sys::seccomp::{Call, Listener};
use hurdle_sys::seqpacket;
use hurdle_wire::channel::Inbox;
use hurdle_wire::frame::{Header, Kind};
use hurdle_wire::{Channel, Context, Fd, Refused, ServeOptions, serve};

hurdle_wire::interface! {
    /// Greets who calls.
    pub mod greet = 1000 {
        /// Says hello to `name`.
        1 fn hello(name: String) -> String;
    }
}

struct Greeter(String);

impl greet::Server for Greeter {
    async fn hello(&self, _: &Context, name: String) -> Result<String, Refused> {
        match self.0.as_str() {
            "late" => tokio::time::sleep(Duration::from_secs(2)).await,
            "never" => std::future::pending().await,
            "forks" | "forks_net" => std::process::exit(3),
            _ => {}
        }
        Ok(format!("hello, {name}"))
    }
}

fn null() -> OwnedFd {
    File::open("/dev/null").expect("everybody may read it").into()
}

fn for_ever() -> ! {
    loop {
        std::thread::park();
    }
}

/// What the client of `mode` gets.
fn answer(mode: &str, client: ClientChannel) {
    let channel = Channel::from(client.channel.into_owned().expect("room for one more"));
    let say = |header: Header, payload: &[u8], fds: usize| {
        let fds: Vec<OwnedFd> = (0..fds).map(|_| null()).collect();
        let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        seqpacket::send(channel.as_fd(), &[&header.encode(), payload].concat(), &fds, true)
    };
    let reply = |request| Header::new(Kind::Reply, 0, 0, request);
    let mut inbox = Inbox::new();
    if ["garbage", "noise", "fds", "more_fds", "dead"].contains(&mode) {
        while let Ok(arrival) = inbox.receive(&channel) {
            let request = arrival.header().request;
            let _ = match mode {
                "garbage" => seqpacket::send(channel.as_fd(), &[0xa5; 5000], &[], true),
                "fds" => say(Header { fds: 60, ..reply(request) }, &[], 60),
                "more_fds" => say(reply(request), &[], 200),
                "dead" => say(Header::new(Kind::Event, 0, 1, 0), &[], 0),
                // Answers that nobody has asked for.
                _ => (0..).try_for_each(|other| say(reply(1_000_000 + other), &[], 1)),
            };
        }
    }
    let _ = serve(&channel, &greet::service(Greeter(mode.into())).into(), &ServeOptions::default());
}

struct Hostile {
    mode: String,
    kept: Mutex<Vec<OwnedFd>>,
}

impl Hostile {
    fn client(&self, client: ClientChannel) {
        let mode = self.mode.clone();
        std::thread::spawn(move || answer(&mode, client));
    }

    fn misbehave(&self, grant: &mut Grant) {
        let mut attachment = |name: &str| {
            let at = grant.attachments.iter().position(|(other, _)| other == name).expect("it came along");
            grant.attachments.swap_remove(at).1.into_owned().expect("room for one more")
        };
        match self.mode.as_str() {
            "exits" => std::process::exit(1),
            "forks" | "forks_net" => {
                if let Ok(None) = process::detach() {
                    for_ever();
                }
            }
            // Receives programs' calls and answers none; or hands out what is no socket.
            "takes" | "nulls" => {
                let (listener, nulls) = (Listener::from(attachment("trap")), self.mode == "nulls");
                std::thread::spawn(move || {
                    let mut call = Call::default();
                    while listener.receive(&mut call).is_ok() || !process::ended(listener.as_fd()) {
                        if nulls {
                            let _ = listener.answer_fd(call.id, null().as_fd(), true);
                        }
                    }
                });
            }
            "chatter" => {
                std::thread::spawn(|| while std::io::stderr().write_all(&[b'\x1b'; 60_000]).is_ok() {});
            }
            "stuffs" => {
                let core = Channel::from(grant.core.clone().into_owned().expect("room for one more"));
                let store = store::Client::from(core);
                std::thread::spawn(move || {
                    for n in 0.. {
                        let fds = (0..40).map(|_| Fd::from(null())).collect();
                        let _ = store.put(Stored { key: format!("{n}"), bytes: Vec::new(), fds }).wait();
                        let _ = store.put(Stored { key: format!("{n}"), bytes: vec![0; 800_000], fds: vec![] }).wait();
                    }
                });
            }
            "shouts" => {
                let core = self.kept.lock().expect("no panic").pop().expect("the bootstrap channel");
                std::thread::spawn(move || {
                    // Well-formed: what breaks the protocol before `borrow` is answered would end it.
                    let frame = Header { fds: 1, ..Header::new(Kind::Reply, 2, 1, 77) }.encode();
                    while seqpacket::send(core.as_fd(), &frame, &[null().as_fd()], true).is_ok() {}
                });
            }
            _ => {}
        }
    }
}

impl server::Server for Hostile {
    async fn borrow(&self, _: &Context, mut grant: Grant) -> Result<(), Refused> {
        if self.mode == "mute" {
            std::future::pending::<()>().await;
        }
        self.misbehave(&mut grant);
        grant.channels.into_iter().for_each(|client| self.client(client));
        let fds = grant.attachments.into_iter().map(|(_, fd)| fd).chain([grant.core]);
        self.kept.lock().expect("no panic").extend(fds.filter_map(|fd| fd.into_owned().ok()));
        Ok(())
    }

    async fn connect(&self, _: &Context, client: ClientChannel) -> Result<(), Refused> {
        if self.mode == "deaf" {
            for_ever();
        }
        self.client(client);
        Ok(())
    }

    async fn give_back(&self, _: &Context) -> Result<(), Refused> {
        if self.mode == "clings" {
            std::future::pending::<()>().await;
        }
        Ok(())
    }
}

fn main() -> ExitCode {
    let name = std::env::args().next().unwrap_or_default();
    let mode = name.rsplit('/').next().unwrap_or_default().to_string();
    let Ok(bootstrap) = process::inherited(BOOTSTRAP) else { return ExitCode::FAILURE };
    match mode.as_str() {
        "killed" => _ = process::kill(std::process::id().cast_signed(), SIGKILL),
        "closes" => {
            drop(bootstrap);
            for_ever();
        }
        "sleeps" => for_ever(),
        "babbles" => {
            while seqpacket::send(bootstrap.as_fd(), &[0x5a; 3000], &[], true).is_ok() {}
            for_ever();
        }
        _ => {}
    }
    let kept = Mutex::new(bootstrap.try_clone().into_iter().collect());
    let hostile = server::service(Hostile { mode, kept });
    let _ = serve(&Channel::from(bootstrap), &hostile.into(), &ServeOptions::default());
    // The core is gone, or has had enough: it stays all the same.
    for_ever()
}
