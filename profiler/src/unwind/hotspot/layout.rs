//! Where are the parts of a JVM's code that its versions have in different places? By the names that each has, never by
//! its version.

use super::memory::Numbers;
use super::structs::{Missing, Structs};
use crate::unwind::elf::ReadAt;
use kpulse_exporter_ebpf::probes::profile::cpu_sample::{Heap, Hotspot, limits};

/// How a blob leads to one of its parts.
#[derive(Debug, Clone, Copy)]
pub enum Place {
    /// An address.
    Address(u64),
    /// Four bytes, to add to the blob's address.
    FromBlob(u64),
    /// Four bytes, to add to what another field leads to.
    From(u64, u64),
}

impl Place {
    /// Where it leads.
    pub fn of<M: ReadAt + ?Sized>(self, memory: &M, blob: u64) -> Option<u64> {
        let at = |field: u64| blob.checked_add(field);
        match self {
            Self::Address(field) => memory.u64(at(field)?),
            Self::FromBlob(field) => blob.checked_add(memory.u32(at(field)?)?.into()),
            Self::From(base, field) => memory.u64(at(base)?)?.checked_add(memory.u32(at(field)?)?.into()),
        }
    }
}

/// Where the addresses of a compiled method's inlined ones are.
#[derive(Debug, Clone, Copy)]
pub enum Metadata {
    At(Place),
    /// Behind the blob's data, which begins four bytes at the first field away.
    InData(u64, u64),
    /// Behind the relocations, of which the second field has the size, in what the first leads to.
    BehindRelocations(u64, u64),
}

/// Everything but the addresses that one process has.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    pub method: u64,
    pub descriptions: Place,
    pub scopes: Place,
    pub metadata: Metadata,
    /// What was added to each byte of a number since JDK 20.
    pub excess: u32,
    pub constants: u64,
    pub name_index: u64,
    pub pool_bytes: u64,
    pub pool_holder: u64,
    pub class_name: u64,
    pub symbol_length: u64,
    pub symbol_body: u64,
    /// What the walk needs, with the process's addresses.
    pub kernel: Hotspot,
}

/// Code is where user addresses are, and a heap of it is smaller than this: the limit of `-XX:ReservedCodeCacheSize`.
const MAX_HEAP: u64 = 2 << 30;

impl Layout {
    /// Finds every part, and where this process has its code.
    pub fn read<M: ReadAt + ?Sized>(memory: &M, structs: &Structs) -> Result<Self, Missing> {
        let layout = Reader { memory, structs };
        layout.read().ok_or(Missing::Unknown)?.ok_or(Missing::NotYet)
    }
}

struct Reader<'a, M: ?Sized> {
    memory: &'a M,
    structs: &'a Structs,
}

