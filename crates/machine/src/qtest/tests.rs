use super::{machine::VTD_REGISTERS, *};
use portcullis_models::vtd as model;
use proptest::prelude::*;
use std::{fs::File, thread};

const MEMORY: u64 = 1 << 20;

fn file(bytes: u64) -> File {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let n = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("portcullis-qtest-{}-{n}", std::process::id()));
    let file = File::options().create_new(true).read(true).write(true).open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    file.set_len(bytes).unwrap();
    file
}

fn pc() -> Pc {
    Pc::over(file(MEMORY), model::Config::default()).unwrap()
}

/// What is answered to each line, without its line break.
fn talk(pc: &mut Pc, lines: &[&str]) -> Vec<String> {
    lines.iter().map(|line| answer(line.as_bytes(), pc).trim_end().to_owned()).collect()
}

#[test]
fn memory_is_read_and_written_in_every_form() {
    let pc = &mut pc();
    let said = talk(
        pc,
        &[
            "writeq 0x1000 0x1122334455667788",
            "readb 0x1000",
            "readw 4097",
            "readl 010004",
            "readq 0x1000",
            "writeb 0x1001 0x1ff",
            "read 0x0ffe 0x4",
            "b64read 0x1000 8",
            "b64read 0x1000 0x1",
            "write 0x2000 0x3 0x0a0B0c",
            "b64write 0x2003 0x2 /u0=",
            "read 0x2000 0x6",
            "memset 0x3000 0x2 0x5a",
            "readl 0x2fff",
            "endianness",
        ],
    );
    assert_eq!(
        said,
        [
            "OK",
            "OK 0x0000000000000088",
            "OK 0x0000000000006677",
            "OK 0x0000000011223344",
            "OK 0x1122334455667788",
            "OK",
            "OK 0x000088ff",
            "OK iP9mVUQzIhE=",
            "OK iA==",
            "OK",
            "OK",
            "OK 0x0a0b0cfeed00",
            "OK",
            "OK 0x00000000005a5a00",
            "OK little",
        ]
    );
}

#[test]
fn what_cannot_be_done_is_said() {
    let pc = &mut pc();
    let lines = [
        "",
        "jump 0x1000",
        "readl",
        "readl there",
        "readl +5",
        "readl 0x10000000000000000",
        "readl 0x1000 2",
        "read 0x1000 0",
        "read 0x1000 0x100001",
        "write 0x1000 0x2 0x0a",
        "write 0x1000 0x2 0x0a0",
        "write 0x1000 0x2 0a0b",
        "b64write 0x1000 0x1 i===",
        "b64write 0x1000 0x1 iA=",
        "inl 0x10000",
        "memset 0xfffff 0x2 0",
        "memset 0x1000 0xffffffffffffffff 0",
        "irq_intercept_in /machine/unattached",
    ];
    for line in lines {
        let said = answer(line.as_bytes(), pc);
        assert!(said.starts_with("FAIL ") && said.ends_with('\n'), "{line}: {said}");
        assert_eq!(said.matches('\n').count(), 1, "{line}: {said}");
    }
    assert_eq!(answer(b"jump 0x1000\n", pc), "FAIL Unknown command 'jump'\n");
    assert_eq!(answer(b"read\xff 1 2\n", pc), "FAIL the command is not text\n");
}

#[test]
fn registers_answer_to_their_widths_and_nothing_answers_with_zero() {
    let pc = &mut pc();
    let cap = VTD_REGISTERS + 8;
    let quad = talk(pc, &[&format!("readq {cap:#x}"), &format!("readl {:#x}", cap + 4)]);
    let value = u64::from_str_radix(&quad[0]["OK 0x".len()..], 16).unwrap();
    assert_eq!(quad[1], format!("OK {:#018x}", value >> 32));
    let lines = [
        format!("readb {cap:#x}"),
        format!("readl {:#x}", cap + 2),
        "readq 0xffffffffffffffff".into(),
        "readl 0x100000".into(),
        "readq 0xffffc".into(),
    ];
    let said = talk(pc, &lines.each_ref().map(String::as_str));
    assert_eq!(said, ["OK 0x0000000000000000"; 5]);
}

