//! What the command lines of the three binaries have in common: flags, exit codes, signals, state directory.

use crate::config::{ConfigError, Value};
use crate::http::HttpError;
use crate::logging::{Format, Level, LoggingError};
use crate::paths::Paths;
use std::path::PathBuf;
use std::process::ExitCode;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Flags that every binary has. Those not given leave the configuration as it is.
#[derive(clap::Args, Clone, Debug, Default)]
#[command(next_help_heading = "Common")]
pub struct CommonFlags {
    /// Configuration file (YAML).
    #[arg(long = "config.file", env = "KPULSE_CONFIG_FILE", value_name = "FILE", global = true)]
    pub config_file: Option<PathBuf>,
    /// Lowest severity to log [default: info].
    #[arg(long = "log.level", env = "KPULSE_LOG_LEVEL", value_enum, value_name = "LEVEL", global = true)]
    pub log_level: Option<Level>,
    /// Form of log lines [default: logfmt].
    #[arg(long = "log.format", env = "KPULSE_LOG_FORMAT", value_enum, value_name = "FORMAT", global = true)]
    pub log_format: Option<Format>,
    /// Where the host's procfs is mounted [default: /proc].
    #[arg(long = "path.procfs", env = "KPULSE_PATH_PROCFS", value_name = "DIR", global = true)]
    pub path_procfs: Option<PathBuf>,
    /// Where the host's sysfs is mounted [default: /sys].
    #[arg(long = "path.sysfs", env = "KPULSE_PATH_SYSFS", value_name = "DIR", global = true)]
    pub path_sysfs: Option<PathBuf>,
    /// Where the host's cgroup tree is mounted [default: /sys/fs/cgroup].
    #[arg(long = "path.cgroupfs", env = "KPULSE_PATH_CGROUPFS", value_name = "DIR", global = true)]
    pub path_cgroupfs: Option<PathBuf>,
    /// Where the host's root directory is mounted [default: /].
    #[arg(long = "path.rootfs", env = "KPULSE_PATH_ROOTFS", value_name = "DIR", global = true)]
    pub path_rootfs: Option<PathBuf>,
}

impl CommonFlags {
    /// The flags that were given, for [`crate::config::Layers::overrides`]: `log.*` and `path.*`.
    pub fn overrides(&self) -> Vec<(String, Value)> {
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.to_string_lossy().into_owned());
        let given = [
            ("log.level", self.log_level.map(|level| level.word().to_owned())),
            ("log.format", self.log_format.map(|format| format.word().to_owned())),
            ("path.procfs", path(&self.path_procfs)),
            ("path.sysfs", path(&self.path_sysfs)),
            ("path.cgroupfs", path(&self.path_cgroupfs)),
            ("path.rootfs", path(&self.path_rootfs)),
        ];
        given
            .into_iter()
            .filter_map(|(key, value)| Some((key.to_owned(), Value::new(None, value?))))
            .collect()
    }

    /// The mount points by flags and defaults alone, for a command that reads no configuration.
    pub fn paths(&self) -> Paths {
        let default = Paths::default();
        Paths {
            procfs: self.path_procfs.clone().unwrap_or(default.procfs),
            sysfs: self.path_sysfs.clone().unwrap_or(default.sysfs),
            cgroupfs: self.path_cgroupfs.clone().unwrap_or(default.cgroupfs),
            rootfs: self.path_rootfs.clone().unwrap_or(default.rootfs),
        }
    }

    /// The level by flag and default alone.
    pub fn level(&self) -> Level {
        self.log_level.unwrap_or_default()
    }

    /// The form of log lines by flag and default alone.
    pub fn format(&self) -> Format {
        self.log_format.unwrap_or_default()
    }
}

/// The command line itself is wrong: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// Parses the process' arguments. Help and version are printed and end the process with 0.
///
/// # Errors
/// One sentence on what is wrong with the arguments, with clap's hint where it has one.
pub fn parse(command: clap::Command) -> Result<clap::ArgMatches, Usage> {
    command.try_get_matches().map_err(|error| {
        if !error.use_stderr() {
            error.exit();
        }
        usage(&error)
    })
}

/// What clap says over several lines, as one sentence.
fn usage(error: &clap::Error) -> Usage {
    let text = error.render().to_string();
    let is_told = |line: &&str| !line.starts_with("Usage:") && !line.starts_with("For more information");
    let lines = text.lines().take_while(is_told).map(str::trim).filter(|line| !line.is_empty());
    let sentence = lines.collect::<Vec<_>>().join("; ");
    Usage(format!("{}; see --help", sentence.trim_start_matches("error: ")))
}

/// 2 when the user must change the command line or the configuration, else 1.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    let is_usage = error.chain().any(|cause| {
        cause.is::<Usage>()
            || cause.is::<ConfigError>()
            || cause.is::<LoggingError>()
            || matches!(cause.downcast_ref(), Some(HttpError::Address { .. } | HttpError::WebConfig { .. }))
    });
    if is_usage { 2 } else { 1 }
}

/// Ends a `main`: nothing for success, one line on stderr and the right code for an error.
pub fn report(result: anyhow::Result<()>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    let binary = std::env::args_os().next().map(PathBuf::from).unwrap_or_default();
    let name = binary.file_name().unwrap_or_default().to_string_lossy();
    let sentence = sentence(&error);
    // A closed stderr must not turn an error into a panic.
    let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("{name}: {sentence}\n").as_bytes());
    ExitCode::from(exit_code(&error))
}

/// The causes of an error, outermost first, in one line. A cause that the one before it already tells is left out.
pub fn sentence(error: &anyhow::Error) -> String {
    let mut told = String::new();
    for cause in error.chain() {
        let cause = cause.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        if told.is_empty() {
            told = cause;
        } else if !told.contains(&cause) {
            told = format!("{told}: {cause}");
        }
    }
    told
}

