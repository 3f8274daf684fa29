//! Files that programs of root need and the user can't read on the host: the shadow of /etc/passwd and /etc/group, in which
//! nobody has a password (shadow(5), gshadow(5)).

use std::fs;

/// Which file is made up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sham {
    /// `shadow`: of users.
    Users,
    /// `gshadow`: of groups.
    Groups,
}

/// Where such files are, backups among them.
pub(super) const PATHS: &[(&str, Sham)] = &[
    ("/etc/shadow", Sham::Users),
    ("/etc/shadow-", Sham::Users),
    ("/etc/gshadow", Sham::Groups),
    ("/etc/gshadow-", Sham::Groups),
];

impl Sham {
    /// By the name in its directory.
    pub(super) fn of(name: &[u8]) -> Option<Sham> {
        PATHS.iter().find(|(path, _)| path.as_bytes().ends_with(name)).map(|(_, sham)| *sham)
    }
}

/// What it holds, as of now.
pub(super) fn content(sham: Sham) -> Vec<u8> {
    match sham {
        Sham::Users => users(&fs::read("/etc/passwd").unwrap_or_default()),
        Sham::Groups => groups(&fs::read("/etc/group").unwrap_or_default()),
    }
}

/// No password fits `*`; no day of a last change, so that none is too old.
fn users(passwd: &[u8]) -> Vec<u8> {
    each(passwd, |name, _| [name, b":*:::::::\n"].concat())
}

fn groups(group: &[u8]) -> Vec<u8> {
    each(group, |name, fields| [name, b":!::", fields.get(3).copied().unwrap_or_default(), b"\n"].concat())
}

fn each(file: &[u8], line: impl Fn(&[u8], &[&[u8]]) -> Vec<u8>) -> Vec<u8> {
    let lines = file.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines
        .flat_map(|text| {
            let fields: Vec<&[u8]> = text.split(|byte| *byte == b':').collect();
            line(fields[0], &fields)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_has_a_password() {
        let passwd = b"root:x:0:0:root:/root:/bin/bash\nwww:x:33:33::/:/bin/false\n";
        assert_eq!(users(passwd), b"root:*:::::::\nwww:*:::::::\n");
        assert_eq!(groups(b"sudo:x:27:ann,bob\nempty:x:5:\n"), b"sudo:!::ann,bob\nempty:!::\n");
        assert_eq!((Sham::of(b"shadow-"), Sham::of(b"gshadow")), (Some(Sham::Users), Some(Sham::Groups)));
    }
}
