//! Copy-on-write environments and the disks below them: blocks that are shared, a layer on a full disk, a commit onto one.
//!
//! Only root can mount a file system of the test's own, so root runs them as a user, too.

use std::fs::{File, Permissions, set_permissions};
use std::os::unix::fs::{FileExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hurdle_tests::cow::lacks;
use hurdle_tests::{Finished, Hurdle, finish, skip};
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(240);

const NOBODY: u32 = 65534;

/// Who runs it, and as whom inside.
const WHO: [(u32, &str); 3] = [(0, "same"), (NOBODY, "same"), (NOBODY, "root")];

/// The host's root overlays all that is mounted, so a test sees the file systems of others come and go.
static ALONE: Mutex<()> = Mutex::new(());

/// A file system of the test's own in a file, and the command under test; it ends with this.
struct Disk {
    dir: TempDir,
    hurdle: Hurdle,
    _alone: MutexGuard<'static, ()>,
}

impl Disk {
    /// None, with a SKIP line, where it can't be made by `mkfs`.
    fn new(test: &str, mkfs: &str, size: u64) -> Option<Disk> {
        let test = format!("cow_disks::{test}");
        if !nix::unistd::geteuid().is_root() {
            skip(&test, "only root can mount a file system, and then runs this as a user");
            return None;
        }
        if lacks(&test, &[mkfs.split(' ').next().unwrap_or(mkfs), "mount"]) {
            return None;
        }
        let dir = tempfile::Builder::new().prefix("hurdle-cow-").tempdir().expect("a temporary directory");
        let disk = Disk { dir, hurdle: Hurdle::new(), _alone: ALONE.lock().unwrap_or_else(PoisonError::into_inner) };
        for path in [disk.dir.path().to_path_buf(), disk.path(), disk.beside()] {
            std::fs::create_dir_all(&path).expect("own directory");
            set_permissions(&path, Permissions::from_mode(0o777)).expect("own directory");
        }
        std::fs::copy(disk.hurdle.binary(), disk.dir.path().join("hurdle")).expect("own file");
        File::create(disk.dir.path().join("image")).and_then(|file| file.set_len(size)).expect("own file");
        let script = format!("{mkfs} image; mount -o loop image mounted; chmod 777 mounted");
        let mut command = Command::new("/bin/sh");
        command.args(["-ec", &script]).env("PATH", skip::PATH).current_dir(disk.dir.path());
        let made = finish(&mut command, LIMIT);
        if made.status.success() {
            return Some(disk);
        }
        skip(&test, &format!("{mkfs}: {}", made.stderr.lines().next().unwrap_or_default()));
        None
    }

    /// On it.
    fn path(&self) -> PathBuf {
        self.dir.path().join("mounted")
    }

    /// On another one, with room.
    fn beside(&self) -> PathBuf {
        self.dir.path().join("beside")
    }

    /// MiB in use.
    fn used(&self) -> u64 {
        nix::unistd::sync();
        let found = nix::sys::statvfs::statvfs(&self.path()).expect("it is mounted");
        ((found.blocks() - found.blocks_free()) * found.fragment_size()) >> 20
    }

    /// `hurdle ARGUMENTS` by `user`, with layers below `state`, in `work`.
    fn call(&self, user: u32, state: &Path, work: &Path, arguments: &[&str]) -> Finished {
        std::fs::create_dir_all(state).and_then(|()| chown(state, Some(user), Some(user))).expect("own directory");
        let mut command = Command::new(self.dir.path().join("hurdle"));
        command.args(arguments).env("XDG_STATE_HOME", state).env("XDG_RUNTIME_DIR", state).current_dir(work);
        finish(command.uid(user).gid(user), LIMIT)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["-l".as_ref(), self.path().as_os_str()]).status();
    }
}

/// A file of `user`'s.
fn put(path: &Path, user: u32, byte: u8, size: usize) {
    std::fs::write(path, vec![byte; size]).and_then(|()| chown(path, Some(user), Some(user))).expect("own file");
}

