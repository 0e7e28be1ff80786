//! What the profiler says about itself: samples and their losses, names, memory.

use crate::files::Counts;
use crate::history::Held;
use crate::pipeline::Shared;
use kpulse_common::metric::{Label, MetricDef, Samples};
use kpulse_common::paths::Paths;
use kpulse_common::self_metrics;
use kpulse_exporter_ebpf::ProbeSet;

const REASON: &[Label] = &[Label::Named("reason")];
const SCOPE: &[Label] = &[Label::Named("scope")];
const PLACE: &[Label] = &[Label::Named("place")];

const TAKEN: MetricDef = MetricDef::counter(
    "kpulse_profiler_samples_total",
    "Samples that the kernel took of CPUs that were not idle.",
    &[],
);
const STORED: MetricDef =
    MetricDef::counter("kpulse_profiler_samples_stored_total", "Samples that are in a profile.", &[]);
const LOST: MetricDef = MetricDef::counter(
    "kpulse_profiler_samples_lost_total",
    "Samples that are in no profile: samples = stored + lost.",
    REASON,
);
const UNSYMBOLIZED: MetricDef = MetricDef::counter(
    "kpulse_profiler_frames_unsymbolized_total",
    "Frames of stored samples that have no name.",
    REASON,
);
const CUT: MetricDef = MetricDef::counter(
    "kpulse_profiler_stacks_cut_total",
    "Samples whose user stack may not be whole.",
    REASON,
);
const TABLE_FILES: MetricDef = MetricDef::gauge(
    "kpulse_profiler_unwind_files",
    "Programs and libraries with a table in the kernel.",
    &[],
);
const TABLE_ROWS: MetricDef =
    MetricDef::gauge("kpulse_profiler_unwind_rows", "Rows of these tables, of 8 bytes each.", &[]);
const TABLE_PROCESSES: MetricDef =
    MetricDef::gauge("kpulse_profiler_unwind_processes", "Processes whose stacks are walked by tables.", &[]);
const TABLE_REFUSED: MetricDef = MetricDef::counter(
    "kpulse_profiler_unwind_refused_total",
    "Files and processes that have no table.",
    REASON,
);
const DRAIN_ERRORS: MetricDef = MetricDef::counter(
    "kpulse_profiler_drain_errors_total",
    "Times when samples could not be read from the kernel.",
    &[],
);
const UPLOADS: MetricDef = MetricDef::counter(
    "kpulse_profiler_uploads_total",
    "Windows that a store of profiles took (sent) or did not (refused, lost), and attempts before that (retried).",
    &[Label::Named("outcome")],
);
const FILES: MetricDef = MetricDef::counter(
    "kpulse_profiler_files_written_total",
    "Folded files written for the host, containers and processes.",
    SCOPE,
);
const FILES_SAMPLES: MetricDef =
    MetricDef::counter("kpulse_profiler_files_samples_total", "Samples in folded files.", SCOPE);
const FILES_LEFT_OUT: MetricDef = MetricDef::counter(
    "kpulse_profiler_files_samples_left_out_total",
    "Samples of the same windows that are in no file of this scope.",
    &[Label::Named("scope"), Label::Named("reason")],
);
const FILES_LINES_CUT: MetricDef = MetricDef::counter(
    "kpulse_profiler_files_lines_cut_total",
    "Lines of folded files without the middle of a stack that is too long.",
    &[],
);
const FILES_WINDOWS: MetricDef = MetricDef::counter(
    "kpulse_profiler_files_windows_total",
    "Windows that are in folded files (written), or left the history before that (lost).",
    &[Label::Named("outcome")],
);
const FILES_REMOVED: MetricDef = MetricDef::counter(
    "kpulse_profiler_files_removed_total",
    "Folded files that went because of their age or for others' bytes.",
    REASON,
);
const FILES_ERRORS: MetricDef = MetricDef::counter(
    "kpulse_profiler_files_errors_total",
    "Times when the folded files of a period could not be written; it is tried again.",
    &[],
);
const FILES_BYTES: MetricDef =
    MetricDef::gauge("kpulse_profiler_files_bytes", "Bytes that folded files take on the disk.", &[]);
const HISTORY_BYTES: MetricDef = MetricDef::gauge(
    "kpulse_profiler_history_bytes",
    "Bytes of the kept windows and their sums, compressed on disk; in memory those of the open one and of what is not written yet.",
    PLACE,
);
const HISTORY_ENTRIES: MetricDef =
    MetricDef::gauge("kpulse_profiler_history_entries", "Stacks kept, summed over the windows.", PLACE);
