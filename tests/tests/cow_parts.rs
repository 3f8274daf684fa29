//! Environments whose files are of several kinds: all read-only, or copy-on-write with parts that are hidden, shared or read-only, in
//! any mix and nested; and names that are hard to handle.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use hurdle_tests::cow::BOTH;
use hurdle_tests::{Cow, Finished, Snapshot, finish};

const LIMIT: Duration = Duration::from_secs(60);

/// The test's directory is the home directory as well.
fn run(cow: &Cow, spec: &str, auth: &str, script: &str) -> Finished {
    let mut command: Command = cow.command(&["--fs", spec, "--auth", auth], "/bin/sh");
    finish(command.args(["-ec", script]).env("HOME", cow.dir()), LIMIT)
}

fn mkdir(path: &Path) {
    std::fs::create_dir_all(path).expect("own directory");
}

fn put(path: &Path, text: &str) {
    std::fs::write(path, text).expect("own file");
}

fn get(path: &Path) -> String {
    std::fs::read_to_string(path).expect("own file")
}

/// `a/b/c`, with a file in each.
fn nest(directory: &Path) {
    mkdir(&directory.join("a/b/c"));
    for name in ["a", "a/b", "a/b/c"] {
        put(&directory.join(name).join("f"), "old\n");
    }
}

#[test]
fn read_only_files_are_read_and_never_written() {
    let cow = Cow::watching(&["/etc", "/usr/local"], nest);
    let script = "cat a/f; ls a/b/c; /usr/bin/env true; echo x > /dev/null
        for path in a/f a/new $HOME/new; do { echo x >> $path; } 2>&1 | grep -q 'Read-only file system' || echo wrote $path; done
        for path in /etc/hosts /etc/new /tmp/new /usr/local/new; do { echo x >> $path; } 2>/dev/null && echo wrote $path || :; done
        { mkdir a/d || rm a/f || chmod 777 a/f || mv a/f a/g || ln a/f a/g || touch a/f; } 2>&1 | grep -c 'Read-only file system'
        mount -o remount,rw / 2>/dev/null && echo x > a/new 2>/dev/null; :";
    for auth in ["same", "root"] {
        assert_eq!(run(&cow, "ro", auth, script).success().stdout, "old\nf\n6\n", "{auth}");
    }
    cow.end();
}

/// Root inside may mount and unmount. Below what was mounted for him there is nothing of the host's that can be written.
#[test]
fn root_inside_takes_no_wall_down() {
    let cow = Cow::watching(&["/etc", "/dev/shm"], |dir| {
        nest(dir);
        mkdir(&dir.join("secrets"));
        put(&dir.join("secrets/id"), "secret\n");
    });
    let mark = format!("hurdle-wall-{}", std::process::id());
    let script = format!(
        "set +e; exec 2>/dev/null; here=$PWD; cat secrets/id
        mount -o remount,bind,rw /; mount -o remount,rw /; mount -o remount,bind,rw $here; mount --bind / /mnt; mount -o remount,bind,rw /mnt
        umount /dev/shm; umount -l /dev/shm; umount -l /dev/mqueue; umount -l /dev; umount -l secrets; umount -l $here/secrets
        cat secrets/id; for d in a /etc /dev/shm /mnt/$here/a /mnt/dev/shm /tmp; do echo x > $d/{mark}; done; echo x > a/f
        parts=\"a/b a/f a /etc secrets/id $here\"
        for d in $parts; do mount -o remount,bind,rw $d; mount -o remount,rw $d; echo x > $d; echo x > $d/f; echo x > $d/{mark}; done
        for d in $parts; do umount $d; umount -l $d; cd $here; echo x > $d; echo x > $d/{mark}; done; :"
    );
    let kept =
        ["cow,ro=.", "cow,ro=./a", "cow,ro=./a/f", "cow,ro=./secrets/id", "cow,ro=/etc", "cow,hide=./a,ro=./a/b"];
    for spec in ["cow", "cow,hide=./secrets", "ro", "ro,hide=./secrets"].into_iter().chain(kept) {
        let seen = run(&cow, spec, "root", &script).success().stdout;
        let expected = if spec.contains("hide=./secrets") { "" } else { "secret\nsecret\n" };
        assert_eq!(seen, expected, "{spec}");
        cow.assert_untouched();
        assert!(!Path::new("/tmp").join(&mark).exists(), "{spec}");
    }
    cow.end();
}

