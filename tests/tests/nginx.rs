//! nginx with worker processes, curl and wrk.

use std::path::Path;

use hurdle_tests::{Running, Scene, in_worlds, until};
use nix::sys::signal::Signal;

in_worlds!(pages: native, share, local, local_root);
in_worlds!(load: native, local);
in_worlds!(reload_under_load: native, local);
in_worlds!(proxy: native, local);

const PROGRAMS: [&str; 3] = ["nginx", "curl", "wrk"];

/// Two workers that inherit the listeners; everything nginx writes is in the scene.
fn configuration(scene: &Scene, port: u16, more: &str) -> String {
    let dir = scene.dir().display();
    format!(
        "daemon off; worker_processes 2; pid {dir}/nginx.pid; error_log {dir}/error.log;
         events {{ worker_connections 512; }}
         http {{
           access_log off; sendfile on; keepalive_requests 1000000;
           client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy; fastcgi_temp_path {dir}/fastcgi;
           uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi;
           server {{ listen 127.0.0.1:{port}; listen [::1]:{port}; root {dir}/www; {more} }}
         }}"
    )
}

fn start(scene: &Scene, name: &str, port: u16, more: &str) -> Running {
    let file = scene.write(&format!("{name}.conf"), &configuration(scene, port, more));
    let mut command = scene.command("nginx");
    command.arg("-p").arg(scene.dir()).arg("-e").arg(scene.path("error.log")).arg("-c").arg(file);
    scene.serve(command, name, port)
}

/// The text of a page that is larger than a socket's buffer.
fn site(scene: &Scene) -> String {
    let page = "ewe and lamb\n".repeat(100_000);
    scene.write("www/index.html", "in the fold\n");
    scene.write("www/large.txt", &page);
    page
}

fn curl(scene: &Scene, arguments: &[&str]) -> String {
    scene.run("curl", &[&["-sS", "--fail", "-g", "--max-time", "30"], arguments].concat()).success().stdout
}

fn pages(scene: &Scene) {
    if scene.lacks(&PROGRAMS) {
        return;
    }
    let page = site(scene);
    let port = scene.port();
    let _server = start(scene, "nginx", port, "location /who { return 200 '$remote_addr $server_addr'; }");
    for host in ["127.0.0.1", "[::1]", "localhost"] {
        assert_eq!(curl(scene, &[&format!("http://{host}:{port}/")]), "in the fold\n");
        assert!(curl(scene, &[&format!("http://{host}:{port}/large.txt")]) == page, "sendfile from {host}");
    }
    assert_eq!(curl(scene, &[&format!("http://127.0.0.1:{port}/who")]), "127.0.0.1 127.0.0.1");
    assert_eq!(curl(scene, &[&format!("http://[::1]:{port}/who")]), "::1 ::1");
    // Several transfers over one connection, and curl's own account of it.
    let url = format!("http://127.0.0.1:{port}/");
    let format = "%{num_connects} %{remote_port} %{http_code}\n";
    let told = curl(scene, &["-w", format, "-o", "/dev/null", "-o", "/dev/null", &url, &url]);
    assert_eq!(told, format!("1 {port} 200\n0 {port} 200\n"));
    let missing = scene.run("curl", &["-sS", "--fail", "--max-time", "30", &format!("{url}missing")]);
    assert_eq!(missing.code(), 22, "{missing}");
    let nobody = scene.run("curl", &["-sS", "--max-time", "30", &format!("http://127.0.0.1:{}/", scene.port())]);
    assert_eq!(nobody.code(), 7, "{nobody}");
}

fn wrk(scene: &Scene, arguments: &[&str]) -> String {
    let done = scene.run("wrk", &[&["-t2", "-c20", "-d1s", "--timeout", "10s"], arguments].concat()).success();
    // wrk prints these lines only if there was something to say.
    assert!(!done.stdout.contains("Socket errors") && !done.stdout.contains("Non-2xx"), "{done}");
    done.stdout
}

fn load(scene: &Scene) {
    if scene.lacks(&PROGRAMS) {
        return;
    }
    site(scene);
    let port = scene.port();
    let _server = start(scene, "nginx", port, "");
    let url = format!("http://127.0.0.1:{port}/");
    assert!(wrk(scene, &[&url]).contains("Requests/sec"));
    assert!(wrk(scene, &["-H", "Connection: close", &url]).contains("Requests/sec"));
}

fn workers(master: &Running) -> Vec<u32> {
    hurdle_tests::leaks::descendants(master.id().cast_unsigned())
}

fn reload_under_load(scene: &Scene) {
    if scene.lacks(&PROGRAMS) {
        return;
    }
    site(scene);
    let port = scene.port();
    let master = start(scene, "nginx", port, "");
    // A signal before it has workers finds nginx unprepared, natively too.
    let old = until("two workers", || Some(workers(&master)).filter(|workers| workers.len() == 2));
    let url = format!("http://127.0.0.1:{port}/");
    let mut load = scene.command("wrk");
    load.args(["-t1", "-c10", "-d3s", "--timeout", "10s", "-H", "Connection: close", &url]);
    let load = scene.start(load, "wrk.log");
    master.signal(Signal::SIGHUP);
    until("all workers are new", || {
        let now = workers(&master);
        (now.len() >= 2 && now.iter().all(|pid| !old.contains(pid) || !Path::new(&format!("/proc/{pid}")).exists()))
            .then_some(())
    });
    assert_eq!(curl(scene, &[&url]), "in the fold\n");
    assert!(load.join().success());
    let log = scene.read("wrk.log");
    assert!(log.contains("Requests/sec") && !log.contains("connect 1"), "{log}");
}

fn proxy(scene: &Scene) {
    if scene.lacks(&PROGRAMS) {
        return;
    }
    let page = site(scene);
    let (front, back) = (scene.port(), scene.port());
    let _back = start(scene, "back", back, "");
    let pass = format!("location / {{ proxy_pass http://127.0.0.1:{back}; }}");
    let conf = configuration(scene, front, &pass).replace("nginx.pid", "front.pid");
    let file = scene.write("front.conf", &conf);
    let mut command = scene.command("nginx");
    command.arg("-p").arg(scene.dir()).arg("-e").arg(scene.path("error.log")).arg("-c").arg(file);
    let _front = scene.serve(command, "front", front);
    assert!(curl(scene, &[&format!("http://127.0.0.1:{front}/large.txt")]) == page);
    assert!(wrk(scene, &[&format!("http://127.0.0.1:{front}/")]).contains("Requests/sec"));
}
