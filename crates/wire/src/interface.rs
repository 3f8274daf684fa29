//! An interface as data: what `interface!` declares, for dispatch, for reflection and for printing.

use serde::{Deserialize, Serialize};

use crate::fd::Fd;

/// An interface, as its declaration says. Made by [`interface!`](crate::interface).
#[derive(Clone, Copy, Debug)]
pub struct Interface {
    /// Its number on the wire, never 0.
    pub number: u16,
    /// Its name.
    pub name: &'static str,
    /// Its doc comment.
    pub doc: &'static str,
    /// Its calls, in the order of their declaration.
    pub calls: &'static [CallInfo],
    /// Numbers of calls that it had once; never used again.
    pub retired: &'static [u16],
}

/// One call of an interface.
#[derive(Clone, Copy, Debug)]
pub struct CallInfo {
    /// Its number on the wire, never 0.
    pub number: u16,
    /// Its name.
    pub name: &'static str,
    /// Its doc comment.
    pub doc: &'static str,
    /// Name and Rust type of each argument.
    pub arguments: &'static [(&'static str, &'static str)],
    /// Rust type of the result.
    pub result: &'static str,
    /// Doing it twice is as good as once, so it is sent again after its server died.
    pub idempotent: bool,
    /// It has no reply.
    pub oneway: bool,
    /// Decodes a payload of arguments and prints them: `pid=1, signal=15`.
    pub print_arguments: Print,
    /// Decodes a payload of a result and prints it.
    pub print_result: Print,
}

/// Prints a payload; the error says why it can't be decoded.
pub type Print = fn(&[u8], Vec<Fd>) -> Result<String, String>;

impl Interface {
    /// The call with this number.
    pub fn call(&self, number: u16) -> Option<&'static CallInfo> {
        self.calls.iter().find(|call| call.number == number)
    }

    /// The call with this number, at compile time.
    #[doc(hidden)]
    pub const fn expect(calls: &'static [CallInfo], number: u16) -> &'static CallInfo {
        let mut at = 0;
        while at < calls.len() {
            if calls[at].number == number {
                return &calls[at];
            }
            at += 1;
        }
        panic!("no call has this number")
    }

    /// A copy that can be sent.
    pub fn describe(&self) -> Description {
        Description {
            number: self.number,
            name: self.name.into(),
            doc: self.doc.trim().into(),
            calls: self.calls.iter().map(CallInfo::describe).collect(),
            retired: self.retired.to_vec(),
        }
    }
}

impl CallInfo {
    fn describe(&self) -> CallDescription {
        CallDescription {
            number: self.number,
            name: self.name.into(),
            doc: self.doc.trim().into(),
            arguments: self.arguments.iter().map(|(name, kind)| (name.to_string(), kind.to_string())).collect(),
            result: self.result.into(),
            idempotent: self.idempotent,
            oneway: self.oneway,
        }
    }
}

/// What a server says about an interface that it serves. See [`describe`](crate::describe).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// Its number on the wire.
    pub number: u16,
    /// Its name.
    pub name: String,
    /// Its doc comment.
    pub doc: String,
    /// Its calls.
    pub calls: Vec<CallDescription>,
    /// Numbers of calls that it had once.
    pub retired: Vec<u16>,
}

/// One call in a [`Description`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallDescription {
    /// Its number on the wire.
    pub number: u16,
    /// Its name.
    pub name: String,
    /// Its doc comment.
    pub doc: String,
    /// Name and Rust type of each argument.
    pub arguments: Vec<(String, String)>,
    /// Rust type of the result.
    pub result: String,
    /// It is sent again after its server died.
    pub idempotent: bool,
    /// It has no reply.
    pub oneway: bool,
}

impl std::fmt::Display for CallDescription {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let arguments: Vec<_> = self.arguments.iter().map(|(name, kind)| format!("{name}: {kind}")).collect();
        write!(f, "{}({})", self.name, arguments.join(", "))?;
        if self.result != "()" { write!(f, " -> {}", self.result) } else { Ok(()) }
    }
}

/// The shape of an interface: what its peers depend on, as text that a test can hold against what was recorded.
/// Calls are in the order of their numbers; doc comments are not part of it.
pub fn shape(interface: &Interface) -> String {
    let mut lines = vec![format!("interface {} = {}", interface.name, interface.number)];
    let mut calls: Vec<_> = interface.calls.iter().collect();
    calls.sort_by_key(|call| call.number);
    for call in calls {
        let mark = match (call.idempotent, call.oneway) {
            (true, _) => " idempotent",
            (_, true) => " oneway",
            _ => "",
        };
        lines.push(format!("{}{mark} {}", call.number, call.describe()));
    }
    let mut retired = interface.retired.to_vec();
    retired.sort_unstable();
    lines.extend(retired.iter().map(|number| format!("{number} retired")));
    lines.join("\n") + "\n"
}

/// Holds an interface's numbers against its own rules. `interface!` calls it at compile time.
#[doc(hidden)]
pub const fn check_numbers(interface: u16, calls: &[u16], retired: &[u16]) {
    assert!(interface != 0, "interface number 0 is reserved for the wire itself");
    let mut at = 0;
    while at < calls.len() {
        assert!(calls[at] != 0, "call number 0 is reserved for describe");
        assert!(!holds(calls, calls[at], at + 1), "two calls of this interface have the same number");
        assert!(!holds(retired, calls[at], 0), "a call of this interface has a retired number");
        at += 1;
    }
}

/// Whether `list` holds `number` from index `from` on.
const fn holds(list: &[u16], number: u16, from: usize) -> bool {
    let mut at = from;
    while at < list.len() {
        if list[at] == number {
            return true;
        }
        at += 1;
    }
    false
}