#[test]
fn a_part_is_hidden_shared_or_read_only() {
    for auth in ["same", "root"] {
        let cow = Cow::watching::<&str>(&[], |_| {});
        for name in [".ssh/keys", "out", "x", "rest"] {
            mkdir(&cow.path(name));
        }
        for name in [".ssh/id", ".ssh/keys/id", "out/f", "x/f", "rest/f", "secret"] {
            put(&cow.path(name), "old\n");
        }
        let unshared = Snapshot::of(&[cow.path(".ssh"), cow.path("x"), cow.path("rest"), cow.path("secret")]);
        let script = "cat ~/.ssh/id .ssh/keys/id secret 2>/dev/null || :; ls -A ~/.ssh 2>/dev/null || :
            cat out/f x/f rest/f; echo new > out/f; echo made > out/made; echo new > rest/f; rm -f x/f 2>/dev/null || echo refused
            { echo new > x/f; } 2>&1 | grep -c 'Read-only file system'; cat out/f x/f rest/f";
        let spec = "cow,hide=~/.ssh,hide=~/.aws,hide=./secret,share=./out,ro=./x";
        let expected = "old\nold\nold\nrefused\n1\nnew\nold\nnew\n";
        assert_eq!(run(&cow, spec, auth, script).success().stdout, expected, "{auth}");
        assert_eq!((get(&cow.path("out/f")), get(&cow.path("out/made"))), ("new\n".to_owned(), "made\n".to_owned()));
        unshared.assert_untouched();
        cow.hurdle.assert_nothing_left();
    }
}

/// What a path is: the nearest of what was said of it and of the directories above.
fn in_effect(kinds: [&str; 3], at: usize) -> &str {
    kinds[..=at].iter().rev().find(|kind| !kind.is_empty()).copied().unwrap_or("cow")
}

/// Each of three nested directories hidden, shared, read-only, or nothing said of it: the nearest word counts, in whatever order
/// they come.
#[test]
fn nested_parts_in_any_mix() {
    let kinds = ["", "hide", "share", "ro"];
    let paths = ["a", "a/b", "a/b/c"];
    let script = "for d in a a/b a/b/c; do
        printf '%s ' $(cat $d/f 2>/dev/null || echo none); { echo new > $d/f; } 2>/dev/null && printf 'wrote '
        printf '%s\\n' $(cat $d/f 2>/dev/null || echo none); done";
    for combination in 1..64 {
        let [one, two, three] = [combination / 16, combination / 4 % 4, combination % 4].map(|index| kinds[index]);
        let said = [one, two, three];
        let mut words: Vec<String> = said
            .iter()
            .zip(paths)
            .filter(|(kind, _)| !kind.is_empty())
            .map(|(kind, path)| format!("{kind}=./{path}"))
            .collect();
        if combination % 2 == 0 {
            words.reverse();
        }
        let spec = format!("cow,{}", words.join(","));
        let cow = Cow::watching::<&str>(&[], nest);
        let auth = if combination % 3 == 0 { "root" } else { "same" };
        let done = run(&cow, &spec, auth, script).success();
        let lines: Vec<&str> = done.stdout.lines().collect();
        assert_eq!(lines.len(), 3, "{done}");
        for (at, path) in paths.into_iter().enumerate() {
            let host = get(&cow.path(path).join("f"));
            let kind = in_effect(said, at);
            let right = match kind {
                "cow" => lines[at] == "old wrote new" && host == "old\n",
                "share" => lines[at] == "old wrote new" && host == "new\n",
                "ro" => lines[at] == "old old" && host == "old\n",
                // Whether something else can be put there is not promised.
                _ => lines[at].starts_with("none ") && host == "old\n",
            };
            assert!(right, "{spec}: {path}, which is {kind}, on the host {host:?}: {done}");
        }
        cow.hurdle.assert_nothing_left();
    }
}

