//! Compiles the BPF programs that tests provoke kernel facts with; no product contains them.

#[path = "../exporter-ebpf/build/clang.rs"]
mod clang;

use std::env;
use std::path::{Path, PathBuf};

fn main() {
    let source = Path::new("src/burn/burn.bpf.c");
    let include = Path::new("../exporter-ebpf/include");
    for input in [Path::new("build.rs"), Path::new("../exporter-ebpf/build"), source, include] {
        println!("cargo::rerun-if-changed={}", input.display());
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    clang::find().compile(source, &[include], &out.join("burn.bpf.o"));
}
