//! Lists of tests whose result inside of an environment rightly differs from that on Linux as it is, with a reason each.
//!
//! A line is `NAME: REASON`, or `[WHO] NAME: REASON`, where WHO is `root` or `user`: who runs the tests. A `*` in a name stands
//! for anything. Lines that begin with `#` explain. A line that matches no difference is as wrong as a difference without a
//! line, unless its reason begins with [`BY_TIMING`].

use std::collections::{BTreeMap, BTreeSet};

/// A difference that comes and goes.
pub const BY_TIMING: &str = "by timing";

/// What each test came to, in the suite's own word.
pub type Results = BTreeMap<String, String>;

#[derive(Debug)]
struct Line<'a> {
    name: &'a str,
    reason: &'a str,
}

/// The lines of a list that hold for this process's user.
fn lines(list: &str) -> Vec<Line<'_>> {
    let who = if nix::unistd::geteuid().is_root() { "root" } else { "user" };
    let mut found = Vec::new();
    for line in list.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (of, rest) = match line.strip_prefix('[').and_then(|rest| rest.split_once("] ")) {
            Some((of, rest)) => (Some(of), rest),
            None => (None, line),
        };
        assert!(of.is_none_or(|of| ["root", "user"].contains(&of)), "of whom? {line}");
        let (name, reason) = rest.split_once(": ").unwrap_or_else(|| panic!("no reason: {line}"));
        if of.is_none_or(|of| of == who) {
            found.push(Line { name, reason });
        }
    }
    found
}

/// Whether `name` is `pattern`, in which `*` stands for anything.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(name) = name.strip_prefix(head) else { return false };
    (0..=name.len()).filter(|at| name.is_char_boundary(*at)).any(|at| matches(rest, &name[at..]))
}

/// # Panics
/// Panics if `found` differs from `expected` elsewhere than where `list` says so.
#[track_caller]
pub fn assert_reviewed(expected: &Results, found: &Results, list: &str) {
    let lines = lines(list);
    let of = |results: &Results, name: &str| results.get(name).cloned().unwrap_or_else(|| "not run".to_owned());
    let names: BTreeSet<&String> = expected.keys().chain(found.keys()).collect();
    let differing: Vec<&String> = names.into_iter().filter(|name| of(expected, name) != of(found, name)).collect();
    let listed = |name: &str| lines.iter().any(|line| matches(line.name, name));
    let new: Vec<String> = differing
        .iter()
        .filter(|name| !listed(name))
        .map(|name| format!("{name}: {} natively, {} inside", of(expected, name), of(found, name)))
        .collect();
    assert!(new.is_empty(), "{} differences that nobody has reviewed: {new:#?}", new.len());
    // A list that is longer than the truth hides the next difference.
    let stale: Vec<&str> = lines
        .iter()
        .filter(|line| !line.reason.starts_with(BY_TIMING))
        .filter(|line| !differing.iter().any(|name| matches(line.name, name)))
        .map(|line| line.name)
        .collect();
    assert!(stale.is_empty(), "listed, but no different any more: {stale:#?}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results(text: &str) -> Results {
        let split = |word: &str| word.split_once('=').map(|(name, result)| (name.to_owned(), result.to_owned()));
        text.split_whitespace().filter_map(split).collect()
    }

    fn complaint(expected: &str, found: &str, list: &str) -> Option<String> {
        let (expected, found) = (results(expected), results(found));
        let done = std::panic::catch_unwind(|| assert_reviewed(&expected, &found, list));
        done.err().map(|panic| panic.downcast::<String>().map(|text| *text).unwrap_or_default())
    }

    #[test]
    fn what_nobody_reviewed_and_what_is_stale_fails() {
        assert_eq!(complaint("a=ok b=ok", "a=ok b=ok", ""), None);
        assert_eq!(complaint("a=ok b::c=ok", "a=ok b::c=FAIL", "# why\nb::*: so it is"), None);
        assert_eq!(complaint("a=ok", "a=ok", "a: by timing, seldom"), None);
        assert!(complaint("a=ok b=ok", "a=ok", "").is_some_and(|text| text.contains("b: ok natively, not run inside")));
        assert!(complaint("a=ok", "a=ok", "a: why").is_some_and(|text| text.contains("no different any more")));
        let both = complaint("a=ok", "a=FAIL", "[root] a: why\n[user] a: why");
        assert_eq!(both, None);
    }
}
