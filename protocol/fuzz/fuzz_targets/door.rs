//! Fuzzes the decoder run `door`; what must hold is said in `tests/support/decode_all.rs`.
#![no_main]
#![allow(dead_code, reason = "each target runs a part of what they share")]

#[path = "../../tests/support/decode_all.rs"]
mod decode_all;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| decode_all::door(bytes));
