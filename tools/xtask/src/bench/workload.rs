//! What a row does inside of a side: real programs on files and ports of its own. Each function returns one figure.

use std::fs::File;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::shell::{PATH, Result, output, user_id};

/// A server that ends with this value.
struct Server(Child);

impl Server {
    /// Starts it, and waits until it accepts connections.
    fn start(command: Command, port: u16) -> Result<Self> {
        Self::start_until(command, |_| TcpStream::connect(("127.0.0.1", port)).is_ok())
    }

    /// Starts it, and waits until it is ready, which is asked with what it has printed so far.
    fn start_until(mut command: Command, ready: impl Fn(&str) -> bool) -> Result<Self> {
        let log = std::env::temp_dir().join(format!("server-{}.log", std::process::id()));
        let file = File::create(&log)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).process_group(0);
        let mut server = Self(command.spawn().map_err(|error| format!("{command:?}: {error}"))?);
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            let printed = std::fs::read_to_string(&log)?;
            if ready(&printed) {
                break;
            }
            if server.0.try_wait()?.is_some() || Instant::now() > end {
                return Err(format!("{command:?} is not ready: {printed}").into());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        std::fs::remove_file(log)?;
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Its workers are of its process group.
        let group = format!("-{}", self.0.id());
        let _ = Command::new("/bin/kill").args(["-TERM", "--", &group]).status();
        let _ = self.0.wait();
    }
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", PATH).env("LC_ALL", "C.UTF-8");
    command
}

/// The first number after `mark` in `text`.
fn number(text: &str, mark: &str) -> Result<f64> {
    let rest = text.split_once(mark).ok_or_else(|| format!("no {mark:?} in {text}"))?.1;
    let rest = rest.trim_start_matches([' ', '\t', ':', '"', ',', '=']);
    let end = rest.find(|c: char| !c.is_ascii_digit() && !".e+-".contains(c)).unwrap_or(rest.len());
    Ok(rest[..end].parse()?)
}

/// The median of three runs, after one that warms up: all of one server, since its start is not what a row is about.
fn settled(mut run: impl FnMut() -> Result<f64>) -> Result<f64> {
    run()?;
    let mut figures = [run()?, run()?, run()?];
    figures.sort_by(f64::total_cmp);
    Ok(figures[1])
}

fn redis(clients: &str, requests: &str) -> Result<f64> {
    let port = free_port()?;
    let address = port.to_string();
    let mut server = command("redis-server");
    server.args(["--save", "", "--appendonly", "no", "--bind", "127.0.0.1", "--port", &address]);
    let _server = Server::start(server, port)?;
    let mut client = command("redis-benchmark");
    client.args(["-p", &address, "-t", "get", "-c", clients, "-n", requests, "--csv"]);
    settled(|| number(&output(&mut client)?, "\"GET\""))
}

/// Requests per second.
pub(crate) fn redis_50(_: &Path) -> Result<f64> {
    redis("50", "100000")
}

/// Requests per second.
pub(crate) fn redis_1(_: &Path) -> Result<f64> {
    redis("1", "20000")
}

fn nginx(files: &Path, more: &[&str]) -> Result<f64> {
    let port = free_port()?;
    let dir = files.join("nginx");
    std::fs::create_dir_all(dir.join("www"))?;
    std::fs::write(dir.join("www/index.html"), "in the fold\n".repeat(50))?;
    let at = dir.display();
    let text = format!(
        "daemon off; worker_processes 1; pid {at}/pid; error_log {at}/error.log crit;
         events {{ worker_connections 1024; }}
         http {{ access_log off; keepalive_requests 100000000; sendfile on;
           client_body_temp_path {at}/body; proxy_temp_path {at}/proxy; fastcgi_temp_path {at}/fastcgi;
           uwsgi_temp_path {at}/uwsgi; scgi_temp_path {at}/scgi;
           server {{ listen 127.0.0.1:{port}; root {at}/www; }} }}"
    );
    let settings = dir.join("nginx.conf");
    std::fs::write(&settings, text)?;
    let mut server = command("nginx");
    server.arg("-p").arg(&dir).arg("-e").arg(dir.join("error.log")).arg("-c").arg(&settings);
    let _server = Server::start(server, port)?;
    let mut client = command("wrk");
    client.args(["-t1", "-c32", "-d1s"]).args(more).arg(format!("http://127.0.0.1:{port}/"));
    let text = output(&mut client)?;
    if text.contains("Socket errors") || text.contains("Non-2xx") {
        return Err(text.into());
    }
    number(&text, "Requests/sec")
}

