//! Any bytes as the arguments of a call.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hurdle_wire::fuzz::arguments(bytes));