#[test]
fn parts_of_read_only_files() {
    let cow = Cow::watching::<&str>(&[], nest);
    let script = "{ echo x > a/f; } 2>/dev/null || echo refused; echo new > a/b/f; ls a/b/c 2>/dev/null; cat a/b/c/f 2>/dev/null || echo hidden";
    assert_eq!(run(&cow, "ro,share=./a/b,hide=./a/b/c", "same", script).success().stdout, "refused\nhidden\n");
    assert_eq!((get(&cow.path("a/f")), get(&cow.path("a/b/f"))), ("old\n".to_owned(), "new\n".to_owned()));
    cow.hurdle.assert_nothing_left();
}

/// Large files of /usr have their content past the fs server, where that shows them.
#[test]
fn read_only_parts_of_usr() {
    let cow = Cow::watching::<&str>(&[], nest);
    let script = "sum() { cat /usr/bin/bash /usr/bin/env /usr/share/doc/bash/* 2>/dev/null | sha256sum; }; sum
        for path in /usr/bin/bash /usr/bin/new; do { true >> $path; } 2>/dev/null && echo wrote $path || :; done";
    let native =
        finish(Command::new("/bin/sh").args(["-c", script.lines().next().expect("one")]), Duration::from_secs(10));
    let native = native.success().stdout.clone();
    for part in ["/usr", "/usr/bin", "/usr/bin/bash,ro=/usr/bin/env"] {
        for auth in ["same", "root"] {
            let seen = run(&cow, &format!("cow,ro={part}"), auth, script).success().stdout.clone();
            let seen = seen.replace("wrote /usr/bin/new\n", "");
            assert_eq!(seen, native, "{part} {auth}");
        }
    }
    cow.end();
}

/// Who hides a link means what it leads to: the secret is not to be read by any name.
#[test]
fn what_is_hidden_has_no_other_name() {
    let cow = Cow::watching::<&str>(&[], |dir| {
        mkdir(&dir.join("secrets"));
        put(&dir.join("secrets/id"), "secret\n");
        symlink("secrets", dir.join("link")).expect("own directory");
    });
    let script = "set +e; exec 2>/dev/null
        cat secrets/id link/id /proc/self/root$PWD/secrets/id /proc/1/root$PWD/secrets/id /proc/self/cwd/secrets/id
        umount secrets; umount -l $PWD/secrets; cat secrets/id; mv secrets other; cat other/id
        unshare -Urm sh -c 'umount -l secrets; cat secrets/id'; :";
    for spec in ["cow,hide=./secrets", "cow,hide=./link", "ro,hide=./secrets"] {
        for auth in ["same", "root"] {
            assert_eq!(run(&cow, spec, auth, script).success().stdout, "", "{spec} {auth}");
        }
    }
    cow.end();
}

#[test]
fn sockets_of_the_host_are_reachable_where_shared() {
    if hurdle_tests::cow::lacks("cow_parts::sockets_of_the_host_are_reachable_where_shared", &["python3"]) {
        return;
    }
    let cow = Cow::watching::<&str>(&[], |dir| mkdir(&dir.join("run")));
    let listener = UnixListener::bind(cow.path("run/agent")).expect("own directory");
    let server = std::thread::spawn(move || {
        for _ in 0..4 {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut byte = [0];
            stream.read_exact(&mut byte).expect("its byte");
            stream.write_all(b"agent\n").expect("it listens");
        }
    });
    let script = "/usr/bin/python3 -c \"
import socket
with socket.socket(socket.AF_UNIX) as agent:
    agent.connect('run/agent'); agent.sendall(b'?'); print(agent.recv(100).decode(), end='')\"";
    for spec in ["cow,share=./run", "cow,share=./run/agent"] {
        for auth in ["same", "root"] {
            assert_eq!(run(&cow, spec, auth, script).success().stdout, "agent\n", "{spec} {auth}");
        }
    }
    server.join().expect("no panic");
    cow.hurdle.assert_nothing_left();
}