/// Where this process keeps its files: `KPULSE_STATE_DIR`, else `/var/lib/kpulse` as root, else the user's own.
pub fn state_dir() -> PathBuf {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    // SAFETY: geteuid has no preconditions and cannot fail.
    let is_root = unsafe { libc::geteuid() } == 0;
    variable("KPULSE_STATE_DIR")
        .or_else(|| is_root.then(|| "/var/lib/kpulse".into()))
        .or_else(|| Some(variable("XDG_STATE_HOME")?.join("kpulse")))
        .or_else(|| Some(variable("HOME")?.join(".local/state/kpulse")))
        .unwrap_or_else(|| std::env::temp_dir().join("kpulse"))
}

/// SIGTERM and SIGINT, caught from the moment of [`Shutdown::catch`] on.
#[derive(Debug)]
pub struct Shutdown {
    terminate: Signal,
    interrupt: Signal,
}

impl Shutdown {
    /// Starts catching both signals. Must be called inside a runtime.
    ///
    /// # Errors
    /// When the kernel refuses a signal handler.
    pub fn catch() -> std::io::Result<Self> {
        // The handler is in the kernel before the library knows what to do with it: a signal between them is lost.
        let _held = Held::new(&[libc::SIGTERM, libc::SIGINT])?;
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for either of them.
    pub async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Signals that this thread gets only when this is dropped.
struct Held {
    before: libc::sigset_t,
}

impl Held {
    fn new(signals: &[libc::c_int]) -> std::io::Result<Self> {
        // SAFETY: a set of signals is bits, and none is a set.
        let (mut held, mut before) = unsafe { std::mem::zeroed::<(libc::sigset_t, libc::sigset_t)>() };
        // SAFETY: the calls read and write these two only.
        let failed = unsafe {
            libc::sigemptyset(&raw mut held);
            for &signal in signals {
                libc::sigaddset(&raw mut held, signal);
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const held, &raw mut before)
        };
        if failed == 0 { Ok(Self { before }) } else { Err(std::io::Error::from_raw_os_error(failed)) }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // SAFETY: the set is what the kernel gave.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, std::ptr::null_mut()) };
    }
}

/// Waits for SIGTERM or SIGINT. Signals before the first poll still end the process; [`Shutdown`] has no such gap.
pub async fn shutdown_signal() {
    match Shutdown::catch() {
        Ok(mut shutdown) => shutdown.wait().await,
        Err(error) => {
            tracing::error!(%error, "cannot catch signals, the default action stays");
            std::future::pending::<()>().await;
        }
    }
}

/// Tells systemd that start-up is over; nothing without `NOTIFY_SOCKET`.
pub fn notify_ready() {
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
}

/// Tells systemd that the process is about to end.
pub fn notify_stopping() {
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn usage_and_configuration_errors_are_code_2_at_any_depth() {
        let usage = || Usage("wrong".into());
        let address = HttpError::Address { address: "x".into(), flag: "--x".into(), why: "y".into() };
        let taken = HttpError::Taken { address: "x".into(), flag: "--x".into() };
        for (error, code) in [
            (anyhow::Error::from(usage()), 2),
            (anyhow::Error::from(usage()).context("outer"), 2),
            (ConfigError::Other("x".into()).into(), 2),
            (address.into(), 2),
            (taken.into(), 1),
            (anyhow::anyhow!("anything"), 1),
        ] {
            assert_eq!(exit_code(&error), code, "{error:#}");
        }
    }

    #[test]
    fn an_error_is_one_line_that_tells_each_cause_once() {
        let inner = std::io::Error::other("the disk\nis full");
        let middle = Err::<(), _>(inner).context("cannot write x: the disk is full").context("cannot stop");
        assert_eq!(sentence(&middle.unwrap_err()), "cannot stop: cannot write x: the disk is full");
    }

    #[test]
    fn a_usage_error_is_one_sentence_with_the_hint() {
        let command = || clap::Command::new("x").arg(clap::Arg::new("web").long("web.address"));
        let error = command().try_get_matches_from(["x", "--web.adress=1"]).unwrap_err();
        assert_eq!(
            usage(&error).to_string(),
            "unexpected argument '--web.adress' found; tip: a similar argument exists: '--web.address'; see --help"
        );
        let error = command().try_get_matches_from(["x", "--web.address"]).unwrap_err();
        assert!(!usage(&error).to_string().contains('\n'));
        assert_eq!(usage(&error).to_string().matches("--help").count(), 1);
    }

    #[test]
    fn a_signal_that_comes_while_its_handler_is_installed_is_not_lost() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let held = Held::new(&[libc::SIGTERM]).unwrap();
            // SAFETY: a signal to this thread only, which holds it back.
            assert_eq!(unsafe { libc::raise(libc::SIGTERM) }, 0);
            let mut shutdown = Shutdown::catch().unwrap();
            let early = tokio::time::timeout(std::time::Duration::from_millis(50), shutdown.wait()).await;
            assert!(early.is_err(), "what was held before stays held");
            drop(held);
            shutdown.wait().await;
        });
    }

    #[test]
    fn only_given_flags_override_the_configuration() {
        let flags = CommonFlags { path_procfs: Some("/host/proc".into()), ..CommonFlags::default() };
        assert_eq!(flags.overrides(), [("path.procfs".to_owned(), Value::new(None, "/host/proc"))]);
        assert_eq!(flags.paths(), Paths { procfs: "/host/proc".into(), ..Paths::default() });
        assert!(CommonFlags::default().overrides().is_empty());
    }
}
