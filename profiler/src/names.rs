//! Which names are in use? Each is kept once, shared by the symbol caches and the history.

use std::borrow::Borrow;
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Arc;

/// Frames from the root to the leaf; kernel frames carry [`KERNEL_SUFFIX`].
pub type Stack = Arc<[Arc<str>]>;

/// What flame graph programs colour as kernel code.
pub const KERNEL_SUFFIX: &str = "_[k]";
/// The frame that stands for addresses without a name.
pub const UNKNOWN: &str = "[unknown]";
/// What an allocation of a shared slice costs beside its content: two reference counts, the allocator's
/// header, and its place in the set.
const OVERHEAD_BYTES: usize = 64;

/// A set of shared values, each held once, with the memory that it takes.
pub struct Interned<T: ?Sized> {
    values: HashSet<Arc<T>>,
    bytes: usize,
}

impl<T: ?Sized + Eq + Hash> Default for Interned<T> {
    fn default() -> Self {
        Self { values: HashSet::new(), bytes: 0 }
    }
}

impl<T: ?Sized + Eq + Hash> Interned<T> {
    /// The shared copy of `value`.
    pub fn intern<'a>(&mut self, value: &'a T) -> Arc<T>
    where
        Arc<T>: From<&'a T>,
    {
        if let Some(known) = self.values.get(value) {
            return known.clone();
        }
        let shared: Arc<T> = value.into();
        self.bytes += size_of_val::<T>(&shared) + OVERHEAD_BYTES;
        self.values.insert(shared.clone());
        shared
    }

    /// Forgets the values that nobody else holds any more.
    pub fn sweep(&mut self) {
        let mut bytes = 0;
        self.values.retain(|value| {
            let used = Arc::strong_count(value) > 1;
            if used {
                bytes += size_of_val::<T>(value) + OVERHEAD_BYTES;
            }
            used
        });
        self.bytes = bytes;
    }

    /// Memory held, estimated from above.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.values.len()
    }
}

/// Values in the order in which they first came, each once.
pub struct Numbered<T, S = RandomState> {
    numbers: HashMap<T, usize, S>,
    pub values: Vec<T>,
}

impl<T, S: Default> Default for Numbered<T, S> {
    fn default() -> Self {
        Self { numbers: HashMap::default(), values: Vec::new() }
    }
}

impl<T: Clone + Eq + Hash, S: BuildHasher> Numbered<T, S> {
    pub fn number(&mut self, value: T) -> usize {
        let next = self.values.len();
        *self.numbers.entry(value.clone()).or_insert_with(|| {
            self.values.push(value);
            next
        })
    }

    /// The number of a value that came before.
    pub fn get<Q: Eq + Hash + ?Sized>(&self, value: &Q) -> Option<usize>
    where
        T: Borrow<Q>,
    {
        self.numbers.get(value).copied()
    }
}

/// A number as it is kept; there are far fewer of anything.
pub fn number(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_held_once_until_nobody_uses_it() {
        let mut names = Interned::<str>::default();
        let first = names.intern("hot");
        let second = names.intern("hot");
        assert!(Arc::ptr_eq(&first, &second));
        names.sweep();
        assert_eq!(names.len(), 1);
        drop((first, second));
        names.sweep();
        assert_eq!((names.len(), names.bytes()), (0, 0));
    }
}
