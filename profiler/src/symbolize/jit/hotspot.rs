//! Which methods of Java does a frame stand for? From the JVM's own descriptions of its code and its classes.

use super::inlined::Tables;
use crate::unwind::elf::ReadAt;
use crate::unwind::hotspot::memory::Numbers;
use crate::unwind::hotspot::{Layout, Metadata};
use kpulse_exporter_ebpf::probes::profile::cpu_sample::frame;
use kpulse_symbolize::NAME_BYTES;

/// A block's beginning is found in three steps at most, as a rule in one.
const MAX_HOPS: usize = 64;
const FREE: u8 = 0xff;
/// The stub by which C++ calls Java.
const CALL_STUB: &str = "[call_stub]";

/// What there is at a frame.
#[derive(Debug, PartialEq, Eq)]
pub enum Code {
    /// Names of methods, outermost first.
    Methods(Vec<String>),
    /// Other code of the JVM.
    Stub(String),
    /// The code is gone, and perhaps other code in its place.
    Unloaded,
}

/// Names for the frames of one JVM.
pub struct Reader<'a, M: ?Sized> {
    pub memory: &'a M,
    pub layout: &'a Layout,
}

impl<M: ReadAt + ?Sized> Reader<'_, M> {
    /// Whether the JVM has code there.
    pub fn has_code_at(&self, address: u64) -> bool {
        (self.layout.kernel.code_low..self.layout.kernel.code_high).contains(&address)
    }

    /// What a frame stands for; an address without the number of a compilation is of whatever is there.
    pub fn name(&self, word: u64) -> Code {
        let address = word & frame::ADDRESS;
        let found = if word & frame::INTERPRETED != 0 {
            self.method(address).map(|name| Code::Methods(vec![name]))
        } else {
            let compilation = (word & frame::COMPILED != 0).then(|| frame::compilation(word));
            self.compiled(address, compilation)
        };
        found.unwrap_or(Code::Unloaded)
    }

    fn compiled(&self, address: u64, compilation: Option<u32>) -> Option<Code> {
        let (memory, layout) = (self.memory, self.layout);
        // Of a caller it is the address before the one that it goes on at.
        if address.wrapping_add(1) == layout.kernel.call_stub_return {
            return Some(Code::Stub(CALL_STUB.into()));
        }
        let blob = self.blob(address)?;
        let at = |offset: u16| blob.checked_add(offset.into());
        let name = memory.text(memory.u64(at(layout.kernel.blob_name)?)?)?;
        if !matches!(name.as_str(), "nmethod" | "native nmethod") {
            return Some(Code::Stub(format!("[{name}]")));
        }
        let number = memory.u32(at(layout.kernel.compile_id)?)? & frame::COMPILATION;
        if compilation.is_some_and(|compilation| compilation != number) {
            return Some(Code::Unloaded);
        }
        let inlined = self.inlined(blob, address);
        let methods = match inlined {
            Some(methods) => methods,
            None => vec![memory.u64(blob.checked_add(layout.method)?)?],
        };
        methods.into_iter().rev().map(|method| self.method(method)).collect::<Option<_>>().map(Code::Methods)
    }

    /// The blob around an address.
    fn blob(&self, address: u64) -> Option<u64> {
        let kernel = &self.layout.kernel;
        let heap = kernel.heaps.iter().find(|heap| (heap.low..heap.high).contains(&address))?;
        let mut segment = (address - heap.low) >> heap.segment_shift;
        for _ in 0..MAX_HOPS {
            match self.memory.u8(heap.segment_map.checked_add(segment)?)? {
                FREE => return None,
                0 => {
                    return Some(heap.low + (segment << heap.segment_shift) + u64::from(kernel.block_header));
                }
                back => segment = segment.checked_sub(back.into())?,
            }
        }
        None
    }

    fn inlined(&self, blob: u64, address: u64) -> Option<Vec<u64>> {
        let (memory, layout) = (self.memory, self.layout);
        let field = blob.checked_add(layout.kernel.code_begin.into())?;
        let begin = match layout.kernel.is_code_relative {
            0 => memory.u64(field)?,
            _ => blob.checked_add(memory.u32(field)?.into())?,
        };
        let tables = Tables {
            descriptions: layout.descriptions.of(memory, blob)?,
            scopes: layout.scopes.of(memory, blob)?,
            metadata: self.metadata(blob)?,
            excess: layout.excess,
        };
        tables.methods(memory, u32::try_from(address.checked_sub(begin)?).ok()?)
    }

    fn metadata(&self, blob: u64) -> Option<u64> {
        let memory = self.memory;
        let number = |field: u64| Some(u64::from(memory.u32(blob.checked_add(field)?)?));
        match self.layout.metadata {
            Metadata::At(place) => place.of(memory, blob),
            Metadata::InData(data, offset) => blob.checked_add(number(data)?)?.checked_add(number(offset)?),
            Metadata::BehindRelocations(data, bytes) => {
                memory.u64(blob.checked_add(data)?)?.checked_add(number(bytes)?.next_multiple_of(8))
            }
        }
    }

    /// `Class.method`.
    fn method(&self, method: u64) -> Option<String> {
        let (memory, layout) = (self.memory, self.layout);
        let pointer = |base: u64, offset: u64| memory.u64(base.checked_add(offset)?);
        let description = pointer(method, layout.kernel.const_method.into())?;
        let constants = pointer(description, layout.constants)?;
        let index = u64::from(memory.u16(description.checked_add(layout.name_index)?)?);
        // The lowest bit says whether the constant is resolved.
        let name = pointer(constants, layout.pool_bytes.checked_add(8 * index)?)? & !1;
        let holder = pointer(constants, layout.pool_holder)?;
        let class = class_name(&self.symbol(pointer(holder, layout.class_name)?)?);
        Some(format!("{class}.{}", self.symbol(name)?))
    }

    fn symbol(&self, symbol: u64) -> Option<String> {
        let length = usize::from(self.memory.u16(symbol.checked_add(self.layout.symbol_length)?)?);
        let mut bytes = vec![0; length.min(NAME_BYTES)];
        self.memory.read_exact_at(&mut bytes, symbol.checked_add(self.layout.symbol_body)?).ok()?;
        (!bytes.is_empty()).then(|| String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// As in the source; of a hidden class, which is another one in each run, what all of its kind share.
fn class_name(internal: &str) -> String {
    let visible = match internal.split_once("+0x") {
        Some((hidden, _)) => match hidden.rsplit_once('$') {
            Some((outer, number)) if number.bytes().all(|byte| byte.is_ascii_digit()) => outer,
            _ => hidden,
        },
        None => internal,
    };
    visible.replace('/', ".")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unwind::hotspot::Place;
    use kpulse_exporter_ebpf::probes::profile::cpu_sample::{Heap, Hotspot};
    use proptest::prelude::*;

    const HEAP: u64 = 0x1000;

    /// Code from 0x1000 on, in segments of 16 bytes, whose map is at 0.
    fn layout() -> Layout {
        let mut kernel = Hotspot {
            code_low: HEAP,
            code_high: HEAP + 0x800,
            call_stub_return: HEAP + 0x700,
            block_header: 8,
            blob_name: 0,
            compile_id: 8,
            code_begin: 16,
            is_code_relative: 1,
            const_method: 0,
            ..Hotspot::default()
        };
        kernel.heaps[0] = Heap { low: HEAP, high: HEAP + 0x800, segment_map: 0, segment_shift: 4, _pad: 0 };
        Layout {
            method: 24,
            descriptions: Place::FromBlob(32),
            scopes: Place::FromBlob(36),
            metadata: Metadata::At(Place::FromBlob(40)),
            excess: 0,
            constants: 8,
            name_index: 16,
            pool_bytes: 16,
            pool_holder: 0,
            class_name: 0,
            symbol_length: 0,
            symbol_body: 2,
            kernel,
        }
    }

    fn put(memory: &mut [u8], at: usize, value: u64) {
        memory[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }

    /// One compiled method, `a/B.c`, without descriptions, at 0x1108.
    fn memory() -> Vec<u8> {
        let mut memory = vec![0; 0x1800];
        memory[0x10..0x20].copy_from_slice(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
        memory[0x20] = FREE;
        for (at, value) in [(0x1108, 0x200), (0x1110, 7), (0x1118, 64), (0x1120, 0x300)] {
            put(&mut memory, at, value);
        }
        memory[0x200..0x207].copy_from_slice(b"nmethod");
        // Method, its description, its constants with the second one's name, the class.
        for (at, value) in
            [(0x300, 0x340), (0x348, 0x380), (0x350, 1), (0x380, 0x3c0), (0x398, 0x401), (0x3c0, 0x440)]
        {
            put(&mut memory, at, value);
        }
        memory[0x400..0x403].copy_from_slice(b"\x01\0c");
        memory[0x440..0x445].copy_from_slice(b"\x03\0a/B");
        memory
    }

    #[test]
    fn compiled_and_interpreted_code_have_the_name_of_the_method() {
        let (memory, layout) = (memory(), layout());
        let reader = Reader { memory: memory.as_slice(), layout: &layout };
        let method = || Code::Methods(vec!["a.B.c".into()]);
        let compiled = |number: u64| frame::COMPILED | number << 48 | 0x11a0;
        assert_eq!(reader.name(frame::INTERPRETED | 0x300), method());
        assert_eq!((reader.name(compiled(7)), reader.name(0x11a0)), (method(), method()));
        assert_eq!(reader.name(compiled(8)), Code::Unloaded, "another compilation is in its place");
        assert_eq!(reader.name(frame::COMPILED | 0x1200), Code::Unloaded, "nothing is there");
        assert_eq!(reader.name(frame::COMPILED | 0x16ff), Code::Stub(CALL_STUB.into()));
        assert_eq!(reader.name(frame::INTERPRETED | 0xffff_ffff_fff8), Code::Unloaded, "no memory is there");
    }

    proptest! {
        #[test]
        fn any_memory_is_survived(
            breaks in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..80),
            words in prop::collection::vec(prop_oneof![any::<u64>(), 0x1000u64..0x1800], 1..20),
        ) {
            let (mut memory, layout) = (memory(), layout());
            for (index, byte) in breaks {
                let place = index.index(memory.len());
                memory[place] = byte;
            }
            let reader = Reader { memory: memory.as_slice(), layout: &layout };
            for word in words {
                for tag in [0, frame::COMPILED, frame::INTERPRETED] {
                    if let Code::Methods(names) = reader.name(word | tag) {
                        prop_assert!(names.iter().all(|name| name.len() <= 8 * NAME_BYTES));
                    }
                }
            }
        }
    }

    #[test]
    fn a_class_has_the_name_of_the_source() {
        for (internal, expected) in [
            ("burn/JBurn$KernelA", "burn.JBurn$KernelA"),
            ("Ledger$$Lambda$14+0x0000000800c03000", "Ledger$$Lambda"),
            ("Ledger$$Lambda+0x00007f1c", "Ledger$$Lambda"),
            ("java/lang/invoke/LambdaForm$MH+0x1", "java.lang.invoke.LambdaForm$MH"),
            ("Outer$1", "Outer$1"),
        ] {
            assert_eq!(class_name(internal), expected);
        }
    }
}