#[test]
fn names_that_are_not_utf_8() {
    let name = OsString::from_vec(b"w\xffol \n\xc3(".to_vec());
    let cow = Cow::watching::<&str>(&[], |dir| {
        mkdir(&dir.join(&name));
        put(&dir.join(&name).join(OsString::from_vec(b"\x80".to_vec())), "old\n");
    });
    let script = "cat */*; for f in */*; do echo new > \"$f\"; done; cat */*; mv w* moved; mkdir $(printf '\\377'); ls | wc -l; rm -r moved $(printf '\\377'); ls | wc -l";
    for options in BOTH {
        assert_eq!(cow.sh(options, script).success().stdout, "old\nnew\n2\n0\n", "{options:?}");
    }
    cow.assert_untouched();
    // As a part, too.
    let mut spec = OsString::from("cow,share=");
    spec.push(cow.path("").join(&name));
    assert!(!spec.as_bytes().is_ascii());
    let mut command = cow.command(&["--fs"], "/bin/sh");
    let mut words: Vec<OsString> = command.get_args().map(OsString::from).collect();
    let at = words.iter().position(|word| word == "--fs").expect("just given");
    words.insert(at + 1, spec);
    command = cow.hurdle.command();
    let done = finish(
        command.args(words).args(["-c", "for f in */*; do echo shared > \"$f\"; done"]).current_dir(cow.dir()),
        LIMIT,
    );
    let written = get(&cow.path("").join(&name).join(OsString::from_vec(b"\x80".to_vec())));
    assert!(written == "shared\n" && done.status.success() || done.code() == 125 && written == "old\n", "{done}");
    cow.hurdle.assert_nothing_left();
}

#[test]
fn links_that_loop_or_lead_astray() {
    let cow = Cow::watching::<&str>(&[], |dir| {
        for (to, name) in
            [("loop", "loop"), ("b", "a"), ("a", "b"), ("..", "up"), ("/proc/self/root", "root"), ("nowhere/x", "lost")]
        {
            symlink(to, dir.join(name)).expect("own directory");
        }
    });
    let script = "cat loop a 2>&1 | grep -c 'Too many levels'; here=$(basename $PWD); ls up/$here/up/$here/loop >/dev/null 2>&1 || readlink up/$here/loop
        find . | wc -l; head -c 5 root/etc/passwd; { echo x > lost; } 2>/dev/null || echo lost
        mkdir nowhere; echo x > lost; cat nowhere/x; rm loop a; ln -s b a; ls | wc -l; chown -h $(id -u) b; rm -r *; ls | wc -l";
    for options in BOTH {
        let done = cow.sh(options, script).success().stdout;
        assert!(done.starts_with("2\n") && done.ends_with("7\nroot:lost\nx\n6\n0\n"), "{options:?}: {done}");
    }
    for part in ["share=./loop", "ro=./lost"] {
        let done = run(&cow, &format!("cow,{part}"), "same", "true").exits(125);
        assert_eq!((done.stdout.as_str(), done.stderr.lines().count()), ("", 1), "{done}");
    }
    cow.end();
}

#[test]
fn what_cannot_be_is_refused_in_one_line() {
    let cow = Cow::watching::<&str>(&[], nest);
    let wrong = [
        ("cow,colour=white", "colour"),
        ("cow,share=/nonexistent/path", "/nonexistent/path"),
        ("cow,ro=./nothing", "nothing"),
        ("cow,size=many", "many"),
        ("cow,size=0", "size"),
        ("cow:../x", "../x"),
        ("cow:a/b", "a/b"),
        ("cow,hide=", "hide"),
        ("ro,size=1M", "size"),
        ("cowl", "cowl"),
    ];
    for (spec, says) in wrong {
        let done = run(&cow, spec, "same", "echo it ran").exits(125).says(says);
        assert_eq!((done.stdout.as_str(), done.stderr.lines().count()), ("", 1), "{done}");
    }
    cow.end();
}
