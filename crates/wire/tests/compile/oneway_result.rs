//! A call without a reply that has a result.
hurdle_wire::interface! {
    pub mod contradiction = 7 {
        1 oneway fn one() -> u32;
    }
}

fn main() {}
