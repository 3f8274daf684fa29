//! Node: its http server and client, its event loop, its child processes and clusters.

use hurdle_tests::{Scene, in_worlds};

in_worlds!(http: native, share, local);
in_worlds!(cluster: native, local);

fn good(scene: &Scene, name: &str, text: &str) {
    if scene.lacks(&["node"]) {
        return;
    }
    let program = scene.write(name, text);
    let done = scene.run("node", &[program.to_str().expect("a plain path")]).success();
    assert!(done.stdout.ends_with("good\n"), "{done}");
}

fn http(scene: &Scene) {
    good(scene, "http.js", include_str!("node/http.js"));
}

fn cluster(scene: &Scene) {
    good(scene, "cluster.js", include_str!("node/cluster.js"));
}
