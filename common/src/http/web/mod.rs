//! Who may ask, and over what: the web configuration file, in the format of Prometheus' exporter-toolkit.
//!
//! The file and what it names are looked at again while the server runs. A version that cannot be used is told once,
//! and the last good one stays. A version that takes away TLS or all users is not used either: a file that is being
//! rewritten looks just like that.

mod clients;
mod file;
mod limit;
mod names;
mod tls;
mod users;

pub(super) use limit::Limiter;
pub(super) use users::Users;

use super::HttpError;
use hyper::header::{HeaderName, HeaderValue};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The files are looked at this often at most; a certificate that is a second late harms nobody.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// One version of the file, ready for use.
pub(super) struct Settings {
    pub tls: Option<Arc<rustls::ServerConfig>>,
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub users: Users,
    pub limiter: Option<Limiter>,
    /// Everything that was read.
    files: Vec<PathBuf>,
}

/// The web configuration of a server, kept up to date.
pub struct WebConfig {
    path: PathBuf,
    state: Mutex<State>,
}

struct State {
    settings: Arc<Settings>,
    versions: Vec<Option<Version>>,
    checked: Instant,
    /// Why the last attempt to read was refused; `None` when it was not.
    refused: Option<String>,
}

/// What changes when a file does.
#[derive(Debug, PartialEq, Eq)]
struct Version {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Version {
    fn of(path: &Path) -> Option<Self> {
        let found = std::fs::metadata(path).ok()?;
        Some(Self {
            device: found.dev(),
            inode: found.ino(),
            bytes: found.size(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        })
    }
}

impl WebConfig {
    /// Reads the file, with the certificates that it names.
    ///
    /// # Errors
    /// One sentence that names the file and what is wrong with it.
    pub fn open(path: &Path) -> Result<Arc<Self>, HttpError> {
        let refused = |why| HttpError::WebConfig { path: path.to_owned(), why };
        let (settings, versions) = read(path).map_err(refused)?;
        let state = State { settings: Arc::new(settings), versions, checked: Instant::now(), refused: None };
        Ok(Arc::new(Self { path: path.to_owned(), state: Mutex::new(state) }))
    }

    /// As [`WebConfig::open`], for a configuration key whose empty value means that everybody may ask.
    ///
    /// # Errors
    /// As [`WebConfig::open`].
    pub fn of_key(path: &Path) -> Result<Option<Arc<Self>>, HttpError> {
        if path.as_os_str().is_empty() { Ok(None) } else { Self::open(path).map(Some) }
    }

    /// Whether connections are encrypted.
    pub fn has_tls(&self) -> bool {
        self.current().tls.is_some()
    }

    /// The newest good version.
    pub(super) fn current(&self) -> Arc<Settings> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.checked.elapsed() >= CHECK_INTERVAL {
            state.checked = Instant::now();
            self.refresh(&mut state);
        }
        Arc::clone(&state.settings)
    }

    fn refresh(&self, state: &mut State) {
        let versions: Vec<_> = state.settings.files.iter().map(|path| Version::of(path)).collect();
        // What was refused is tried again each time: it may name a file that is only now there.
        if versions == state.versions && state.refused.is_none() {
            return;
        }
        let path = self.path.display();
        let read = read(&self.path).and_then(|(new, versions)| {
            keeps_protection(&state.settings, &new)?;
            Ok((new, versions))
        });
        match read {
            Ok((mut new, versions)) => {
                if let (Some(new), Some(old)) = (&mut new.limiter, &state.settings.limiter) {
                    new.continue_from(old);
                }
                if versions != state.versions {
                    tracing::info!(%path, "the web configuration was read again");
                } else {
                    tracing::info!(%path, "the web configuration can be used again");
                }
                (state.settings, state.versions, state.refused) = (Arc::new(new), versions, None);
            }
            Err(why) if state.refused.as_ref() != Some(&why) => {
                tracing::error!(%path, %why, "the web configuration stays as it was");
                state.refused = Some(why);
            }
            Err(_) => {}
        }
    }
}

/// Versions first, so that a change while reading is seen at the next look.
fn read(path: &Path) -> Result<(Settings, Vec<Option<Version>>), String> {
    let before = Version::of(path);
    let settings = file::read(path)?;
    let mut versions: Vec<_> = settings.files.iter().map(|path| Version::of(path)).collect();
    versions[0] = before;
    Ok((settings, versions))
}

fn keeps_protection(old: &Settings, new: &Settings) -> Result<(), String> {
    let lost = match (old.tls.is_some(), new.tls.is_some(), old.users.is_empty(), new.users.is_empty()) {
        (true, false, _, _) => "tls_server_config",
        (_, _, false, true) => "basic_auth_users",
        _ => return Ok(()),
    };
    Err(format!("it has no {lost} any more, which only a restart takes away"))
}

#[cfg(test)]
mod tests;
