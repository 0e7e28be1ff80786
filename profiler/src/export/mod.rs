//! Profiles as other programs read them, and the [`file`] they go to.

pub mod file;
pub mod firefox;
pub mod folded;
pub mod json;
pub mod pprof;
pub mod speedscope;
pub mod svg;

use crate::aggregate::{Key, Scope, Selection};
use crate::names::KERNEL_SUFFIX;
use folded::Folded;
use kpulse_common::clock::rfc3339_seconds;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The form of a profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// One line a stack, for flame graph programs
    Folded,
    /// A flame graph for a browser
    Svg,
    /// Stacks as data
    Json,
    /// Gzipped protobuf for `go tool pprof` and what else reads its format
    Pprof,
    /// For <https://www.speedscope.app>
    Speedscope,
    /// For <https://profiler.firefox.com>
    Firefox,
}

impl Format {
    /// Its media type.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Folded => "text/plain; charset=utf-8",
            Self::Svg => "image/svg+xml",
            Self::Json | Self::Speedscope | Self::Firefox => "application/json",
            Self::Pprof => "application/octet-stream",
        }
    }
}

/// What is written.
#[derive(Debug, Clone, Copy)]
pub struct Profile<'a> {
    pub scope: &'a Scope,
    pub selection: &'a Selection,
    /// CPU time that a sample stands for.
    pub period: Duration,
}

impl<'a> Profile<'a> {
    /// The profile in a form.
    pub fn render(&self, format: Format) -> anyhow::Result<Vec<u8>> {
        Ok(match format {
            Format::Folded => self.folded().text().into_bytes(),
            Format::Svg => svg::draw(self.folded().text().lines(), &self.title(), &self.subtitle())?,
            Format::Json => serde_json::to_vec(&json::document(self))?,
            Format::Pprof => pprof::encode(self)?,
            Format::Speedscope => serde_json::to_vec(&speedscope::document(self))?,
            Format::Firefox => serde_json::to_vec(&firefox::document(self))?,
        })
    }

    /// How the profile differs from an earlier one: as lines with two counts, or as a flame graph that is red where there
    /// is more. The earlier one counts as if it had as many samples.
    pub fn render_difference(&self, before: &Folded, format: Format) -> anyhow::Result<Vec<u8>> {
        let lines = self.folded().difference(before);
        match format {
            Format::Folded => Ok(lines.into_bytes()),
            Format::Svg => svg::draw(lines.lines(), &format!("{}, compared", self.title()), &self.subtitle()),
            _ => anyhow::bail!("a comparison is folded or svg"),
        }
    }

    /// Its stacks as text.
    pub fn folded(&self) -> Folded {
        Folded::of(self.selection.entries.iter().map(|(key, count)| (key, *count)))
    }

    fn title(&self) -> String {
        format!("CPU time of {}", self.scope.title())
    }

    fn subtitle(&self) -> String {
        let Selection { from, to, samples, .. } = self.selection;
        format!("{} to {}, {samples} samples", rfc3339_seconds(*from), rfc3339_seconds(*to))
    }

    /// The stacks in an order that is the same each time, most samples first.
    fn sorted(&self) -> Vec<(&'a Key, u64)> {
        let mut stacks: Vec<_> = self.selection.entries.iter().map(|(key, count)| (key, *count)).collect();
        stacks.sort_by(|(one, count), (other, more)| {
            let names = |key: &Key| (key.pid, key.thread.clone(), key.process.clone(), key.container.clone());
            more.cmp(count)
                .then_with(|| names(one).cmp(&names(other)))
                .then_with(|| one.stack.cmp(&other.stack))
        });
        stacks
    }
}

/// Whether a frame is the kernel's, and its name without what says so.
fn kernel_name(frame: &str) -> Option<&str> {
    frame.strip_suffix(KERNEL_SUFFIX)
}

/// Since 1970.
pub fn nanoseconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::aggregate::{Containers, Programs, Window};
    use kpulse_symbolize::object::Segment;
    use kpulse_symbolize::process::Executable;
    use kpulse_symbolize::unnamed::Part;
    use std::sync::Arc;
    use std::time::SystemTime;

    /// Two threads of a process, whose program is known, and one of another: 7 + 2 + 1 samples.
    pub fn selection() -> Selection {
        let mut window = Window::new(SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000), 9);
        window.to = window.from + Duration::from_secs(10);
        for (pid, thread, frames, count) in [
            (7, "worker", &["main", "hot \"a\"", "read_[k]"][..], 7),
            (7, "main", &["main", "hot \"a\""], 2),
            (8, "other", &[], 1),
        ] {
            let stack: Vec<Arc<str>> = frames.iter().map(|frame| Arc::from(*frame)).collect();
            let container = (pid == 7).then(|| Arc::from("4f5e6d7c8b9a"));
            let process = Arc::from(if pid == 7 { "burn" } else { "kthread" });
            window.add(Key { pid, process, thread: thread.into(), container, stack: stack.into() }, count);
        }
        window.note(programs(), Containers::new());
        Selection::gather([&window], &Scope::Host).unwrap()
    }

    /// What process 7 runs, which has code without names.
    pub fn programs() -> Programs {
        let (path, build_id) = ("/bin/burn".to_owned(), Some("c0ffee".to_owned()));
        let code = Segment { offset: 0x1000, bytes: 0x1800, address: 0x401000 };
        let burn = Part { path: path.clone(), build_id: build_id.clone(), code };
        let library = Part { path: "/usr/lib/libx.so".into(), ..burn.clone() };
        let unnamed = vec![Arc::new(burn), Arc::new(library)];
        Programs::from([((7, Arc::from("burn")), Arc::new(Executable { path, build_id, unnamed }))])
    }

    /// The profile of these samples.
    pub fn check(selection: &Selection, check: impl FnOnce(&Profile<'_>)) {
        let period = Duration::from_nanos(1_000_000_000 / 99);
        check(&Profile { scope: &Scope::Host, selection, period });
    }

    #[test]
    fn a_comparison_counts_both_profiles() {
        let selection = selection();
        let mut before = Folded::default();
        before.add("main", ["main", "hot \"a\""], 15);
        before.add("main", ["gone"], 5);
        check(&selection, |profile| {
            let render =
                |format| String::from_utf8(profile.render_difference(&before, format).unwrap()).unwrap();
            assert_eq!(
                render(Format::Folded),
                "main;gone 2 0\nmain;main;hot \"a\" 7 2\nother 0 1\nworker;main;hot \"a\";read_[k] 0 7\n"
            );
            let svg = render(Format::Svg);
            assert!(svg.contains("compared") && svg.contains("; +70.00%"), "{svg}");
            assert!(profile.render_difference(&before, Format::Pprof).is_err());
        });
    }
}
