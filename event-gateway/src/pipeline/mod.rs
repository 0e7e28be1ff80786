//! The pipeline: rings → enrich → naming → spool → route → sink, on three threads.
//!
//! The ring thread waits neither for the files that name user stacks nor for the sink, and the sink's thread never touches a
//! ring; what is between them is bounded.

use crate::enrich::Enrich;
use crate::naming::Naming;
use crate::ring::{self, Ring};
use crate::route::{self, Route};
use crate::sink::Sink;
use crate::spool::Spool;
use crate::tally::Tally;
use anyhow::{Context, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

/// An event can be read within this time on a machine that is not overloaded; [`crate::naming::PATIENCE`] later where the names
/// of its user stack are hard to find.
const VISIBLE_WITHIN: Duration = Duration::from_secs(1);
const _: () = assert!(ring::WAIT.as_millis() + route::LINGER.as_millis() < VISIBLE_WITHIN.as_millis() / 2);

/// The running threads.
pub struct Pipeline {
    spool: Arc<Spool>,
    naming: Arc<Naming>,
    stop: Arc<AtomicBool>,
    ring_thread: Option<JoinHandle<()>>,
    sink_thread: JoinHandle<()>,
}

impl Pipeline {
    /// Starts the threads. Without a ring only what the spool already holds is delivered.
    pub fn start(
        ring: Option<Box<dyn Ring>>,
        mut enrich: Enrich,
        spool: &Arc<Spool>,
        mut sink: Box<dyn Sink>,
        tally: &Arc<Tally>,
    ) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (its_spool, its_tally) = (spool.clone(), tally.clone());
        let sink_thread = Builder::new()
            .name("sink".to_owned())
            .spawn(move || Route::new(&its_spool, sink.as_mut(), &its_tally).run())
            .context("cannot start the sink's thread")?;
        let naming = Naming::start(spool, tally)?;
        let (its_naming, its_tally, its_stop) = (naming.clone(), tally.clone(), stop.clone());
        let read = |mut ring: Box<dyn Ring>| {
            let read = move || ring::read(ring.as_mut(), &mut enrich, &its_naming, &its_tally, &its_stop);
            Builder::new()
                .name("ring".to_owned())
                .spawn(read)
                .context("cannot start the thread that reads the rings")
        };
        let ring_thread = ring.map(read).transpose()?;
        Ok(Self { spool: spool.clone(), naming, stop, ring_thread, sink_thread })
    }

    /// Drains the rings, then the spool. The probes should be detached before: else the rings never run dry.
    pub fn stop(self) {
        self.stop.store(true, Ordering::Release);
        if self.ring_thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the ring thread had panicked");
        }
        self.naming.finish();
        self.spool.close();
        if self.sink_thread.join().is_err() {
            tracing::error!("the sink's thread had panicked");
        }
    }
}

#[cfg(test)]
mod tests;
