//! Copy-on-write environments at their limits: a quota, large files of which little changes, many files.

use std::fs::{Permissions, set_permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use hurdle_tests::cow::{BOTH, ROOT, SAME};
use hurdle_tests::{Cow, finish, until};
use nix::sys::signal::Signal;

const LIMIT: Duration = Duration::from_secs(240);

/// Directories of a hundred files each. The issue speaks of 100,000 files; `HURDLE_TEST_FILES` asks for another number of directories.
/// What grows faster than the number shows with 20,000 as well, in a fifth of the time, and tests run for two users and two identities.
const DIRECTORIES: usize = 200;

#[test]
fn a_full_layer_says_so_and_the_host_loses_nothing() {
    let prepare = |dir: &std::path::Path| {
        std::fs::write(dir.join("old"), vec![b'x'; 8 << 20]).expect("own file");
    };
    for auth in ["same", "root"] {
        let cow = Cow::watching::<&str>(&[], prepare);
        let options = ["--fs", "cow,size=16M", "--auth", auth];
        let script = "dd if=/dev/zero of=big bs=1M count=64 2>&1 | grep -c 'No space left on device'
            [ $(stat -c %s big) -lt 17000000 ] && echo limited; rm big
            echo y >> old; stat -c %s old; dd if=/dev/zero of=more bs=1M count=64 2>/dev/null || echo full
            { for n in 1 2 3 4 5 6 7 8 9; do cat old old > copy$n; done; } 2>&1 | grep -c 'No space' >/dev/null && echo full
            rm -f copy* more old; echo room > small; cat small; mkdir -p a/b && ls -d a/b";
        let expected = "1\nlimited\n8388610\nfull\nfull\nroom\na/b\n";
        assert_eq!(cow.sh(&options, script).success().stdout, expected, "{auth}");
        cow.end();
    }
}

/// A layer that is kept has a quota too: what it held before counts, and what the environment made of it is there afterwards.
#[test]
fn a_layer_that_is_kept_has_a_quota() {
    for auth in ["same", "root"] {
        let cow = Cow::watching::<&str>(&[], |dir| std::fs::write(dir.join("old"), "old\n").expect("own file"));
        let name = cow.hurdle.name("quota");
        let spec = format!("cow:{name},size=16M");
        let run = |script: &str| cow.sh(&["--fs", &spec, "--auth", auth], script).success().stdout;
        let fill = "dd if=/dev/zero of=big bs=1M count=64 2>/dev/null || echo full; rm -f big";
        let first = format!(
            "{fill}; echo new > new; ln new linked; rm old; mkdir -p d/e; echo x > d/e/x; truncate -s 9M nine; cat nine > eight"
        );
        assert_eq!(run(&first), "full\n", "{auth}");
        let second = "cat new linked d/e/x; test ! -e old; test new -ef linked; stat -c %s eight
            dd if=/dev/zero of=big bs=1M count=8 2>/dev/null || echo full; rm big; dd if=/dev/zero of=big bs=1M count=4 2>/dev/null && echo room
            rm -r big eight nine d; echo more >> linked";
        assert_eq!(run(second), "new\nnew\nx\n9437184\nfull\nroom\n", "{auth}");
        cow.assert_untouched();
        // Without a quota it goes on all the same.
        let plain = format!("cow:{name}");
        let done = cow.sh(&["--fs", &plain, "--auth", auth], "cat new; test ! -e d; echo last > last");
        assert_eq!(done.success().stdout, "new\nmore\n", "{auth}");
        cow.hurdle(&["commit", &name]);
        let host = |name: &str| std::fs::read_to_string(cow.path(name)).ok();
        let texts = ["new", "linked", "last", "old"].map(host);
        assert_eq!(texts, [Some("new\nmore\n".into()), Some("new\nmore\n".into()), Some("last\n".into()), None]);
        cow.hurdle(&["discard", &name]);
        cow.hurdle.assert_nothing_left();
    }
}

/// Whatever becomes of an environment with a quota, its layer is whole: what it was before, or what it is now.
#[test]
fn a_layer_with_a_quota_outlives_a_kill() {
    let cow = Cow::watching::<&str>(&[], |_| {});
    let name = cow.hurdle.name("killed");
    let spec = format!("cow:{name},size=16M");
    let options = ["--name", &name, "--fs", &spec, "--auth", "root"];
    cow.sh(&options, "echo one > kept").success();
    let mut command = cow.command(&options, "/bin/sh");
    let running =
        cow.hurdle.start(command.args(["-ec", "cat kept; echo two > kept; echo ready; exec sleep 1000"]), "log");
    until("it has written", || running.log().contains("one\nready").then_some(()));
    assert!(cow.hurdle(&["diff", &name]).contains("kept"));
    // While it lives its layer is in memory; that can be committed like one on disk.
    cow.hurdle(&["commit", "--running", &name]);
    assert_eq!(std::fs::read_to_string(cow.path("kept")).expect("it is there"), "two\n");
    running.signal(Signal::SIGKILL);
    running.join();
    until("the layer is free", || (cow.sh(&options, "cat kept").stdout == "one\n").then_some(()));
    cow.hurdle(&["discard", &name]);
    // One of which nothing comes is kept as well.
    for auth in ["same", "root"] {
        cow.sh(&["--fs", &spec, "--auth", auth], "true").success();
        assert_eq!(cow.hurdle(&["diff", &name]), "");
        cow.hurdle(&["discard", &name]);
    }
    // Carried over at the end.
    cow.sh(&["--fs", "cow,size=16M", "--on-exit", "commit"], "echo carried > carried").success();
    assert_eq!(std::fs::read_to_string(cow.path("carried")).expect("it is there"), "carried\n");
    cow.hurdle.assert_nothing_left();
}

/// 8 GiB, with a little at its begin, its middle and its end. One byte of it is changed.
#[test]
fn one_byte_of_a_large_sparse_file() {
    const SIZE: u64 = 8 << 30;
    let prepare = |dir: &std::path::Path| {
        let file = std::fs::File::create(dir.join("large")).expect("own file");
        file.set_len(SIZE).expect("a sparse file");
        for at in [0, SIZE / 2, SIZE - 6] {
            file.write_all_at(b"island", at).expect("own file");
        }
    };
    for options in BOTH {
        let cow = Cow::watching::<&str>(&[], prepare);
        let script = "printf x | dd of=large bs=1 seek=4294967297 conv=notrunc 2>/dev/null; stat -c %s large
            for at in 0 4294967296 8589934586; do dd if=large bs=1 skip=$at count=6 2>/dev/null; echo; done
            [ $(du -k large | cut -f1) -lt 102400 ] && echo sparse";
        let begin = Instant::now();
        let done = cow.sh(options, script).success();
        assert_eq!(done.stdout, "8589934592\nisland\nixland\nisland\nsparse\n", "{options:?}");
        eprintln!("{options:?}: {:?}", begin.elapsed());
        assert!(
            std::fs::metadata(cow.path("large")).expect("it is there").blocks() < 2048,
            "the host's own stays sparse"
        );
        cow.end();
    }
}

/// A file system of the test's own with reflinks, which ends with it.
struct Reflinks(tempfile::TempDir);

impl Reflinks {
    /// None, with a SKIP line, where it can't be made.
    fn new(test: &str, size: u64) -> Option<Reflinks> {
        let skip = |why: &str| hurdle_tests::skip(&format!("cow_limits::{test}"), why);
        if !nix::unistd::geteuid().is_root() {
            skip("only root can mount a file system, and then runs it as a user");
            return None;
        }
        if hurdle_tests::cow::lacks(&format!("cow_limits::{test}"), &["mkfs.xfs", "mount"]) {
            return None;
        }
        let own = Reflinks(tempfile::Builder::new().prefix("hurdle-cow-").tempdir().expect("a temporary directory"));
        let image = own.0.path().join("image");
        std::fs::File::create(&image).and_then(|file| file.set_len(size)).expect("own file");
        let script = format!(
            "mkfs.xfs -q -m reflink=1 {} && mkdir {1} && mount -o loop {0} {1} && chmod 777 {1}",
            image.display(),
            own.path().display()
        );
        let made = finish(Command::new("/bin/sh").args(["-ec", &script]).env("PATH", hurdle_tests::skip::PATH), LIMIT);
        if !made.status.success() {
            skip("no XFS can be mounted from a file");
            return None;
        }
        set_permissions(own.0.path(), Permissions::from_mode(0o755)).expect("own directory");
        Some(own)
    }

    fn path(&self) -> std::path::PathBuf {
        self.0.path().join("mounted")
    }

    /// MiB in use.
    fn used(&self) -> u64 {
        nix::unistd::sync();
        let found = nix::sys::statvfs::statvfs(&self.path()).expect("it is mounted");
        ((found.blocks() - found.blocks_free()) * found.fragment_size()) >> 20
    }
}

impl Drop for Reflinks {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["-l".as_ref(), self.path().as_os_str()]).status();
    }
}

