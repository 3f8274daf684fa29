//! The number that is the wire's own.
hurdle_wire::interface! {
    pub mod reserved = 7 {
        0 fn describe();
    }
}

fn main() {}
