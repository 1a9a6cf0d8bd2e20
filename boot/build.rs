//! Links without a C runtime, by our own script.

fn main() {
    let folder = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    println!("cargo::rerun-if-changed=image.ld");
    for argument in [
        "-nostartfiles",
        "-nostdlib",
        "-static",
        "-no-pie",
        "-Wl,--build-id=none",
        "-Wl,-z,max-page-size=0x1000",
        "-Wl,-z,noexecstack",
        &format!("-Wl,-T,{folder}/image.ld"),
    ] {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
}
