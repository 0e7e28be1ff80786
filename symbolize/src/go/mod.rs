//! Which functions has a Go program, and how far is it to their return addresses? The table that Go's own runtime walks
//! stacks by, `gopclntab`, which no stripping takes away.
//!
//! Its layout follows Go's sources (`internal/abi/symtab.go`, `runtime/symtab.go`); versions since 1.2 are read, inlined
//! functions since 1.18. The bytes come from files that any container can write: what is read is bounded, and no bytes
//! make this panic.

mod files;
mod find;
mod image;
mod name;
mod table;
#[cfg(test)]
mod tests;

pub(crate) use files::Files;
pub use table::{Function, Table};
