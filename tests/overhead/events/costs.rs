//! From what the kernel counted in three passes to nanoseconds a run, and the table of them.

use kpulse_exporter_ebpf::ProgramCost;

/// Programs that no load can have run often, by the beginning of their names.
const NOT_REACHED: [(&str, &str); 4] = [
    ("direct_reclaim_", "a machine without memory hurts; it is the code of memcg_reclaim"),
    ("tcp_retransmit_synack", "a SYN-ACK is sent again after a second at the soonest"),
    ("sched_process_hang", "a task has to hang for two minutes"),
    ("count_task", "it runs when the exporter is scraped, once for each task"),
];

/// What the programs of a probe did while its load ran once.
#[derive(Default)]
pub struct Pass {
    pub costs: Vec<ProgramCost>,
    /// Hits that the rate limit kept back, or that found no room in the ring.
    pub kept: u64,
    pub events: u64,
}

/// The passes of one load. In all three a run below the threshold takes the same, and what is left of the time of the
/// other two is that of two kinds of hits: two equations for two unknowns.
#[derive(Default)]
pub struct Costs {
    /// Programs that tell of what the load provokes.
    pub tellers: Vec<&'static str>,
    /// Thresholds that nothing reaches.
    pub below: Pass,
    /// Everything is a hit, and the rate limit keeps nearly all back.
    pub kept_back: Pass,
    /// Everything is a hit, and becomes an event.
    pub let_through: Pass,
}

/// One program's part of a pass.
struct Share {
    ns: f64,
    kept: f64,
    events: f64,
    /// Runs that told nothing.
    rest: f64,
}

impl Pass {
    fn cost(&self, program: &str) -> (u64, u64) {
        let cost = self.costs.iter().find(|cost| cost.program == program);
        cost.map_or((0, 0), |cost| (cost.runs, cost.ns))
    }

    /// Where several programs tell, each has its share of the hits by its runs: each of them is one then.
    fn share(&self, program: &str, tellers: &[&'static str]) -> Share {
        let (runs, ns) = self.cost(program);
        let all: u64 = tellers.iter().map(|teller| self.cost(teller).0).sum();
        let share = runs as f64 / all.max(1) as f64;
        let [kept, events] = [self.kept, self.events].map(|hits| hits as f64 * share);
        Share { ns: ns as f64, kept, events, rest: runs as f64 - kept - events }
    }
}

impl Costs {
    fn passes(&self) -> [&Pass; 3] {
        [&self.below, &self.kept_back, &self.let_through]
    }

    /// Nanoseconds of a run that is kept back, and of one that becomes an event.
    fn hits(&self, program: &str, below: Option<f64>) -> [Option<f64>; 2] {
        let [first, second] = [&self.kept_back, &self.let_through].map(|pass| {
            let share = pass.share(program, &self.tellers);
            Share { ns: share.ns - share.rest * below.unwrap_or(0.0), ..share }
        });
        // More hits than runs: other work on the machine had another program of the probe tell.
        if [&first, &second].iter().any(|share| share.rest < -0.01 * (share.kept + share.events)) {
            return [Some(0.0); 2];
        }
        let determinant = first.kept * second.events - second.kept * first.events;
        if determinant.abs() < 1.0 {
            return [None, (second.events >= 1.0).then(|| second.ns / second.events)];
        }
        [
            Some((first.ns * second.events - second.ns * first.events) / determinant),
            Some((first.kept * second.ns - second.kept * first.ns) / determinant),
        ]
    }
}

/// The head of the table.
pub fn print_head() {
    line("probe", "program", ["runs", "ns", "kept back", "ns", "events", "ns"].map(str::to_owned));
}

/// A line for each program of a probe, from all loads: of the one that a load lets tell, from that load alone.
pub fn print(probe: &str, loads: &[Costs]) {
    let Some(first) = loads.first() else { return };
    let measured = first.passes().into_iter().find(|pass| !pass.costs.is_empty());
    for ProgramCost { program, .. } in measured.map_or(&[][..], |pass| &pass.costs) {
        let telling = loads.iter().find(|load| load.tellers.contains(program));
        let passes: Vec<&Pass> = match telling {
            Some(load) => load.passes().to_vec(),
            None => loads.iter().flat_map(Costs::passes).collect(),
        };
        let runs: u64 = passes.iter().map(|pass| pass.cost(program).0).sum();
        let Some(load) = telling else {
            match (runs, NOT_REACHED.iter().find(|(name, _)| program.starts_with(name))) {
                (0, Some((_, why))) => println!("  {probe:<17} {program:<34} not reached: {why}"),
                (0, None) => println!("  {probe:<17} {program:<34} not reached by any load here"),
                _ => line(probe, program, cells([runs.to_string(), nanoseconds(mean(program, &passes))])),
            }
            continue;
        };
        let below = mean(program, &[&load.below]);
        let [kept_ns, event_ns] = load.hits(program, below).map(nanoseconds);
        let shares = passes.iter().map(|pass| pass.share(program, &load.tellers));
        let [kept, events] =
            shares.fold([0.0, 0.0], |[kept, events], share| [kept + share.kept, events + share.events]);
        let [kept, events] = [kept, events].map(|hits| format!("{hits:.0}"));
        line(probe, program, [runs.to_string(), nanoseconds(below), kept, kept_ns, events, event_ns]);
    }
}

/// Nanoseconds a run.
fn mean(program: &str, passes: &[&Pass]) -> Option<f64> {
    let costs = passes.iter().map(|pass| pass.cost(program));
    let (runs, ns) = costs.fold((0, 0), |(runs, ns), (more, longer)| (runs + more, ns + longer));
    (runs > 0).then(|| ns as f64 / runs as f64)
}

fn nanoseconds(value: Option<f64>) -> String {
    match value {
        None => "-".into(),
        Some(value) if value <= 0.0 => "noise".into(),
        Some(value) => format!("{value:.0}"),
    }
}

/// A run tells nothing.
fn cells([runs, ns]: [String; 2]) -> [String; 6] {
    let none = || "-".to_owned();
    [runs, ns, none(), none(), none(), none()]
}

fn line(probe: &str, program: &str, [runs, ns, kept, kept_ns, events, event_ns]: [String; 6]) {
    println!(
        "  {probe:<17} {program:<34} {runs:>8} {ns:>6} {kept:>9} {kept_ns:>6} {events:>7} {event_ns:>6}"
    );
}
