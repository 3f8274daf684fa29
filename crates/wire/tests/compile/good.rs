//! An interface with all that a declaration may have.
hurdle_wire::interface! {
    /// Documented.
    pub mod full = 7 {
        retired 4, 9;
        /// A call.
        1 idempotent fn list() -> Vec<String>;
        2 fn signal(pid: u32, signal: i32);
        3 oneway fn hint(x: u32);
        5 fn spawn(argv: Vec<String>, stdio: Vec<hurdle_wire::Fd>,) -> u32;
    }
}

hurdle_wire::interface! {
    mod empty = 8 {}
}

fn main() {
    assert_eq!(full::INTERFACE.calls.len() + empty::INTERFACE.calls.len(), 4);
}
