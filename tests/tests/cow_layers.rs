//! What an environment changed, afterwards: forgotten, kept under a name and continued, listed by `hurdle diff`, carried to the host
//! by `hurdle commit`, thrown away by `hurdle discard`.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use hurdle_tests::pty::Terminal;
use hurdle_tests::{Cow, Finished, Snapshot, finish};

const LIMIT: Duration = Duration::from_secs(120);

/// One of each kind of file, on the host.
const BEFORE: &str = "umask 022; mkdir -p dir/sub olddir tree/deep many; for n in 1 2 3 4 5 6 7 8 9; do echo $n > many/$n; done
    echo one > changed; echo m > mode; echo g > gone; echo a > dir/a; echo b > dir/sub/b; echo x > olddir/x; echo to be moved > moved
    ln -s changed link; echo t > totype; echo same > same; echo t > touched; echo d > tree/deep/d; truncate -s 5M sparse; echo pair > pair; ln pair linked
    ln -s /nonexistent/place astray";

/// One of each kind of change.
const CHANGES: &str = "umask 022; echo two >> changed; chmod 600 mode; rm gone; rm -r dir; mkdir dir; echo n > dir/new; mv moved tree/moved2
    echo new > new; ln -sfn other link; rm totype; mkdir totype; echo same > same; touch touched; mkdir -p added/deep; mkfifo added/pipe
    mv olddir newdir; rm -r tree/deep; printf x | dd of=sparse bs=1 seek=3000000 conv=notrunc 2>/dev/null; ln new added/hard
    touch -d @1700000000 new dir/new; ln -s /nonexistent/other added/astray; chmod 700 many; echo 22 > many/2";

/// All there is to the files of a directory, but for the owners, who have other numbers inside.
const LISTING: &str =
    "find . -mindepth 1 ! -type f -printf '%P %M %l\\n' | sort; find . -type f -printf '%P %M %s %n %T@\\n' | sort
    find . -type f -exec md5sum {} + | sort";

/// The lines of a listing, without two files of which no more than a time was changed: that is no change.
fn changes_alone(listing: &str) -> impl Iterator<Item = &str> {
    listing.lines().filter(|line| !line.starts_with("same -") && !line.starts_with("touched -"))
}

fn sh(directory: &Path, script: &str) -> Finished {
    finish(Command::new("/bin/sh").args(["-ec", script]).current_dir(directory), LIMIT)
}

fn before() -> Cow {
    Cow::watching::<&str>(&[], |dir| drop(sh(dir, BEFORE).success()))
}

fn spec(name: &str) -> [String; 2] {
    ["--fs".to_owned(), format!("cow:{name}")]
}

/// Makes the changes in a layer called `name`, and returns what the files are there.
fn changed(cow: &Cow, name: &str, auth: &str) -> String {
    let [fs, spec] = spec(name);
    cow.sh(&[&fs, &spec, "--auth", auth], &format!("{CHANGES}\n{LISTING}")).success().stdout
}

fn layers(cow: &Cow) -> Vec<String> {
    let found = cow.hurdle.json(&["layers"]);
    let names = found.as_array().expect("a list").iter();
    names.map(|layer| layer["name"].as_str().expect("a name").to_owned()).collect()
}

/// The lines of `hurdle diff`, without the directory's name.
fn diff(cow: &Cow, arguments: &[&str]) -> BTreeSet<String> {
    let text = cow.hurdle(&[&["diff"], arguments].concat());
    let prefix = format!("{}/", cow.dir().display());
    text.lines().map(|line| line.replace(&prefix, "")).collect()
}

fn words(lines: &[&str]) -> BTreeSet<String> {
    lines.iter().map(|line| (*line).to_owned()).collect()
}

#[test]
fn what_nobody_keeps_is_forgotten() {
    let cow = before();
    for options in [&["--fs", "cow"][..], &["--fs", "cow", "--on-exit", "discard", "--auth", "root"]] {
        cow.sh(options, CHANGES).success();
        cow.assert_untouched();
        assert_eq!(layers(&cow), [""; 0]);
    }
    cow.end();
}

#[test]
fn a_layer_is_continued_listed_and_discarded() {
    for auth in ["same", "root"] {
        let cow = before();
        let name = cow.hurdle.name("layer");
        let [fs, spec] = spec(&name);
        let options = [fs.as_str(), &spec, "--auth", auth];
        cow.sh(&options, "echo first > new; rm gone; mv many more; exit 3").exits(3);
        assert_eq!(
            cow.sh(&options, "cat new; test ! -e gone; ls more | wc -l; echo second >> new").success().stdout,
            "first\n9\n"
        );
        assert_eq!(cow.sh(&options, "cat new; cat more/5").success().stdout, "first\nsecond\n5\n");
        assert_eq!(layers(&cow), [name.as_str()]);
        let listed = cow.hurdle.json(&["layers"]);
        assert!(listed[0]["size"].as_u64().is_some_and(|size| size > 0), "{listed}");
        let table = cow.hurdle(&["layers"]);
        assert!(table.lines().count() == 2 && table.contains(&name), "{table}");
        cow.hurdle(&["discard", &name]);
        assert_eq!(layers(&cow), [""; 0]);
        cow.hurdle.call(&["diff", &name]).exits(125).says(&name);
        cow.hurdle.call(&["discard", &name]).exits(125).says(&name);
        cow.end();
    }
}

