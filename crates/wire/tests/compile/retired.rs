//! A number that was in use once.
hurdle_wire::interface! {
    pub mod reused = 7 {
        retired 4, 9;
        1 fn one();
        9 fn nine();
    }
}

fn main() {}
