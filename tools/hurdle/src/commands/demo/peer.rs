//! The programs of the demo that run inside: they know nothing of hurdle and use the network as any program does.
//!
//! - `serve`, `serve one-by-one`: the server, which prints its port; it ends with its standard input;
//! - `bench`: the client that measures, against a server that it starts;
//! - `live`: the client that keeps connections going, and tells of them whenever a line comes in on its standard input.
//!
//! The first byte of a connection says what it is for: `e` sends each byte back, `d` takes all and answers with the count, `l`
//! listens anew at each byte and answers with the port.
//!
//! A listener stays in the network it was made in. So when the network of the environment becomes another one, `live` finds
//! its server as programs do after such a change: it is refused, has the server listen anew, and tries again.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::report::{Bench, Speed, Traffic, median};

const ECHO: u8 = b'e';
const DRAIN: u8 = b'd';
const LISTEN: u8 = b'l';

/// How long each of the three measurements takes.
const MEASURE: Duration = Duration::from_millis(280);
/// A peer that says nothing for so long has lost the connection.
const SILENCE: Duration = Duration::from_secs(5);
/// How often a connection is tried; between two tries the server listens anew.
const TRIES: u64 = 3;
/// How often the live client makes a new connection.
const EVERY: Duration = Duration::from_millis(10);

/// Runs the part that `arguments` name.
pub(crate) fn run(arguments: &[&str]) -> io::Result<()> {
    match arguments {
        ["serve"] => serve(|stream| _ = std::thread::spawn(move || attend(stream))),
        ["serve", "one-by-one"] => serve(attend),
        ["bench"] => {
            let free = measure()?;
            hurdle_sys::probe::pin()?;
            say(&Bench { free, one_cpu: measure()? })
        }
        ["live"] => live(),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "its parts are serve, bench and live")),
    }
}

/// One line of JSON for whoever started this.
fn say(value: &impl serde::Serialize) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(value)?)?;
    out.flush()
}

fn serve(mut each: impl FnMut(TcpStream)) -> io::Result<()> {
    // Whoever started this holds the other end of the pipe.
    std::thread::spawn(|| {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        std::process::exit(0);
    });
    let (listener, port) = listen()?;
    say(&port)?;
    loop {
        each(listener.accept()?.0);
    }
}

fn listen() -> io::Result<(TcpListener, u16)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    Ok((listener, port))
}

/// Serves one connection. Its end, however it comes, concerns nobody here: the client counts.
fn attend(mut stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut buffer = vec![0; 256 * 1024];
    let mut purpose = [0];
    if stream.read_exact(&mut purpose).is_err() {
        return;
    }
    if purpose[0] == LISTEN {
        return listen_anew(stream);
    }
    let mut count: u64 = 0;
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        count += length as u64;
        if purpose[0] == ECHO && stream.write_all(&buffer[..length]).is_err() {
            return;
        }
    }
    if purpose[0] == DRAIN {
        let _ = stream.write_all(&count.to_le_bytes());
    }
}

fn listen_anew(mut stream: TcpStream) {
    while stream.read_exact(&mut [0]).is_ok() {
        let Ok((listener, port)) = listen() else { return };
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                std::thread::spawn(move || attend(stream));
            }
        });
        if stream.write_all(&port.to_le_bytes()).is_err() {
            return;
        }
    }
}

/// A server process of one's own. It ends when this is dropped.
struct Server {
    child: Child,
    _hold: Option<ChildStdin>,
    port: u16,
}

impl Server {
    fn start(arguments: &[&str]) -> io::Result<Server> {
        let mut child = Command::new("/proc/self/exe")
            .args(["demo-peer", "serve"])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let hold = child.stdin.take();
        let mut line = String::new();
        if let Some(out) = child.stdout.take() {
            BufReader::new(out).read_line(&mut line)?;
        }
        let port = line.trim().parse().map_err(|_| io::Error::other("the server did not start"))?;
        Ok(Server { child, _hold: hold, port })
    }

    fn connect(&self, purpose: u8) -> io::Result<TcpStream> {
        connect(self.port, purpose)
    }
}

fn connect(port: u16, purpose: u8) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SILENCE))?;
    stream.write_all(&[purpose])?;
    Ok(stream)
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn measure() -> io::Result<Speed> {
    let server = Server::start(&["one-by-one"])?;
    Ok(Speed {
        latency_us: latency(&server)?,
        gbit_per_s: throughput(&server)?,
        connections_per_s: connections(&server)?,
    })
}

fn latency(server: &Server) -> io::Result<f64> {
    let mut stream = server.connect(ECHO)?;
    let mut all = Vec::new();
    let start = Instant::now();
    while start.elapsed() < MEASURE {
        all.push(round_trip(&mut stream)?.as_secs_f64() * 1e6);
    }
    Ok(median(&mut all))
}

fn round_trip(stream: &mut TcpStream) -> io::Result<Duration> {
    let start = Instant::now();
    stream.write_all(b"x")?;
    stream.read_exact(&mut [0])?;
    Ok(start.elapsed())
}

