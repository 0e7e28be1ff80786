//! What of a probe is in the kernel: its object, and where its programs are attached. They can be detached for a while,
//! with all that they have counted.

use crate::cpu_clock::CpuClock;
use crate::error::{ProbeError, may_pass, program_error};
use crate::features::Lack;
use crate::hook::{Attach, Attempt};
use crate::maps::RawMap;
use crate::probe::InFlight;
use aya::programs::{Program, ProgramError};
use aya::{Btf, Ebpf};
use std::any::Any;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// An object in the kernel. Dropping it takes it out.
pub(crate) struct Attached {
    pub(crate) ebpf: Ebpf,
    /// Runs a second and CPU of the programs that run as often as the process samples.
    sample_hz: u64,
    /// Programs that attached, in that order.
    attempts: Vec<Attempt>,
    /// Dropping one detaches its program.
    links: Vec<Box<dyn Any + Send>>,
    /// The programs that run on the clock of every CPU.
    clocks: Vec<Arc<CpuClock>>,
}

/// One that a thread beside may detach.
pub(crate) type Shared = Arc<Mutex<Attached>>;

pub(crate) fn lock(attached: &Mutex<Attached>) -> MutexGuard<'_, Attached> {
    // A panic between two links leaves some programs attached, which dropping takes out as well.
    attached.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Attached {
    /// Nothing of the object is attached yet.
    pub(crate) fn new(ebpf: Ebpf, sample_hz: u64) -> Self {
        Self { ebpf, sample_hz, attempts: Vec::new(), links: Vec::new(), clocks: Vec::new() }
    }

    /// Loads one program and attaches it.
    pub(crate) fn attempt(&mut self, attempt: Attempt, btf: &Btf) -> Result<(), Lack> {
        let program = self.ebpf.program_mut(attempt.program).ok_or_else(|| "not in the object".to_owned())?;
        load(program, attempt.attach, btf)
            .and_then(|()| self.link(attempt))
            .map_err(|error| Lack { why: program_error(&error), may_pass: may_pass(&error) })?;
        self.attempts.push(attempt);
        Ok(())
    }

    fn link(&mut self, attempt: Attempt) -> Result<(), ProgramError> {
        let Some(program) = self.ebpf.program_mut(attempt.program) else {
            return Err(ProgramError::NotLoaded);
        };
        let link: Box<dyn Any + Send> = match (attempt.attach, program) {
            (Attach::TpBtf(_), Program::BtfTracePoint(program)) => {
                let link = program.attach()?;
                Box::new(program.take_link(link)?)
            }
            (Attach::RawTp(tracepoint), Program::RawTracePoint(program)) => {
                let link = program.attach(tracepoint)?;
                Box::new(program.take_link(link)?)
            }
            (Attach::Tracepoint(category, name), Program::TracePoint(program)) => {
                let link = program.attach(category, name)?;
                Box::new(program.take_link(link)?)
            }
            (Attach::Fexit(_), Program::FExit(program)) => {
                let link = program.attach()?;
                Box::new(program.take_link(link)?)
            }
            // It runs when it is read.
            (Attach::Iter(_), Program::Iter(_)) => return Ok(()),
            (Attach::CpuClock(hz), Program::PerfEvent(program)) => {
                let clock = CpuClock::attach(program.fd()?.as_fd(), hz.unwrap_or(self.sample_hz));
                self.clocks.push(Arc::new(clock.map_err(ProgramError::IOError)?));
                return Ok(());
            }
            _ => return Err(ProgramError::UnexpectedProgramType),
        };
        self.links.push(link);
        Ok(())
    }

    /// The programs that run on the clocks of CPUs. Who reads the probe has them follow the CPUs.
    pub(crate) fn clocks(&self) -> Vec<Weak<CpuClock>> {
        self.clocks.iter().map(Arc::downgrade).collect()
    }

    /// Detaches every program. What they have counted stays.
    pub(crate) fn pause(&mut self) {
        self.links.clear();
        self.clocks.clear();
    }

    /// Attaches again what was. What had begun before the pause and ended in it is forgotten, or it would look as if it
    /// had lasted until now.
    pub(crate) fn resume(&mut self, in_flight: &[InFlight]) -> Result<(), ProbeError> {
        for InFlight { map, bytes } in in_flight {
            let failed = |source| ProbeError::Map { map: (*map).to_owned(), source };
            let map = self.ebpf.map(map).map(RawMap::open).transpose().map_err(failed)?.flatten();
            map.map_or(Ok(()), |map| map.forget(bytes.as_ref())).map_err(failed)?;
        }
        for attempt in self.attempts.clone() {
            if let Err(error) = self.link(attempt) {
                self.pause();
                return Err(ProbeError::Attach { hook: attempt.program, why: program_error(&error) });
            }
        }
        Ok(())
    }
}

fn load(program: &mut Program, attach: Attach, btf: &Btf) -> Result<(), ProgramError> {
    match (attach, program) {
        (Attach::TpBtf(tracepoint), Program::BtfTracePoint(program)) => program.load(tracepoint, btf),
        (Attach::RawTp(_), Program::RawTracePoint(program)) => program.load(),
        // One program may serve several of the probe's hooks.
        (Attach::Tracepoint(..), Program::TracePoint(program)) if program.fd().is_ok() => Ok(()),
        (Attach::Tracepoint(..), Program::TracePoint(program)) => program.load(),
        (Attach::Fexit(function), Program::FExit(program)) => program.load(function, btf),
        (Attach::Iter(objects), Program::Iter(program)) => program.load(objects, btf),
        (Attach::CpuClock(_), Program::PerfEvent(program)) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}