/// Where the file system can share blocks between a file and its copy, one byte costs no copy of the others, for root or a user.
#[test]
fn one_byte_of_a_large_file_on_a_file_system_with_reflinks() {
    const NOBODY: u32 = 65534;
    let test = "one_byte_of_a_large_file_on_a_file_system_with_reflinks";
    let Some(reflinks) = Reflinks::new(test, 2 << 30) else { return };
    let (dir, hurdle) = (reflinks.path(), hurdle_tests::Hurdle::new());
    std::fs::write(dir.join("large"), vec![b'a'; 256 << 20]).expect("own file");
    std::fs::copy(hurdle.binary(), dir.join("hurdle")).expect("own file");
    std::os::unix::fs::chown(dir.join("large"), Some(NOBODY), Some(NOBODY)).expect("own file");
    for (user, auth) in [(0, "same"), (NOBODY, "same"), (NOBODY, "root")] {
        let state = dir.join(format!("state-{user}-{auth}"));
        std::fs::create_dir(&state).expect("own directory");
        std::os::unix::fs::chown(&state, Some(user), Some(user)).expect("own file");
        let call = |arguments: &[&str]| {
            let mut command = Command::new(dir.join("hurdle"));
            command.args(arguments).env("XDG_STATE_HOME", &state).env("XDG_RUNTIME_DIR", &state).current_dir(&dir);
            finish(command.uid(user).gid(user), LIMIT)
        };
        let before = reflinks.used();
        let script = "printf x | dd of=large bs=1 seek=134217729 conv=notrunc 2>/dev/null
            dd if=large bs=1 skip=134217728 count=3 2>/dev/null; stat -c %s large; tail -c 1 large";
        let done = call(&["run", "--fs", "cow:layer", "--auth", auth, "--", "/bin/sh", "-ec", script]).success();
        assert_eq!(done.stdout, "axa268435456\na", "{user} {auth}");
        let more = reflinks.used() - before;
        assert!(more < 32, "{user} {auth}: {more} MiB more for one byte of 256 MiB");
        let diff = call(&["diff", "layer"]).success().stdout;
        assert!(diff.starts_with("M  ") && diff.contains("/large") && diff.lines().count() == 1, "{diff}");
        call(&["discard", "layer"]).success();
        // In memory, too, the root of a file system is what it is on the host.
        assert_eq!(call(&["run", "--fs", "cow", "--", "stat", "-c", "%a", "."]).success().stdout, "777\n");
    }
    let mut byte = [0];
    std::fs::File::open(dir.join("large")).and_then(|file| file.read_exact_at(&mut byte, 134217729)).expect("own file");
    assert_eq!(&byte, b"a");
}

