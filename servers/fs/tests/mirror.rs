//! The mirror under a kernel overlay, seen by real programs: the example `mirror_run` makes the environment, as an ordinary
//! user wherever the tests are run by root.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// Nobody's number, for tests that root runs.
const USER: u32 = 54321;

struct Place {
    dir: tempfile::TempDir,
    program: PathBuf,
}

impl Place {
    /// A directory that the user owns, and the program where he may execute it.
    fn new() -> Place {
        let dir = tempfile::Builder::new().prefix("mirror-").tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let built = std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().join("examples/mirror_run");
        let program = dir.path().join("mirror_run");
        // Not by this process: a child that another test forks meanwhile would hold it open for writing (ETXTBSY).
        let copied = Command::new("cp").args([&built, &program]).status().unwrap();
        assert!(copied.success(), "{}", built.display());
        let place = Place { dir, program };
        fs::create_dir(place.files()).unwrap();
        own(&place.files());
        place
    }

    fn files(&self) -> PathBuf {
        self.dir.path().join("files")
    }

    /// A file of the user's.
    fn write(&self, name: &str, content: impl AsRef<[u8]>, mode: u32) -> PathBuf {
        let path = self.files().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        own(&path);
        path
    }

    fn start(&self, options: &[&str], script: &str) -> Command {
        let mut command = Command::new(&self.program);
        if root() {
            command.uid(USER).gid(USER);
        }
        command.args(options).args(["sh", "-c", script]).current_dir("/");
        command.env_clear().env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin").env("D", self.files());
        command
    }

    /// What `script` says inside; `$D` is the directory of the files.
    fn run(&self, options: &[&str], script: &str) -> String {
        said(&self.start(options, script).output().unwrap())
    }
}

fn said(output: &Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{out}\n{err}", output.status);
    out.trim_end().to_owned()
}

fn root() -> bool {
    rustix::process::geteuid().is_root()
}

fn own(path: &Path) {
    if root() {
        chown(path, Some(USER), Some(USER)).unwrap();
    }
}

#[test]
fn files_are_what_they_are() {
    let place = Place::new();
    let file = place.write("a/file", "content\n", 0o640);
    fs::hard_link(&file, place.files().join("a/other")).unwrap();
    symlink("file", place.files().join("a/link")).unwrap();
    symlink("/etc/passwd", place.files().join("out")).unwrap();
    let script = "cd $D; cat a/file a/link; stat -c '%a %h %s %F' a/file a/link; \
                  [ $(stat -c %i a/file) = $(stat -c %i a/other) ] && echo hard; readlink out; ls -a a; \
                  cat missing 2>/dev/null || echo missing";
    let want = "content\ncontent\n640 2 8 regular file\n777 1 4 symbolic link\nhard\n/etc/passwd\n\
                .\n..\nfile\nlink\nother\nmissing";
    assert_eq!(place.run(&[], script), want);
    // The same number as on the host, for a file of the host's first file system.
    let file = fs::metadata(&file).unwrap();
    if file.dev() == fs::metadata("/").unwrap().dev() {
        assert_eq!(place.run(&[], "stat -c %i $D/a/file"), file.ino().to_string());
    }
}

#[test]
fn host_root_and_the_user_are_root_inside() {
    let place = Place::new();
    place.write("mine", "x", 0o600);
    let script = "id -u; stat -c '%u %g' / /etc/passwd $D/mine; cat $D/mine; \
                  echo new:x:7:7::/:/bin/sh >> /etc/passwd && tail -n1 /etc/passwd; \
                  rm -r /usr/include && mkdir /usr/include && ls -A /usr/include";
    let before = fs::read("/etc/passwd").unwrap();
    assert_eq!(place.run(&[], script), "0\n0 0\n0 0\n0 0\nxnew:x:7:7::/:/bin/sh");
    assert_eq!(fs::read("/etc/passwd").unwrap(), before);
    // As himself: no more than outside.
    let id = if root() { USER } else { rustix::process::geteuid().as_raw() };
    let script = "id -u; stat -c %u $D/mine; cat $D/mine; (echo >> /etc/passwd) 2>/dev/null || echo refused";
    assert_eq!(place.run(&["--same"], script), format!("{id}\n{id}\nxrefused"));
}

#[test]
fn what_the_user_may_not_read_is_shown_as_far_as_programs_need_it() {
    if !root() {
        eprintln!("skipped: only root can make files that the user may not read");
        return;
    }
    let place = Place::new();
    let secret = place.write("secret", "secret", 0o600);
    chown(&secret, Some(0), Some(0)).unwrap();
    chown(place.write("empty", "", 0o600), Some(0), Some(0)).unwrap();
    place.write("dir/inner", "inner", 0o644);
    fs::set_permissions(place.files().join("dir"), fs::Permissions::from_mode(0o700)).unwrap();
    chown(place.files().join("dir"), Some(0), Some(0)).unwrap();
    let script = "cd $D; cat secret 2>&1; cat empty && echo empty; ls -A dir; cat dir/inner 2>&1; echo new > dir/new; ls dir; \
                  stat -c '%u %a' dir; rm secret && echo removed; \
                  while IFS=: read -r name hash rest; do [ \"$hash\" = '*' ] || echo \"hash of $name\"; done < /etc/shadow; \
                  grep -c . /etc/shadow";
    let users = fs::read_to_string("/etc/passwd").unwrap().lines().count();
    let want = format!(
        "cat: secret: Permission denied\nempty\ncat: dir/inner: No such file or directory\nnew\n0 700\nremoved\n{users}"
    );
    assert_eq!(place.run(&[], script), want);
    assert_eq!(fs::read(&secret).unwrap(), b"secret");
    // As himself it is as outside.
    let want = "cat: secret: Permission denied\ncat: dir/inner: Permission denied";
    assert_eq!(place.run(&["--same"], "cd $D; cat secret 2>&1; cat dir/inner 2>&1; true"), want);
}

