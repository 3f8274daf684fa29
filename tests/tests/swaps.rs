//! A net server is swapped for one of another kind. Connections go on, listeners are reached, and no program notices. `HURDLE_SWAPS` says
//! how often under load (60).

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::Duration;

use hurdle_tests::chance;
use hurdle_tests::command::example;
use hurdle_tests::load::Load;
use hurdle_tests::{Finished, Hurdle, Running, finish, leaks, scene, skip, until};

const PYTHON: &str = "/usr/bin/python3";
const LISTENERS: &str = include_str!("swaps/listeners.py");
const CLIENTS: &str = include_str!("swaps/clients.py");
const EPOLL: &str = include_str!("swaps/epoll.py");
const BEFORE: &str = include_str!("swaps/before.py");
const LATER: &str = include_str!("swaps/later.py");

fn swap(hurdle: &Hurdle, name: &str, net: &str) -> u64 {
    hurdle.json(&["swap", name, &format!("net={net}")])["pause_us"].as_u64().expect("a number")
}

/// The program that listens, in an environment that was launched with this network.
struct Listening<'a> {
    hurdle: &'a Hurdle,
    name: String,
    ports: PathBuf,
}

impl<'a> Listening<'a> {
    /// `None`: there is no Python here.
    fn start(hurdle: &'a Hurdle, test: &str, net: &str, waits: &str) -> Option<Listening<'a>> {
        if let Some(missing) = skip::missing(&["python3"]) {
            skip::skip(test, &format!("{missing} is not installed"));
            return None;
        }
        let name = hurdle.name(&format!("listening-{net}"));
        let ports = hurdle.logs().join(format!("ports-{net}"));
        let file = ports.to_str().expect("a plain path");
        let own = std::array::from_fn::<_, 5, _>(|_| scene::port().to_string());
        let program = [&[PYTHON, "-c", LISTENERS, file, waits][..], &own.each_ref().map(String::as_str)].concat();
        hurdle.detach(&name, &["--swappable", "--net", net], &program);
        until("it listens", || ports.exists().then_some(()));
        Some(Listening { hurdle, name, ports })
    }

    /// A program that is started in the environment now, and ends.
    #[track_caller]
    fn enter(&self, script: &str) -> Finished {
        let ports = self.ports.to_str().expect("a plain path");
        self.hurdle.call(&["enter", &self.name, "--", PYTHON, "-c", script, ports])
    }

    #[track_caller]
    fn end(self) {
        self.hurdle.call(&["kill", &self.name]).success();
        self.hurdle.assert_nothing_left();
    }
}

#[test]
fn every_listener_is_reached_in_every_network() {
    let hurdle = Hurdle::new();
    for made in ["local", "none", "share"] {
        let Some(listening) = Listening::start(&hurdle, "every_listener_is_reached_in_every_network", made, "accept")
        else {
            return;
        };
        for net in [made, "none", "local", "share", "local", "none", "share", made] {
            if net != made || hurdle.right(&listening.name, "net")["swaps"] != 0 {
                swap(&hurdle, &listening.name, net);
            }
            let done = listening.enter(CLIENTS);
            assert!(done.status.success() && done.stdout.starts_with("reached "), "of {made} in {net}: {done}");
        }
        listening.end();
    }
}

#[test]
fn a_registration_in_epoll_outlives_the_fd_that_is_replaced() {
    let hurdle = Hurdle::new();
    let test = "a_registration_in_epoll_outlives_the_fd_that_is_replaced";
    for (made, others) in [("local", ["local", "none", "share"]), ("none", ["none", "local", "share"])] {
        let Some(listening) = Listening::start(&hurdle, test, made, "accept") else { return };
        for net in others {
            if net != made {
                swap(&hurdle, &listening.name, net);
            }
            let done = listening.enter(EPOLL);
            assert!(done.status.success() && done.stdout == "registered\n", "of {made} in {net}: {done}");
        }
        listening.end();
    }
}

/// Has sockets made under one network, and bound, listening and connected under the next.
fn before(listening: &Listening<'_>, first: &str, then: &str) -> String {
    let hurdle = listening.hurdle;
    swap(hurdle, &listening.name, first);
    let told = hurdle.logs().join(format!("told-{first}-{then}"));
    let mut enter = hurdle.command();
    enter.args(["enter", &listening.name, "--", PYTHON, "-c", BEFORE]).arg(&listening.ports).arg(&told);
    let log = format!("before-{first}-{then}");
    let program: Running = hurdle.start(&mut enter, &log);
    until("it has its sockets", || told.with_extension("ready").exists().then_some(()));
    swap(hurdle, &listening.name, then);
    std::fs::write(&told, "").expect("own file");
    let ended = program.join();
    let said = std::fs::read_to_string(hurdle.logs().join(log)).expect("own file");
    assert!(ended.success(), "of {first} in {then}: {said}");
    said.trim().to_owned()
}

#[test]
fn a_socket_made_before_a_swap_comes_into_the_network_after_it() {
    let hurdle = Hurdle::new();
    let test = "a_socket_made_before_a_swap_comes_into_the_network_after_it";
    for made in ["local", "none", "share"] {
        let Some(listening) = Listening::start(&hurdle, test, made, "accept") else { return };
        for (first, then, tcp) in [("local", "none", "True"), ("none", "local", "False"), ("share", "none", "True")] {
            assert_eq!(before(&listening, first, then), tcp, "{first} then {then}, listeners of {made}");
        }
        before(&listening, "local", "share");
        before(&listening, "none", "share");
        listening.end();
    }
}

#[test]
fn a_network_of_the_users_own_comes_between() {
    let hurdle = Hurdle::new();
    let test = "a_network_of_the_users_own_comes_between";
    let Some(listening) = Listening::start(&hurdle, test, "local", "poll") else { return };
    let (count, refuse) = (example("count").display().to_string(), example("refuse").display().to_string());
    for net in ["none", &format!("{count}+local"), &format!("{count}+none"), &format!("{count}+share"), "local"] {
        swap(&hurdle, &listening.name, net);
        let done = listening.enter(CLIENTS);
        assert!(done.status.success(), "{net}: {done}");
    }
    swap(&hurdle, &listening.name, &refuse);
    let refused = listening.enter("import socket; socket.socket()");
    assert!(refused.stderr.contains("Network is unreachable"), "{refused}");
    for net in ["none", "local"] {
        swap(&hurdle, &listening.name, net);
        let done = listening.enter(CLIENTS);
        assert!(done.status.success(), "{net}: {done}");
    }
    listening.end();
}

#[test]
fn what_is_the_hosts_is_not_reached_after_a_swap_away() {
    let hurdle = Hurdle::new();
    let test = "what_is_the_hosts_is_not_reached_after_a_swap_away";
    let Some(listening) = Listening::start(&hurdle, test, "share", "accept") else { return };
    let other = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = other.local_addr().expect("a listener").port();
    let connect = format!("import socket; print(socket.socket().connect_ex(('127.0.0.1', {port})))");
    for (net, found) in [("share", "0\n"), ("none", "111\n"), ("local", "111\n"), ("share", "0\n")] {
        swap(&hurdle, &listening.name, net);
        assert_eq!(listening.enter(&connect).success().stdout, found, "{net}");
    }
    listening.end();
}

/// A connection from the host to the port, if it can be made.
fn connect(host: &str, port: u16) -> Option<TcpStream> {
    let stream = TcpStream::connect((host, port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a socket");
    Some(stream)
}

/// What a listener of listeners.py tells a client of his connection: his address, twice, and its own.
fn greeting(stream: &TcpStream) -> Option<[(String, u16); 3]> {
    let mut line = String::new();
    // Nothing follows it before the client speaks.
    BufReader::new(stream).read_line(&mut line).ok()?;
    let seen: [(String, u16); 3] = serde_json::from_str(&line).ok()?;
    Some(seen.map(|(host, port)| (host.trim_start_matches("::ffff:").to_owned(), port)))
}

/// Until this listener answers a client on the host.
#[track_caller]
fn reached(host: &str, port: u16) -> TcpStream {
    until(&format!("{host} port {port} is reached"), || connect(host, port).filter(|stream| greeting(stream).is_some()))
}

/// Many bytes go there and back, and each direction ends by itself.
fn echoes(mut stream: TcpStream) {
    let bytes: Vec<u8> = (0..4_000_000_u32).map(|n| (n.wrapping_mul(n) >> 7) as u8).collect();
    let (mut writer, sent) = (stream.try_clone().expect("a duplicate"), bytes.clone());
    let writes = std::thread::spawn(move || {
        writer.write_all(&sent).expect("it is read");
        writer.shutdown(std::net::Shutdown::Write).expect("it is open");
    });
    let mut back = Vec::new();
    stream.read_to_end(&mut back).expect("an ordinary end");
    writes.join().expect("it was written");
    assert!(back == bytes, "{} of {} bytes", back.len(), bytes.len());
}

/// The end of what was under way: not one that could be taken for the program's.
fn is_reset(mut stream: &TcpStream) -> bool {
    stream.read(&mut [0; 16]).is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset)
}

#[test]
fn a_listener_is_reached_from_the_host_after_a_swap_to_share() {
    let hurdle = Hurdle::new();
    let test = "a_listener_is_reached_from_the_host_after_a_swap_to_share";
    for made in ["local", "none"] {
        let Some(listening) = Listening::start(&hurdle, test, made, "accept") else { return };
        let ports = std::fs::read_to_string(&listening.ports).expect("own file");
        let ports: BTreeMap<String, u16> = serde_json::from_str(&ports).expect("JSON");
        let one = ports["127.0.0.1"];
        assert!(connect("127.0.0.1", one).is_none(), "before the swap");
        swap(&hurdle, &listening.name, "share");
        let ways = [
            ("127.0.0.1", "127.0.0.1"),
            ("0.0.0.0", "127.0.0.3"),
            ("127.0.0.9", "127.0.0.9"),
            ("::1", "::1"),
            ("::", "::1"),
        ];
        for (host, address) in ways.into_iter().chain([("::", "127.0.0.1")]) {
            let port = ports[host];
            reached(address, port);
            let stream = connect(address, port).expect("it is reached");
            let [accepted, peer, own] = greeting(&stream).expect("a greeting");
            assert_eq!((&accepted, &own), (&peer, &(address.to_owned(), port)), "of {made}, {host}");
            let client = stream.local_addr().expect("a socket");
            match made {
                "local" => assert_eq!(peer, (client.ip().to_string(), client.port()), "{host}"),
                _ => assert!(["127.0.0.1", "::1"].contains(&peer.0.as_str()), "{host}: {peer:?}"),
            }
            echoes(stream);
        }
        assert!(connect("127.0.0.1", ports["127.0.0.9"]).is_none(), "it listens on another address alone");
        // From inside it is the listener itself that is reached, as before.
        assert!(listening.enter(CLIENTS).success().stdout.starts_with("reached "));

        let kept = reached("127.0.0.1", one);
        let server = hurdle.right(&listening.name, "net")["state"]["Running"]["pid"].as_i64().expect("it runs");
        let server = i32::try_from(server).expect("a pid");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(server), nix::sys::signal::SIGKILL).expect("it runs");
        assert!(is_reset(&kept), "of {made}: its server has died");
        let kept = reached("127.0.0.1", one);
        swap(&hurdle, &listening.name, made);
        assert!(is_reset(&kept), "of {made}: its server was swapped away");
        assert!(connect("127.0.0.1", one).is_none(), "of {made}: after the swap away");
        swap(&hurdle, &listening.name, "share");
        reached("127.0.0.1", one);
        listening.end();
    }
}

#[test]
fn who_listens_later_is_reached_from_the_host_and_who_closes_is_not() {
    let hurdle = Hurdle::new();
    let test = "who_listens_later_is_reached_from_the_host_and_who_closes_is_not";
    if let Some(missing) = skip::missing(&["python3"]) {
        return skip::skip(test, &format!("{missing} is not installed"));
    }
    for made in ["local", "none"] {
        let name = hurdle.name(&format!("later-{made}"));
        let directory = hurdle.logs().join(made);
        std::fs::create_dir(&directory).expect("own directory");
        let file = directory.to_str().expect("a plain path");
        let port = scene::port();
        hurdle.detach(&name, &["--swappable", "--net", made], &[PYTHON, "-c", LATER, file, &port.to_string()]);
        until("it is bound", || directory.join("bound").exists().then_some(()));
        swap(&hurdle, &name, "share");
        assert!(connect("127.0.0.1", port).is_none(), "of {made}: it does not listen yet");
        std::fs::write(directory.join("listen"), "").expect("own file");
        let mut client = until("it is reached", || connect("127.0.0.1", port));
        client.write_all(b"not read").expect("it is open");
        assert!(is_reset(&client), "of {made}: the program has reset it");
        std::fs::write(directory.join("again"), "").expect("own file");
        until("it listens anew", || directory.join("greets").exists().then_some(()));
        let mut said = String::new();
        connect("127.0.0.1", port).expect("it listens").read_to_string(&mut said).expect("an ordinary end");
        assert_eq!(said, "again", "of {made}");
        std::fs::write(directory.join("close"), "").expect("own file");
        until("it is closed", || connect("127.0.0.1", port).is_none().then_some(()));
        hurdle.call(&["kill", &name]).success();
        std::fs::remove_dir_all(&directory).expect("own directory");
    }
    hurdle.assert_nothing_left();
}

#[test]
fn an_address_that_is_taken_on_the_host_is_told_and_used_once_it_is_free() {
    let hurdle = Hurdle::new();
    let test = "an_address_that_is_taken_on_the_host_is_told_and_used_once_it_is_free";
    let Some(listening) = Listening::start(&hurdle, test, "local", "accept") else { return };
    let ports = std::fs::read_to_string(&listening.ports).expect("own file");
    let ports: BTreeMap<String, u16> = serde_json::from_str(&ports).expect("JSON");
    let port = ports["127.0.0.1"];
    let other = std::net::TcpListener::bind(("127.0.0.1", port)).expect("a free port");
    swap(&hurdle, &listening.name, "share");
    let wanted = format!("what listens on 127.0.0.1:{port} is not reached from outside: Address already in use");
    until("it is told", || hurdle.right(&listening.name, "net")["stderr"].to_string().contains(&wanted).then_some(()));
    reached("127.0.0.9", ports["127.0.0.9"]);
    assert!(listening.enter(CLIENTS).success().stdout.starts_with("reached "));
    drop(other);
    reached("127.0.0.1", port);
    listening.end();
}

/// What a program may not do in the parent's network natively, the net server does not do for it, whoever runs the environment.
#[test]
fn under_share_a_program_gets_no_more_than_linux_gives_it() {
    let test = "under_share_a_program_gets_no_more_than_linux_gives_it";
    let hurdle = Hurdle::new();
    let floor = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap_or_default();
    if floor.trim() != "1024" {
        return skip::skip(test, "any user may bind any port here");
    }
    let Some(listening) = Listening::start(&hurdle, test, "local", "accept") else { return };
    let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let (ready, told) = (hurdle.logs().join("ready"), hurdle.logs().join("told"));
    let text = format!(
        "import errno, os, socket, time\n\
         def tried(act):\n\
         \x20   try: act(); return 'done'\n\
         \x20   except OSError as error: return errno.errorcode[error.errno]\n\
         bound, fresh = socket.socket(), socket.socket()\n\
         bound.bind(('127.0.0.1', 81)); open({ready:?}, 'w').close()\n\
         while not os.path.exists({told:?}): time.sleep(0.01)\n\
         print(tried(lambda: bound.connect(('127.0.0.1', {}))), tried(lambda: fresh.bind(('127.0.0.1', 82))),\n\
         \x20   tried(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)))",
        port.local_addr().expect("a socket").port(),
    );
    let mut enter = hurdle.command();
    let program = hurdle.start(enter.args(["enter", &listening.name, "--", PYTHON, "-c", &text]), "more.log");
    until("it is bound", || ready.exists().then_some(()));
    swap(&hurdle, &listening.name, "share");
    std::fs::write(&told, "").expect("own file");
    assert!(program.join().success());
    let said = std::fs::read_to_string(hurdle.logs().join("more.log")).expect("own file");
    // An environment that shares the network from the start says the same.
    let native = "import socket; socket.create_server(('127.0.0.1', 82))";
    let done = finish(hurdle.run(&["--net", "share"], PYTHON).args(["-c", native]), Duration::from_secs(20));
    assert!(done.stderr.contains("PermissionError"), "{done}");
    assert_eq!(said, "EACCES EACCES EPERM\n");
    listening.end();
}

/// A kill of the server in the midst of an answer to a client from outside: no program gets a wrong one.
#[test]
fn clients_from_the_host_are_introduced_by_a_process_that_finishes_its_answer() {
    let hurdle = Hurdle::new();
    let test = "clients_from_the_host_are_introduced_by_a_process_that_finishes_its_answer";
    if let Some(missing) = skip::missing(&["python3"]) {
        return skip::skip(test, &format!("{missing} is not installed"));
    }
    let name = hurdle.name("introduced");
    let (file, port) = (hurdle.logs().join("up"), scene::port());
    // accept with an address waits in the server. Standard input is open: 0 is no answer of the kernel's.
    let text = "import socket, sys\n\
                l = socket.create_server(('127.0.0.1', int(sys.argv[2])))\n\
                open(sys.argv[1], 'w').close()\n\
                while True:\n\
                \x20   c, peer = l.accept()\n\
                \x20   assert c.fileno() > 2 and peer[0] == '127.0.0.1', (c, peer)\n\
                \x20   c.close()";
    let mut run = hurdle.run(&["--name", &name, "--swappable", "--net", "local"], PYTHON);
    let mut program = hurdle.start(run.args(["-c", text]).arg(&file).arg(port.to_string()), "introduced.log");
    until("it listens", || file.exists().then_some(()));
    swap(&hurdle, &name, "share");
    let comm = |pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    for _ in 0..20 {
        until("it is reached", || connect("127.0.0.1", port));
        let server = until("its relay runs apart", || {
            let pid = hurdle.right(&name, "net")["state"]["Running"]["pid"].as_u64()?;
            let pid = u32::try_from(pid).ok()?;
            leaks::descendants(pid).iter().any(|pid| comm(pid).trim() == "hurdle-relay").then_some(pid)
        });
        let clients: Vec<_> = (0..4).map(|_| std::thread::spawn(move || connect("127.0.0.1", port))).collect();
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(server.cast_signed()), nix::sys::signal::SIGKILL);
        clients.into_iter().for_each(|client| drop(client.join().expect("no panic")));
        program.assert_alive();
    }
    hurdle.call(&["kill", &name]).success();
    drop(program);
    hurdle.assert_nothing_left();
}

fn times() -> usize {
    std::env::var("HURDLE_SWAPS").ok().and_then(|text| text.parse().ok()).unwrap_or(60)
}

#[test]
fn networks_change_under_load_and_no_client_notices() {
    let hurdle = Hurdle::new();
    let test = "networks_change_under_load_and_no_client_notices";
    let Some(load) = Load::start(&hurdle, test, &["--swappable", "--net", "local"]) else { return };
    let mut pauses: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    let nets = ["none", "local", "share", "none", "share", "local"];
    for round in 0..times() {
        let to = nets[round % nets.len()];
        chance::moment(Duration::from_millis(20));
        pauses.entry(to).or_default().push(swap(&hurdle, &load.name, to));
        if round < nets.len() {
            load.goes_on();
        }
    }
    for (to, pauses) in &mut pauses {
        pauses.sort_unstable();
        println!(
            "{} swaps to {to}: traffic waited {} µs at the median, {} at most",
            pauses.len(),
            pauses[pauses.len() / 2],
            pauses[pauses.len() - 1]
        );
    }
    let right = hurdle.right(&load.name, "net");
    assert_eq!((&right["swaps"], &right["deaths"]), (&times().into(), &0.into()));
    load.end();
}
