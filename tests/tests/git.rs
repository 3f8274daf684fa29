//! git over http: a clone by the plain file protocol, and clone and push by git's own.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use hurdle_tests::{Finished, Scene, finish, in_worlds};

in_worlds!(clone_of_plain_files: native, share, local);
in_worlds!(clone_and_push: native, local);

const PROGRAMS: [&str; 2] = ["git", "python3"];

/// git with an identity, and without the settings of whoever runs the test.
fn command(scene: &Scene, arguments: &[&str]) -> Command {
    let mut git = scene.command("git");
    git.args(["-c", "safe.directory=*", "-c", "init.defaultBranch=main", "-c", "http.lowSpeedLimit=1"]);
    git.args(["-c", "http.lowSpeedTime=30", "-c", "user.name=Shepherd", "-c", "user.email=shepherd@example.org"]);
    git.args(arguments).env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_TERMINAL_PROMPT", "0");
    git
}

fn git(scene: &Scene, arguments: &[&str]) -> Finished {
    finish(&mut command(scene, arguments), Duration::from_secs(60)).success()
}

/// A bare repository `www/flock.git` with a hundred files in ten commits.
fn repository(scene: &Scene) {
    git(scene, &["init", "-q", "work"]);
    for commit in 0..10 {
        for file in 0..10 {
            scene.write(&format!("work/{commit}/{file}.txt"), &format!("{commit} {file}\n").repeat(200));
        }
        git(scene, &["-C", "work", "add", "."]);
        git(scene, &["-C", "work", "commit", "-q", "-m", &format!("number {commit}")]);
    }
    git(scene, &["clone", "-q", "--bare", "work", "www/flock.git"]);
    git(scene, &["-C", "www/flock.git", "update-server-info"]);
}

fn head(scene: &Scene, directory: &str) -> String {
    git(scene, &["-C", directory, "rev-parse", "HEAD"]).stdout
}

fn clone_of_plain_files(scene: &Scene) {
    if scene.lacks(&PROGRAMS) {
        return;
    }
    repository(scene);
    let port = scene.port();
    let mut server = scene.command("/usr/bin/python3");
    server.args(["-m", "http.server", &port.to_string(), "--bind", "127.0.0.1", "--directory", "www"]);
    let _server = scene.serve(server, "http.log", port);
    git(scene, &["clone", "-q", &format!("http://127.0.0.1:{port}/flock.git"), "copy"]);
    assert_eq!(head(scene, "work"), head(scene, "copy"));
    git(scene, &["-C", "copy", "fsck", "--full"]);
    assert_eq!(git(scene, &["-C", "copy", "status", "--porcelain"]).stdout, "");
    assert_eq!(scene.read("copy/9/9.txt"), "9 9\n".repeat(200));
}

fn clone_and_push(scene: &Scene) {
    if scene.lacks(&PROGRAMS) {
        return;
    }
    repository(scene);
    git(scene, &["-C", "www/flock.git", "config", "http.receivepack", "true"]);
    // Python's server runs CGI programs as nobody if it is root itself.
    scene.run("chmod", &["-R", "a+rwX", "www"]).success();
    let backend =
        "#!/bin/sh\nGIT_PROJECT_ROOT=$ROOT GIT_HTTP_EXPORT_ALL=1 exec git -c safe.directory='*' http-backend\n";
    let program = scene.write("cgi-bin/git", backend);
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("own file");
    let port = scene.port();
    let mut server = scene.command("/usr/bin/python3");
    server.args(["-m", "http.server", &port.to_string(), "--bind", "127.0.0.1", "--cgi"]);
    server.env("ROOT", scene.path("www")).env("GIT_CONFIG_NOSYSTEM", "1");
    let _server = scene.serve(server, "http.log", port);
    let url = format!("http://127.0.0.1:{port}/cgi-bin/git/flock.git");
    git(scene, &["clone", "-q", &url, "copy"]);
    assert_eq!(head(scene, "work"), head(scene, "copy"));
    scene.write("copy/lamb.txt", "new\n");
    git(scene, &["-C", "copy", "add", "."]);
    git(scene, &["-C", "copy", "commit", "-q", "-m", "a lamb"]);
    git(scene, &["-C", "copy", "push", "-q", "origin", "HEAD:refs/heads/main"]);
    assert_eq!(head(scene, "www/flock.git"), head(scene, "copy"));
}
