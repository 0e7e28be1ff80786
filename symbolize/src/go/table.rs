//! The functions of a program with their names, inlined calls and distances to the return address.

use super::find::{self, Found, MODULE_WORDS, Version};
use super::image::Image;
use super::name::printed;
use crate::NAME_BYTES;
use crate::object::ReadAt;
use std::borrow::Cow;
use std::ops::Range;

/// Steps through value tables for one address: a table of a large function has a few thousand.
const MAX_STEPS: u32 = 1 << 17;
/// Calls that are inlined into one another.
const MAX_INLINED: usize = 64;
/// Of these, the index of the table that tells the inlined call of an address, and of the calls themselves.
const INLINED_CALL: u64 = 2;
const INLINED_CALLS: u64 = 3;
const NONE: u32 = u32::MAX;

/// No function called this one.
const IS_TOP: u8 = 1;
/// It writes the stack pointer.
const SWITCHES_STACKS: u8 = 2;
/// Those of them that matter, for versions before 1.17, which do not tell.
const TOPS: [&[u8]; 5] =
    [b"runtime.goexit", b"runtime.mstart", b"runtime.rt0_go", b"runtime.morestack", b"runtime.mcall"];
const SWITCHES: [&[u8]; 2] = [b"runtime.systemstack", b"runtime.asmcgocall"];

/// The table of one file.
pub struct Table<R> {
    image: Image<R>,
    found: Found,
    text: u64,
    /// Where the lists of inlined calls are counted from, if they can be read.
    calls: Option<u64>,
}

/// A function.
#[derive(Debug, Clone)]
pub struct Function {
    /// Its code.
    pub range: Range<u64>,
    /// A thread or a goroutine begins with it.
    pub is_top: bool,
    /// What it calls may run on another stack.
    pub switches_stacks: bool,
    record: u64,
    distances: u32,
}

/// A step through a table of values by address.
struct Values {
    at: u64,
    value: i32,
    address: u64,
    is_first: bool,
}

impl<R: ReadAt> Table<R> {
    /// Finds and checks the table; `None` where the file is no Go program, or one of an unknown version.
    pub fn read(file: R) -> Option<Self> {
        let (mut image, sections) = Image::read(file)?;
        let found = find::table(&mut image, &sections)?;
        let mut table = Self { image, found, text: 0, calls: None };
        if found.version >= Version::Go1_18 {
            let module = find::module(&mut table.image, &found);
            table.text = module.map(|words| words[22]).filter(|text| *text != 0).unwrap_or(found.text);
            if table.text == 0 {
                return None;
            }
            table.calls = module.and_then(|words| table.find_calls(&words));
        }
        let last = table.entry(found.functions)?;
        (table.entry(0)? < last).then_some(table)
    }

    /// How many functions there are.
    pub fn functions(&self) -> u64 {
        self.found.functions
    }

    /// The address that the file has at a place in it.
    pub fn address(&self, offset: u64) -> Option<u64> {
        self.image.address(offset)
    }

    /// The function with this number; they are in order of address.
    pub fn function(&mut self, number: u64) -> Option<Function> {
        if number >= self.found.functions {
            return None;
        }
        let (start, end) = (self.entry(number)?, self.entry(number + 1)?);
        let record = match self.found.version {
            Version::Go1_2 => {
                self.found.at.checked_add(self.image.u64(self.found.entries + number * 16 + 8)?)?
            }
            Version::Go1_16 => {
                self.found.entries.checked_add(self.image.u64(self.found.entries + number * 16 + 8)?)?
            }
            _ => self.found.entries + u64::from(self.image.u32(self.found.entries + number * 8 + 4)?),
        };
        let distances = self.image.u32(record.checked_add(self.wide(16))?)?;
        let flags = self.image.u8(record.checked_add(self.tail() + 1)?)?;
        let (mut is_top, mut switches_stacks) = (flags & IS_TOP != 0, flags & SWITCHES_STACKS != 0);
        if self.found.version < Version::Go1_18 && !is_top && !switches_stacks {
            let name = self.image.u32(record.checked_add(self.wide(4))?)?;
            let name = self.raw_name(name)?;
            is_top = TOPS.contains(&name.as_slice());
            switches_stacks = SWITCHES.contains(&name.as_slice());
        }
        (start < end).then_some(Function { range: start..end, is_top, switches_stacks, record, distances })
    }

