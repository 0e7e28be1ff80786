//! Who writes closed windows and their sums to the store? A thread of its own, so that nobody else waits for a disk.

use super::store::Store;
use super::sums;
use crate::pipeline::Shared;
use anyhow::Context;
use kpulse_common::memory;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

/// A lasting failure is logged this often.
const LOG_INTERVAL: Duration = Duration::from_secs(600);

/// Tells that a window was closed.
pub type Bell = SyncSender<()>;

/// The thread.
pub struct Keeper {
    shared: Shared,
    thread: JoinHandle<()>,
}

impl Keeper {
    /// Starts to keep the windows of this history.
    pub fn start(shared: &Shared, store: Arc<Store>) -> anyhow::Result<Self> {
        let (bell, rung) = mpsc::sync_channel(1);
        let kept = shared.clone();
        let thread = thread::Builder::new()
            .name("kpulse-history".into())
            .spawn({
                let store = store.clone();
                move || keep(&kept, &store, &rung)
            })
            .context("cannot start a thread")?;
        shared.lock().history.keep_in(store, bell);
        Ok(Self { shared: shared.clone(), thread })
    }

    /// Waits until all is written that can be.
    pub fn finish(self) {
        self.shared.lock().history.hang_up();
        // A thread that panicked has said so on stderr.
        let _ = self.thread.join();
    }
}

fn keep(shared: &Shared, store: &Store, rung: &Receiver<()>) {
    let mut said: Option<Instant> = None;
    let mut said_of_sums: Option<Instant> = None;
    loop {
        let is_last = rung.recv().is_err();
        loop {
            let waiting = shared.lock().history.waiting();
            let Some(window) = waiting else {
                said = None;
                break;
            };
            match store.append(&window, SystemTime::now()) {
                Ok(evicted) => shared.lock().history.written(window.number, evicted),
                Err(error) => {
                    shared.lock().history.not_written();
                    if said.is_none_or(|at| at.elapsed() >= LOG_INTERVAL) {
                        said = Some(Instant::now());
                        let error = format!("{error:#}");
                        tracing::error!(
                            error,
                            "windows stay in memory, where less fits, until they can be written"
                        );
                    }
                    break;
                }
            }
        }
        if is_last {
            return;
        }
        // One at a time: after a start all may be missing, and they are in no hurry.
        let max_stacks = shared.lock().history.bounds.window_entries;
        match sums::make_next(store, max_stacks, SystemTime::now()) {
            Ok(None) => {}
            Ok(Some(evicted)) => {
                // Many windows were in memory at once.
                memory::trim();
                shared.lock().history.gave_way(evicted);
            }
            Err(error) => {
                if said_of_sums.is_none_or(|at| at.elapsed() >= LOG_INTERVAL) {
                    said_of_sums = Some(Instant::now());
                    let error = format!("{error:#}");
                    tracing::error!(error, "windows are not summed, answers about long times take longer");
                }
            }
        }
    }
}
