//! Shared by the test programs of this crate.
