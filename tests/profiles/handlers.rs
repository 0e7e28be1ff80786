//! Are stacks whole where more than calls is on them: handlers of signals, exceptions on their way, Go that C calls?

use crate::{built, needs_root};
use kpulse_tests::profile::Line;
use kpulse_tests::workload::{CHAIN, Quality, Verdict, cpp, go, in_order, is_native_root};

/// Share of whole stacks to reach, percent.
const TARGET: f64 = 99.5;
/// With nothing but exceptions, one stack in 150 ends in `_Unwind_Resume`: it jumps to where rcx points, which rows cannot
/// hold, and waits there for the instructions to come.
const TARGET_OF_EXCEPTIONS: f64 = 99.0;

/// Where `deep<depth>` ends that begins with the outermost one and lacks none; and the innermost depth.
fn end_of_chain(frames: &[String]) -> Option<(usize, usize)> {
    let begin = frames.iter().position(|frame| frame.contains("deep<20>"))?;
    let is_next = |(depth, frame): &(usize, &String)| frame.contains(&format!("deep<{depth}>"));
    let length = (0..CHAIN).rev().zip(&frames[begin..]).take_while(is_next).count();
    Some((begin + length, CHAIN - length))
}

/// Whether the handler stands on what the kernel puts there for it to return to; and what it stands on.
fn interrupted<'a>(frames: &'a [String], handler: &str) -> Option<&'a [String]> {
    let place =
        frames.iter().position(|frame| frame == handler || frame.starts_with(&format!("{handler}(")))?;
    let (restorer, below) = frames[..place].split_last()?;
    let is_restorer = restorer == "__restore_rt" || restorer.starts_with("[libc.so.6");
    Some(if is_restorer { below } else { &[] })
}

fn has(frames: &[String], name: &str) -> bool {
    frames.iter().any(|frame| frame == name)
}

/// The known chain below what raised the signal, and the handler with its leaf above.
fn judge_raised(line: &Line, handler: &str, by: &str) -> Verdict {
    let (leaf, is_whole) = cpp::judge(line)?;
    let below = interrupted(&line.frames, handler);
    let raised = |below: &[String]| {
        let end = end_of_chain(below).filter(|(_, depth)| *depth == 0);
        end.is_some_and(|(end, _)| below.get(end).is_some_and(|frame| frame == by))
    };
    Some((leaf, is_whole && below.is_some_and(raised)))
}

/// The handler of a timer stands on any part of the chain.
fn judge_timer(line: &Line) -> Verdict {
    const HANDLER: &str = "long_handler";
    let frames = &line.frames;
    let handler = frames.iter().position(|frame| frame == HANDLER)?;
    let leaf = ["hot_a", "hot_b", "hot_c"].iter().position(|leaf| has(&frames[handler..], leaf))?;
    let is_whole = |below: &[String]| {
        let end = end_of_chain(below);
        let is_hot = ["hot_a", "hot_b", "hot_c"].iter().any(|leaf| has(below, leaf));
        cpp::has(line, "run")
            && end.is_none_or(|(end, depth)| below.len() == end || depth == 0)
            && (!is_hot || end.is_some_and(|(end, _)| below.get(end).is_some_and(|frame| frame == "choose")))
    };
    let below = interrupted(frames, HANDLER);
    Some((leaf, is_native_root(line) && below.is_some_and(is_whole)))
}

#[test]
fn a_handler_stands_on_what_raised_its_signal() {
    const TEST: &str = "a_handler_stands_on_what_raised_its_signal";
    needs_root!(TEST);
    let folder = tempfile::tempdir().expect("a folder");
    let program = cpp::start(&built!(TEST, cpp::build(folder.path(), &[])), &["signal"]);
    let judge = |line: &Line| judge_raised(line, "handler", "raise_signal");
    Quality::recorded(program.pid(), judge).assert_true(TARGET);
}

/// Its caller is found by the very instruction, since the one before belongs to another function.
#[test]
fn a_handler_stands_on_the_first_instruction_of_a_function() {
    const TEST: &str = "a_handler_stands_on_the_first_instruction_of_a_function";
    needs_root!(TEST);
    let folder = tempfile::tempdir().expect("a folder");
    let program = cpp::start(&built!(TEST, cpp::build(folder.path(), &[])), &["trap"]);
    let judge = |line: &Line| judge_raised(line, "trap_handler", "trap");
    Quality::recorded(program.pid(), judge).assert_true(TARGET);
}

#[test]
fn a_handler_stands_on_whatever_it_interrupted() {
    const TEST: &str = "a_handler_stands_on_whatever_it_interrupted";
    needs_root!(TEST);
    let folder = tempfile::tempdir().expect("a folder");
    let program = built!(TEST, cpp::build(folder.path(), &[]));
    for how in ["timer", "alternate"] {
        println!("{how}");
        let program = cpp::start(&program, &[how]);
        Quality::recorded(program.pid(), judge_timer).assert_true(TARGET);
    }
}

