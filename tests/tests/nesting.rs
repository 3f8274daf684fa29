//! Environments in environments: what works today, and the one clear error where the kernel allows no second trap.

use std::time::Duration;

use hurdle_tests::{Hurdle, finish, skip};

const LIMIT: Duration = Duration::from_secs(30);

/// `hurdle run OUTER -- hurdle run INNER -- sh -c TEXT`.
fn nested(hurdle: &Hurdle, outer: &[&str], inner: &[&str], text: &str) -> hurdle_tests::Finished {
    let mut command = hurdle.run(outer, hurdle.binary());
    finish(command.arg("run").args(inner).args(["--", "/bin/sh", "-c", text]), LIMIT)
}

#[test]
fn one_that_traps_nothing_runs_in_any_other() {
    let hurdle = Hurdle::new();
    for outer in [&[][..], &["--net", "none"], &["--net", "local"], &["--auth", "root"]] {
        for inner in [&[][..], &["--net", "none"], &["--auth", "root,ids=one"]] {
            let done = nested(&hurdle, outer, inner, "exit 42").exits(42);
            assert_eq!((done.stdout.as_str(), done.stderr.as_str()), ("", ""), "{outer:?} {inner:?}: {done}");
        }
    }
    hurdle.assert_nothing_left();
}

#[test]
fn the_first_that_traps_may_be_an_inner_one() {
    let hurdle = Hurdle::new();
    let listen = "python3 -c 'import socket; s = socket.create_server((\"\", 80)); print(s.getsockname())'";
    for outer in [&[][..], &["--net", "none"]] {
        let done = nested(&hurdle, outer, &["--net", "local", "--auth", "root,ids=one"], listen).success();
        assert_eq!(done.stdout, "('0.0.0.0', 80)\n", "{outer:?}: {done}");
    }
    hurdle.assert_nothing_left();
}

#[test]
fn a_second_that_traps_is_refused_with_a_way_on() {
    let hurdle = Hurdle::new();
    for outer in [&["--net", "local"][..], &["--swappable"]] {
        let done = nested(&hurdle, outer, &["--net", "local"], "true").exits(125).says("--net share or --net none");
        assert_eq!(done.stdout, "", "{done}");
        assert_eq!(done.stderr.lines().count(), 1, "one error: {done}");
        // As it says.
        nested(&hurdle, outer, &["--net", "none"], "true").success();
    }
    hurdle.assert_nothing_left();
}

/// A listener outside of the cut, and a client in it: what the client's connect says.
const CUT: &str = r#"
import errno, socket, subprocess, sys
listener = socket.create_server(("127.0.0.1", 0))
client = "import socket, sys; print(socket.socket().connect_ex(('127.0.0.1', int(sys.argv[1]))))"
command = sys.argv[1:] + [sys.executable, "-c", client, str(listener.getsockname()[1])]
code = int(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
print(errno.errorcode[code] if code else "connected")
"#;

#[test]
fn a_network_made_inside_is_cut_off() {
    if let Some(missing) = skip::missing(&["python3", "unshare", "bwrap"]) {
        return skip::skip("a_network_made_inside_is_cut_off", &format!("{missing} is not installed"));
    }
    let hurdle = Hurdle::new();
    let own = hurdle.binary().to_str().expect("a plain path");
    let cuts: &[(&[&str], &[&str])] = &[
        (&[], &["connected"]),
        (&["unshare", "--map-root-user", "--net"], &["ENETUNREACH"]),
        // It brings its loopback up, as this does.
        (&["bwrap", "--unshare-net", "--dev-bind", "/", "/"], &["ECONNREFUSED"]),
        (&[own, "run", "--net", "none", "--"], &["ECONNREFUSED"]),
        (&[own, "run", "--"], &["connected"]),
    ];
    for options in [&["--net", "none"][..], &["--net", "local"], &["--swappable"]] {
        for (cut, said) in cuts {
            let done = finish(hurdle.run(options, "python3").args(["-c", CUT]).args(*cut), LIMIT).success();
            assert_eq!(done.stdout.lines().collect::<Vec<_>>(), *said, "{options:?} {cut:?}: {done}");
        }
    }
    hurdle.assert_nothing_left();
}
