//! Reading BPF maps in few system calls: whole maps in batches, per-CPU values summed.
//!
//! aya has no batch operations; these are the raw system calls, with one-by-one reading where a kernel or a map type
//! has none.

use crate::error::ProbeError;
use aya::maps::Map;
use aya::{Ebpf, Pod};
use std::io;
use std::marker::PhantomData;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

const LOOKUP_ELEM: i32 = 1;
const UPDATE_ELEM: i32 = 2;
const DELETE_ELEM: i32 = 3;
const GET_NEXT_KEY: i32 = 4;
const LOOKUP_BATCH: i32 = 24;
const LOOKUP_AND_DELETE_BATCH: i32 = 25;
const UPDATE_BATCH: i32 = 26;
/// What the kernel says where a map type has no batch operations; not among the errors of user space.
const ENOTSUPP: i32 = 524;
/// Entries of one batch call: bounds the buffer to this many values of every CPU.
const BATCH: u32 = 128;
/// Elements of an array that one call writes.
const WRITTEN_AT_ONCE: usize = 4096;
/// The kernel's limit on a batch position is the key size or four bytes.
const POSITION_BYTES: usize = 128;

/// The maps of a loaded object, by name.
pub struct Maps<'a>(pub(crate) &'a Ebpf);

impl Maps<'_> {
    /// A map with keys `K` and values `V`; an error when it is not there or has other sizes.
    pub fn table<K: Pod, V: Pod>(&self, name: &str) -> Result<Table<K, V>, ProbeError> {
        let map =
            self.0.map(name).ok_or_else(|| ProbeError::Layout(format!("the object has no map {name}")))?;
        Table::open(name, map)
    }
}

/// A hash or array map by its sizes. It keeps its own descriptor.
pub(crate) struct RawMap {
    fd: OwnedFd,
    key_bytes: usize,
    value_bytes: usize,
    /// Copies of a value: one, or one for each possible CPU.
    copies: usize,
    capacity: u32,
    /// Whether keys come and go.
    is_hash: bool,
}

impl RawMap {
    /// `None` for a map of another type.
    pub(crate) fn open(map: &Map) -> io::Result<Option<Self>> {
        let (data, is_per_cpu) = match map {
            Map::HashMap(data) | Map::LruHashMap(data) | Map::Array(data) | Map::StackTraceMap(data) => {
                (data, false)
            }
            Map::PerCpuHashMap(data) | Map::PerCpuLruHashMap(data) | Map::PerCpuArray(data) => (data, true),
            _ => return Ok(None),
        };
        let info = data.info().map_err(io::Error::other)?;
        Ok(Some(Self {
            fd: data.fd().as_fd().try_clone_to_owned()?,
            key_bytes: info.key_size() as usize,
            value_bytes: info.value_size() as usize,
            copies: if is_per_cpu { aya::util::nr_cpus().map_err(|(_, error)| error)? } else { 1 },
            capacity: info.max_entries(),
            is_hash: matches!(
                map,
                Map::HashMap(_) | Map::LruHashMap(_) | Map::PerCpuHashMap(_) | Map::PerCpuLruHashMap(_)
            ),
        }))
    }

    /// Whether keys come and go, so that it has entries to count.
    pub(crate) fn is_hash(&self) -> bool {
        self.is_hash
    }

    /// Empties it, or zeroes these bytes of every value. Nothing may write to it meanwhile.
    pub(crate) fn forget(&self, bytes: Option<&Range<usize>>) -> io::Result<()> {
        for key in self.keys()? {
            if self.is_hash && bytes.is_none() {
                self.remove(&key)?;
                continue;
            }
            let Some(before) = self.get(&key)? else { continue };
            let mut value = before.clone();
            for copy in value.chunks_mut(self.stride() / self.copies) {
                copy[bytes.cloned().unwrap_or(0..self.value_bytes)].fill(0);
            }
            if value != before {
                self.set(&key, &value)?;
            }
        }
        Ok(())
    }