#[test]
fn devices_are_found_by_configuration_space_and_copy_memory() {
    let pc = &mut pc();
    let said = talk(
        pc,
        &[
            "outl 0xcf8 0x80008000",
            "inl 0xcfc",
            "inw 0xcfe",
            "outl 0xcf8 0x80008010",
            "outl 0xcfc 0xffffffff",
            "inl 0xcfc",
            "outl 0xcfc 0xfe000000",
            "outl 0xcf8 0x80008004",
            "outw 0xcfc 0x6",
            "outl 0xcf8 0x80000000",
            "inl 0xcfc",
            "readl 0xfe000000",
        ],
    );
    assert_eq!(said[1], "OK 0x11e81234");
    assert_eq!(said[2], "OK 0x11e8");
    assert_eq!(said[5], "OK 0xfff00000");
    assert_eq!(said[10], "OK 0xffffffff", "no function there");
    assert_eq!(said[11], "OK 0x00000000010000ed");
    let said = talk(
        pc,
        &[
            "write 0x1000 4 0xdeadbeef",
            "writeq 0xfe000080 0x1000",
            "writeq 0xfe000088 0x40000",
            "writeq 0xfe000090 4",
            "writeq 0xfe000098 1",
            "clock_step 99999999",
            "readq 0xfe000098",
            "clock_step",
            "readq 0xfe000098",
            "writeq 0xfe000080 0x40000",
            "writeq 0xfe000088 0x1ffe",
            "writeq 0xfe000098 3",
            "clock_set 200000000",
            "read 0x1ffe 4",
        ],
    );
    assert_eq!(said[5..9], ["OK 99999999", "OK 0x0000000000000001", "OK 100000000", "OK 0x0000000000000000"]);
    assert_eq!(said[12..], ["OK 200000000", "OK 0xdeadbeef"]);
    // Outside of its buffer it moves nothing; without bus mastering neither.
    let said = talk(
        pc,
        &[
            "writeq 0xfe000080 0x40ffd",
            "writeq 0xfe000088 0x3000",
            "writeq 0xfe000098 3",
            "clock_step",
            "read 0x3000 4",
            "outl 0xcf8 0x80008004",
            "outw 0xcfc 0x2",
            "writeq 0xfe000080 0x40000",
            "writeq 0xfe000098 3",
            "clock_step",
            "read 0x3000 4",
        ],
    );
    assert_eq!([&said[4], &said[10]], ["OK 0x00000000"; 2]);
}

#[test]
fn a_message_of_the_unit_is_written_to_memory() {
    let pc = &mut pc();
    // FECTL, FEDATA, FEADDR; then the queue is switched on with a reserved width (IQE).
    let r = |offset: u64| VTD_REGISTERS + offset;
    let lines = [
        format!("writel {:#x} 0x1234", r(0x3c)),
        format!("writel {:#x} 0x5000", r(0x40)),
        format!("writel {:#x} 0", r(0x38)),
        format!("writeq {:#x} 0x6000", r(0x90)),
        format!("writel {:#x} 0x04000000", r(0x18)),
        // A descriptor of no type.
        "writeq 0x6000 0xe".into(),
        format!("writeq {:#x} 0x10", r(0x88)),
        format!("readl {:#x}", r(0x34)),
        "readl 0x5000".into(),
    ];
    let said = talk(pc, &lines.each_ref().map(String::as_str));
    assert_eq!(said[7..], ["OK 0x0000000000000010", "OK 0x0000000000001234"]);
}

#[test]
fn it_is_served_over_a_socket_until_that_is_closed() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = thread::spawn(move || serve(theirs, &mut pc()));
    let mut wire = BufReader::new(ours);
    let mut line = String::new();
    // Several commands in one write; each is answered.
    wire.get_mut().write_all(b"writel 0x10 7\nreadl 0x10\nwhat\n").unwrap();
    for _ in 0..3 {
        wire.read_line(&mut line).unwrap();
    }
    assert_eq!(line, "OK\nOK 0x0000000000000007\nFAIL Unknown command 'what'\n");
    drop(wire);
    server.join().unwrap().unwrap();
}

