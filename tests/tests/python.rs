//! Python's servers, event loop, subprocesses and processes. The programs are in `python/`.

use hurdle_tests::{Scene, in_worlds};

in_worlds!(http_server: native, share, local);
in_worlds!(asyncio: native, share, local, none);
in_worlds!(subprocess: native, share, local, isolated);
in_worlds!(multiprocessing: native, share, local);
in_worlds!(datagrams: native, local, none);
in_worlds!(differences: local, isolated);

const PYTHON: &str = "/usr/bin/python3";

/// Runs a program that asserts for itself and prints `good` at its end.
fn good(scene: &Scene, name: &str, text: &str) {
    if scene.lacks(&["python3"]) {
        return;
    }
    let program = scene.write(name, text);
    let done = scene.run(PYTHON, &[program.to_str().expect("a plain path")]).success();
    assert!(done.stdout.ends_with("good\n"), "{done}");
}

fn http_server(scene: &Scene) {
    if scene.lacks(&["python3", "curl"]) {
        return;
    }
    scene.write("www/hello.txt", "hello from the fold\n");
    let port = scene.port();
    let mut server = scene.command(PYTHON);
    server.args(["-u", "-m", "http.server", &port.to_string(), "--bind", "127.0.0.1", "--directory", "www"]);
    let server = scene.serve(server, "http.log", port);
    let url = format!("http://127.0.0.1:{port}/hello.txt");
    for _ in 0..20 {
        let page = scene.run("curl", &["-sS", "--fail", "--max-time", "30", &url]).success();
        assert_eq!(page.stdout, "hello from the fold\n");
    }
    // The log line begins with the peer's address as accept told it.
    hurdle_tests::until("its log", || server.log().contains("127.0.0.1 - - ").then_some(()));
}

fn asyncio(scene: &Scene) {
    good(scene, "asyncio_echo.py", include_str!("python/asyncio_echo.py"));
}

fn subprocess(scene: &Scene) {
    good(scene, "subprocesses.py", include_str!("python/subprocesses.py"));
}

fn multiprocessing(scene: &Scene) {
    good(scene, "processes.py", include_str!("python/processes.py"));
}

fn differences(scene: &Scene) {
    good(scene, "differences.py", include_str!("python/differences.py"));
}

fn datagrams(scene: &Scene) {
    good(scene, "datagrams.py", include_str!("python/datagrams.py"));
}