    /// All copies of a key's value.
    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let mut value = vec![0u8; self.stride()];
        match self.element(LOOKUP_ELEM, key.as_ptr(), value.as_mut_ptr()) {
            Ok(()) => Ok(Some(value)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn set(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        assert_eq!(value.len(), self.stride(), "the kernel reads every copy");
        self.element(UPDATE_ELEM, key.as_ptr(), value.as_ptr().cast_mut())
    }

    fn remove(&self, key: &[u8]) -> io::Result<()> {
        match self.element(DELETE_ELEM, key.as_ptr(), std::ptr::null_mut()) {
            Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(error),
            _ => Ok(()),
        }
    }

    /// All keys, at most as many as it can hold.
    fn keys(&self) -> io::Result<Vec<Vec<u8>>> {
        let mut keys: Vec<Vec<u8>> = Vec::new();
        while keys.len() < self.capacity as usize {
            let mut next = vec![0u8; self.key_bytes];
            let last = keys.last().map_or(std::ptr::null(), Vec::as_ptr);
            match self.element(GET_NEXT_KEY, last, next.as_mut_ptr()) {
                Ok(()) => keys.push(next),
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(keys)
    }

    /// A command on one element. `key` and `value` must have the map's sizes, or be null where the command allows it.
    fn element(&self, command: i32, key: *const u8, value: *mut u8) -> io::Result<()> {
        let map_fd = self.fd.as_raw_fd().unsigned_abs();
        bpf(
            command,
            &mut ElementAttributes { map_fd, key: key as u64, value: value as u64, ..Default::default() },
        )
    }

    /// How many entries it can hold.
    pub(crate) fn capacity(&self) -> u32 {
        self.capacity
    }

    /// How many entries there are. Kernels and maps without batches give an error.
    pub(crate) fn count(&self) -> io::Result<u32> {
        let mut entries = 0;
        self.walk(LOOKUP_BATCH, |_, _, read| entries += read)?;
        Ok(entries)
    }

    /// Bytes of one value in a system call: every copy is rounded up to eight.
    fn stride(&self) -> usize {
        if self.copies == 1 { self.value_bytes } else { self.value_bytes.next_multiple_of(8) * self.copies }
    }

    /// Goes over all entries in batches: `each` is given keys, values, and how many of both were read.
    fn walk(&self, command: i32, mut each: impl FnMut(&[u8], &[u8], u32)) -> io::Result<()> {
        let mut position = [0u8; POSITION_BYTES];
        let (mut size, mut is_first) = (BATCH, true);
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        loop {
            keys.resize(self.key_bytes * size as usize, 0u8);
            values.resize(self.stride() * size as usize, 0u8);
            let mut attributes = BatchAttributes {
                in_batch: if is_first { 0 } else { position.as_ptr() as u64 },
                out_batch: position.as_mut_ptr() as u64,
                keys: keys.as_mut_ptr() as u64,
                values: values.as_mut_ptr() as u64,
                count: size,
                map_fd: self.fd.as_raw_fd().unsigned_abs(),
                ..BatchAttributes::default()
            };
            let outcome = bpf(command, &mut attributes);
            match outcome.as_ref().map_err(io::Error::raw_os_error) {
                Ok(()) | Err(Some(libc::ENOENT)) => each(&keys, &values, attributes.count),
                // One bucket holds more than a batch: nothing was read, a larger buffer can.
                Err(Some(libc::ENOSPC)) if size < self.capacity.max(BATCH) => {
                    size *= 2;
                    continue;
                }
                Err(_) => return outcome,
            }
            if outcome.is_err() {
                return Ok(());
            }
            is_first = false;
        }
    }
}

/// A hash or array map, typed by its ABI header.
pub struct Table<K, V> {
    name: String,
    map: RawMap,
    types: PhantomData<fn() -> (K, V)>,
}

impl<K: Pod, V: Pod> Table<K, V> {
    fn open(name: &str, map: &Map) -> Result<Self, ProbeError> {
        let opened = RawMap::open(map).map_err(|source| ProbeError::Map { map: name.to_owned(), source })?;
        let Some(map) = opened else {
            return Err(ProbeError::Layout(format!(
                "the map {name} has another type than a hash or an array"
            )));
        };
        let (have, agreed) = ((map.key_bytes, map.value_bytes), (size_of::<K>(), size_of::<V>()));
        if have != agreed {
            return Err(ProbeError::Layout(format!(
                "the map {name} has sizes {have:?} where {agreed:?} were agreed on"
            )));
        }
        Ok(Self { name: name.to_owned(), map, types: PhantomData })
    }

    /// Its name in the object.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many entries it can hold.
    pub fn capacity(&self) -> u32 {
        self.map.capacity
    }

    fn failed(&self, source: io::Error) -> ProbeError {
        ProbeError::Map { map: self.name.clone(), source }
    }

    /// The value of a key; per-CPU values summed.
    pub fn get(&self, key: &K) -> Result<Option<V>, ProbeError> {
        let found = self.map.get(bytes_of(key)).map_err(|error| self.failed(error))?;
        Ok(found.map(|copies| self.sum(&copies)))
    }

    /// Sets the value of a key, the same for every CPU.
    pub fn set(&self, key: &K, value: &V) -> Result<(), ProbeError> {
        let mut buffer = vec![0u8; self.map.stride()];
        for copy in buffer.chunks_mut(self.map.stride() / self.map.copies) {
            // SAFETY: V is Pod, and a chunk has at least its size.
            unsafe { copy.as_mut_ptr().cast::<V>().write_unaligned(*value) };
        }
        self.map.set(bytes_of(key), &buffer).map_err(|error| self.failed(error))
    }

    /// Removes a key; no error when it is gone already.
    pub fn remove(&self, key: &K) -> Result<(), ProbeError> {
        self.map.remove(bytes_of(key)).map_err(|error| self.failed(error))
    }

    /// All entries; per-CPU values summed. At most [`Self::capacity`] of them.
    pub fn entries(&self) -> Result<Vec<(K, V)>, ProbeError> {
        self.batches(LOOKUP_BATCH)
    }

    /// All entries, removed from the map as they are read.
    pub fn drain(&self) -> Result<Vec<(K, V)>, ProbeError> {
        self.batches(LOOKUP_AND_DELETE_BATCH)
    }

    fn batches(&self, command: i32) -> Result<Vec<(K, V)>, ProbeError> {
        let (mut entries, mut is_batched) = (Vec::new(), false);
        let outcome = self.map.walk(command, |keys, values, read| {
            is_batched = true;
            let pairs = keys.chunks(size_of::<K>()).zip(values.chunks(self.map.stride()));
            entries.extend(pairs.take(read as usize).map(|(key, value)| (read_plain(key), self.sum(value))));
        });
        match outcome {
            Ok(()) => Ok(entries),
            Err(error) if !is_batched && matches!(error.raw_os_error(), Some(libc::EINVAL | ENOTSUPP)) => {
                self.one_by_one(command == LOOKUP_AND_DELETE_BATCH)
            }
            Err(error) => Err(self.failed(error)),
        }
    }

    fn one_by_one(&self, remove: bool) -> Result<Vec<(K, V)>, ProbeError> {
        let keys = self.map.keys().map_err(|error| self.failed(error))?;
        let mut entries = Vec::with_capacity(keys.len());
        for key in keys.iter().map(|key| read_plain(key)) {
            if let Some(value) = self.get(&key)? {
                entries.push((key, value));
            }
            if remove {
                self.remove(&key)?;
            }
        }
        Ok(entries)
    }

    /// Per-CPU values are counters throughout, so their sum is the sum of their words.
    fn sum(&self, buffer: &[u8]) -> V {
        if self.map.copies == 1 {
            return read_plain(buffer);
        }
        let mut copies = buffer.chunks(self.map.stride() / self.map.copies);
        let mut total = copies.next().map(<[u8]>::to_vec).unwrap_or_default();
        for copy in copies {
            for (sum, more) in total.chunks_exact_mut(8).zip(copy.chunks_exact(8)) {
                let added = word(sum).wrapping_add(word(more));
                sum.copy_from_slice(&added.to_ne_bytes());
            }
        }
        read_plain(&total)
    }
}

fn bytes_of<T: Pod>(value: &T) -> &[u8] {
    // SAFETY: the value is borrowed for as long as its bytes are, and Pod has no byte that may not be read.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }
}

fn word(bytes: &[u8]) -> u64 {
    bytes.try_into().map_or(0, u64::from_ne_bytes)
}

fn read_plain<T: Pod>(bytes: &[u8]) -> T {
    assert!(bytes.len() >= size_of::<T>(), "buffers are allocated by the types' sizes");
    // SAFETY: the length was checked, T is Pod, and read_unaligned needs no alignment.
    unsafe { bytes.as_ptr().cast::<T>().read_unaligned() }
}

impl<V: Pod> Table<u32, V> {
    /// Sets the elements of an array from `first` on.
    pub fn set_all(&self, first: u32, values: &[V]) -> Result<(), ProbeError> {
        let mut first = first;
        for part in values.chunks(WRITTEN_AT_ONCE) {
            let keys: Vec<u32> = (first..).take(part.len()).collect();
            let count = keys.len() as u32;
            let mut attributes = BatchAttributes {
                keys: keys.as_ptr() as u64,
                values: part.as_ptr() as u64,
                count,
                map_fd: self.map.fd.as_raw_fd().unsigned_abs(),
                ..BatchAttributes::default()
            };
            bpf(UPDATE_BATCH, &mut attributes).map_err(|error| self.failed(error))?;
            first += count;
        }
        Ok(())
    }
}

/// `struct { … }` of the element commands in `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct ElementAttributes {
    map_fd: u32,
    _pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// `struct { … } batch` in `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct BatchAttributes {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    element_flags: u64,
    flags: u64,
}

/// The kernel answers in `attributes` too: a batch command puts there how many entries it read.
pub(crate) fn bpf<A>(command: i32, attributes: &mut A) -> io::Result<()> {
    // SAFETY: the attributes point to buffers that live through the call and have the sizes that the map's types
    // give them; the kernel writes back only into those and into the attributes' own fields.
    let outcome =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<A>()) };
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
