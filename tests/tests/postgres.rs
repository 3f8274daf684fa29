//! PostgreSQL: initdb, a server with a process a connection, psql and pgbench.

use std::path::PathBuf;

use hurdle_tests::{Running, Scene, in_worlds, until};
use nix::sys::signal::Signal;

in_worlds!(pgbench: native, local, local_root);
in_worlds!(notifications: native, local);

/// Where Debian keeps PostgreSQL's own programs: the newest version's.
fn programs() -> Option<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
        .filter(|bin| bin.join("initdb").exists() && bin.join("pgbench").exists())
        .collect();
    found.sort();
    found.pop()
}

struct Database {
    _server: Running,
    bin: PathBuf,
    port: String,
}

impl Database {
    /// A fresh database; postgres refuses root, so its programs run as an ordinary user.
    fn start(scene: &Scene) -> Option<Self> {
        let Some(bin) = programs() else {
            scene.skip("PostgreSQL is not installed (cargo xtask install)");
            return None;
        };
        let data = scene.ordinary_dir("data");
        let data = data.to_str().expect("a plain path");
        let mut initdb = scene.ordinary(bin.join("initdb").to_str()?);
        initdb.args(["-D", data, "-A", "trust", "-U", "shepherd", "--no-sync", "-E", "UTF8", "--locale", "C"]);
        hurdle_tests::finish(&mut initdb, std::time::Duration::from_secs(120)).success();
        let port = scene.port();
        let mut server = scene.ordinary(bin.join("postgres").to_str()?);
        let address = port.to_string();
        server.args(["-D", data, "-p", &address, "-c", "unix_socket_directories=", "-c", "fsync=off"]);
        server.args(["-c", "listen_addresses=127.0.0.1,::1", "-c", "max_wal_senders=0", "-c", "autovacuum=off"]);
        let server = scene.serve(server, "postgres.log", port);
        until("the database is up", || {
            let ready = scene.run("pg_isready", &["-h", "127.0.0.1", "-p", &address]);
            ready.status.success().then_some(())
        });
        Some(Self { _server: server, bin, port: address })
    }

    fn psql(&self, scene: &Scene, host: &str, text: &str) -> String {
        let bin = self.bin.join("psql");
        let arguments = ["-h", host, "-p", &self.port, "-U", "shepherd", "-d", "postgres", "-Atq", "-c", text];
        scene.run(bin.to_str().expect("a plain path"), &arguments).success().stdout.trim_end().to_owned()
    }
}

fn pgbench(scene: &Scene) {
    let Some(database) = Database::start(scene) else { return };
    for (host, client) in [("127.0.0.1", "127.0.0.1"), ("::1", "::1")] {
        assert_eq!(database.psql(scene, host, "select host(inet_client_addr())"), client);
        assert_eq!(database.psql(scene, host, "select inet_server_port()"), database.port);
    }
    let bin = database.bin.join("pgbench");
    let bench = |arguments: &[&str]| {
        let common = ["-h", "127.0.0.1", "-p", &database.port, "-U", "shepherd", "postgres"];
        scene.run(bin.to_str().expect("a plain path"), &[arguments, &common].concat()).success()
    };
    bench(&["-i", "-q", "-s", "1"]);
    let select = bench(&["-S", "-c4", "-j2", "-t200", "-n"]);
    assert!(select.stdout.contains("800/800"), "{select}");
    let write = bench(&["-c4", "-j2", "-t50", "-n"]);
    assert!(write.stdout.contains("200/200"), "{write}");
    // A connection for each transaction: a server process each time.
    let connect = bench(&["-S", "-C", "-c2", "-t20", "-n"]);
    assert!(connect.stdout.contains("40/40"), "{connect}");
}

fn notifications(scene: &Scene) {
    let Some(database) = Database::start(scene) else { return };
    let mut sleeper = scene.command(database.bin.join("psql"));
    sleeper.args(["-h", "127.0.0.1", "-p", &database.port, "-U", "shepherd", "postgres", "-c", "select pg_sleep(600)"]);
    let sleeper = scene.start(sleeper, "sleeper.log");
    let asleep = "select count(*) from pg_stat_activity where query like 'select pg_sleep%'";
    until("a query that sleeps", || (database.psql(scene, "127.0.0.1", asleep) == "1").then_some(()));
    // psql answers Ctrl-C by a second connection that asks the server to cancel: a signal between its processes.
    sleeper.signal(Signal::SIGINT);
    assert!(!sleeper.join().success());
    let log = scene.read("sleeper.log");
    assert!(log.contains("canceling statement"), "{log}");
}