const HISTORY_WINDOWS: MetricDef =
    MetricDef::gauge("kpulse_profiler_history_windows", "Windows kept, with the open one in memory.", PLACE);
const EVICTED_WINDOWS: MetricDef = MetricDef::counter(
    "kpulse_profiler_history_evicted_windows_total",
    "Windows that went before their age because there was no room.",
    &[],
);
const EVICTED_SAMPLES: MetricDef = MetricDef::counter(
    "kpulse_profiler_history_evicted_samples_total",
    "Samples of the windows that went before their age.",
    &[],
);
const WRITE_ERRORS: MetricDef = MetricDef::counter(
    "kpulse_profiler_history_write_errors_total",
    "Times when a window could not be written to the disk; it is tried again.",
    &[],
);
const NAME_BYTES: MetricDef =
    MetricDef::gauge("kpulse_profiler_symbol_names_bytes", "Memory of the names of functions.", &[]);
const ADDRESSES: MetricDef =
    MetricDef::gauge("kpulse_profiler_symbol_addresses", "Addresses whose names are kept.", &[]);

/// Everything of one scrape.
pub fn collect(shared: &Shared, probes: &ProbeSet, paths: &Paths) -> Samples {
    let mut out = Samples::default();
    {
        let state = shared.lock();
        let totals = &state.totals;
        // Without a working probe nothing was counted, and zero would be a lie.
        if totals.drains > totals.drain_errors {
            out.count(&TAKEN, &[], totals.taken);
            out.count(&STORED, &[], totals.stored);
            for (reason, count) in &totals.lost {
                out.count(&LOST, &[reason], *count);
            }
            for (reason, count) in &totals.unsymbolized {
                out.count(&UNSYMBOLIZED, &[reason], *count);
            }
            for (reason, count) in &totals.cut {
                out.count(&CUT, &[reason], *count);
            }
            out.count(&TABLE_FILES, &[], totals.tables.files as u64);
            out.count(&TABLE_ROWS, &[], totals.tables.rows.into());
            out.count(&TABLE_PROCESSES, &[], totals.tables.processes as u64);
            for (reason, count) in &totals.tables.refused {
                out.count(&TABLE_REFUSED, &[reason], *count);
            }
        }
        for (outcome, count) in &totals.uploads {
            out.count(&UPLOADS, &[outcome], *count);
        }
        if let Some(counts) = &totals.files {
            files(counts, &mut out);
        }
        let history = &state.history;
        out.count(&DRAIN_ERRORS, &[], totals.drain_errors);
        let mut held = |place: &str, bytes, entries, windows| {
            out.count(&HISTORY_BYTES, &[place], bytes);
            out.count(&HISTORY_ENTRIES, &[place], entries);
            out.count(&HISTORY_WINDOWS, &[place], windows);
        };
        held("memory", history.bytes() as u64, history.entries(), history.windows() as u64);
        // Absent where there is none.
        if let Some(store) = history.store() {
            let Held { bytes, entries, windows, .. } = store.held();
            held("disk", bytes, entries, windows);
        }
        out.count(&EVICTED_WINDOWS, &[], history.evicted().windows);
        out.count(&EVICTED_SAMPLES, &[], history.evicted().samples);
        out.count(&WRITE_ERRORS, &[], history.write_errors());
        out.count(&NAME_BYTES, &[], totals.name_bytes as u64);
        out.count(&ADDRESSES, &[], totals.addresses as u64);
    }
    probes.self_metrics(&mut out);
    self_metrics::process(paths, &mut out);
    self_metrics::build_info("kpulse-profiler", &mut out);
    out
}

fn files(counts: &Counts, out: &mut Samples) {
    let by_name = [
        (&FILES, &counts.files),
        (&FILES_SAMPLES, &counts.samples),
        (&FILES_WINDOWS, &counts.windows),
        (&FILES_REMOVED, &counts.removed),
    ];
    for (metric, sums) in by_name {
        for (name, count) in sums {
            out.count(metric, &[name], *count);
        }
    }
    for ((scope, reason), count) in &counts.left_out {
        out.count(&FILES_LEFT_OUT, &[scope, reason], *count);
    }
    out.count(&FILES_LINES_CUT, &[], counts.lines_cut);
    out.count(&FILES_ERRORS, &[], counts.errors);
    out.count(&FILES_BYTES, &[], counts.bytes);
}
