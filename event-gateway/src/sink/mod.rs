//! Where events end: what every sink offers to the route.

pub mod elasticsearch;
pub mod kafka;
pub mod local;

use crate::spool::Document;

/// Takes batches of documents and keeps them.
pub trait Sink: Send {
    /// The sink's name in labels and log lines.
    fn name(&self) -> &'static str;

    /// Stores a batch whole or not at all. A document that is there already counts as stored.
    fn store(&mut self, batch: &[Document]) -> Result<(), SinkError>;

    /// Applies retention; called between batches. Bounded: what is left over waits for the next call.
    fn maintain(&mut self) -> Result<Expired, SinkError>;

    /// Bytes that the sink holds, where it can tell.
    fn bytes(&self) -> Option<u64>;
}

/// How many events retention removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Expired {
    /// Older than the longest age.
    pub by_age: u64,
    /// The oldest of a store that was too large.
    pub by_size: u64,
}

/// Why a sink did not take a batch.
#[derive(Debug)]
pub enum SinkError {
    /// It may take it later: the disk is full, the file is locked.
    Unavailable(anyhow::Error),
    /// It will never take it.
    Refused(anyhow::Error),
}
