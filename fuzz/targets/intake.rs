//! The core's fault path. See `portcullis_fuzz::intake`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| portcullis_fuzz::intake::run(data));
