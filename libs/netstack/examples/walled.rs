//! A net server that tries what one should not do when a program makes a socket, and prints the error numbers that it met with: for
//! tests. The spec says where and whom: `walled,dir=…,pid=…+local`. Started under the name `open` it has no walls.
use std::fs::File;
use std::io;
use std::net::UdpSocket;
use std::process::{Command, ExitCode};

use hurdle_netstack::between::{Answer, Between, Call, Next, run};
use hurdle_server::Sockets;
use hurdle_sys::process::{self, numbers::SIGTERM};

struct Tries<const WALLED: bool> {
    directory: String,
    pid: i32,
}

impl<const WALLED: bool> Between for Tries<WALLED> {
    const WALLS: Option<Sockets> = if WALLED { Some(Sockets::Local) } else { None };

    async fn call(&self, call: Call, next: Next) -> Answer {
        if call.name() == "socket" {
            let path = |name: &str| format!("{}/{name}", self.directory);
            let tried: [(&str, &dyn Fn() -> io::Result<()>); 5] = [
                ("create", &|| File::create(path("new")).map(drop)),
                ("append", &|| File::options().append(true).open(path("old")).map(drop)),
                ("exec", &|| Command::new("/bin/true").status().map(drop)),
                ("kill", &|| process::kill(self.pid, SIGTERM)),
                ("udp", &|| UdpSocket::bind("127.0.0.1:0").map(drop)),
            ];
            let number = |result: io::Result<()>| result.map_or_else(|e| e.raw_os_error().unwrap_or(-1), |()| 0);
            let met: Vec<String> = tried.iter().map(|(name, tried)| format!("{name} {}", number(tried()))).collect();
            eprintln!("met with: {}", met.join(", "));
        }
        next.pass().await
    }
}

fn start<const WALLED: bool>() -> ExitCode {
    run(|borrowed| {
        let option = |name| borrowed.spec.split().0.option(name).unwrap_or_default();
        let (directory, pid) = (option("dir").to_string(), option("pid").parse().unwrap_or(0));
        Ok(Tries::<WALLED> { directory, pid })
    })
}

fn main() -> ExitCode {
    let name = std::env::args().next().unwrap_or_default();
    if name.ends_with("/open") { start::<false>() } else { start::<true>() }
}
