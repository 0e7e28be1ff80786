//! A file by the addresses that it has in memory, read in small pieces as they are needed.

use crate::object::{self, Bytes, Header, ReadAt, Section, Segment};

const LOAD: u32 = 1;
/// More than any program's, and small enough that sums of addresses and offsets do not overflow.
const MAX_ADDRESS: u64 = 1 << 56;
/// Functions that lie together have their entries together, so that few pieces serve many reads.
const PIECE_BYTES: u64 = 4096;
const PIECES: usize = 32;

struct Piece {
    number: u64,
    bytes: Vec<u8>,
}

/// The segments of a file.
pub struct Image<R> {
    file: R,
    pub segments: Vec<Header>,
    end: u64,
    pieces: [Option<Piece>; PIECES],
}

impl<R: ReadAt> Image<R> {
    /// Reads the headers: segments, and what sections there are.
    pub fn read(file: R) -> Option<(Self, Vec<Section>)> {
        let header = object::header(&file, object::MACHINE)?;
        let segments = object::segments(&file, &header)?;
        let sections = object::sections(&file, &header).unwrap_or_default();
        let is_sane = |part: &Header| {
            let Segment { offset, bytes, address } = part.segment;
            [offset, bytes, address].iter().all(|number| *number <= MAX_ADDRESS)
        };
        if !segments.iter().all(is_sane) {
            return None;
        }
        let end = segments.iter().map(|part| part.segment.offset.saturating_add(part.segment.bytes)).max()?;
        Some((Self { file, segments, end, pieces: [const { None }; PIECES] }, sections))
    }

    /// Segments that are mapped.
    pub fn loaded(&self) -> impl Iterator<Item = &Header> {
        self.segments.iter().filter(|part| part.kind == LOAD)
    }

    /// The place in the file of an address, and how many bytes follow in its segment.
    pub fn place(&self, address: u64) -> Option<(u64, u64)> {
        self.loaded().find_map(|Header { segment, .. }| {
            let within = address.checked_sub(segment.address)?;
            let left = segment.bytes.checked_sub(within).filter(|left| *left > 0)?;
            Some((segment.offset.checked_add(within)?, left))
        })
    }

    /// The address of a place in the file.
    pub fn address(&self, offset: u64) -> Option<u64> {
        self.loaded().find_map(|Header { segment, .. }| {
            let within = offset.checked_sub(segment.offset)?;
            (within < segment.bytes).then(|| segment.address.checked_add(within))?
        })
    }

    /// What the file has from a place on, at most to the end of a piece.
    fn piece(&mut self, offset: u64) -> Option<&[u8]> {
        let number = offset / PIECE_BYTES;
        let start = number * PIECE_BYTES;
        let slot = &mut self.pieces[(number % PIECES as u64) as usize];
        if slot.as_ref().is_none_or(|piece| piece.number != number) {
            let bytes = PIECE_BYTES.min(self.end.checked_sub(start)?);
            let bytes = object::part(&self.file, start, bytes, PIECE_BYTES)?;
            *slot = Some(Piece { number, bytes });
        }
        slot.as_ref()?.bytes.get((offset - start) as usize..).filter(|bytes| !bytes.is_empty())
    }

    /// Bytes at an address, no more than a segment has.
    pub fn bytes<const N: usize>(&mut self, address: u64) -> Option<[u8; N]> {
        let (offset, left) = self.place(address)?;
        if left < N as u64 {
            return None;
        }
        let mut bytes = [0; N];
        let mut filled = 0;
        while filled < N {
            let piece = self.piece(offset + filled as u64)?;
            let part = piece.len().min(N - filled);
            bytes[filled..filled + part].copy_from_slice(&piece[..part]);
            filled += part;
        }
        Some(bytes)
    }

    pub fn u8(&mut self, address: u64) -> Option<u8> {
        self.bytes::<1>(address).map(|[byte]| byte)
    }

    pub fn u32(&mut self, address: u64) -> Option<u32> {
        self.bytes(address).map(u32::from_le_bytes)
    }

    pub fn u64(&mut self, address: u64) -> Option<u64> {
        self.bytes(address).map(u64::from_le_bytes)
    }

    /// Text up to a zero byte, or as much of it as `most`.
    pub fn text(&mut self, address: u64, most: usize) -> Option<Vec<u8>> {
        let (mut offset, _) = self.place(address)?;
        let mut text = Vec::new();
        while text.len() < most {
            let piece = self.piece(offset)?;
            let end = piece.iter().position(|byte| *byte == 0);
            text.extend_from_slice(&piece[..end.unwrap_or(piece.len())]);
            if end.is_some() {
                break;
            }
            offset += piece.len() as u64;
        }
        text.truncate(most);
        Some(text)
    }

    /// Goes over the segments with these flags, or without them: each time a stretch of at most 1 MiB whose address is a
    /// multiple of 8, with the first eight bytes of the next one. Ends with what `visit` finds, or after `most` bytes.
    pub fn scan<T>(
        &self,
        flags: impl Fn(u32) -> bool,
        mut most: u64,
        mut visit: impl FnMut(u64, &Bytes) -> Option<T>,
    ) -> Option<T> {
        const STRETCH: u64 = 1 << 20;
        for Header { segment, flags: has, .. } in self.loaded() {
            let mut at = segment.address.next_multiple_of(8).wrapping_sub(segment.address);
            while flags(*has) && at < segment.bytes && most > 0 {
                let bytes = (segment.bytes - at).min(STRETCH + 8);
                let offset = segment.offset.checked_add(at)?;
                let stretch = Bytes(object::part(&self.file, offset, bytes, STRETCH + 8)?);
                if let Some(found) = visit(segment.address.checked_add(at)?, &stretch) {
                    return Some(found);
                }
                at += STRETCH;
                most = most.saturating_sub(STRETCH);
            }
        }
        None
    }
}