/// Requests per second over 32 connections.
pub(crate) fn nginx_keep_alive(files: &Path) -> Result<f64> {
    nginx(files, &[])
}

/// Requests per second, each over a connection of its own.
pub(crate) fn nginx_close(files: &Path) -> Result<f64> {
    nginx(files, &["-H", "Connection: close"])
}

/// Gbit/s over one connection.
pub(crate) fn iperf3(_: &Path) -> Result<f64> {
    let port = free_port()?;
    let address = port.to_string();
    let mut server = command("iperf3");
    server.args(["-s", "-B", "127.0.0.1", "-p", &address, "--forceflush"]);
    // It takes any connection for its one client, so it is not asked by one.
    let _server = Server::start_until(server, |printed| printed.contains("Server listening"))?;
    let mut client = command("iperf3");
    client.args(["-c", "127.0.0.1", "-p", &address, "-t", "1", "-J"]);
    let text = output(&mut client)?;
    let received = text.split_once("\"sum_received\"").ok_or_else(|| format!("no sum in {text}"))?.1;
    Ok(number(received, "\"bits_per_second\"")? / 1e9)
}

/// PostgreSQL refuses root, so root runs it as nobody.
const NOBODY: u32 = 65534;

fn postgres(program: &str) -> Result<Command> {
    let versions = std::fs::read_dir("/usr/lib/postgresql")?.flatten().map(|entry| entry.path().join("bin"));
    let bin: PathBuf = versions.max().ok_or("PostgreSQL is not installed")?;
    if user_id() != 0 {
        return Ok(command(bin.join(program)));
    }
    let mut setpriv = command("setpriv");
    setpriv.args([format!("--reuid={NOBODY}"), format!("--regid={NOBODY}")]).args(["--clear-groups", "--"]);
    setpriv.arg(bin.join(program));
    Ok(setpriv)
}

/// Makes a database of 100,000 accounts.
pub(crate) fn database(files: &Path) -> Result {
    let data = files.join("database");
    std::fs::create_dir(&data)?;
    if user_id() == 0 {
        chown(&data, Some(NOBODY), Some(NOBODY))?;
    }
    output(postgres("initdb")?.args(["-A", "trust", "-U", "shepherd", "--no-sync", "-D"]).arg(&data))?;
    let (_server, port) = database_server(files)?;
    output(pgbench_client(&port)?.args(["-i", "-q", "-s", "1", "postgres"]))?;
    Ok(())
}

fn database_server(files: &Path) -> Result<(Server, String)> {
    let port = free_port()?;
    let mut server = postgres("postgres")?;
    server.arg("-D").arg(files.join("database")).args(["-p", &port.to_string(), "-c", "fsync=off"]);
    server.args(["-c", "unix_socket_directories=", "-c", "listen_addresses=127.0.0.1", "-c", "autovacuum=off"]);
    let server = Server::start(server, port)?;
    let address = port.to_string();
    let end = Instant::now() + Duration::from_secs(20);
    while output(command("pg_isready").args(["-h", "127.0.0.1", "-p", &address])).is_err() {
        if Instant::now() > end {
            return Err("the database does not come up".into());
        }
    }
    Ok((server, address))
}

fn pgbench_client(port: &str) -> Result<Command> {
    let mut client = postgres("pgbench")?;
    client.args(["-h", "127.0.0.1", "-U", "shepherd", "-p", port]);
    Ok(client)
}

