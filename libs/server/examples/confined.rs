//! A server behind walls, which tries what it is asked to: for tests, and as an example of [`hurdle_server::confine_files`] and
//! [`hurdle_server::confine_calls`]. Started under the name `files` it has the first ones, under `calls` the second.
use std::fs::File;
use std::io;
use std::net::UdpSocket;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::Path;
use std::process::{Command, ExitCode};

use hurdle_server::{Reads, Sockets, confine_calls, confine_files, drop_capabilities};
use hurdle_sys::process::{
    self,
    numbers::{SIGABRT, SIGTERM},
};
use hurdle_wire::{Context, Refused};

hurdle_wire::interface! {
    /// Tries what a server should not do.
    pub mod tries = 1001 {
        /// Each attempt, and the error number that it met with; 0 where it succeeded.
        1 fn all(directory: String, pid: i32) -> Vec<(String, i32)>;
    }
}

/// signal(7): the kernel's own 32, and two of the threads'.
const SIGRTMIN: i32 = 34;

struct Tries;

impl tries::Server for Tries {
    async fn all(&self, _: &Context, directory: String, pid: i32) -> Result<Vec<(String, i32)>, Refused> {
        let path = |name: &str| Path::new(&directory).join(name);
        let forked = || Command::new("/bin/true").status().map(drop);
        let seized = || std::fs::read(format!("/proc/{pid}/environ")).map(drop);
        let tried: [(&str, &dyn Fn() -> io::Result<()>); 9] = [
            ("create", &|| File::create(path("new")).map(drop)),
            ("append", &|| File::options().append(true).open(path("old")).map(drop)),
            ("remove", &|| std::fs::remove_file(path("old"))),
            ("rename", &|| std::fs::rename(path("old"), path("other"))),
            ("mkdir", &|| std::fs::create_dir(path("directory"))),
            ("exec", &forked),
            ("kill", &|| process::kill(pid, SIGTERM)),
            ("connect", &|| std::net::TcpStream::connect("127.0.0.1:9").map(drop)),
            ("read", &|| std::fs::read(path("old")).map(drop)),
        ];
        let name = SocketAddr::from_abstract_name(format!("hurdle-tries-{pid}"))?;
        let more: [(&str, &dyn Fn() -> io::Result<()>); 5] = [
            ("realtime", &|| process::kill(pid, SIGRTMIN + 5)),
            ("abort", &|| process::signal_thread(pid, pid, SIGABRT)),
            ("environ", &seized),
            ("udp", &|| UdpSocket::bind("127.0.0.1:0").map(drop)),
            ("abstract", &|| UnixStream::connect_addr(&name).map(drop)),
        ];
        let number = |result: io::Result<()>| result.map_or_else(|e| e.raw_os_error().unwrap_or(-1), |()| 0);
        Ok(tried.iter().chain(&more).map(|(name, attempt)| (name.to_string(), number(attempt()))).collect())
    }
}

fn main() -> ExitCode {
    hurdle_server::run(|_| {
        let name = std::env::args().next().unwrap_or_default();
        if name.ends_with("/files") || name.ends_with("/calls") {
            drop_capabilities()?;
        }
        if name.ends_with("/files") && !confine_files(Reads::Below(&[Path::new("/proc")]), &[])? {
            return Err(Refused::new(hurdle_server::EOPNOTSUPP, "no Landlock"));
        }
        if name.ends_with("/calls") {
            confine_calls(Sockets::Local)?;
        }
        Ok(tries::service(Tries))
    })
}
