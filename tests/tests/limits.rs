//! A program that reaches its own limit of descriptors sees what Linux says, and nothing hangs.

use hurdle_tests::{Scene, in_worlds};

in_worlds!(descriptors: native, share, local, none);

const PYTHON: &str = "/usr/bin/python3";

fn descriptors(scene: &Scene) {
    if scene.lacks(&["python3"]) {
        return;
    }
    let program = scene.write("descriptors.py", include_str!("python/descriptors.py"));
    let done =
        scene.run("bash", &["-c", "ulimit -n 20; exec \"$@\"", "bash", PYTHON, program.to_str().expect("plain")]);
    let done = done.success();
    assert!(done.stdout.ends_with("good\n"), "{done}");
}
