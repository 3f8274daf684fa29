//! Two calls with one number.
hurdle_wire::interface! {
    pub mod twice = 7 {
        1 fn one();
        2 fn two();
        1 fn other();
    }
}

fn main() {}
