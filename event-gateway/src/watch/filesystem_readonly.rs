//! Which file system turned read-only, as one does after an error? The mounts of PID 1.
//!
//! poll(2) wakes at each mount and remount; what the kernel does by itself after an error wakes nobody, so the file is
//! read from time to time too.

use super::{Finding, Watch, Watcher};
use crate::policies::Rules;
use crate::schema::Kind;
use anyhow::{Context, Result};
use kpulse_common::event::schema_of;
use kpulse_common::mount::Mount;
use schemars::JsonSchema;
use serde::Serialize;
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::time::{Duration, Instant};

/// Time between two looks that nothing wakes: what an error does is known so late at most.
const INTERVAL: Duration = Duration::from_secs(5);
/// Shortest time between two looks: containers come with dozens of mounts, each of which wakes.
const PACE: Duration = Duration::from_millis(500);
/// Most file systems that are followed.
const FILESYSTEMS_MAX: usize = 16_384;

pub const WATCH: Watch = Watch {
    kind: Kind {
        name: "filesystem_readonly",
        help: "A mounted file system turned read-only.",
        body: schema_of::<Body>,
    },
    hook: "mountinfo",
    hook_kind: "file",
    make: |config, _| Ok(Box::new(FilesystemReadonly::open(&config.path.procfs)?)),
};

/// Fields of the event beyond the common ones.
#[derive(Debug, PartialEq, Serialize, JsonSchema)]
struct Body {
    /// The kernel's number of the device, `major:minor`.
    device: String,
    /// What is mounted: a device file for most file systems on a disk.
    source: String,
    /// Where it is mounted; the first place of several.
    mount_point: String,
    /// Kind of file system.
    r#type: String,
    /// How the kernel tells it: `ro`, or a state after an error.
    option: &'static str,
}

struct FilesystemReadonly {
    file: File,
    text: String,
    /// Whether each can be written to. Bound: [`FILESYSTEMS_MAX`].
    known: HashMap<Key, bool>,
    looked_at: Option<Instant>,
}

/// What one file system is told from another by: a number of a device is soon that of another one, without a disk.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    mount: u32,
    device: String,
    kind: String,
}

impl FilesystemReadonly {
    fn open(procfs: &Path) -> Result<Self> {
        // PID 1 sees the host's mounts; without the right to ask for those, our own have to do.
        let of_init = File::open(procfs.join("1/mountinfo"));
        let file = of_init.or_else(|_| File::open(procfs.join("self/mountinfo")));
        let file = file.context("the mounted file systems cannot be read")?;
        let mut opened = Self { file, text: String::new(), known: HashMap::new(), looked_at: None };
        // What is read-only from the start is known before anyone is told that the watch is active.
        opened.turned()?;
        Ok(opened)
    }

    /// The file systems that could be written to when it was looked last.
    fn turned(&mut self) -> Result<Vec<Body>> {
        self.text.clear();
        self.file.rewind()?;
        self.file.read_to_string(&mut self.text).context("the mounted file systems cannot be read")?;
        self.looked_at = Some(Instant::now());
        Ok(turned(&self.text, &mut self.known))
    }
}

/// Compares with what was known, which becomes what is known.
fn turned(text: &str, known: &mut HashMap<Key, bool>) -> Vec<Body> {
    let (mut found, mut seen) = (Vec::new(), HashMap::new());
    for mount in text.lines().filter_map(Mount::parse).take(FILESYSTEMS_MAX) {
        let option = mount.readonly_option();
        let key = Key { mount: mount.id, device: mount.device.to_owned(), kind: mount.kind.to_owned() };
        let has_turned = option.filter(|_| known.get(&key) == Some(&true));
        seen.insert(key, option.is_none());
        if let Some(option) = has_turned
            && !found.iter().any(|body: &Body| body.device == mount.device)
        {
            found.push(Body {
                device: mount.device.to_owned(),
                source: mount.source(),
                mount_point: mount.point(),
                r#type: mount.kind.to_owned(),
                option,
            });
        }
    }
    *known = seen;
    found
}

impl Watcher for FilesystemReadonly {
    fn wakes(&self) -> Option<(RawFd, i16)> {
        let is_paced = self.looked_at.is_none_or(|at| at.elapsed() >= PACE);
        is_paced.then(|| (self.file.as_raw_fd(), libc::POLLPRI))
    }

    fn next(&self) -> Instant {
        self.looked_at.map_or_else(Instant::now, |at| at + INTERVAL)
    }

    fn look(&mut self, rules: &Rules, _: Instant, tell: &mut dyn FnMut(Finding)) -> Result<()> {
        for body in self.turned()? {
            tell(Finding::new(&rules.machine.rate_limit, &body)?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str = "\
        27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard\n\
        28 27 254:0 /x /bind ro,relatime shared:1 - ext4 /dev/vda rw,discard\n\
        29 27 254:1 / /srv/a\\040b rw,relatime - xfs /dev/vdb ro,attr2\n\
        30 27 0:25 / /run rw - tmpfs tmpfs rw\n\
        broken line\n";

    fn after(text: &str) -> Vec<Body> {
        let mut known = HashMap::new();
        assert_eq!(turned(BEFORE, &mut known), [], "what is read-only from the start");
        let found = turned(text, &mut known);
        assert_eq!(turned(text, &mut known), [], "each is told once");
        found
    }

    #[test]
    fn a_file_system_that_turns_is_told_once_by_its_first_mount() {
        let told = |options: &str| {
            let found = after(&BEFORE.replace("/dev/vda rw,discard", &format!("/dev/vda {options}")));
            serde_json::to_value(found).unwrap()
        };
        let mut expected: serde_json::Value =
            serde_json::from_str(include_str!("fixtures/filesystem_readonly.json")).unwrap();
        assert_eq!(told("ro,discard"), serde_json::json!([expected]));
        expected["option"] = "emergency_ro".into();
        assert_eq!(told("rw,emergency_ro"), serde_json::json!([expected]));
    }

    #[test]
    fn a_read_only_mount_another_file_system_and_the_way_back_are_no_event() {
        assert_eq!(after(BEFORE), []);
        assert_eq!(after(&BEFORE.replace("/run rw", "/run ro")), [], "one mount of it");
        assert_eq!(after(&BEFORE.replace("/dev/vdb ro", "/dev/vdb rw")), [], "it can be written to again");
        let other = BEFORE.replace(
            "30 27 0:25 / /run rw - tmpfs tmpfs rw",
            "31 27 0:25 / /img ro - squashfs /dev/loop0 ro",
        );
        assert_eq!(after(&other), [], "its number is that of another one");
    }
}
