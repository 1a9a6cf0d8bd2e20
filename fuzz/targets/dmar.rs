//! ACPI tables. See `portcullis_fuzz::dmar`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| portcullis_fuzz::dmar::run(data));