/// Transactions per second.
pub(crate) fn pgbench(files: &Path) -> Result<f64> {
    let (_server, port) = database_server(files)?;
    let mut client = pgbench_client(&port)?;
    client.args(["-S", "-n", "-c4", "-j1", "-T1", "postgres"]);
    settled(|| number(&output(&mut client)?, "tps"))
}

/// Makes a tree of 8,000 files in 400 directories.
pub(crate) fn tree(files: &Path) -> Result {
    for directory in 0..400 {
        let path = files.join(format!("tree/{}/{}", directory / 20, directory % 20));
        std::fs::create_dir_all(&path)?;
        for file in 0..20 {
            std::fs::write(path.join(format!("{file}.txt")), format!("{directory} {file}\n").repeat(50 + file * 20))?;
        }
    }
    Ok(())
}

fn milliseconds(work: impl FnOnce() -> Result) -> Result<f64> {
    let begin = Instant::now();
    work()?;
    Ok(begin.elapsed().as_secs_f64() * 1e3)
}

/// Milliseconds.
pub(crate) fn find(files: &Path) -> Result<f64> {
    milliseconds(|| output(command("find").arg(files.join("tree")).args(["-size", "+1000k"])).map(drop))
}

/// Milliseconds.
pub(crate) fn tar(files: &Path) -> Result<f64> {
    milliseconds(|| {
        let mut tar = command("tar");
        // Through a pipe: tar does not read what goes to /dev/null.
        let mut child = tar.arg("-cf").arg("-").arg("-C").arg(files).arg("tree").stdout(Stdio::piped()).spawn()?;
        let mut pipe = child.stdout.take().ok_or("no pipe")?;
        let mut buffer = vec![0; 1 << 16];
        while pipe.read(&mut buffer)? > 0 {}
        if child.wait()?.success() { Ok(()) } else { Err("tar failed".into()) }
    })
}

/// git in a repository, without the settings of whoever measures.
pub(crate) fn git(repository: &Path, arguments: &[&str]) -> Result<String> {
    let mut git = command("git");
    git.arg("-C").arg(repository).args(["-c", "safe.directory=*", "-c", "gc.auto=0"]);
    git.args(["-c", "user.name=Shepherd", "-c", "user.email=shepherd@example.org"]).args(arguments);
    output(git.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CONFIG_GLOBAL", "/dev/null"))
}

/// Makes the tree a git repository.
pub(crate) fn repository(files: &Path) -> Result {
    tree(files)?;
    let tree = files.join("tree");
    git(&tree, &["init", "-q"])?;
    git(&tree, &["add", "."])?;
    git(&tree, &["commit", "-q", "-m", "all"])?;
    Ok(())
}

/// Milliseconds.
pub(crate) fn git_status(files: &Path) -> Result<f64> {
    milliseconds(|| git(&files.join("tree"), &["status", "--porcelain"]).map(drop))
}

/// Makes a project of 60 C files.
pub(crate) fn c_project(files: &Path) -> Result {
    let project = files.join("project");
    std::fs::create_dir(&project)?;
    for file in 0..60 {
        let functions: String =
            (0..40).map(|n| format!("int f{file}_{n}(int x) {{ return printf(\"%d\", x * {n}); }}\n")).collect();
        std::fs::write(
            project.join(format!("{file}.c")),
            format!("#include <stdio.h>\n#include <stdlib.h>\n{functions}"),
        )?;
    }
    let makefile = "all: $(patsubst %.c,%.o,$(wildcard *.c))\n%.o: %.c\n\t@gcc -O1 -c -o $@ $<\n";
    std::fs::write(project.join("Makefile"), makefile)?;
    Ok(())
}

/// Milliseconds.
pub(crate) fn c_build(files: &Path) -> Result<f64> {
    milliseconds(|| output(command("make").args(["-s", "-B", "-j2", "-C"]).arg(files.join("project"))).map(drop))
}