/// Every sample counts, of three kinds: what looks for the handler and goes there, what destroys objects on the way, and
/// what goes on after each.
fn judge_thrown(line: &Line) -> Verdict {
    let frames = &line.frames;
    let place = |name: &str| frames.iter().position(|frame| frame.contains(name));
    let end = end_of_chain(frames);
    let behind = |place: usize| end.is_some_and(|(end, _)| end == place);
    let (kind, is_whole) = if let Some(thrown) = place("__cxa_throw") {
        (
            0,
            behind(thrown - 1)
                && frames[thrown - 1].starts_with("fail")
                && end.is_some_and(|(_, depth)| depth == 0),
        )
    } else if let Some(destructor) = place("::~Guard") {
        let own = end.map(|(_, depth)| format!("Guard<{depth}>::~Guard"));
        (1, behind(destructor) && own.is_some_and(|own| frames[destructor].starts_with(&own)))
    } else if let Some(resumed) = place("_Unwind_Resume") {
        (2, behind(resumed))
    } else {
        (0, true)
    };
    Some((kind, is_native_root(line) && cpp::has(line, "run") && is_whole))
}

#[test]
fn an_exception_is_walked_at_every_step_of_its_way() {
    const TEST: &str = "an_exception_is_walked_at_every_step_of_its_way";
    needs_root!(TEST);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("throw");
    built!(TEST, cpp::compile("throw.cc", &[], &path));
    let program = cpp::start(&path, &[]);
    let quality = Quality::recorded(program.pid(), judge_thrown);
    quality.assert_whole(TARGET_OF_EXCEPTIONS);
    assert!(quality.by_leaf().iter().all(|[samples, _]| *samples >= 100), "each kind was met: {quality:#?}");
}

/// C that Go calls, on the thread's stack, calls Go, which goes on where the goroutine's stack ended. What C is called is not
/// in a stripped program.
fn judge_go_through_c(line: &Line, is_stripped: bool) -> Verdict {
    const LEAVES: [&str; 3] = ["main.hotA", "main.(*kind[...]).run", "main.hotC"];
    const C: [&str; 2] = ["through", "goBack"];
    let frames = &line.frames[1..];
    let leaf = LEAVES.iter().position(|leaf| has(frames, leaf))?;
    let into_c: &[&str] = &["main.throughC", "runtime.cgocall", "runtime.asmcgocall"];
    let back = &["crosscall2", "runtime.cgocallback", "runtime.cgocallbackg", "main.goBack", "main.choose"];
    let way = [into_c, if is_stripped { &[] } else { &C }, back, &[LEAVES[leaf]]].concat();
    Some((leaf, go::begins_with(frames, &go::chain()) && in_order(frames, &way)))
}

#[test]
fn go_that_c_calls_is_walked_to_the_goroutine() {
    const TEST: &str = "go_that_c_calls_is_walked_to_the_goroutine";
    needs_root!(TEST);
    let folder = tempfile::tempdir().expect("a folder");
    for (flags, is_stripped) in [(&[][..], false), (&["-ldflags=-s -w"], true)] {
        println!("{flags:?}");
        let program = go::start(&built!(TEST, go::build(folder.path(), true, flags)), &["through"]);
        let judge = |line: &Line| judge_go_through_c(line, is_stripped);
        Quality::recorded(program.pid(), judge).assert_true(TARGET);
    }
}

/// C's handler of a signal that C raised, on the stack that Go has for handlers.
fn judge_go_raised(line: &Line) -> Verdict {
    let frames = &line.frames[1..];
    if !has(frames, "handler") && !has(frames, "hot_c") {
        return None;
    }
    let way = ["main.raise", "runtime.cgocall", "runtime.asmcgocall", "raise_signal"];
    let below = interrupted(frames, "handler");
    let is_whole = |below: &[String]| go::begins_with(below, &go::chain()) && in_order(below, &way);
    Some((0, below.is_some_and(is_whole)))
}

/// The same of a timer, on top of whatever ran, but for the scheduler: no goroutine calls it.
fn judge_go_timer(line: &Line) -> Verdict {
    const SCHEDULER: [&str; 3] = ["runtime.mcall", "runtime.morestack", "runtime.mstart"];
    let frames = &line.frames[1..];
    let below = interrupted(frames, "handler")?;
    if below.first().is_some_and(|root| SCHEDULER.contains(&root.as_str())) {
        return None;
    }
    let deep = below.iter().filter(|frame| *frame == "main.deep").count();
    let is_hot = ["main.hotA", "main.(*kind[...]).run", "main.hotC"].iter().any(|leaf| has(below, leaf));
    let chain = go::chain();
    let is_whole = go::begins_with(below, &chain[..2 + deep])
        && (!is_hot || deep == CHAIN && below.get(chain.len()).is_some_and(|frame| frame == "main.choose"));
    Some((0, is_whole))
}

#[test]
fn a_handler_in_a_go_program_stands_on_the_goroutine() {
    const TEST: &str = "a_handler_in_a_go_program_stands_on_the_goroutine";
    needs_root!(TEST);
    let folder = tempfile::tempdir().expect("a folder");
    let program = built!(TEST, go::build(folder.path(), true, &[]));
    for (how, judge) in [("signal", judge_go_raised as fn(&Line) -> Verdict), ("timer", judge_go_timer)] {
        println!("{how}");
        let program = go::start(&program, &[how]);
        Quality::recorded(program.pid(), judge).assert_whole(TARGET);
    }
}
