//! VT-d's queues and fault records. See `portcullis_fuzz::vtd`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| portcullis_fuzz::vtd::run(data));
