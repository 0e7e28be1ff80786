//! A line of `/proc/PID/mountinfo`.

/// Options of a file system that nobody can write to. Newer kernels say of ext4 after an error that it is in a state of its
/// own, not `ro`.
const READONLY: [&str; 3] = ["ro", "emergency_ro", "shutdown"];

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount<'a> {
    /// Its number, which is free for another one once it is gone.
    pub id: u32,
    /// `major:minor` of the file system's device.
    pub device: &'a str,
    /// Kind of file system.
    pub kind: &'a str,
    root: &'a str,
    point: &'a str,
    source: &'a str,
    /// Options of the file system, whatever this mount of it allows.
    pub super_options: &'a str,
}

impl<'a> Mount<'a> {
    /// `ID PARENT MAJ:MIN ROOT POINT OPTIONS [TAG…] - TYPE SOURCE SUPER-OPTIONS`.
    pub fn parse(line: &'a str) -> Option<Self> {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ');
        let (id, _parent, device) = (left.next()?.parse().ok()?, left.next()?, left.next()?);
        let (root, point) = (left.next()?, left.next()?);
        let mut right = right.split(' ');
        let (kind, source, super_options) = (right.next()?, right.next()?, right.next()?);
        Some(Self { id, device, kind, root, point, source, super_options })
    }

    /// How the kernel tells that the file system cannot be written to, whatever this mount of it allows: `ro`, or a state
    /// after an error. `None` when it can.
    pub fn readonly_option(&self) -> Option<&'static str> {
        let mut options = self.super_options.split(',');
        options.find_map(|option| READONLY.into_iter().find(|known| *known == option))
    }

    /// The folder of the file system that is mounted here; `/` shows all of it.
    pub fn root(&self) -> String {
        unescape(self.root)
    }

    /// Where it is mounted.
    pub fn point(&self) -> String {
        unescape(self.point)
    }

    /// What is mounted: the device file of most file systems on a disk.
    pub fn source(&self) -> String {
        unescape(self.source)
    }
}

/// Undoes the octal escapes (`\040`) of `mountinfo`.
fn unescape(text: &str) -> String {
    let mut plain = Vec::with_capacity(text.len());
    let mut bytes = text.as_bytes();
    while let Some((&first, rest)) = bytes.split_first() {
        let code = rest.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()).filter(|_| first == b'\\') {
            Some(byte) => {
                plain.push(byte);
                bytes = &rest[3..];
            }
            None => {
                plain.push(first);
                bytes = rest;
            }
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_taken_apart_whatever_its_tags_are() {
        let line = "29 27 254:1 /r /srv/a\\040b\\134 rw shared:1 master:2 - xfs /dev/vd\\043b ro,attr2";
        let mount = Mount::parse(line).unwrap();
        assert_eq!((mount.id, mount.device, mount.kind), (29, "254:1", "xfs"));
        assert_eq!(mount.readonly_option(), Some("ro"));
        assert_eq!([mount.root(), mount.point(), mount.source()], ["/r", "/srv/a b\\", "/dev/vd#b"]);
        let after_an_error = line.replace("ro,attr2", "rw,emergency_ro");
        assert_eq!(Mount::parse(&after_an_error).unwrap().readonly_option(), Some("emergency_ro"));
        assert_eq!(
            Mount::parse(&line.replace("ro,attr2", "rw,errors=remount-ro")).unwrap().readonly_option(),
            None
        );
        for broken in
            ["", " - ", "x 27 254:1 / / rw - a b c", "29 27 254:1 / - a b c", "29 27 254:1 / / rw - a b"]
        {
            assert_eq!(Mount::parse(broken), None, "{broken}");
        }
    }
}
