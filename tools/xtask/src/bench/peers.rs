//! What gives files that forget where hurdle is not: the kernel's own overlay, mounted by hand, and fuse-overlayfs.
//!
//! Root lays the kernel's overlay over the whole of `/`. A user may mount one too, in a user namespace of his own, but not over a
//! tree with mounts in it: so over /usr and over the files of the row alone, where all that is read and written lies. fuse-overlayfs gets
//! the same two.

use std::fs::Permissions;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;

use crate::shell::{Result, user_id};

/// Makes a layer: `$1` the row's files, `$2` the place for layers, `$3` `memory` or `disk`.
const LAYER: &str = r#"set -e; files=$1 layers=$2 where=$3; shift 3
layer=$layers/memory
if [ $where = disk ]; then layer=$(mktemp -d $layers/disk.XXXXXX); else mount -t tmpfs -o inode32 layer $layer; fi
"#;

const WHOLE: &str = r#"mkdir $layer/upper $layer/work $layer/merged
mount -t overlay overlay -o lowerdir=/,upperdir=$layer/upper,workdir=$layer/work $layer/merged
for place in proc dev sys; do mount --rbind /$place $layer/merged/$place; done
exec chroot $layer/merged /bin/sh -c 'cd "$0" && exec "$@"' $files "$@""#;

const PARTS: &str = r#"for part in /usr $files; do
    own=$layer/$(basename $part); mkdir $own $own/upper $own/work
    mount -t overlay overlay -o lowerdir=$part,upperdir=$own/upper,workdir=$own/work,userxattr $part
done
cd $files; exec "$@""#;

const FUSE: &str = r#"for part in /usr $files; do
    own=$layer/$(basename $part); mkdir $own $own/upper $own/work
    fuse-overlayfs -o lowerdir=$part,upperdir=$own/upper,workdir=$own/work $part </dev/null >/dev/null 2>&1
done
cd $files; exec "$@""#;

/// A program on files that forget.
pub(crate) fn command(fuse: bool, disk: bool, stage: &Path, program: &Path) -> Command {
    let root = user_id() == 0;
    let body = match (fuse, root) {
        (true, _) => FUSE,
        (false, true) => WHOLE,
        (false, false) => PARTS,
    };
    let mut command = Command::new("/usr/bin/unshare");
    // With the program ends what serves its files.
    command.args(["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"]);
    if !root {
        command.args(["--user", "--map-root-user"]);
    }
    command.args(["/bin/sh", "-c", &format!("{LAYER}{body}"), "sh"]);
    command.arg(stage.join("files")).arg(stage.join("layers")).arg(if disk { "disk" } else { "memory" }).arg(program);
    command
}

/// The socket at which caches are dropped on demand.
const CACHES: &str = "caches";

/// Drops the kernel's caches of files whenever somebody connects to a socket in `stage`. Only root can, and who measures need not
/// be root.
pub(crate) fn serve_caches(stage: &Path) -> Result {
    if user_id() != 0 {
        return Ok(());
    }
    let path = stage.join(CACHES);
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, Permissions::from_mode(0o666))?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = Command::new("sync").status();
            if let Err(error) = std::fs::write("/proc/sys/vm/drop_caches", "3") {
                eprintln!("caches are not dropped: {error}");
            }
            drop(stream);
        }
    });
    Ok(())
}

/// Asks for the caches to be dropped, and waits until they are.
pub(crate) fn drop_caches(stage: &Path) -> Result {
    let mut stream =
        UnixStream::connect(stage.join(CACHES)).map_err(|error| format!("only root drops caches: {error}"))?;
    stream.read_to_end(&mut Vec::new())?;
    Ok(())
}
