//! Compiles a `.bpf.c` with clang and libbpf's headers, whatever kernel runs the build.

use std::env;
use std::path::Path;
use std::process::Command;

/// Newest first; 14 is the oldest whose objects load on every kernel of the matrix.
const NAMES: [&str; 9] =
    ["clang-22", "clang-21", "clang-20", "clang-19", "clang-18", "clang-17", "clang-16", "clang", "clang-14"];

/// A clang that works.
pub struct Clang(String);

/// The one that BPF_CLANG names, or the newest there is.
pub fn find() -> Clang {
    println!("cargo::rerun-if-env-changed=BPF_CLANG");
    if let Ok(clang) = env::var("BPF_CLANG") {
        return Clang(clang);
    }
    let works = |name: &&&str| {
        Command::new(name).arg("--version").output().is_ok_and(|output| output.status.success())
    };
    NAMES.iter().find(works).map_or_else(
        || panic!("no clang was found; install it (apt-get install clang llvm libclang-dev libbpf-dev), or name it in BPF_CLANG"),
        |name| Clang((*name).to_owned()),
    )
}

impl Clang {
    /// Compiles `source` to `object`; headers come from `includes` and from libbpf.
    pub fn compile(&self, source: &Path, includes: &[&Path], object: &Path) {
        let architecture = match env::var("CARGO_CFG_TARGET_ARCH").as_deref() {
            Ok("x86_64") => "x86",
            Ok("aarch64") => "arm64",
            other => panic!("kpulse has no BPF programs for the architecture {other:?}"),
        };
        let Self(clang) = self;
        let status = Command::new(clang)
            .args([
                "-O2",
                "-g",
                "-Wall",
                "-Werror",
                "-mcpu=v3",
                "-nostdinc",
                "-fno-stack-protector",
                "-fno-ident",
            ])
            .args(["--target=bpfel", "-ffile-prefix-map=src/probes=."])
            .arg(format!("-D__TARGET_ARCH_{architecture}"))
            .args(includes.iter().flat_map(|folder| [Path::new("-I"), *folder]))
            .args(["-idirafter", "/usr/include", "-c"])
            .arg(source)
            .arg("-o")
            .arg(object)
            .status()
            .unwrap_or_else(|error| panic!("cannot run {clang}: {error}"));
        assert!(status.success(), "{clang} could not compile {}", source.display());
        // Drops DWARF and keeps BTF, which halves the object; without the tool the object is larger and works as well.
        let _ = Command::new(clang.replace("clang", "llvm-strip")).arg("-g").arg(object).status();
    }
}
