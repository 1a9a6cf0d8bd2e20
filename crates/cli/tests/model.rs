//! `portcullis model`: the server that drivers' tests talk to.

mod common;

use common::{folder, portcullis};
use snapbox::{cmd::cargo_bin, file};
use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::net::{UnixListener, UnixStream},
    process::{Child, Command},
    time::Duration,
};

/// A short path: a socket's has 107 bytes.
fn socket(name: &str) -> std::path::PathBuf {
    let path = std::env::temp_dir().join(format!("portcullis-{name}-{}", std::process::id()));
    let _ = fs::remove_file(&path);
    path
}

/// Ends with its owner.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits for the model to connect, but not for ever.
fn accept(listener: &UnixListener) -> UnixStream {
    listener.set_nonblocking(true).unwrap();
    for _ in 0..30_000 {
        if let Ok((stream, _)) = listener.accept() {
            stream.set_nonblocking(false).unwrap();
            return stream;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("it does not connect");
}

#[test]
fn it_connects_obeys_and_shares_its_memory() {
    let here = folder("model");
    let socket = socket("model");
    let listener = UnixListener::bind(&socket).unwrap();
    let mut model = Command::new(cargo_bin("portcullis"));
    model
        .current_dir(&here)
        .args(["model", "vtd", "--mem", "ram", "--size", "1048576", "--qtest"])
        .arg(&socket);
    let mut model = Running(model.spawn().unwrap());
    let mut wire = BufReader::new(accept(&listener));
    let mut ask = |line: &str| {
        wire.get_mut().write_all(format!("{line}\n").as_bytes()).unwrap();
        let mut reply = String::new();
        wire.read_line(&mut reply).unwrap();
        reply
    };
    // VER_REG, CAP_REG: there is a VT-d.
    assert_eq!(ask("readl 0xfed90000"), "OK 0x0000000000000060\n");
    assert_ne!(ask("readq 0xfed90008"), "OK 0x0000000000000000\n");
    assert_eq!(ask("write 0xffffc 0x4 0xcafef00d"), "OK\n");
    assert_eq!(ask("frobnicate"), "FAIL Unknown command 'frobnicate'\n");
    let memory = fs::read(here.join("ram")).unwrap();
    assert_eq!((memory.len(), &memory[0xffffc..]), (1 << 20, &[0xca, 0xfe, 0xf0, 0x0d][..]));
    drop(wire);
    assert!(model.0.wait().unwrap().success(), "it ends when the socket is closed");
    let _ = fs::remove_file(&socket);
}

#[test]
fn what_is_wrong_is_named_in_one_line() {
    let here = folder("model-wrong");
    fs::create_dir(here.join("folder")).unwrap();
    fs::write(here.join("odd"), [0; 5000]).unwrap();
    let mut said = String::new();
    for arguments in [
        "model",
        "model smmu",
        "model vtd",
        "model vtd --qtest nobody",
        "model vtd --qtest nobody --mem ram --unit half",
        "model vtd --qtest nobody --mem ram --size -1",
        "model vtd --qtest nobody --mem small --size 100",
        "model vtd --qtest nobody --mem big --size 2147487744",
        "model vtd --qtest nobody --mem odd",
        "model vtd --qtest nobody --mem folder",
        "model vtd --qtest nobody --mem missing/ram",
        "model vtd --qtest nobody --mem ram --size 4096",
        "model vtd --qtest odd --mem ram",
    ] {
        let ended = portcullis(&here, arguments).assert().code(2).stdout_eq("");
        let line = String::from_utf8_lossy(&ended.get_output().stderr).into_owned();
        assert_eq!(line.matches('\n').count(), 1, "{arguments}: {line}");
        said += &format!("$ portcullis {arguments}\n{line}");
    }
    snapbox::assert_data_eq!(said, file!["snapshots/model-wrong.txt"]);
    assert!(!here.join("small").exists() && !here.join("big").exists(), "made, and of no use");
    portcullis(&here, "model vtd --help").assert().success().stdout_eq(file!["snapshots/model-vtd-help.txt"]);
}
