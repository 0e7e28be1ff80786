//! Did a file system turn read-only, as ext4 does after an error? `/proc/1/mountinfo`.

use super::{Host, HostCollector};
use kpulse_common::metric::{Label, MetricDef, Samples};
use kpulse_common::mount::Mount;
use std::collections::BTreeSet;

/// Most file systems that are told.
const FILESYSTEMS_MAX: usize = 256;
/// File systems of other machines; those of this one have a device as their source.
const REMOTE: [&str; 5] = ["nfs", "nfs4", "cifs", "ceph", "fuse.sshfs"];
/// File systems that nobody can write to, ever.
const NEVER_WRITABLE: [&str; 4] = ["squashfs", "iso9660", "erofs", "cramfs"];

const READONLY: MetricDef = MetricDef::gauge(
    "kpulse_filesystem_readonly",
    "Whether the file system itself is read-only, whatever a single mount of it allows.",
    &[Label::Named("mountpoint")],
);

pub const COLLECTOR: HostCollector =
    HostCollector { name: "filesystem", metrics: &[READONLY], is_default: true, make: |_| Box::new(collect) };

fn collect(host: &mut Host, out: &mut Samples) -> anyhow::Result<()> {
    let of_init = host.paths.procfs.join("1/mountinfo");
    let path = if of_init.exists() { of_init } else { host.paths.procfs.join("self/mountinfo") };
    let mut seen = BTreeSet::new();
    for mount in host.text.read(&path)?.lines().filter_map(Mount::parse) {
        // A file system is told once, by its first mount; containers have thousands of others.
        if is_wanted(&mount) && seen.len() < FILESYSTEMS_MAX && seen.insert(mount.device.to_owned()) {
            out.count(&READONLY, &[&mount.point()], u64::from(mount.readonly_option().is_some()));
        }
    }
    Ok(())
}

fn is_wanted(mount: &Mount<'_>) -> bool {
    let is_of_machine = mount.source().starts_with('/') || REMOTE.contains(&mount.kind);
    is_of_machine && !NEVER_WRITABLE.contains(&mount.kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_system_is_told_and_not_its_mounts() {
        let text = "\
            27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard\n\
            28 27 254:0 /x /bind ro,relatime shared:1 - ext4 /dev/vda rw,discard\n\
            29 27 254:1 / /srv/a\\040b\\134 rw,relatime - xfs /dev/vdb ro,attr2\n\
            30 27 0:25 / /run rw - tmpfs tmpfs rw\n\
            33 27 254:2 / /broken rw - ext4 /dev/vdc rw,emergency_ro\n\
            31 27 0:40 / /net rw - nfs4 server:/home rw,vers=4.2\n\
            32 27 7:0 / /snap rw - squashfs /dev/loop0 ro\n\
            broken line\n";
        let proc = tempfile::tempdir().unwrap();
        std::fs::create_dir(proc.path().join("1")).unwrap();
        std::fs::write(proc.path().join("1/mountinfo"), text).unwrap();
        let paths = kpulse_common::paths::Paths { procfs: proc.path().to_owned(), ..Default::default() };
        let mut out = Samples::default();
        collect(&mut Host::new(&paths, 1), &mut out).unwrap();
        let series = &out.families()[0].series;
        let told: Vec<_> = series.iter().map(|series| (&*series.labels[0], series.value.clone())).collect();
        use kpulse_common::metric::Value::Count;
        let expected = [("/", 0), ("/srv/a b\\", 1), ("/broken", 1), ("/net", 0)];
        assert_eq!(told, expected.map(|(point, is_readonly)| (point, Count(is_readonly))));
    }
}
