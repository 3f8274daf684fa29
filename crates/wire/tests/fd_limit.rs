//! At the limit of open files. Alone in its process, whose limit it lowers.
#![allow(clippy::unwrap_used)]

mod common;

use common::connect;
use hurdle_wire::{Bytes, Fd};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

#[test]
fn a_process_without_free_fds_says_so_and_goes_on() {
    let client = connect();
    let files: Vec<_> = (0..3).map(|_| Fd::from(std::fs::File::open("/dev/null").unwrap())).collect();
    let list = |files: &[Fd]| files.iter().map(|fd| (String::new(), Some(fd.clone()))).collect();
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = open();
    assert_eq!(client.pass(list(&files)).wait().unwrap().len(), 3);
    // The server's thread, in this same process, may still hold what it got.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while open() > before {
        assert!(std::time::Instant::now() < deadline, "the fds of the first call stay open");
        std::thread::yield_now();
    }
    let next_free = std::fs::File::open("/dev/null").map(|file| std::os::fd::AsRawFd::as_raw_fd(&file)).unwrap();
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, next_free as u64 + 1, hard).unwrap();
    let received = client.pass(list(&files)).wait();
    let large = client.echo(Bytes(vec![0; 1 << 20])).wait();
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    let error = received.unwrap_err();
    assert_eq!(error.errno(), Some(libc::EMFILE), "{error}");
    assert!(error.to_string().contains("the server has no file descriptor free"), "{error}");
    // One fd is free: enough to send a memory file. It is received if the sender has closed his copy by then, else refused.
    match large {
        Ok(bytes) => assert_eq!(bytes.0.len(), 1 << 20),
        Err(error) => assert_eq!(error.errno(), Some(libc::EMFILE), "{error}"),
    }
    assert_eq!(client.pass(list(&files)).wait().unwrap().len(), 3, "the channel goes on");
}