    /// How far above the stack pointer the return address is, for each stretch of the function from its address on.
    /// Ends with what `visit` refuses; whether the table was read to its end.
    pub fn distances(&mut self, function: &Function, mut visit: impl FnMut(u64, i32) -> bool) -> bool {
        if function.distances == 0 {
            return false;
        }
        let mut values = self.values(function, function.distances);
        while values.address < function.range.end {
            let start = values.address;
            match self.step(&mut values) {
                // Behind the last instruction there may be padding.
                Some(false) => break,
                Some(true) if visit(start, values.value) => {}
                _ => return false,
            }
        }
        true
    }

    /// The functions at an address, outermost first; just the one that has the code, unless `is_inlined`. Without a
    /// function that only passes on type arguments.
    pub fn names(&mut self, address: u64, is_inlined: bool) -> Option<Vec<String>> {
        let function = self.at(address)?;
        let name = self.image.u32(function.record.checked_add(self.wide(4))?)?;
        let mut names: Vec<String> = self.printed_name(name)?.into_iter().collect();
        if is_inlined {
            // Only what was read to its end: a part of a chain would be a wrong one.
            let calls = self.inlined(&function, address).unwrap_or_default();
            names.extend(calls.into_iter().rev());
        }
        Some(names)
    }

    fn inlined(&mut self, function: &Function, address: u64) -> Option<Vec<String>> {
        let base = self.calls?;
        let Some((table, calls)) = self.calls_of(function) else { return Some(Vec::new()) };
        let (mut at, mut names, mut steps) = (address, Vec::new(), MAX_STEPS);
        while names.len() < MAX_INLINED {
            let index = self.value(function, table, at, &mut steps)?;
            let Ok(index) = u64::try_from(index) else { return Some(names) };
            let (name, parent) = self.call(base, calls, index)?;
            names.extend(self.printed_name(name)?);
            at = function.range.start.checked_add(parent.into()).filter(|at| function.range.contains(at))?;
        }
        None
    }

    /// Name and place of the call, of one inlined call.
    fn call(&mut self, base: u64, calls: u32, index: u64) -> Option<(u32, u32)> {
        let (bytes, name) = if self.found.version < Version::Go1_20 { (20, 12) } else { (16, 4) };
        let entry = base.checked_add(calls.into())?.checked_add(index * bytes)?;
        Some((self.image.u32(entry.checked_add(name)?)?, self.image.u32(entry.checked_add(name + 4)?)?))
    }

    /// The table of inlined calls by address, and the list of these calls; `None` in a function without any.
    fn calls_of(&mut self, function: &Function) -> Option<(u32, u32)> {
        let tables = self.image.u32(function.record.checked_add(self.wide(28))?)?;
        let lists = self.image.u8(function.record.checked_add(self.tail() + 3)?)?;
        if u64::from(tables) <= INLINED_CALL || u64::from(lists) <= INLINED_CALLS {
            return None;
        }
        let first = function.record.checked_add(self.tail() + 4)?;
        let table = self.image.u32(first.checked_add(INLINED_CALL * 4)?)?;
        let calls = self.image.u32(first.checked_add((u64::from(tables) + INLINED_CALLS) * 4)?)?;
        (table != 0 && calls != NONE).then_some((table, calls))
    }

