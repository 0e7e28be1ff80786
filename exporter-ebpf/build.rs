//! Compiles every `src/probes/**/*.bpf.c` with clang, and turns every ABI header into Rust with bindgen.
//!
//! The inputs are this folder, clang and libbpf's headers: nothing of the kernel that runs the build.

#[path = "build/clang.rs"]
mod clang;

use bindgen::callbacks::{DeriveTrait, ImplementsTrait, IntKind, ParseCallbacks};
use std::path::{Path, PathBuf};
use std::{env, fs};

/// Headers whose types all probes share; they become `crate::abi`.
const SHARED_HEADERS: [&str; 3] = ["record.h", "histogram.h", "flow.h"];

/// The example of CONTRIBUTING.md, which only a test loads.
const EXAMPLE: &str = "src/example/exec.bpf.c";

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    for input in ["build.rs", "build", "include", "src/probes", EXAMPLE] {
        println!("cargo::rerun-if-changed={input}");
    }

    let clang = clang::find();
    let mut sources = Vec::new();
    find_sources(Path::new("src/probes"), &mut sources);
    sources.sort();
    for source in &sources {
        let folder = source.parent().expect("a source lies in a probe's folder");
        let name = folder.file_name().and_then(|name| name.to_str()).expect("folder names are ASCII");
        clang.compile(source, &[Path::new("include"), folder], &out.join(format!("{name}.bpf.o")));
        let header = folder.join(format!("{name}.h"));
        bind(&[header], "use crate::abi::*;", &out.join(format!("{name}.rs")));
    }
    clang.compile(Path::new(EXAMPLE), &[Path::new("include")], &out.join("exec.bpf.o"));
    let shared: Vec<PathBuf> = SHARED_HEADERS.iter().map(|name| Path::new("include").join(name)).collect();
    bind(&shared, "", &out.join("abi.rs"));
}

fn find_sources(folder: &Path, sources: &mut Vec<PathBuf>) {
    let entries =
        fs::read_dir(folder).unwrap_or_else(|error| panic!("cannot read {}: {error}", folder.display()));
    for path in entries.map(|entry| entry.expect("a directory entry").path()) {
        if path.is_dir() {
            find_sources(&path, sources);
        } else if path.to_str().is_some_and(|name| name.ends_with(".bpf.c")) {
            sources.push(path);
        }
    }
}

/// Rust types of the headers, each with its size asserted, and marked as plain bytes.
fn bind(headers: &[PathBuf], prelude: &str, out: &Path) {
    let mut builder = bindgen::Builder::default()
        .clang_args(["-Iinclude", "-x", "c"])
        .use_core()
        .layout_tests(true)
        .derive_default(true)
        .generate_comments(false)
        .parse_callbacks(Box::new(Types))
        .raw_line(prelude);
    let mut names = Vec::new();
    for header in headers {
        let text = fs::read_to_string(header)
            .unwrap_or_else(|error| panic!("cannot read {}: {error}", header.display()));
        names.extend(struct_names(&text));
        builder =
            builder.header(header.display().to_string()).allowlist_file(format!(".*{}", header.display()));
    }
    if !prelude.is_empty() {
        for shared in SHARED_HEADERS {
            builder = builder.blocklist_file(format!(".*/{shared}"));
        }
    }
    let mut text = builder.generate().expect("the headers are valid C").to_string();
    for name in names {
        text += &format!(
            "// SAFETY: integers and arrays of integers only, padding spelled out.\nunsafe impl aya::Pod for {name} {{}}\n"
        );
    }
    fs::write(out, text).unwrap_or_else(|error| panic!("cannot write {}: {error}", out.display()));
}

/// What bindgen cannot know of our headers.
#[derive(Debug)]
struct Types;

impl ParseCallbacks for Types {
    /// The shared types are plain: generated once, and blocked in a probe's own file.
    fn blocklisted_type_implements_trait(&self, _: &str, _: DeriveTrait) -> Option<ImplementsTrait> {
        Some(ImplementsTrait::Yes)
    }

    fn int_macro(&self, name: &str, _: i64) -> Option<IntKind> {
        name.ends_with("_U64").then_some(IntKind::U64)
    }
}

fn struct_names(header: &str) -> Vec<String> {
    let lines = header.lines().filter_map(|line| line.strip_prefix("struct ")?.strip_suffix(" {"));
    lines.map(str::to_owned).collect()
}