impl<M: ReadAt + ?Sized> Reader<'_, M> {
    /// `None` where a name is missing, `Some(None)` where the JVM has not begun.
    fn read(&self) -> Option<Option<Layout>> {
        let version = self.value(&["Abstract_VM_Version::_vm_major_version"]).map_or(8, |word| word as u32);
        let is_old = self.structs.field(&["CodeCache::_heap"]).is_some();
        let mut kernel = self.offsets(is_old)?;
        let immutable = self.offset(&["nmethod::_immutable_data"]);
        let at = |field: u64| immutable.map_or(Place::FromBlob(field), |base| Place::From(base, field));
        let scopes = self.offset(&["CompiledMethod::_scopes_data_begin"]).map(Place::Address);
        let layout = Layout {
            method: self.offset(&["CompiledMethod::_method", "nmethod::_method"])?,
            descriptions: at(self.offset(&["nmethod::_scopes_pcs_offset"])?),
            scopes: scopes.or_else(|| Some(at(self.offset(&["nmethod::_scopes_data_offset"])?)))?,
            metadata: self.metadata(immutable.is_some())?,
            excess: u32::from(!is_old && version >= 20),
            constants: self.offset(&["ConstMethod::_constants"])?,
            name_index: self.offset(&["ConstMethod::_name_index"])?,
            pool_bytes: self.structs.size("ConstantPool")?,
            pool_holder: self.offset(&["ConstantPool::_pool_holder"])?,
            class_name: self.offset(&["Klass::_name"])?,
            symbol_length: self.offset(&["Symbol::_length"])?,
            symbol_body: self.offset(&["Symbol::_body"])?,
            kernel: Hotspot::default(),
        };
        self.structs.field(&["AbstractInterpreter::_code"])?;
        self.structs.field(&["StubRoutines::_call_stub_return_address"])?;
        self.structs.field(&["CodeCache::_heaps", "CodeCache::_heap"])?;
        // All names are known; what is missing from here on may come.
        Some(self.addresses(&mut kernel).map(|()| Layout { kernel, ..layout }))
    }

    fn offsets(&self, is_old: bool) -> Option<Hotspot> {
        let short = |names: &[&str]| u16::try_from(self.offset(names)?).ok();
        let complete = self.structs.field(&["CodeBlob::_frame_complete_offset"])?;
        let code = short(&["CodeBlob::_code_begin"]);
        let address = |part: &str| short(&[&format!("CompiledMethod::{part}_begin")]);
        let relative = |names: [&str; 2]| short(&names);
        let addresses = [address("_deopt_handler"), address("_deopt_mh_handler")];
        let offsets = [
            relative(["nmethod::_deopt_handler_offset", "nmethod::_deoptimize_offset"]),
            relative(["nmethod::_deopt_mh_handler_offset", "nmethod::_deoptimize_mh_offset"]),
        ];
        let is_deopt_relative = addresses[0].is_none();
        let handlers = if is_deopt_relative { offsets } else { addresses };
        Some(Hotspot {
            block_header: u16::try_from(self.structs.size("HeapBlock")?).ok()?,
            blob_name: short(&["CodeBlob::_name"])?,
            frame_size: short(&["CodeBlob::_frame_size"])?,
            frame_complete: u16::try_from(complete.place).ok()?,
            code_begin: code.or_else(|| short(&["CodeBlob::_code_offset"]))?,
            compile_id: short(&["nmethod::_compile_id"])?,
            orig_pc_offset: short(&["nmethod::_orig_pc_offset"])?,
            deopt_handlers: handlers.map(Option::unwrap_or_default),
            const_method: short(&["Method::_constMethod"])?,
            code_size: short(&["ConstMethod::_code_size"])?,
            const_method_bytes: u16::try_from(self.structs.size("ConstMethod")?).ok()?,
            bcp_slot: if is_old { 56 } else { 64 },
            is_code_relative: code.is_none().into(),
            is_deopt_relative: is_deopt_relative.into(),
            is_complete_short: complete.is_short.into(),
            ..Hotspot::default()
        })
    }

    fn metadata(&self, is_immutable_apart: bool) -> Option<Metadata> {
        let offset = self.offset(&["nmethod::_metadata_offset"]);
        match (is_immutable_apart, offset) {
            (false, Some(offset)) => Some(Metadata::At(Place::FromBlob(offset))),
            (true, Some(offset)) => Some(Metadata::InData(self.offset(&["CodeBlob::_data_offset"])?, offset)),
            (_, None) => Some(Metadata::BehindRelocations(
                self.offset(&["CodeBlob::_mutable_data"])?,
                self.offset(&["CodeBlob::_relocation_size"])?,
            )),
        }
    }

    /// What the JVM fills when it begins, in this order: heaps, the stubs, the interpreter.
    fn addresses(&self, kernel: &mut Hotspot) -> Option<()> {
        let memory = self.memory;
        let interpreter = self.value(&["AbstractInterpreter::_code"]).filter(|queue| *queue != 0)?;
        let part = |name: &str| interpreter.checked_add(self.offset(&[name])?);
        kernel.interpreter_low = memory.u64(part("StubQueue::_stub_buffer")?)?;
        let bytes = memory.u32(part("StubQueue::_buffer_limit")?)?;
        kernel.interpreter_high = kernel.interpreter_low.checked_add(bytes.into())?;
        kernel.call_stub_return =
            self.value(&["StubRoutines::_call_stub_return_address"]).filter(|address| *address != 0)?;
        let mut heaps = Vec::new();
        for heap in self.heaps()? {
            heaps.push(self.heap(heap)?);
        }
        heaps.sort_unstable_by_key(|heap| heap.low);
        kernel.code_low = heaps.first()?.low;
        kernel.code_high = heaps.last()?.high;
        let is_inside = |address| (kernel.code_low..kernel.code_high).contains(&address);
        let is_apart = heaps.windows(2).all(|pair| pair[0].high <= pair[1].low);
        let is_whole = is_inside(kernel.interpreter_low) && is_inside(kernel.call_stub_return);
        kernel.heaps[..heaps.len()].copy_from_slice(&heaps);
        (is_apart && is_whole && kernel.interpreter_low < kernel.interpreter_high).then_some(())
    }

    fn heaps(&self) -> Option<Vec<u64>> {
        let memory = self.memory;
        if let Some(heap) = self.value(&["CodeCache::_heap"]) {
            return (heap != 0).then(|| vec![heap]);
        }
        let array = self.value(&["CodeCache::_heaps"]).filter(|array| *array != 0)?;
        let length = self.offset(&["GrowableArrayBase::_len", "GenericGrowableArray::_len"])?;
        let data = memory.u64(array.checked_add(self.offset(&["GrowableArray<int>::_data"])?)?)?;
        let length = memory.u32(array.checked_add(length)?)? as usize;
        let element = |index: u64| memory.u64(data.checked_add(8 * index)?);
        (1..=limits::HEAPS).contains(&length).then(|| (0..length as u64).map(element).collect())?
    }

    fn heap(&self, heap: u64) -> Option<Heap> {
        let within = |outer: &str, inner: &str| {
            let place = heap.checked_add(self.offset(&[outer])?)?.checked_add(self.offset(&[inner])?)?;
            self.memory.u64(place)
        };
        let low = within("CodeHeap::_memory", "VirtualSpace::_low")?;
        let high = within("CodeHeap::_memory", "VirtualSpace::_high_boundary")?;
        let segment_map = within("CodeHeap::_segmap", "VirtualSpace::_low")?;
        let shift = self.offset(&["CodeHeap::_log2_segment_size"])?;
        let segment_shift = self.memory.u32(heap.checked_add(shift)?)?;
        let is_sane = low != 0 && low < high && high - low <= MAX_HEAP && high < 1 << 47;
        (is_sane && (4..=16).contains(&segment_shift)).then_some(Heap {
            low,
            high,
            segment_map,
            segment_shift,
            _pad: 0,
        })
    }

    fn offset(&self, names: &[&str]) -> Option<u64> {
        self.structs.field(names).filter(|field| !field.is_static).map(|field| field.place)
    }

    /// What a static field holds.
    fn value(&self, names: &[&str]) -> Option<u64> {
        let field = self.structs.field(names).filter(|field| field.is_static)?;
        self.memory.u64(field.place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unwind::hotspot::structs::PREFIX;
    use proptest::prelude::*;
    use std::collections::HashMap;

    const HEAP: u64 = 0x7f00_0000_0000;
    /// Where the static fields are, and what they lead to.
    const STATICS: u64 = 0x100;
    const OBJECTS: u64 = 0x200;
    const TABLES: u64 = 0x400;
    const TEXTS: u64 = 0x2000;

    /// Memory of a JVM whose tables are like those of JDK 17, without the fields that are left out.
    fn memory(left_out: &str) -> (Vec<u8>, HashMap<String, u64>) {
        let mut memory = vec![0; 0x3000];
        let mut put = |at: u64, value: u64| memory[at as usize..][..8].copy_from_slice(&value.to_le_bytes());
        let statics =
            ["CodeCache::_heaps", "AbstractInterpreter::_code", "StubRoutines::_call_stub_return_address"];
        // The heaps' array with its elements, the interpreter's queue, a heap.
        let (array, queue, heap) = (OBJECTS, OBJECTS + 0x40, OBJECTS + 0x80);
        for (field, value) in [array, queue, HEAP + 0x500].into_iter().enumerate() {
            put(STATICS + 8 * field as u64, value);
        }
        [1, array + 16, heap]
            .into_iter()
            .enumerate()
            .for_each(|(at, value)| put(array + 8 * at as u64, value));
        put(queue + 8, HEAP + 0x1000);
        put(queue + 16, 0x2000);
        // Of the code and of the bytes for its segments: low, high. Then the shift.
        [HEAP, HEAP + 0x10000, 0x1111_0000, 0x1111_0200, 7].into_iter().enumerate().for_each(
            |(at, value)| {
                put(heap + 8 * at as u64, value);
            },
        );
        let fields = [
            ("GrowableArrayBase::_len", 0),
            ("GrowableArray<int>::_data", 8),
            ("StubQueue::_stub_buffer", 8),
            ("StubQueue::_buffer_limit", 16),
            ("CodeHeap::_memory", 0),
            ("CodeHeap::_segmap", 16),
            ("CodeHeap::_log2_segment_size", 32),
            ("VirtualSpace::_low", 0),
            ("VirtualSpace::_high_boundary", 8),
            ("CodeBlob::_name", 96),
            ("CodeBlob::_frame_size", 28),
            ("CodeBlob::_frame_complete_offset", 20),
            ("CodeBlob::_code_begin", 32),
            ("CompiledMethod::_method", 112),
            ("CompiledMethod::_scopes_data_begin", 120),
            ("CompiledMethod::_deopt_handler_begin", 128),
            ("CompiledMethod::_deopt_mh_handler_begin", 136),
            ("nmethod::_compile_id", 304),
            ("nmethod::_orig_pc_offset", 300),
            ("nmethod::_scopes_pcs_offset", 268),
            ("nmethod::_metadata_offset", 260),
            ("Method::_constMethod", 8),
            ("ConstMethod::_constants", 8),
            ("ConstMethod::_code_size", 32),
            ("ConstMethod::_name_index", 34),
            ("ConstantPool::_pool_holder", 24),
            ("Klass::_name", 24),
            ("Symbol::_length", 4),
            ("Symbol::_body", 6),
        ];
        let placed = statics.into_iter().enumerate().map(|(at, name)| (name, 1, STATICS + 8 * at as u64));
        let placed = placed.chain(fields.into_iter().map(|(name, offset)| (name, 0, offset)));
        let mut texts = TEXTS;
        let mut text = |memory: &mut Vec<u8>, text: &str| {
            memory[texts as usize..][..text.len()].copy_from_slice(text.as_bytes());
            texts += text.len() as u64 + 1;
            texts - text.len() as u64 - 1
        };
        let mut entry = TABLES;
        for (name, is_static, place) in placed.filter(|(name, ..)| *name != left_out) {
            let (owner, field) = name.split_once("::").unwrap();
            let parts = [text(&mut memory, owner), text(&mut memory, field), 0, is_static, place, place];
            for (at, part) in parts.into_iter().enumerate() {
                memory[entry as usize + 8 * at..][..8].copy_from_slice(&part.to_le_bytes());
            }
            entry += 48;
        }
        let types = entry + 48;
        for (index, (name, size)) in
            [("HeapBlock", 16), ("ConstMethod", 48), ("ConstantPool", 72)].into_iter().enumerate()
        {
            let name = text(&mut memory, name);
            for (at, part) in [name, size].into_iter().enumerate() {
                memory[types as usize + 16 * index + 8 * at..][..8].copy_from_slice(&u64::to_le_bytes(part));
            }
        }
        let numbers = [
            ("Structs", TABLES),
            ("Types", types),
            ("StructEntryArrayStride", 48),
            ("StructEntryTypeNameOffset", 0),
            ("StructEntryFieldNameOffset", 8),
            ("StructEntryTypeStringOffset", 16),
            ("StructEntryIsStaticOffset", 24),
            ("StructEntryOffsetOffset", 32),
            ("StructEntryAddressOffset", 40),
            ("TypeEntryArrayStride", 16),
            ("TypeEntryTypeNameOffset", 0),
            ("TypeEntrySizeOffset", 8),
        ];
        let mut exports = HashMap::new();
        for (at, (name, number)) in numbers.into_iter().enumerate() {
            memory[8 * at..][..8].copy_from_slice(&u64::to_le_bytes(number));
            exports.insert(format!("{PREFIX}{name}"), 8 * at as u64);
        }
        (memory, exports)
    }

    fn read(memory: &[u8], exports: &HashMap<String, u64>) -> Result<Layout, Missing> {
        Structs::read(memory, exports).and_then(|structs| Layout::read(memory, &structs))
    }

    #[test]
    fn a_jvm_is_described_by_what_it_tells() {
        let (memory, exports) = memory("");
        let kernel = read(&memory, &exports).unwrap().kernel;
        let heap =
            Heap { low: HEAP, high: HEAP + 0x10000, segment_map: 0x1111_0000, segment_shift: 7, _pad: 0 };
        assert_eq!((kernel.heaps[0].low, kernel.heaps[0].segment_map), (heap.low, heap.segment_map));
        assert_eq!((kernel.code_low, kernel.code_high), (heap.low, heap.high));
        assert_eq!((kernel.interpreter_low, kernel.interpreter_high), (HEAP + 0x1000, HEAP + 0x3000));
        assert_eq!((kernel.call_stub_return, kernel.block_header, kernel.frame_size), (HEAP + 0x500, 16, 28));
        assert_eq!(
            (kernel.is_code_relative, kernel.is_deopt_relative, kernel.deopt_handlers),
            (0, 0, [128, 136])
        );
    }

    #[test]
    fn a_jvm_that_has_not_begun_is_told_from_one_that_is_unknown() {
        for cleared in [16..24, 0x100..0x108, 0x108..0x110, 0x110..0x118, 0x200..0x208] {
            let (mut memory, exports) = memory("");
            memory[cleared.clone()].fill(0);
            assert_eq!(read(&memory, &exports).err(), Some(Missing::NotYet), "{cleared:x?}");
        }
        for left_out in [
            "CodeBlob::_frame_size",
            "Klass::_name",
            "AbstractInterpreter::_code",
            "nmethod::_metadata_offset",
        ] {
            let (memory, exports) = memory(left_out);
            assert_eq!(read(&memory, &exports).err(), Some(Missing::Unknown), "{left_out}");
        }
    }

    proptest! {
        #[test]
        fn broken_tables_are_survived(
            breaks in prop::collection::vec((any::<prop::sample::Index>(), prop_oneof![Just(0u8), Just(255), any::<u8>()]), 1..60),
        ) {
            let (mut memory, exports) = memory("");
            for (index, byte) in breaks {
                let place = index.index(memory.len());
                memory[place] = byte;
            }
            let _ = read(&memory, &exports);
        }
    }
}