#[test]
fn the_kernels_own_files_and_hidden_ones_are_not_shown() {
    let place = Place::new();
    place.write("hidden/inner", "x", 0o644);
    place.write("shown/inner", "x", 0o644);
    let hidden = place.files().join("hidden");
    let script = "find /proc /sys /dev $D/hidden $D/shown -mindepth 1; ls $D";
    let said = place.run(&["--bare", "--hide", hidden.to_str().unwrap()], script);
    assert_eq!(said, format!("{}\nhidden\nshown", place.files().join("shown/inner").display()));
}

#[test]
fn a_sparse_file_stays_sparse_when_it_is_copied_up() {
    let place = Place::new();
    let path = place.write("sparse", "", 0o644);
    fs::File::options().write(true).open(&path).unwrap().write_all_at(b"end", 64 << 20).unwrap();
    let said = place.run(&[], "echo >> $D/sparse; stat -c '%s %b' $D/sparse; tail -c 4 $D/sparse");
    let words: Vec<&str> = said.split_whitespace().collect();
    assert_eq!((words[0], words[2]), ("67108868", "end"));
    assert!(words[1].parse::<u64>().unwrap() * 512 < 4 << 20, "{said}");
}

#[test]
fn extended_attributes_are_the_files_own() {
    let place = Place::new();
    let path = place.write("file", "x", 0o644);
    let set = |name: &str| rustix::fs::lsetxattr(&path, name, b"value", rustix::fs::XattrFlags::empty());
    if set("user.mine").is_err() || set("user.overlay.opaque").is_err() {
        eprintln!("skipped: no extended attributes here");
        return;
    }
    let script = "import os; p=os.environ['D']+'/file'; print(os.listxattr(p), os.getxattr(p, 'user.mine')); os.chmod(p, 0o600); \
                  print(os.listxattr(p))";
    assert_eq!(place.run(&[], &format!("python3 -c \"{script}\"")), "['user.mine'] b'value'\n['user.mine']");
}

#[test]
fn a_large_directory_is_listed_whole() {
    let place = Place::new();
    for number in 0..3000 {
        place.write(&format!("many/a file with a name that is not short {number}"), "", 0o644);
    }
    assert_eq!(place.run(&[], "ls -f $D/many | sort -u | wc -l; ls -l $D/many | wc -l"), "3002\n3001");
}

#[test]
fn once_warm_nothing_is_asked() {
    let place = Place::new();
    for number in 0..500 {
        place.write(&format!("d{}/{number}", number % 20), format!("{number}\n"), 0o644);
    }
    let output = place.start(&["--runs", "3"], "find $D -type f -size -9 -exec cat {} + | wc -l").output().unwrap();
    assert_eq!(said(&output), "500\n500\n500");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let third = text.lines().find_map(|line| line.strip_prefix("run 3: ")).unwrap();
    let counts = third.split(';').nth(2).unwrap().split(", ");
    let asked: u64 = counts.filter_map(|word| word.rsplit(' ').next()?.parse::<u64>().ok()).sum();
    // One for each program that is executed: what may it do (security.capability)?
    assert!(asked < 10, "{third}");
}

/// A load that asks for much, the same natively and with a server that does not last.
fn under_load(options: &[&str]) -> String {
    let place = Place::new();
    let script = "find /usr/lib /usr/bin /usr/share -xdev -type f -size -200 2>/dev/null | sort | head -n 6000 | tr '\\n' '\\0' \
                  | xargs -0 md5sum 2>&1 | md5sum";
    let mut native = Command::new("sh");
    if root() {
        native.uid(USER).gid(USER);
    }
    let want = said(&native.args(["-c", script]).output().unwrap());
    let output = place.start(options, script).output().unwrap();
    assert_eq!(said(&output), want);
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn the_death_of_the_server_is_not_noticed() {
    let text = under_load(&["--kills", "20"]);
    assert!(text.contains("killed 20 times"), "the load was too short: {text}");
}

#[test]
fn nor_is_it_when_one_follows_another() {
    under_load(&["--swaps", "20"]);
}

#[test]
fn a_file_that_was_replaced_is_another_one() {
    let place = Place::new();
    let path = place.write("file", "before", 0o644);
    // The two sides meet at a file of the host's own /dev/shm, which the environment shares.
    let mark = Path::new("/dev/shm").join(format!("mirror-test-{}", std::process::id()));
    let script = "cat $D/file; echo; exec 3<$D/file; i=0; while [ ! -e $MARK ] && [ $((i=i+1)) -lt 3000 ]; do sleep 0.01; done; \
                  cat <&3; echo; cat $D/file";
    let mut child = place.start(&[], script).env("MARK", &mark).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = [0; 7];
    child.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
    assert_eq!(&line, b"before\n");
    fs::rename(place.write("new", "after!", 0o644), &path).unwrap();
    fs::write(&mark, "").unwrap();
    let output = child.wait_with_output().unwrap();
    fs::remove_file(&mark).unwrap();
    let rest = said(&output);
    // What was open is as it was; by its name it is either of both, and whole.
    assert!(["before\nbefore", "before\nafter!"].contains(&rest.as_str()), "{rest}");
}
