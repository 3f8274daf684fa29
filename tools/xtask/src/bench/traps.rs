//! What one trapped call costs: the median of many, each timed by itself.

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::Instant;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket as make};

use crate::shell::Result;

/// Calls of one figure.
const CALLS: usize = 5000;

/// The median time of `call`, in µs, each after a `prepare` that does not count.
fn median<T>(mut prepare: impl FnMut() -> Result<T>, mut call: impl FnMut(&T) -> Result) -> Result<f64> {
    // The first calls start the server, and have it run apart.
    let mut times = Vec::with_capacity(CALLS);
    for number in 0..CALLS + CALLS / 10 {
        let prepared = prepare()?;
        let begin = Instant::now();
        call(&prepared)?;
        let time = begin.elapsed();
        if number >= CALLS / 10 {
            times.push(time);
        }
    }
    times.sort_unstable();
    Ok(times[CALLS / 2].as_secs_f64() * 1e6)
}

/// getsockname(2).
pub(crate) fn name(_: &Path) -> Result<f64> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    median(|| Ok(()), |()| Ok(listener.local_addr().map(drop)?))
}

/// socket(2) and close(2).
pub(crate) fn socket(_: &Path) -> Result<f64> {
    let call = |(): &()| {
        make(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        Ok(())
    };
    median(|| Ok(()), call)
}

/// accept4(2) with an address, of a connection that is there.
pub(crate) fn accept(_: &Path) -> Result<f64> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    median(|| Ok(TcpStream::connect(address)?), |_| Ok(listener.accept().map(drop)?))
}
