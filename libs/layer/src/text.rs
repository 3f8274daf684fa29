//! Names are bytes (path_resolution(7)); here is their one printed form, which neither forges a line nor drives a terminal, and
//! from which the bytes can be had back.
//!
//! Printable UTF-8 stands for itself; a backslash is `\\`; every other byte is `\xNN`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize as _, Deserializer, Serializer};

/// The printed form of a name.
pub fn escape(name: &[u8]) -> String {
    let mut out = String::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                c if c.is_control() || hidden(c) => {
                    c.encode_utf8(&mut [0; 4]).bytes().for_each(|b| out.push_str(&format!("\\x{b:02x}")));
                }
                c => out.push(c),
            }
        }
        chunk.invalid().iter().for_each(|b| out.push_str(&format!("\\x{b:02x}")));
    }
    out
}

/// Characters that change how others are shown: line separators, marks of direction, and the like.
fn hidden(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// The bytes of a printed form; `None` if it is none.
pub fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'\\' {
            out.push(*first);
            continue;
        }
        match rest {
            [b'\\', tail @ ..] => {
                out.push(b'\\');
                rest = tail;
            }
            [b'x', high, low, tail @ ..] => {
                let digit = |b: &u8| (*b as char).to_digit(16);
                out.push((digit(high)? * 16 + digit(low)?) as u8);
                rest = tail;
            }
            _ => return None,
        }
    }
    Some(out)
}

/// The printed form of a path.
pub fn path(path: &Path) -> String {
    escape(path.as_os_str().as_bytes())
}

/// Serializes a path as its printed form.
pub(crate) fn serialize<S: Serializer>(value: &Path, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&path(value))
}

/// Reads what [`serialize`] wrote.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
    let text = String::deserialize(from)?;
    let bytes = unescape(&text).ok_or_else(|| serde::de::Error::custom("a path with a bad escape"))?;
    Ok(PathBuf::from(OsStr::from_bytes(&bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_comes_back() {
        for name in
            [&b"plain"[..], b"a b", b"\xff\xfe", b"line\nline", b"\\x41", b"\x1b[31m", "grün \u{202e}".as_bytes()]
        {
            let text = escape(name);
            assert!(!text.contains(char::is_control) && !text.contains('\u{202e}'), "{text:?}");
            assert_eq!(unescape(&text).as_deref(), Some(name), "{text}");
        }
        assert_eq!(escape("grün".as_bytes()), "grün");
        assert_eq!(escape(b"\xffa\n\\"), "\\xffa\\x0a\\\\");
        for bad in ["\\", "\\x4", "\\q", "\\xzz"] {
            assert_eq!(unescape(bad), None);
        }
    }
}