/// Where the file system can share blocks between a file and its copy, one byte costs no copy of the others, for root or a user.
#[test]
fn one_byte_of_a_large_file_on_a_file_system_with_reflinks() {
    let test = "one_byte_of_a_large_file_on_a_file_system_with_reflinks";
    let Some(disk) = Disk::new(test, "mkfs.xfs -q -m reflink=1", 2 << 30) else { return };
    let work = disk.path();
    for (user, auth) in WHO {
        let state = work.join(format!("state-{user}-{auth}"));
        put(&work.join("large"), user, b'a', 256 << 20);
        let call = |arguments: &[&str]| disk.call(user, &state, &work, arguments);
        let before = disk.used();
        let script = "printf x | dd of=large bs=1 seek=134217729 conv=notrunc 2>/dev/null
            dd if=large bs=1 skip=134217728 count=3 2>/dev/null; stat -c %s large; tail -c 1 large";
        let done = call(&["run", "--fs", "cow:layer", "--auth", auth, "--", "/bin/sh", "-ec", script]).success();
        assert_eq!(done.stdout, "axa268435456\na", "{user} {auth}");
        let more = disk.used() - before;
        assert!(more < 32, "{user} {auth}: {more} MiB more for one byte of 256 MiB");
        let diff = call(&["diff", "layer"]).success().stdout;
        assert!(diff.starts_with("M  ") && diff.contains("/large") && diff.lines().count() == 1, "{diff}");
        call(&["discard", "layer"]).success();
        // In memory, too, the root of a file system is what it is on the host.
        assert_eq!(call(&["run", "--fs", "cow", "--", "stat", "-c", "%a", "."]).success().stdout, "777\n");
        let mut byte = [0];
        File::open(work.join("large")).and_then(|file| file.read_exact_at(&mut byte, 134_217_729)).expect("own file");
        assert_eq!(&byte, b"a", "{user} {auth}");
    }
}

/// A layer that has filled its disk says so inside, and what it took goes to the host: the host loses nothing.
#[test]
fn a_full_disk_below_a_layer() {
    let Some(disk) = Disk::new("a_full_disk_below_a_layer", "mkfs.ext4 -q", 64 << 20) else { return };
    let work = disk.beside();
    for (user, auth) in WHO {
        let state = disk.path().join(format!("state-{user}-{auth}"));
        put(&work.join("old"), user, b'o', 8 << 20);
        let call = |arguments: &[&str]| disk.call(user, &state, &work, arguments);
        let script = "dd if=/dev/zero of=big bs=1M count=100 2>&1 | grep -c 'No space left on device'; rm big
            echo room > small; echo y >> old; stat -c %s old; cat small
            for n in 1 2 3 4 5 6 7 8 9; do cp old copy$n 2>/dev/null || { echo full; break; }; done; cp old last 2>/dev/null || :
            echo x >> untouched 2>/dev/null || :; sync; tail -c 2 old";
        let done = call(&["run", "--fs", "cow:layer", "--auth", auth, "--", "/bin/sh", "-ec", script]).success();
        assert_eq!(done.stdout, "1\n8388610\nroom\nfull\ny\n", "{user} {auth}");
        assert_eq!(std::fs::metadata(work.join("old")).expect("own file").len(), 8 << 20);
        assert!(!work.join("small").exists());
        let diff = call(&["diff", "layer"]).success().stdout;
        assert!(diff.contains("/small") && diff.contains("M  "), "{diff}");
        // Out of the full layer.
        call(&["commit", "layer"]).success();
        assert_eq!(std::fs::read_to_string(work.join("small")).expect("it is there"), "room\n");
        assert_eq!(std::fs::metadata(work.join("old")).expect("own file").len(), (8 << 20) + 2);
        call(&["discard", "layer"]).success();
        for entry in std::fs::read_dir(&work).expect("own directory").flatten() {
            std::fs::remove_file(entry.path()).expect("own file");
        }
    }
}

