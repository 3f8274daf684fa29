//! redis: a server, its clients, and its benchmark.

use std::process::Command;

use hurdle_tests::{Running, Scene, in_worlds, until};

in_worlds!(commands: native, share, local, local_root, none);
in_worlds!(benchmark: native, local);
in_worlds!(messages: native, local);
in_worlds!(second_server_is_refused: native, local);
in_worlds!(client_sees_the_death_of_the_server: native, local);

const PROGRAMS: [&str; 3] = ["redis-server", "redis-cli", "redis-benchmark"];

fn server(scene: &Scene, port: u16) -> Command {
    let mut command = scene.command("redis-server");
    command.args(["--save", "", "--appendonly", "no", "--port", &port.to_string(), "--bind", "127.0.0.1", "::1"]);
    command
}

fn start(scene: &Scene) -> Option<(Running, String)> {
    if scene.lacks(&PROGRAMS) {
        return None;
    }
    let port = scene.port();
    Some((scene.serve(server(scene, port), "redis.log", port), port.to_string()))
}

fn commands(scene: &Scene) {
    let Some((_server, port)) = start(scene) else { return };
    for host in ["127.0.0.1", "::1", "localhost"] {
        let cli = |words: &[&str]| {
            let done = scene.run("redis-cli", &[&["-h", host, "-p", &port], words].concat());
            done.success().stdout.trim_end().to_owned()
        };
        assert_eq!(cli(&["set", "key", host]), "OK");
        assert_eq!(cli(&["get", "key"]), host);
        // Larger than a socket's buffer, both ways.
        let large = "x".repeat(100_000);
        assert_eq!(cli(&["set", "large", &large]), "OK");
        for _ in 0..5 {
            cli(&["append", "large", &large]);
        }
        assert_eq!(cli(&["get", "large"]).len(), 600_000);
        // The server reports the peer as getpeername does.
        let client = cli(&["client", "list"]);
        let address = if host == "::1" { "addr=[::1]:" } else { "addr=127.0.0.1:" };
        assert!(host == "localhost" || client.contains(address), "{client}");
    }
}

fn benchmark(scene: &Scene) {
    let Some((_server, port)) = start(scene) else { return };
    let done = scene.run(
        "redis-benchmark",
        &["-p", &port, "-t", "ping,set,get,lpush,lrange_100,mset", "-n", "5000", "-c", "50", "-P", "4", "--csv"],
    );
    let done = done.success();
    // A line for the head, one for each test.
    assert!(done.stdout.lines().count() >= 7, "{done}");
    assert!(!done.stdout.contains("rror"), "{done}");
}

fn messages(scene: &Scene) {
    let Some((_server, port)) = start(scene) else { return };
    let mut subscribe = scene.command("redis-cli");
    subscribe.args(["-p", &port, "subscribe", "news"]);
    let subscriber = scene.start(subscribe, "subscriber.log");
    until("the subscription", || subscriber.log().contains("subscribe").then_some(()));
    let told = scene.run("redis-cli", &["-p", &port, "publish", "news", "sheep are back"]).success();
    assert_eq!(told.stdout.trim(), "1");
    until("the message", || subscriber.log().contains("sheep are back").then_some(()));
}

fn second_server_is_refused(scene: &Scene) {
    let Some((first, port)) = start(scene) else { return };
    let number = port.parse().expect("a port");
    let second = scene.start(server(scene, number), "second.log");
    assert!(!second.join().success());
    assert!(scene.read("second.log").contains("Address already in use"), "{}", scene.read("second.log"));
    // Once the first has gone, the port is free again, and nobody answers there.
    drop(first);
    let refused = scene.run("redis-cli", &["-p", &port, "ping"]);
    assert!(!refused.status.success() && refused.stderr.contains("Connection refused"), "{refused}");
    let _third = scene.serve(server(scene, number), "third.log", number);
    assert_eq!(scene.run("redis-cli", &["-p", &port, "ping"]).success().stdout.trim(), "PONG");
}

fn client_sees_the_death_of_the_server(scene: &Scene) {
    let Some((server, port)) = start(scene) else { return };
    let mut wait = scene.command("redis-cli");
    wait.args(["-p", &port, "blpop", "never", "0"]);
    let client = scene.start(wait, "client.log");
    let blocked = || scene.run("redis-cli", &["-p", &port, "info", "clients"]).stdout.contains("blocked_clients:1");
    until("a blocked client", || blocked().then_some(()));
    server.signal(nix::sys::signal::Signal::SIGKILL);
    // It must learn of it, in whatever words: a connection that hangs is the failure.
    client.join();
    let log = scene.read("client.log");
    assert!(log.contains("closed") || log.contains("reset") || log.contains("refused"), "{log}");
}
