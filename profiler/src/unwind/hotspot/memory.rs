//! Numbers in the memory of a process, which may hold anything and change at any time.

use crate::unwind::elf::ReadAt;
use std::cell::RefCell;
use std::collections::HashMap;
use std::io;

const PAGE: u64 = 4096;
/// Pages that are kept; what a JVM tells of its structures takes a tenth of that.
const MAX_PAGES: usize = 512;

/// Bytes of a text that is read; names of structures are shorter.
const MAX_TEXT: usize = 256;

/// Little-endian numbers and texts.
pub trait Numbers: ReadAt {
    fn bytes<const N: usize>(&self, address: u64) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        self.read_exact_at(&mut bytes, address).ok()?;
        Some(bytes)
    }

    fn u8(&self, address: u64) -> Option<u8> {
        self.bytes(address).map(|[byte]| byte)
    }

    fn u16(&self, address: u64) -> Option<u16> {
        self.bytes(address).map(u16::from_le_bytes)
    }

    fn u32(&self, address: u64) -> Option<u32> {
        self.bytes(address).map(u32::from_le_bytes)
    }

    fn u64(&self, address: u64) -> Option<u64> {
        self.bytes(address).map(u64::from_le_bytes)
    }

    /// A text that ends with a zero, or is cut.
    fn text(&self, address: u64) -> Option<String> {
        let mut text = Vec::new();
        while text.len() < MAX_TEXT {
            let at = address.checked_add(text.len() as u64)?;
            // To the end of a page at most: what lies behind may not be there.
            let room = (32.min(PAGE - at % PAGE) as usize).min(MAX_TEXT - text.len());
            let mut part = vec![0; room];
            self.read_exact_at(&mut part, at).ok()?;
            let end = part.iter().position(|byte| *byte == 0);
            text.extend_from_slice(&part[..end.unwrap_or(room)]);
            if end.is_some() {
                break;
            }
        }
        Some(String::from_utf8_lossy(&text).into_owned())
    }
}

impl<M: ReadAt + ?Sized> Numbers for M {}

/// Memory whose pages are read once, for many small numbers that lie together.
pub struct Cached<'a, M: ?Sized> {
    memory: &'a M,
    pages: RefCell<HashMap<u64, Option<Box<[u8]>>>>,
}

impl<'a, M: ReadAt + ?Sized> Cached<'a, M> {
    pub fn new(memory: &'a M) -> Self {
        Self { memory, pages: RefCell::default() }
    }
}

impl<M: ReadAt + ?Sized> ReadAt for Cached<'_, M> {
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let mut pages = self.pages.borrow_mut();
        let (mut done, mut at) = (0, offset);
        while done < bytes.len() {
            let (number, skipped) = (at / PAGE, (at % PAGE) as usize);
            if pages.len() >= MAX_PAGES {
                pages.clear();
            }
            let page = pages.entry(number).or_insert_with(|| {
                let mut page = vec![0; PAGE as usize].into_boxed_slice();
                self.memory.read_exact_at(&mut page, number * PAGE).ok().map(|()| page)
            });
            let page = page.as_ref().ok_or(io::ErrorKind::UnexpectedEof)?;
            let length = (bytes.len() - done).min(page.len() - skipped);
            bytes[done..done + length].copy_from_slice(&page[skipped..skipped + length]);
            done += length;
            at = at.checked_add(length as u64).ok_or(io::ErrorKind::UnexpectedEof)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_texts_may_cross_pages_and_end_with_the_memory() {
        let mut memory = vec![0u8; 3 * PAGE as usize];
        memory[4094..4100].copy_from_slice(b"across");
        memory[3 * PAGE as usize - 3..].copy_from_slice(b"end");
        let cached = Cached::new(memory.as_slice());
        assert_eq!(cached.text(4094).as_deref(), Some("across"));
        assert_eq!(cached.u32(4094), Some(u32::from_le_bytes(*b"acro")));
        assert_eq!(cached.text(3 * PAGE - 3), None, "it does not end");
        assert_eq!(cached.u64(3 * PAGE - 3), None);
        assert_eq!(cached.u64(u64::MAX - 2), None);
    }
}
