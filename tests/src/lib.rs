//! End-to-end tests: real programs, natively and in an environment.
//!
//! A test is a *body*: a plain function that starts real programs and asserts what a user would see. The
//! [`in_worlds!`] macro makes one `#[test]` of it for each *world*: `native` runs it in the test process, every other
//! world runs the same function inside `hurdle run OPTIONS`, by executing this test binary again in there. So Linux
//! itself proves the body first, and the environment is held against Linux.
//!
//! | module | what it holds |
//! |---|---|
//! | [`world`] | the worlds, and running a body in one |
//! | [`scene`] | what a body works with: a directory, ports, programs that end with it |
//! | [`command`] | the `hurdle` command under test, as a user would call it |
//! | [`finish`] | running a program to its end within a deadline |
//! | [`cow`], [`snapshot`] | copy-on-write environments; proving that the host is untouched |
//! | [`differences`] | results of suites that rightly differ inside |
//! | [`chance`] | random moments and victims |
//! | [`leaks`] | what an environment left behind |
//! | [`load`] | nginx and redis under load |
//! | [`pty`] | a terminal to type on |
//! | [`poll`], [`skip`] | waiting for a condition; saying what was not tested |
//! | [`source`] | files of the source tree that tests are held against |
//!
//! Principles: nothing waits by sleeping for a guessed time; every wait has a deadline; every port and file is a
//! test's own; a test that cannot run here says `SKIP` with its reason and is counted as such.
//!
//! The tests run as the user who starts them. `cargo xtask test` runs them as root and as an unprivileged user.

#![warn(missing_docs)]

pub mod chance;
pub mod command;
pub mod cow;
pub mod differences;
pub mod finish;
pub mod leaks;
pub mod load;
pub mod poll;
pub mod pty;
pub mod scene;
pub mod skip;
pub mod snapshot;
pub mod source;
pub mod world;

pub use command::Hurdle;
pub use cow::Cow;
pub use finish::{Finished, finish};
pub use poll::{for_up_to, until};
pub use scene::{Running, Scene};
pub use skip::skip;
pub use snapshot::Snapshot;
pub use world::World;

/// Declares the tests of a body, one for each world named.
///
/// `in_worlds!(body: native, local);` makes the tests `body::native` and `body::local` of `fn body(scene: &Scene)`.
/// The worlds are the functions of [`world`].
#[macro_export]
macro_rules! in_worlds {
    ($body:ident: $($world:ident),+ $(,)?) => {
        mod $body {
            $(
                #[test]
                fn $world() {
                    let name = concat!(module_path!(), "::", stringify!($world));
                    $crate::world::run(name, $crate::world::$world(), super::$body);
                }
            )+
        }
    };
}
