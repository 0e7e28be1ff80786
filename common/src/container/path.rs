//! Reads a container out of a cgroup path: which container is it, of which runtime, in which pod?

use super::ContainerIdentity;

/// What runtimes put before the id in the name of a container's cgroup. `-conmon-` and the like never match, since
/// what follows the prefix must be the id and nothing else.
const PREFIXES: [(&str, &str); 7] = [
    ("docker-", "docker"),
    ("cri-containerd-", "containerd"),
    ("nerdctl-", "containerd"),
    ("crio-", "cri-o"),
    ("libpod-payload-", "podman"),
    ("libpod-", "podman"),
    ("docker_", "docker"),
];

/// The container that a cgroup path belongs to, or `None` for the host.
///
/// Knows docker, containerd, CRI-O and podman (rootful, rootless, in a pod) under cgroup v1 and v2 with the cgroupfs
/// and the systemd driver, alone and below kubelet. Of nested containers the innermost wins; the groups that a
/// container makes inside its own belong to it.
pub fn parse_container(path: &str) -> Option<ContainerIdentity> {
    let mut pod_uid = None;
    let mut found: Option<ContainerIdentity> = None;
    let mut parent = "";
    for segment in path.split('/').filter(|segment| !segment.is_empty()) {
        if let Some(uid) = pod_of(segment) {
            pod_uid = Some(uid);
        }
        if let Some((id, runtime)) = container_of(segment, parent) {
            found = Some(ContainerIdentity {
                id: id.to_owned(),
                runtime,
                pod_uid: pod_uid.clone(),
                namespace: None,
                pod: None,
                container: None,
            });
        }
        parent = segment;
    }
    found
}

/// The container that one segment of a path names.
fn container_of<'a>(segment: &'a str, parent: &str) -> Option<(&'a str, Option<&'static str>)> {
    // containerd without SystemdCgroup below a kubelet with the systemd driver writes "SLICE:cri-containerd:ID".
    if let Some((_, id)) = segment.rsplit_once(":cri-containerd:") {
        return is_id(id).then_some((id, Some("containerd")));
    }
    let scope = segment.strip_suffix(".scope");
    let name = scope.unwrap_or(segment);
    for (prefix, runtime) in PREFIXES {
        if let Some(id) = name.strip_prefix(prefix).filter(|id| is_id(id)) {
            return Some((id, Some(runtime)));
        }
    }
    // A runtime of another name under systemd: "NAME-ID.scope". Its monitor is not the container.
    if scope.is_some()
        && let Some((prefix, id)) = name.rsplit_once('-')
        && is_id(id)
    {
        return (!prefix.ends_with("conmon")).then_some((id, None));
    }
    // A bare name needs all 64 digits: 32 are also what task and session ids look like. Directly below podman's
    // parent it is a pod, which is no container.
    if is_hex(name, 64) && parent != "libpod_parent" {
        return Some((name, (parent == "docker").then_some("docker")));
    }
    None
}

/// The pod that a segment names: `podUID` of the cgroupfs driver, `…-podUID_WITH_UNDERSCORES.slice` of systemd's.
fn pod_of(segment: &str) -> Option<String> {
    // The odd form "SLICE:cri-containerd:ID" holds the slice's name first.
    let segment = segment.split(':').next().unwrap_or_default();
    let uid = match segment.strip_suffix(".slice") {
        Some(slice) => slice.rsplit_once("-pod")?.1,
        None => segment.strip_prefix("pod")?,
    };
    let dashed = uid.replace('_', "-");
    // A static pod's uid is a hash without dashes.
    (is_uuid(&dashed) || is_hex(&dashed, 32)).then_some(dashed)
}

fn is_id(text: &str) -> bool {
    is_hex(text, 64) || is_hex(text, 32)
}

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(index, byte)| match index {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Real path forms, one a line: path, id, runtime, pod uid; `-` where there is none.
    const FORMS: &str = include_str!("fixtures/paths.txt");

    const A: &str = "3f4d9c1e0b7a5862f1d3c4b5a697887960514233241506f7e8d9cabbac9d8e7f";
    const B: &str = "0c1d2e3f405162738495a6b7c8d9eafb0c1d2e3f405162738495a6b7c8d9eafb";

    fn field(text: Option<&str>) -> Option<String> {
        let text = text.expect("a fixture line has four fields").replace("$A", A).replace("$B", B);
        (text != "-").then_some(text)
    }

    #[test]
    fn reads_every_known_path_form() {
        let mut checked = 0;
        for line in FORMS.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let mut fields = line.split_whitespace();
            let path = field(fields.next()).unwrap();
            let (id, runtime, pod_uid) = (field(fields.next()), field(fields.next()), field(fields.next()));
            let found = parse_container(&path);
            assert_eq!(found.as_ref().map(|it| it.id.clone()), id, "id of {path}");
            assert_eq!(
                found.as_ref().and_then(|it| it.runtime.map(str::to_owned)),
                runtime,
                "runtime of {path}"
            );
            assert_eq!(found.and_then(|it| it.pod_uid), pod_uid, "pod of {path}");
            checked += 1;
        }
        assert!(checked >= 35, "only {checked} fixture lines were read");
    }

    proptest! {
        #[test]
        fn an_id_is_hex_of_32_or_64_digits(path in "(/?(docker|pod|kubepods|crio-|libpod-|[0-9a-f]{32}|[0-9a-f]{64}|[0-9a-fA-F]{60,66}|conmon-|\\.scope|\\.slice|:cri-containerd:|[^/]{0,8})){0,12}") {
            if let Some(found) = parse_container(&path) {
                prop_assert!(is_id(&found.id), "{:?}", found);
                prop_assert!(path.contains(&found.id));
            }
        }

        #[test]
        fn any_text_is_survived(path in any::<String>()) {
            let _ = parse_container(&path);
        }

        #[test]
        fn the_innermost_container_wins(outer in "[0-9a-f]{64}", inner in "[0-9a-f]{64}", between in "[a-z]{1,8}") {
            let path = format!("/docker/{outer}/{between}/docker/{inner}/init.scope");
            prop_assert_eq!(parse_container(&path).map(|found| found.id), Some(inner));
        }
    }
}