#[test]
fn a_line_without_an_end_is_not_kept() {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let server = thread::spawn(move || serve(theirs, &mut pc()));
    // It may have hung up before all of it is written.
    let _ = ours.write_all(&vec![b'a'; LONGEST_LINE + 1]);
    assert_eq!(server.join().unwrap().unwrap_err().kind(), io::ErrorKind::InvalidData);
}

#[test]
fn memory_of_another_size_is_refused() {
    for bytes in [0, 4095, 4097, BARS + 4096] {
        assert!(
            matches!(Pc::over(file(bytes), model::Config::default()), Err(PcError::Size(n)) if n == bytes)
        );
    }
}

/// Numbers that lie where things begin and end.
fn numbers() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        0..2 * MEMORY,
        VTD_REGISTERS - 16..VTD_REGISTERS + 0x1100,
        0xfe00_0000u64..0xfe00_00a0,
        Just(u64::MAX),
        0xcf0u64..0xd10,
    ]
}

fn lines() -> impl Strategy<Value = Vec<u8>> {
    let verbs = [
        "clock_step",
        "clock_set",
        "inb",
        "inw",
        "inl",
        "outb",
        "outw",
        "outl",
        "readb",
        "readw",
        "readl",
        "readq",
        "writeb",
        "writew",
        "writel",
        "writeq",
        "read",
        "write",
        "b64read",
        "b64write",
        "memset",
        "endianness",
    ];
    let word = prop_oneof![
        numbers().prop_map(|n| format!("{n:#x}")),
        numbers().prop_map(|n| n.to_string()),
        (0..64usize).prop_map(|n| text::to_hex(&vec![0xa5; n])),
        (0..64usize).prop_map(|n| text::to_base64(&vec![0x5a; n])),
        "[ -~]{0,8}",
    ];
    let sensible = (proptest::sample::select(verbs.to_vec()), proptest::collection::vec(word, 0..4))
        .prop_map(|(verb, words)| format!("{verb} {}", words.join(" ")).into_bytes());
    prop_oneof![4 => sensible, 1 => proptest::collection::vec(any::<u8>(), 0..100)]
}

proptest! {
    /// Whatever is said, each line has one answer, of one line, and nothing panics.
    #[test]
    fn every_line_is_answered(lines in proptest::collection::vec(lines(), 1..40)) {
        let pc = &mut pc();
        for line in lines {
            let said = answer(&line, pc);
            prop_assert!(said.starts_with("OK") || said.starts_with("FAIL "));
            prop_assert_eq!(said.matches('\n').count(), 1);
        }
    }

    /// Both forms of data carry every byte.
    #[test]
    fn data_survives_its_forms(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert_eq!(text::from_hex(&text::to_hex(&bytes)), Some(bytes.clone()));
        prop_assert_eq!(text::from_base64(&text::to_base64(&bytes)), Some(bytes));
    }

    /// What memory holds is what was written last, by whatever command.
    #[test]
    fn memory_holds_what_was_written(
        writes in proptest::collection::vec((0u64..256, proptest::collection::vec(any::<u8>(), 1..40), 0u8..3), 1..30),
    ) {
        let pc = &mut pc();
        let mut held = vec![0u8; 512];
        for (at, bytes, how) in writes {
            let size = bytes.len();
            let line = match how {
                0 => format!("write {at} {size} {}", text::to_hex(&bytes)),
                1 => format!("b64write {at:#x} {size} {}", text::to_base64(&bytes)),
                _ => format!("memset {at} {size} {}", bytes[0]),
            };
            prop_assert_eq!(answer(line.as_bytes(), pc), "OK\n");
            let held = &mut held[at as usize..][..size];
            if how == 2 { held.fill(bytes[0]) } else { held.copy_from_slice(&bytes) }
        }
        prop_assert_eq!(answer(b"read 0 0x200", pc), format!("OK {}\n", text::to_hex(&held)));
    }
}
