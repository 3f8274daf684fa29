//! Which declarations of an interface compile, and what the others say.

#[test]
fn declarations() {
    let cases = trybuild::TestCases::new();
    cases.pass("tests/compile/good.rs");
    for bad in ["duplicate", "retired", "zero", "no_number", "oneway_result"] {
        cases.compile_fail(format!("tests/compile/{bad}.rs"));
    }
}