#[test]
fn keep_keeps_under_the_name_of_the_environment() {
    let cow = before();
    let name = cow.hurdle.name("try");
    for options in [["--keep", "--name", name.as_str()], ["--on-exit=keep", "--name", name.as_str()]] {
        cow.sh(&[&["--fs", "cow"], &options[..]].concat(), "echo new > new").success();
        assert_eq!(layers(&cow), [name.as_str()]);
        assert_eq!(diff(&cow, &[&name]), words(&["A  new"]));
        cow.hurdle(&["layers", "prune"]);
        assert_eq!(layers(&cow), [""; 0]);
    }
    cow.end();
}

#[test]
fn diff_tells_each_change() {
    for auth in ["same", "root"] {
        let cow = before();
        let name = cow.hurdle.name("diff");
        changed(&cow, &name, auth);
        let mut expected = words(&[
            "A  added/",
            "A  added/astray",
            "A  added/deep/",
            "A  added/hard",
            "A  added/pipe",
            "A  dir/new",
            "A  new",
            "D  dir/a",
            "D  dir/sub/",
            "D  gone",
            "D  tree/deep/",
            "M  changed  (size 4 → 8)",
            "M  link  (content)",
            "M  many/  (mode 0755 → 0700)",
            "M  many/2  (size 2 → 3)",
            "M  mode  (mode 0644 → 0600)",
            "M  sparse  (content)",
            "R  moved → tree/moved2",
            "T  totype/  (file → directory)",
        ]);
        // A user's layer has no way to tell of a directory that was renamed: it was copied.
        let copied = ["A  newdir/", "A  newdir/x", "D  olddir/"];
        let renamed = ["R  olddir/ → newdir/"];
        let directory = if nix::unistd::geteuid().is_root() { &renamed[..] } else { &copied[..] };
        expected.extend(words(directory));
        let found = diff(&cow, &[&name]);
        assert_eq!(found, expected, "{auth}");
        assert_eq!(
            diff(&cow, &[&name, "./many", "new"]),
            words(&["A  new", "M  many/  (mode 0755 → 0700)", "M  many/2  (size 2 → 3)"])
        );
        let stat = cow.hurdle(&["diff", &name, "--stat"]);
        assert!(
            stat.lines().last().is_some_and(|line| line.contains(" added, ") && line.contains(" deleted")),
            "{stat}"
        );
        let json = cow.hurdle.json(&["diff", &name]);
        assert_eq!(json.as_array().map(Vec::len), Some(expected.len()), "{json}");
        let patch = cow.hurdle(&["diff", &name, "--patch", "changed"]);
        assert!(patch.ends_with("@@ -1 +1,2 @@\n one\n+two\n"), "{patch}");
        cow.hurdle(&["discard", &name]);
        cow.end();
    }
}

