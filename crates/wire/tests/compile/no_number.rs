//! A call without a number.
hurdle_wire::interface! {
    pub mod unnumbered = 7 {
        fn one();
    }
}

fn main() {}
