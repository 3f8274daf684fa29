//! The fs server's process: it tells what is mounted where.

use std::process::ExitCode;

use hurdle_proto::fs::{Mount, fs};
use hurdle_server::{Borrowed, Target};
use hurdle_wire::{Context, Refused};

/// Serves until the right is given back.
pub fn serve() -> ExitCode {
    hurdle_server::run(|borrowed: &mut Borrowed| Ok(fs::service(Files { init: borrowed.target()? })))
}

struct Files {
    init: Target,
}

impl fs::Server for Files {
    async fn mounts(&self, _: &Context) -> Result<Vec<Mount>, Refused> {
        let text = self.init.read("mountinfo")?;
        Ok(text.lines().filter_map(parse).collect())
    }
}

/// One line of mountinfo (proc_pid_mountinfo(5)): id parent major:minor root target options optional… - kind source more.
fn parse(line: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let left: Vec<&str> = left.split(' ').collect();
    let mut right = right.split(' ');
    Some(Mount {
        target: unescape(left.get(4)?),
        options: left.get(5)?.to_string(),
        kind: right.next()?.to_string(),
        source: unescape(right.next()?),
    })
}

/// Blanks and the like stand in mountinfo as `\040`.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let octal = (*first == b'\\')
            .then(|| tail.get(..3))
            .flatten()
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match octal {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_mountinfo_is_read() {
        let line = r"36 35 98:0 /mnt1 /mnt\0402 rw,noatime master:1 - ext3 /dev/root\134x rw,errors=continue";
        let mount = parse(line).unwrap();
        assert_eq!((mount.target.as_str(), mount.source.as_str()), ("/mnt 2", "/dev/root\\x"));
        assert_eq!((mount.kind.as_str(), mount.options.as_str()), ("ext3", "rw,noatime"));
        assert_eq!(parse("garbage"), None);
    }
}
