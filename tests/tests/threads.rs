//! Programs with many threads that all connect and accept: Go's scheduler and Java's threads.

use hurdle_tests::{Scene, finish, in_worlds};
use std::time::Duration;

in_worlds!(go: native, local);
in_worlds!(java: native, local);

fn go(scene: &Scene) {
    if scene.lacks(&["go"]) {
        return;
    }
    scene.write("echo.go", include_str!("threads/echo.go"));
    let mut build = scene.command("go");
    build.args(["build", "-o", "echo", "echo.go"]).env("GOFLAGS", "-mod=mod").env("GOPROXY", "off");
    build.env("GOCACHE", scene.path("cache")).env("GOTOOLCHAIN", "local").env("CGO_ENABLED", "0");
    finish(&mut build, Duration::from_secs(200)).success();
    let done = scene.run(scene.path("echo").to_str().expect("a plain path"), &[]).success();
    assert_eq!(done.stdout, "good\n", "{done}");
}

fn java(scene: &Scene) {
    if scene.lacks(&["java", "javac"]) {
        return;
    }
    scene.write("Echo.java", include_str!("threads/Echo.java"));
    scene.run("javac", &["-d", ".", "Echo.java"]).success();
    let done = scene.run("java", &["-Xmx256m", "-cp", ".", "Echo"]).success();
    assert_eq!(done.stdout, "good\n", "{done}");
}
