//! The names that a client's certificate gives itself: its subject alternative names.
//!
//! Only for certificates that were verified before, or whose names are meant to be taken as they are; what is not
//! well-formed has no names.

use std::net::{Ipv4Addr, Ipv6Addr};

const SEQUENCE: u8 = 0x30;
const OCTET_STRING: u8 = 0x04;
const OBJECT_IDENTIFIER: u8 = 0x06;
/// `[3]`, the extensions of a certificate.
const EXTENSIONS: u8 = 0xa3;
/// 2.5.29.17, subjectAltName.
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];
const EMAIL: u8 = 0x81;
const DNS: u8 = 0x82;
const URI: u8 = 0x86;
const IP: u8 = 0x87;

/// DNS names, e-mail addresses, URIs and IP addresses of a certificate in DER.
pub(super) fn of(certificate: &[u8]) -> Vec<String> {
    find(certificate).unwrap_or_default()
}

fn find(certificate: &[u8]) -> Option<Vec<String>> {
    let (whole, _) = element(certificate, SEQUENCE)?;
    let (body, _) = element(whole, SEQUENCE)?;
    let (_, wrapped) = Elements(body).find(|(tag, _)| *tag == EXTENSIONS)?;
    let (extensions, _) = element(wrapped, SEQUENCE)?;
    let extension = Elements(extensions).find_map(|(_, extension)| {
        let (name, rest) = element(extension, OBJECT_IDENTIFIER)?;
        (name == SUBJECT_ALT_NAME).then_some(rest)
    })?;
    // A flag may stand before the value.
    let (_, value) = Elements(extension).find(|(tag, _)| *tag == OCTET_STRING)?;
    let (names, _) = element(value, SEQUENCE)?;
    Some(Elements(names).filter_map(|(tag, value)| name(tag, value)).collect())
}

fn name(tag: u8, value: &[u8]) -> Option<String> {
    match tag {
        EMAIL | DNS | URI => String::from_utf8(value.to_vec()).ok(),
        IP => match value.len() {
            4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(value).ok()?).to_string()),
            16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(value).ok()?).to_string()),
            _ => None,
        },
        _ => None,
    }
}

/// The content of the first element, which must have this tag, and what follows it.
fn element(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let mut elements = Elements(bytes);
    let (found, content) = elements.next()?;
    (found == tag).then_some((content, elements.0))
}

/// Tag and content of each element; ends at the first that is not well-formed.
struct Elements<'a>(&'a [u8]);

impl<'a> Iterator for Elements<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, mut rest) = rest.split_first()?;
        let mut length = usize::from(first);
        if first & 0x80 != 0 {
            let count = usize::from(first & 0x7f);
            if count == 0 || count > 4 {
                return None;
            }
            let digits = rest.get(..count)?;
            length = digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit));
            rest = &rest[count..];
        }
        let content = rest.get(..length)?;
        self.0 = &rest[length..];
        Some((tag, content))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_bytes_at_all_make_it_fail(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            of(&bytes);
        }
    }
}