/// The tarball is a layer of an OCI image: applied to a copy of what was, it makes what the environment had.
#[test]
fn a_tarball_holds_all_of_it() {
    for auth in ["same", "root"] {
        let cow = before();
        let name = cow.hurdle.name("tar");
        let inside = changed(&cow, &name, auth);
        let tar = cow.hurdle.logs().join("layer.tar");
        cow.hurdle(&["diff", &name, "--tar", tar.to_str().expect("a plain path")]);
        cow.hurdle(&["discard", &name]);
        let copy = cow.hurdle.logs().join("copy");
        std::fs::create_dir(&copy).expect("own directory");
        let (from, tar) = (cow.dir().display(), tar.display());
        let depth = cow.dir().components().count() - 1;
        let script = format!(
            "cp -a {from}/. .; mkdir ../plain; tar -xf {tar} -C ../plain --strip-components={depth}; cd ../plain
            find . -name '.wh.*' | while read -r mark; do at=$(dirname $mark); name=$(basename $mark)
                if [ $name = .wh..wh..opq ]; then rm -rf ../copy/$at; mkdir ../copy/$at; else rm -rf ../copy/$at/${{name#.wh.}}; fi; rm $mark; done
            cd ../copy; find ../plain -mindepth 1 -type d -printf '%P\\n' | while read -r d; do [ -d $d ] || rm -f $d; done
            tar -C ../plain -cf - . | tar -xpf -; {LISTING}"
        );
        let applied = sh(&copy, &script).success().stdout;
        let plain = |text: &str| {
            // A tarball has whole seconds.
            let second = |line: &str| match line.rsplit_once('.') {
                Some((head, digits)) if digits.len() == 10 && digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                    head.to_owned()
                }
                _ => line.to_owned(),
            };
            changes_alone(text).map(second).collect::<BTreeSet<_>>()
        };
        let (applied, inside) = (plain(&applied), plain(&inside));
        let difference: Vec<_> = applied.symmetric_difference(&inside).collect();
        assert!(difference.is_empty(), "{auth}: {difference:#?}");
        sh(cow.hurdle.logs(), "chmod -R u+rwX copy plain; rm -r copy plain").success();
        cow.end();
    }
}

#[test]
fn commit_carries_everything_to_the_host() {
    for auth in ["same", "root"] {
        let cow = before();
        let name = cow.hurdle.name("commit");
        let inside = changed(&cow, &name, auth);
        cow.assert_untouched();
        cow.hurdle(&["commit", &name]);
        let host = sh(cow.dir(), LISTING).success().stdout;
        let (inside, host): (Vec<&str>, Vec<&str>) = (changes_alone(&inside).collect(), changes_alone(&host).collect());
        let first = inside.iter().zip(&host).find(|(inside, host)| inside != host);
        assert!(inside == host, "{auth}: first difference (inside, host): {first:?}\n{inside:#?}\n---\n{host:#?}");
        let own = nix::unistd::geteuid();
        let others = sh(cow.dir(), &format!("find . ! -uid {own} | wc -l")).success().stdout;
        assert_eq!(others, "0\n", "ids are mapped back: all is the user's");
        assert_eq!(
            sh(cow.dir(), "test $(du -k sparse | cut -f1) -lt 2000; test new -ef added/hard; echo so").success().stdout,
            "so\n"
        );
        // What was carried over is no change any more, and committing again changes nothing.
        let rest = cow.hurdle.call(&["diff", &name]);
        assert!(rest.stdout.is_empty(), "{rest}");
        let after = Snapshot::of(&[cow.dir()]);
        let again = cow.hurdle.call(&["commit", &name]);
        assert!(again.status.success() || again.code() == 125, "{again}");
        after.assert_untouched();
        cow.hurdle.call(&["discard", &name]);
        assert_eq!(layers(&cow), [""; 0]);
        cow.hurdle.assert_nothing_left();
    }
}

#[test]
fn commit_of_some_paths_leaves_the_rest_in_the_layer() {
    let cow = before();
    let name = cow.hurdle.name("some");
    changed(&cow, &name, "root");
    cow.hurdle(&["commit", &name, "./many", "new"]);
    assert_eq!(
        sh(cow.dir(), "cat many/2 new; stat -c %a many; ls gone dir/a added 2>/dev/null || :").success().stdout,
        "22\nnew\n700\ndir/a\ngone\n"
    );
    let rest = diff(&cow, &[&name]);
    assert!(!rest.iter().any(|line| line.contains("many") || line.ends_with("  new")), "{rest:?}");
    assert!(rest.contains("D  gone"), "{rest:?}");
    let [fs, spec] = spec(&name);
    assert_eq!(
        cow.sh(&[&fs, &spec, "--auth", "root"], "cat many/2 new added/hard; test ! -e gone").success().stdout,
        "22\nnew\nnew\n"
    );
    cow.hurdle(&["discard", &name]);
    cow.hurdle.assert_nothing_left();
}

#[test]
fn commit_refuses_what_the_host_changed_meanwhile() {
    let cow = before();
    let name = cow.hurdle.name("conflict");
    changed(&cow, &name, "same");
    sh(cow.dir(), "echo host >> changed; echo host > new; echo host > dir/other").success();
    let host = Snapshot::of(&[cow.dir()]);
    let refused = cow.hurdle.call(&["commit", &name]);
    assert!(!refused.status.success(), "{refused}");
    for conflict in ["/changed", "/new"] {
        assert!(refused.stderr.contains(conflict), "{conflict}: {refused}");
    }
    host.assert_untouched();
    // Without these it goes.
    cow.hurdle(&["commit", &name, "many"]);
    assert_eq!(sh(cow.dir(), "cat many/2 changed").success().stdout, "22\none\nhost\n");
    cow.hurdle(&["commit", "--force", &name]);
    assert_eq!(
        sh(cow.dir(), "cat changed new; ls gone 2>/dev/null || echo gone").success().stdout,
        "one\ntwo\nnew\ngone\n"
    );
    cow.hurdle.call(&["discard", &name]);
    cow.hurdle.assert_nothing_left();
}

/// On the host a directory has become a link that leads elsewhere. Nothing goes through it.
#[test]
fn commit_never_follows_a_link_out_of_the_tree() {
    let cow = before();
    let name = cow.hurdle.name("astray");
    let [fs, spec] = spec(&name);
    cow.sh(&[&fs, &spec], "echo evil > many/2; echo evil > many/new; rm many/3").success();
    let elsewhere = cow.hurdle.logs().join("elsewhere");
    std::fs::create_dir(&elsewhere).expect("own directory");
    sh(&elsewhere, "for n in 1 2 3; do echo good > $n; done").success();
    let good = Snapshot::of(&[&elsewhere]);
    sh(cow.dir(), &format!("rm -r many; ln -s {} many", elsewhere.display())).success();
    for force in [&[][..], &["--force"]] {
        let done = cow.hurdle.call(&[&["commit", name.as_str()], force].concat());
        eprintln!("{done}");
        good.assert_untouched();
    }
    cow.hurdle.call(&["discard", &name]);
    cow.hurdle.assert_nothing_left();
}

#[test]
fn on_exit_commits_or_asks() {
    let cow = before();
    cow.sh(&["--fs", "cow", "--on-exit", "commit"], "echo committed > new; rm gone").success();
    assert_eq!(sh(cow.dir(), "cat new; ls gone 2>/dev/null || echo gone").success().stdout, "committed\ngone\n");
    assert_eq!(layers(&cow), [""; 0]);
    // A key each; the status is the program's.
    for (key, expected, kept) in [("d", "committed\n", 0), ("c", "asked\n", 0), ("k", "asked\n", 1)] {
        let name = cow.hurdle.name(&format!("ask-{key}"));
        let script = if key == "k" { "rm new; exit 5" } else { "echo asked > new; exit 5" };
        let mut terminal =
            Terminal::start(cow.command(&["--fs", "cow", "--name", &name], "/bin/sh").args(["-c", script]));
        terminal.expect("[d]iscard");
        terminal.keys(key);
        assert_eq!(terminal.join().code(), Some(5));
        assert_eq!(sh(cow.dir(), "cat new").success().stdout, expected, "{key}");
        assert_eq!(layers(&cow).len(), kept, "{key}");
    }
    cow.hurdle(&["layers", "prune"]);
    cow.hurdle.assert_nothing_left();
}

/// A layer that a newer hurdle wrote is left alone, with a reason.
#[test]
fn a_layer_of_a_newer_version_is_refused() {
    let cow = before();
    let name = cow.hurdle.name("newer");
    let [fs, spec] = spec(&name);
    cow.sh(&[&fs, &spec], "echo new > new").success();
    let meta = cow.hurdle.state_dir().join("hurdle/layers").join(&name).join("layer.json");
    let mut value: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&meta).expect("layer.json")).expect("JSON");
    let version = value["version"].as_u64().expect("a version");
    value["version"] = (version + 1).into();
    std::fs::write(&meta, value.to_string()).expect("own file");
    let refused = cow.sh(&[&fs, &spec], "echo it ran").exits(125).says("version");
    assert_eq!((refused.stdout.as_str(), refused.stderr.lines().count()), ("", 1), "{refused}");
    for command in ["diff", "commit"] {
        cow.hurdle.call(&[command, &name]).exits(125).says("version");
    }
    value["version"] = version.into();
    std::fs::write(&meta, value.to_string()).expect("own file");
    assert_eq!(diff(&cow, &[&name]), words(&["A  new"]));
    cow.hurdle(&["discard", &name]);
    cow.end();
}

/// The changes that git's own directory takes are told as one, and the work tree's by their names in it.
#[test]
fn diff_groups_by_repository() {
    if hurdle_tests::cow::lacks("cow_layers::diff_groups_by_repository", &["git"]) {
        return;
    }
    let cow =
        Cow::watching::<&str>(&[], |dir| drop(sh(dir, "git init -q repo; echo 1 > repo/a; echo 1 > b").success()));
    let name = cow.hurdle.name("git");
    let [fs, spec] = spec(&name);
    cow.sh(&[&fs, &spec], "echo 2 >> repo/a; echo 2 >> b; cd repo; git add a").success();
    let text = cow.hurdle(&["diff", &name]);
    let lines: Vec<String> = text.lines().map(|line| line.replace(&format!("{}/", cow.dir().display()), "")).collect();
    assert_eq!(lines[0], "M  b  (size 2 → 4)", "{text}");
    assert_eq!(lines[lines.len() - 3..lines.len() - 1], ["git repo", "M  a  (size 2 → 4)"], "{text}");
    assert!(lines[lines.len() - 1].trim_start().starts_with(".git: "), "{text}");
    cow.hurdle(&["discard", &name]);
    cow.end();
}