fn throughput(server: &Server) -> io::Result<f64> {
    let mut stream = server.connect(DRAIN)?;
    let chunk = vec![0; 128 * 1024];
    let start = Instant::now();
    while start.elapsed() < MEASURE {
        stream.write_all(&chunk)?;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut count = [0; 8];
    stream.read_exact(&mut count)?;
    Ok(u64::from_le_bytes(count) as f64 * 8.0 / start.elapsed().as_secs_f64() / 1e9)
}

fn connections(server: &Server) -> io::Result<f64> {
    let start = Instant::now();
    let mut count = 0.0;
    while start.elapsed() < MEASURE {
        round_trip(&mut server.connect(ECHO)?)?;
        count += 1.0;
    }
    Ok(count / start.elapsed().as_secs_f64())
}

/// What the two threads of `live` have seen since it was last told.
struct Seen(Mutex<Traffic>);

impl Seen {
    fn note(&self, note: impl FnOnce(&mut Traffic)) {
        note(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn failed(&self, what: &str, error: &io::Error) {
        self.note(|traffic| {
            traffic.failed += 1;
            traffic.failure.get_or_insert_with(|| format!("{what}: {error}"));
        });
    }

    fn take(&self) -> Traffic {
        let mut taken = Traffic::default();
        self.note(|traffic| std::mem::swap(traffic, &mut taken));
        taken
    }
}

/// Where new connections go, and how the server is told to listen anew.
struct Place {
    port: u16,
    control: TcpStream,
}

impl Place {
    /// Connects, is served, closes. Says how often the server had to listen anew.
    fn visit(&mut self) -> io::Result<u64> {
        let mut moved = 0;
        loop {
            match connect(self.port, ECHO).and_then(|mut stream| round_trip(&mut stream)) {
                Ok(_) => return Ok(moved),
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused && moved + 1 < TRIES => moved += 1,
                Err(error) => return Err(error),
            }
            self.control.write_all(b"x")?;
            let mut port = [0; 2];
            self.control.read_exact(&mut port)?;
            self.port = u16::from_le_bytes(port);
        }
    }
}

/// Tells of the traffic at each line of input, and a last time at its end.
fn live() -> io::Result<()> {
    let server = Server::start(&[])?;
    let mut stays = server.connect(ECHO)?;
    let mut place = Place { port: server.port, control: server.connect(LISTEN)? };
    let seen = Seen(Mutex::default());
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                match round_trip(&mut stays) {
                    Ok(took) => seen.note(|traffic| {
                        traffic.round_trips += 1;
                        traffic.worst_round_trip_us = traffic.worst_round_trip_us.max(took.as_micros() as u64);
                    }),
                    // It can't come back.
                    Err(error) => return seen.failed("the connection that stays", &error),
                }
            }
        });
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let start = Instant::now();
                match place.visit() {
                    Ok(moved) => seen.note(|traffic| {
                        traffic.connections += 1;
                        traffic.listened_anew += moved;
                        traffic.worst_connection_us =
                            traffic.worst_connection_us.max(start.elapsed().as_micros() as u64);
                    }),
                    Err(error) => seen.failed("a new connection", &error),
                }
                std::thread::sleep(EVERY);
            }
        });
        let told = say(&Traffic::default()).and_then(|()| {
            for line in io::stdin().lock().lines() {
                line?;
                say(&seen.take())?;
            }
            Ok(())
        });
        over.store(true, Ordering::Relaxed);
        told
    })?;
    say(&seen.take())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (TcpListener, u16) {
        let (listener, port) = listen().unwrap();
        let server = listener.try_clone().unwrap();
        std::thread::spawn(move || {
            while let Ok((stream, _)) = server.accept() {
                std::thread::spawn(move || attend(stream));
            }
        });
        (listener, port)
    }

    #[test]
    fn the_server_does_what_the_first_byte_says() {
        let (_listener, port) = pair();
        let mut echo = connect(port, ECHO).unwrap();
        round_trip(&mut echo).unwrap();
        round_trip(&mut echo).unwrap();
        let mut drain = connect(port, DRAIN).unwrap();
        drain.write_all(&[7; 100_000]).unwrap();
        drain.shutdown(Shutdown::Write).unwrap();
        let mut count = [0; 8];
        drain.read_exact(&mut count).unwrap();
        assert_eq!(u64::from_le_bytes(count), 100_000);
    }

    #[test]
    fn a_client_that_is_refused_has_the_server_listen_anew() {
        let (_listener, port) = pair();
        // A port where nobody listens any more.
        let refused = listen().unwrap().1;
        let mut place = Place { port: refused, control: connect(port, LISTEN).unwrap() };
        assert_eq!(place.visit().unwrap(), 1);
        assert_ne!(place.port, refused);
        assert_eq!(place.visit().unwrap(), 0, "and finds it there again");
    }
}
