//! Where a task was in its own code, as an event names it.

use crate::gateway::{Gateway, Running, assert_obeys_the_schema};
use kpulse_tests::process::run;
use kpulse_tests::{is_root, skip, until};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// The program with a known stack, until the value is dropped.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Program {
    fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::piped()).spawn().unwrap())
    }

    /// The event of the reset that it sends.
    fn event(&self, running: &Running) -> Value {
        until("event of the reset", || {
            let is_its = |event: &Value| {
                event["process"]["pid"] == self.0.id() && event["kpulse"]["tcp_reset"]["direction"] == "sent"
            };
            running.events("tcp_reset").into_iter().find(is_its)
        })
    }
}

fn compile(flags: &[&str], folder: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("cli/reset.c");
    let program = folder.join("reset");
    let mut gcc = Command::new("gcc");
    gcc.args(["-O1", "-fno-omit-frame-pointer"]).args(flags).arg("-o").arg(&program).arg(source);
    assert!(gcc.status().unwrap().success());
    program
}

/// The first frames of an event's user stack.
fn frames(event: &Value) -> Vec<&str> {
    let frames =
        event["kpulse"]["stack"]["user"].as_array().unwrap_or_else(|| panic!("no user stack: {event}"));
    frames.iter().map(|frame| frame.as_str().unwrap()).take(4).collect()
}

#[test]
fn an_event_names_the_functions_of_the_program_that_caused_it() {
    if !is_root() {
        return skip("an_event_names_the_functions_of_the_program", "needs root");
    }
    let gateway = Gateway::new();
    let mut running = Running::start(&mut gateway.command("run"));
    let folder = tempfile::tempdir().unwrap();
    let program = compile(&[], folder.path());
    // A container's file is nowhere in the host's file system, and another one may be in its place.
    let hidden = "mount -t tmpfs none /mnt && cp $0 /mnt/reset && exec /mnt/reset";
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "sh", "-c", hidden]).arg(&program);
    for command in [&mut Command::new(&program), &mut unshare] {
        let process = Program::start(command);
        let event = process.event(&running);
        assert_obeys_the_schema(&event);
        assert_eq!(frames(&event), ["hang_up", "middle", "outer", "main"], "{event}");
        let kernel = event["kpulse"]["stack"]["kernel"].to_string();
        assert!(kernel.contains("close"), "{kernel}");
    }
    // Without symbols, its file and the places in it.
    let process = Program::start(&mut Command::new(compile(&["-s"], folder.path())));
    let event = process.event(&running);
    assert!(frames(&event).iter().all(|frame| frame.starts_with("[reset+0x")), "{event}");
    let found = run(gateway.command("events").args(["-o", "json", "--stack", "hang_up"]));
    assert_eq!(found.stdout.lines().count(), 2, "{}", found.stdout);
    running.accounts_for("tcp_reset", 3);
    let metrics = running.metrics();
    assert!(metrics.contains("kpulse_user_frames_unnamed_total{reason=\"no_symbol\"}"), "{metrics}");
    assert_eq!(running.service.stop(), Some(0), "{}", running.service.stderr());
}

/// Loopback delivers a datagram in a softirq, on top of the sender.
#[test]
fn what_a_softirq_tells_has_no_user_stack() {
    if !is_root() {
        return skip("what_a_softirq_tells", "needs root");
    }
    let gateway = Gateway::new();
    let mut running = Running::start(&mut gateway.command("run"));
    let port = kpulse_tests::network::drop_datagrams(1).unwrap();
    let event = until("event of the drop", || {
        let is_its = |event: &Value| event["kpulse"]["packet_drop"]["destination"]["port"] == port;
        running.events("packet_drop").into_iter().find(is_its)
    });
    assert!(event["kpulse"]["stack"]["kernel"].is_array(), "{event}");
    assert_eq!(event["kpulse"]["stack"].get("user"), None::<&Value>, "{event}");
    assert_ne!(event["process"], json!(null));
    assert_eq!(running.service.stop(), Some(0), "{}", running.service.stderr());
}