    /// The lists of inlined calls lie behind one of the module's addresses. Releases move it, so it is the one by which
    /// all of some functions' lists make sense.
    fn find_calls(&mut self, words: &[u64; MODULE_WORDS]) -> Option<u64> {
        const SAMPLES: usize = 32;
        let mut samples = Vec::new();
        let stride = (self.found.functions / 512).max(1);
        for number in (0..self.found.functions).step_by(stride as usize) {
            let Some(function) = self.function(number) else { continue };
            if let Some((_, calls)) = self.calls_of(&function) {
                samples.push((calls, function.range));
            }
            if samples.len() >= SAMPLES {
                break;
            }
        }
        let usual = if self.found.version < Version::Go1_20 { 38 } else { 40 };
        let candidates = std::iter::once(words[usual]).chain(words[24..].iter().copied());
        let mut candidates = candidates.filter(|word| *word != 0);
        candidates
            .find(|base| !samples.is_empty() && samples.iter().all(|sample| self.makes_sense(*base, sample)))
    }

    fn makes_sense(&mut self, base: u64, (calls, range): &(u32, Range<u64>)) -> bool {
        let Some((name, parent)) = self.call(base, *calls, 0) else { return false };
        let begins = name > 0 && self.image.u8(self.found.names + u64::from(name) - 1) == Some(0);
        let text = self.image.text(self.found.names + u64::from(name), 2).unwrap_or_default();
        begins && !text.is_empty() && u64::from(parent) < range.end - range.start
    }

    fn at(&mut self, address: u64) -> Option<Function> {
        let (mut low, mut high) = (0, self.found.functions);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.entry(middle)? <= address {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        self.function(low.checked_sub(1)?).filter(|function| function.range.contains(&address))
    }

    /// Where a function begins, or where the last one ends.
    fn entry(&mut self, number: u64) -> Option<u64> {
        if self.found.version < Version::Go1_18 {
            return self.image.u64(self.found.entries + number * 16);
        }
        self.text.checked_add(self.image.u32(self.found.entries + number * 8)?.into())
    }

    fn raw_name(&mut self, name: u32) -> Option<Vec<u8>> {
        self.image.text(self.found.names.checked_add(name.into())?, NAME_BYTES)
    }

    /// The name as it is shown, if it is.
    fn printed_name(&mut self, name: u32) -> Option<Option<String>> {
        let name = self.raw_name(name)?;
        Some(printed(&String::from_utf8_lossy(&name)).map(Cow::into_owned))
    }

    /// A place in a function's record, whose first field was wider before 1.18.
    fn wide(&self, place: u64) -> u64 {
        if self.found.version < Version::Go1_18 { place + 4 } else { place }
    }

    /// Where the record's last four bytes are, before the lists.
    fn tail(&self) -> u64 {
        match self.found.version {
            Version::Go1_2 | Version::Go1_18 => 36,
            Version::Go1_16 | Version::Go1_20 => 40,
        }
    }

    fn values(&self, function: &Function, table: u32) -> Values {
        let at = self.found.values.saturating_add(table.into());
        Values { at, value: -1, address: function.range.start, is_first: true }
    }

    fn value(&mut self, function: &Function, table: u32, address: u64, steps: &mut u32) -> Option<i32> {
        let mut values = self.values(function, table);
        while values.address <= address {
            *steps = steps.checked_sub(1)?;
            self.step(&mut values)?.then_some(())?;
        }
        Some(values.value)
    }

    /// Goes over the next stretch, whose value holds up to the new address; whether there was one.
    fn step(&mut self, values: &mut Values) -> Option<bool> {
        let change = self.number(&mut values.at)?;
        if change == 0 && !values.is_first {
            return Some(false);
        }
        values.is_first = false;
        // Zigzag: the lowest bit is the sign.
        values.value = values.value.wrapping_add((change >> 1) as i32 ^ -((change & 1) as i32));
        let instructions = u64::from(self.number(&mut values.at)?);
        values.address = values.address.checked_add(instructions * u64::from(self.found.quantum))?;
        Some(true)
    }

    fn number(&mut self, at: &mut u64) -> Option<u32> {
        let mut number = 0;
        for shift in (0..35).step_by(7) {
            let byte = self.image.u8(*at)?;
            *at = at.checked_add(1)?;
            number |= u32::from(byte & 0x7f).checked_shl(shift)?;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }
}
