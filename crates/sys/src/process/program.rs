//! What a program's start reads before its first own instruction.

use std::ffi::{CStr, OsStr};
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// How much of a file is read: what the kernel reads ahead.
const AHEAD: usize = 128 << 10;

/// Reads the beginning of `program` and of what the dynamic linker (ld.so(8)) needs to start it, so that the kernel has them.
/// What can't be read is left.
pub(super) fn read_ahead(program: &CStr) {
    let mut buffer = vec![0; AHEAD];
    let mut read = |path: &Path| open(path)?.read(&mut buffer).map(|n| buffer[..n].to_vec());
    let Ok(head) = read(Path::new(OsStr::from_bytes(program.to_bytes()))) else { return };
    let Some(linker) = interpreter(&head) else { return };
    let library = linker.canonicalize().map(|path| path.with_file_name("libc.so.6"));
    for path in [linker, "/etc/ld.so.preload".into(), "/etc/ld.so.cache".into()].into_iter().chain(library) {
        let _ = read(&path);
    }
}

/// Opens a regular file. What else has its name is not waited for (a fifo), and not acquired (a terminal).
fn open(path: &Path) -> io::Result<File> {
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::ErrorKind::InvalidInput.into()) }
}

/// The program interpreter of a 64-bit ELF file that begins so (elf(5)).
fn interpreter(head: &[u8]) -> Option<PathBuf> {
    let number = |at: usize, len: usize| -> Option<usize> {
        let bytes = head.get(at..at.checked_add(len)?)?;
        usize::try_from(bytes.iter().rev().fold(0, |number: u64, byte| number << 8 | u64::from(*byte))).ok()
    };
    // ELFCLASS64, ELFDATA2LSB.
    head.strip_prefix(b"\x7fELF\x02\x01")?;
    let (table, size, count) = (number(0x20, 8)?, number(0x36, 2)?, number(0x38, 2)?);
    let header = (0..count).map(|n| table.saturating_add(n * size)).find(|at| number(*at, 4) == Some(PT_INTERP))?;
    let (from, len) = (number(header + 8, 8)?, number(header + 32, 8)?);
    let text = CStr::from_bytes_until_nul(head.get(from..from.checked_add(len)?)?).ok()?;
    Some(OsStr::from_bytes(text.to_bytes()).into())
}

const PT_INTERP: usize = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_linker_of_a_program_is_found() {
        let shell = std::fs::read("/bin/sh").unwrap();
        assert!(interpreter(&shell).unwrap().exists());
        assert_eq!(interpreter(b"#!/bin/sh"), None);
        // However it is cut, nothing but "no".
        for len in 0..0x400 {
            let mut cut = shell[..len].to_vec();
            let _ = interpreter(&cut);
            cut.resize(0x400, 0xff);
            let _ = interpreter(&cut);
        }
        read_ahead(c"/bin/sh");
        read_ahead(c"/nonexistent");
        // Nobody writes to it.
        let fifo = std::env::temp_dir().join(format!("hurdle-fifo-{}", std::process::id()));
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        read_ahead(&std::ffi::CString::new(fifo.as_os_str().as_bytes()).unwrap());
        std::fs::remove_file(fifo).unwrap();
    }
}
