//! Which methods are inlined at an instruction of compiled Java? By the descriptions that HotSpot keeps for its own
//! walks: for places in the code, chains of scopes, each a method and who called it.

use crate::unwind::elf::ReadAt;
use crate::unwind::hotspot::memory::Numbers;

/// Descriptions of one compiled method; large ones have some thousands.
const MAX_DESCRIPTIONS: usize = 65_536;
const DESCRIPTION_BYTES: usize = 16;
const READ_AT_ONCE: usize = 256;
/// The last one stands for no place.
const LAST: i32 = 1 << 30;
/// HotSpot inlines 9 levels deep by default, and 15 of one recursion.
const MAX_DEPTH: usize = 128;
/// A scope's first three numbers.
const SCOPE_BYTES: u64 = 15;

/// Where these are of one compiled method.
#[derive(Debug, Clone, Copy)]
pub struct Tables {
    pub descriptions: u64,
    pub scopes: u64,
    /// Addresses of methods, counted from 1.
    pub metadata: u64,
    /// What was added to each byte of a number.
    pub excess: u32,
}

impl Tables {
    /// The methods at an offset of the code, innermost first; `None` where they cannot be told.
    pub fn methods<M: ReadAt + ?Sized>(&self, memory: &M, offset: u32) -> Option<Vec<u64>> {
        let mut scope = self.scope(memory, offset)?;
        let mut methods = Vec::new();
        while scope != 0 {
            if methods.len() >= MAX_DEPTH {
                return None;
            }
            let [sender, method, _bytecode] = self.numbers(memory, self.scopes.checked_add(scope.into())?)?;
            let index = u64::from(method.checked_sub(1)?);
            methods.push(memory.u64(self.metadata.checked_add(8 * index)?)?);
            scope = sender;
        }
        (!methods.is_empty()).then_some(methods)
    }

    /// A description is of the code before it, so the first one behind the place counts.
    fn scope<M: ReadAt + ?Sized>(&self, memory: &M, offset: u32) -> Option<u32> {
        let mut bytes = [0; READ_AT_ONCE * DESCRIPTION_BYTES];
        for first in (0..MAX_DESCRIPTIONS).step_by(READ_AT_ONCE) {
            let at = self.descriptions.checked_add((first * DESCRIPTION_BYTES) as u64)?;
            // The table may end where memory does.
            let read = [READ_AT_ONCE, 16, 1]
                .into_iter()
                .find(|count| memory.read_exact_at(&mut bytes[..count * DESCRIPTION_BYTES], at).is_ok())?;
            for description in bytes[..read * DESCRIPTION_BYTES].chunks_exact(DESCRIPTION_BYTES) {
                let number = |at: usize| {
                    let bytes = description[at..at + 4].try_into();
                    i32::from_le_bytes(bytes.unwrap_or_default())
                };
                if number(0) >= LAST {
                    return None;
                }
                if i64::from(number(0)) > i64::from(offset) {
                    return u32::try_from(number(4)).ok();
                }
            }
            if read < READ_AT_ONCE {
                return None;
            }
        }
        None
    }

    /// The first three numbers of a scope.
    fn numbers<M: ReadAt + ?Sized>(&self, memory: &M, at: u64) -> Option<[u32; 3]> {
        let bytes: [u8; SCOPE_BYTES as usize] = memory.bytes(at)?;
        let (mut rest, mut numbers) = (bytes.as_slice(), [0; 3]);
        for number in &mut numbers {
            *number = number_of(&mut rest, self.excess)?;
        }
        Some(numbers)
    }
}

/// HotSpot's UNSIGNED5: six bits a byte, the lowest first; a byte below 192 or the fifth is the last.
fn number_of(bytes: &mut &[u8], excess: u32) -> Option<u32> {
    let mut number = 0u32;
    for index in 0..5 {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number = number.wrapping_add(u32::from(byte).wrapping_sub(excess).wrapping_shl(6 * index));
        if byte < 192 {
            break;
        }
    }
    Some(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TABLES: Tables = Tables { descriptions: 0, scopes: 0x100, metadata: 0x200, excess: 1 };

    fn memory() -> Vec<u8> {
        let mut memory = vec![0; 0x300];
        for (index, (offset, scope)) in [(-1, 0), (8, 4), (16, 12), (24, 0), (i32::MAX, 0)].iter().enumerate()
        {
            memory[index * 16..][..4].copy_from_slice(&i32::to_le_bytes(*offset));
            memory[index * 16 + 4..][..4].copy_from_slice(&i32::to_le_bytes(*scope));
        }
        // Sender, method, bytecode, each one more than it is.
        memory[0x104..0x107].copy_from_slice(&[1, 2, 6]);
        memory[0x10c..0x10f].copy_from_slice(&[5, 3, 9]);
        memory[0x200..0x208].copy_from_slice(&0xaaa8u64.to_le_bytes());
        memory[0x208..0x210].copy_from_slice(&0xbbb8u64.to_le_bytes());
        memory
    }

    #[test]
    fn the_first_description_behind_an_instruction_tells_what_is_inlined_there() {
        let memory = memory();
        let methods = |offset| TABLES.methods(memory.as_slice(), offset);
        assert_eq!(methods(0), Some(vec![0xaaa8]));
        assert_eq!(methods(7), Some(vec![0xaaa8]));
        assert_eq!(methods(8), Some(vec![0xbbb8, 0xaaa8]));
        assert_eq!((methods(16), methods(24)), (None, None), "nothing is described there");
    }

    #[test]
    fn numbers_are_read_as_hotspot_writes_them() {
        for (bytes, excess, number) in [
            (&[0][..], 0, 0),
            (&[191], 0, 191),
            (&[192, 0], 0, 192),
            (&[193, 1], 1, 192),
            (&[255, 255, 255, 255, 3], 0, 118_239_423),
        ] {
            let mut rest = bytes;
            assert_eq!(number_of(&mut rest, excess), Some(number).filter(|_| rest.is_empty()), "{bytes:?}");
        }
        assert_eq!(number_of(&mut &[200u8][..], 0), None);
    }

    #[test]
    fn a_scope_that_calls_itself_ends() {
        let mut memory = memory();
        memory[0x104] = 5;
        assert_eq!(TABLES.methods(memory.as_slice(), 0), None);
    }

    proptest! {
        #[test]
        fn any_memory_is_survived(
            memory in prop::collection::vec(any::<u8>(), 0..2048),
            [descriptions, scopes, metadata] in prop::array::uniform3(prop_oneof![0u64..2048, any::<u64>()]),
            offset in any::<u32>(),
            excess in 0u32..2,
        ) {
            let tables = Tables { descriptions, scopes, metadata, excess };
            let methods = tables.methods(memory.as_slice(), offset);
            prop_assert!(methods.is_none_or(|methods| methods.len() <= MAX_DEPTH));
        }
    }
}
