//! Page tables. See `portcullis_fuzz::pgtable`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| portcullis_fuzz::pgtable::run(data));