#[test]
fn many_files_made_changed_and_deleted() {
    let asked = std::env::var("HURDLE_TEST_FILES").ok().and_then(|number| number.parse().ok());
    let directories: usize = asked.unwrap_or(DIRECTORIES);
    let prepare = |dir: &std::path::Path| {
        for directory in 0..directories / 2 {
            let path = dir.join(format!("old/{directory}"));
            std::fs::create_dir_all(&path).expect("own directory");
            (0..100).for_each(|file| std::fs::write(path.join(file.to_string()), "old\n").expect("own file"));
        }
    };
    let program = format!(
        "import os
for directory in range({half}):
    path = f'new/{{directory}}'
    os.makedirs(path)
    for file in range(100):
        with open(f'{{path}}/{{file}}', 'w') as new: new.write('new\\n')
for directory in range({half}):
    for file in range(100):
        path = f'old/{{directory}}/{{file}}'
        if file % 3 == 0: os.unlink(path)
        elif file % 3 == 1:
            with open(path, 'a') as old: old.write('more\\n')
        else: os.chmod(path, 0o600)
files = [os.path.join(path, name) for path, _, names in os.walk('.') for name in names]
print(len(files), sum(os.path.getsize(name) for name in files))",
        half = directories / 2
    );
    let (new, old) = (directories / 2 * 100, directories / 2);
    let expected = format!("{} {}\n", new + old * 66, new * 4 + old * (33 * 9 + 33 * 4));
    for options in [SAME, ROOT] {
        let cow = Cow::watching::<&str>(&[], prepare);
        let begin = Instant::now();
        let done = finish(cow.command(options, "/usr/bin/python3").args(["-c", &program]), LIMIT).success();
        assert_eq!(done.stdout, expected, "{options:?}");
        eprintln!("{options:?}: {:?}", begin.elapsed());
        cow.end();
    }
}