/// A file system that is not there any more, and of which nothing was changed, is in nobody's way.
#[test]
fn a_file_system_that_is_gone() {
    let Some(disk) = Disk::new("a_file_system_that_is_gone", "mkfs.ext4 -q", 64 << 20) else { return };
    let cow = hurdle_tests::Cow::watching::<&str>(&[], |_| {});
    let name = cow.hurdle.name("gone");
    cow.sh(&["--fs", &format!("cow:{name}")], &format!("ls {}; echo new > new", disk.path().display())).success();
    drop(disk);
    let diff = cow.hurdle(&["diff", &name]);
    assert!(diff.contains("/new") && diff.lines().count() == 1, "{diff}");
    cow.hurdle(&["commit", &name]);
    assert_eq!(std::fs::read_to_string(cow.path("new")).expect("it is there"), "new\n");
    cow.hurdle(&["discard", &name]);
    cow.hurdle.assert_nothing_left();
}

/// A commit for which the host has no room says so, loses nothing, and goes on when there is some.
#[test]
fn a_commit_onto_a_full_disk() {
    let Some(disk) = Disk::new("a_commit_onto_a_full_disk", "mkfs.ext4 -q", 128 << 20) else { return };
    for (user, auth) in WHO {
        let state = disk.beside().join(format!("state-{user}-{auth}"));
        let work = disk.path().join(format!("work-{user}-{auth}"));
        std::fs::create_dir(&work).and_then(|()| chown(&work, Some(user), Some(user))).expect("own directory");
        let filler = disk.path().join("filler");
        put(&work.join("a"), user, b'a', 4 << 20);
        put(&work.join("gone"), user, b'g', 100);
        put(&filler, 0, b'f', 64 << 20);
        let call = |arguments: &[&str]| disk.call(user, &state, &work, arguments);
        let script = "rm gone; echo b >> a; mkdir d; for n in 1 2 3 4 5 6 7 8 9; do { head -c 8M /dev/zero; echo $n; } > d/$n; done; echo z > z";
        call(&["run", "--fs", "cow:layer", "--auth", auth, "--", "/bin/sh", "-ec", script]).success();
        let refused = call(&["commit", "layer"]).exits(125).says("No space left on device");
        assert!(refused.stderr.lines().count() < 4, "{refused}");
        // Each file is what it was, or what it becomes.
        let len = std::fs::metadata(work.join("a")).expect("it is there").len();
        assert!([4 << 20, (4 << 20) + 2].contains(&len), "{len}");
        for n in 1..10 {
            let len = std::fs::metadata(work.join(format!("d/{n}"))).map_or((8 << 20) + 2, |found| found.len());
            assert_eq!(len, (8 << 20) + 2, "{user} {auth}: {n}");
        }
        // Nor does it use what must be finished first.
        call(&["run", "--fs", "cow:layer", "--auth", auth, "--", "/bin/true"]).exits(125);
        std::fs::remove_file(&filler).expect("own file");
        call(&["commit", "layer"]).success();
        let text = |name: &str| std::fs::read(work.join(name)).ok();
        for n in 1..10 {
            assert!(text(&format!("d/{n}")).is_some_and(|text| text.ends_with(format!("\0{n}\n").as_bytes())), "{n}");
        }
        assert_eq!((text("z"), text("gone")), (Some(b"z\n".to_vec()), None), "{user} {auth}");
        assert_eq!(call(&["diff", "layer"]).success().stdout, "");
        call(&["discard", "layer"]).success();
        let left: Vec<_> = std::fs::read_dir(&work).expect("own directory").flatten().map(|e| e.file_name()).collect();
        assert_eq!(left.len(), 3, "a, d, z: {left:?}");
        std::fs::remove_dir_all(&work).expect("own directory");
    }
}
