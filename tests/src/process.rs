//! A child process whose output is kept and which never outlives its test.

use crate::until;
use std::ffi::CStr;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};

/// A command with none of the variables that would configure it from outside.
pub fn command(binary: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(binary);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("KPULSE_")) {
        command.env_remove(name);
    }
    // What a test makes happen may well cost more than probes may take on a machine that works.
    command.env("KPULSE_EXPORTER__GOVERNOR__BUDGET", "0").env("KPULSE_GATEWAY__GOVERNOR__BUDGET", "0");
    command.stdin(Stdio::null());
    command
}

/// Hides tracefs from a command, by mounts of its own: only root may.
pub fn hide_tracefs(command: &mut Command) {
    let hide = || {
        // SAFETY: unshare changes this child alone, between fork and exec.
        if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let mount = |source: &CStr, target: &CStr, kind: &CStr, flags| {
            // SAFETY: the three strings end in NUL and live on; no mount data is passed.
            unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, std::ptr::null()) }
        };
        mount(c"none", c"/", c"none", libc::MS_REC | libc::MS_PRIVATE);
        // Where a directory does not exist there is nothing to hide.
        mount(c"none", c"/sys/kernel/debug", c"tmpfs", 0);
        mount(c"none", c"/sys/kernel/tracing", c"tmpfs", 0);
        Ok(())
    };
    // SAFETY: only system calls are made between fork and exec, and nothing allocates.
    unsafe { command.pre_exec(hide) };
}

/// What a command said that ended by itself.
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// Runs a command that ends by itself; one that does not is killed and fails the test.
pub fn run(command: &mut Command) -> Ended {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let stdout = std::thread::spawn(move || read(&mut out));
    let stderr = std::thread::spawn(move || read(&mut err));
    let mut guard = Killed(child);
    let status = until("end of the command", || guard.0.try_wait().unwrap());
    let (stdout, stderr) = (stdout.join().unwrap(), stderr.join().unwrap());
    Output { status, stdout, stderr }.into()
}

fn read(from: &mut impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    from.read_to_end(&mut bytes).unwrap();
    bytes
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A number of `/proc/PID/status`; `None` when the process is gone.
pub fn status<T: std::str::FromStr>(pid: u32, name: &str) -> Option<T> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}

/// Resident memory of a process that lives.
pub fn rss_kib(pid: u32) -> u64 {
    status(pid, "VmRSS").unwrap()
}

/// An event gateway that keeps its state in a folder of the test and takes any free port.
pub fn gateway(program: impl AsRef<std::ffi::OsStr>, state: &Path, subcommand: &str) -> Command {
    let mut gateway = command(program);
    gateway.arg(subcommand).env("KPULSE_STATE_DIR", state);
    gateway.env("KPULSE_GATEWAY__WEB__LISTEN_ADDRESS", "127.0.0.1:0");
    gateway.env("KPULSE_GATEWAY__API__LISTEN_ADDRESS", "127.0.0.1:0");
    gateway
}

/// A service that runs until it is told to stop.
pub struct Service {
    child: Killed,
    stderr: Arc<Mutex<Vec<String>>>,
    reader: Option<std::thread::JoinHandle<()>>,
}

impl Service {
    /// Starts it; its stderr is read at once, so that it never blocks.
    pub fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (stderr, sink) = (child.stderr.take().unwrap(), Arc::clone(&lines));
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                sink.lock().unwrap().push(line);
            }
        });
        Self { child: Killed(child), stderr: lines, reader: Some(reader) }
    }

    pub fn pid(&self) -> u32 {
        self.child.0.id()
    }

    /// Everything on stderr so far.
    pub fn stderr(&self) -> String {
        self.stderr.lock().unwrap().join("\n")
    }

    /// The first line of stderr that contains `text`, as soon as there is one.
    pub fn line(&self, text: &str) -> String {
        until(&format!("line with {text:?}"), || {
            self.stderr.lock().unwrap().iter().find(|line| line.contains(text)).cloned()
        })
    }

    /// The value of `key=` in that line.
    pub fn logged(&self, text: &str, key: &str) -> String {
        let line = self.line(text);
        let value = line.split_once(&format!(" {key}=")).unwrap_or_else(|| panic!("no {key} in {line}")).1;
        value.split(' ').next().unwrap_or_default().to_owned()
    }

    pub fn signal(&self, signal: libc::c_int) {
        let pid = libc::pid_t::try_from(self.pid()).unwrap();
        // SAFETY: kill has no memory preconditions; the child is not reaped yet, so the pid is ours.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0, "kill: {}", std::io::Error::last_os_error());
    }

    /// Whether it has ended, without waiting.
    pub fn has_ended(&self) -> bool {
        let state = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap_or_default();
        state.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z'))
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let status = until("end of the service", || self.child.0.try_wait().unwrap());
        if let Some(reader) = self.reader.take() {
            reader.join().unwrap();
        }
        status
    }

    /// SIGTERM, and the exit code.
    pub fn stop(&mut self) -> Option<i32> {
        self.signal(libc::SIGTERM);
        self.wait().code()
    }

    /// Waits until the process handles this signal itself.
    pub fn until_it_catches(&self, signal: libc::c_int) {
        let status = format!("/proc/{}/status", self.pid());
        until("signal handler", || {
            let text = std::fs::read_to_string(&status).unwrap();
            let mask = text.lines().find_map(|line| line.strip_prefix("SigCgt:\t"))?;
            let mask = u64::from_str_radix(mask.trim(), 16).unwrap();
            (mask & (1 << (signal - 1)) != 0).then_some(())
        });
    }
}
