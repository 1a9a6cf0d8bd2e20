//! Tables that machines have, and arithmetic on tables.
#![allow(dead_code)] // Not every test uses all of it.

/// The bytes of a recorded table. Lines of its file that begin with `#` say whose it is.
pub fn recorded(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/tables/{name}.hex", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).expect("a recorded table");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let bytes = lines.flat_map(str::split_whitespace);
    bytes.map(|byte| u8::from_str_radix(byte, 16).expect("hexadecimal")).collect()
}

/// Makes length and checksum right again.
pub fn seal(bytes: &mut [u8]) {
    let length = bytes.len() as u32;
    bytes[4..8].copy_from_slice(&length.to_le_bytes());
    bytes[9] = 0;
    bytes[9] = bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_sub(*byte));
}
