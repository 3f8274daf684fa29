//! The rows of a syscall table.
//!
//! A net server has one table. Its filter ([`rules`]), its dispatcher (each row's `handler`) and its page of documentation
//! ([`markdown`]) all come from it, so they cannot disagree.

use hurdle_sys::seccomp::{Action, ArgMatch, Rule};

/// How much of a call works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    /// As in the man page.
    Full,
    /// With differences that the row's note states.
    Partial,
    /// It fails with this errno.
    No(i32),
}

/// Who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By<H> {
    /// The server's handler, by a trap.
    Server(H),
    /// The filter itself, with the errno of [`Support::No`].
    Filter,
    /// The kernel, natively: no trap.
    Kernel,
}

/// One row: the first row of a call whose condition holds decides.
#[derive(Clone, Debug)]
pub struct Row<H> {
    /// The system call's name.
    pub name: &'static str,
    /// Its number; `None` for a row that is documentation only (a difference that no filter can see).
    pub syscall: Option<i64>,
    /// The condition on the arguments, for the reader.
    pub condition: &'static str,
    /// The same, for the filter.
    pub when: Vec<ArgMatch>,
    /// Who answers.
    pub by: By<H>,
    /// How much works.
    pub support: Support,
    /// Why, or what differs.
    pub note: &'static str,
}

/// The filter's rules.
pub fn rules<H: Copy>(rows: &[Row<H>]) -> Vec<Rule> {
    let action = |row: &Row<H>| match (row.by, row.support) {
        (By::Server(_), _) => Action::Notify,
        (By::Filter, Support::No(errno)) => Action::Errno(errno),
        _ => Action::Allow,
    };
    rows.iter().filter_map(|row| Some(Rule::new(row.syscall?, row.when.clone(), action(row)))).collect()
}

/// The handler of a trapped call. The rows of one call have the same one.
pub fn handler<H: Copy>(rows: &[Row<H>], syscall: i64) -> Option<H> {
    rows.iter().filter(|row| row.syscall == Some(syscall)).find_map(|row| match row.by {
        By::Server(handler) => Some(handler),
        _ => None,
    })
}

/// The table as a page's Markdown table. `errno_name` names an errno.
pub fn markdown<H>(rows: &[Row<H>], errno_name: impl Fn(i32) -> String) -> String {
    let mut page = String::from("| call | when | answered by | support | note |\n|---|---|---|---|---|\n");
    for row in rows {
        let by = match row.by {
            By::Server(_) => "server",
            By::Filter => "filter",
            By::Kernel => "kernel",
        };
        let support = match row.support {
            Support::Full => "full".to_owned(),
            Support::Partial => "partial".to_owned(),
            Support::No(errno) => format!("no: {}", errno_name(errno)),
        };
        page.push_str(&format!("| `{}` | {} | {by} | {support} | {} |\n", row.name, row.condition, row.note));
    }
    page
}
