//! What `--stats` prints when a verb is done: how fast tokens were made, what limits that, and what the GPU did.

use std::path::Path;

use anyhow::Result;

use super::args;
use super::predict::{self, Prediction, Rates};
use crate::cpu::major_faults;
use crate::session::Session;

/// Waits for the disk up to which nothing is said of them: the program itself is read with some tens.
const FAULTS: usize = 200;

/// What `--stats` asks for, on stderr.
pub(super) fn stats(session: &Session, a: &args::Model) -> Result<()> {
    if !a.stats {
        return Ok(());
    }
    speed(session);
    let Some(device) = session.engine().device() else { return Ok(()) };
    if let Some(w) = device.waits().filter(|w| w.walks > 0) {
        let ms = |s: f64| s * 1e3 / w.walks as f64;
        tracing::info!(
            "{} single tokens, {:.2} ms each: the CPU waited {:.2} ms for the GPU; the GPU worked {:.2} ms and waited \
             {:.2} ms for the CPU",
            w.walks,
            ms(w.whole),
            ms(w.cpu_waited),
            ms(w.gpu_worked),
            ms(w.gpu_waited)
        );
    }
    let Some(memory) = device.expert_memory() else { return Ok(()) };
    let c = device.cache_stats();
    let gb = |n: usize| n as f64 / 1e9;
    tracing::info!(
        "expert cache: {:.1}% of {} choices in single tokens were there; {} experts brought ({:.2} GB), {} passed through \
         while prompts were read ({:.2} GB)",
        100.0 * c.hits as f64 / c.chosen.max(1) as f64,
        c.chosen,
        c.uploads,
        gb(c.upload_bytes),
        c.passed,
        gb(c.passed_bytes)
    );
    tracing::info!("{memory}");
    Ok(())
}

/// How fast single tokens were read, beside what was to be expected.
fn speed(session: &Session) {
    let (engine, single) = (session.engine(), session.single());
    if single.together > 0 {
        tracing::info!("{} tokens were made several at once; what is predicted is one at a time", single.together);
    }
    if single.tokens == 0 {
        return;
    }
    let rate = single.tokens as f64 / single.seconds.max(1e-9);
    let depth = session.tokens(0).len().saturating_sub(single.tokens / 2);
    let rates = engine.device().and_then(|d| d.rates().ok());
    let rates = rates.map_or(Rates::ASSUMED, |(bus, vram)| Rates { ram: None, vram, bus });
    match predict::measure(&engine.tape, &engine.plan, &engine.pool, depth) {
        Ok(m) => {
            let p = Prediction::new(&engine.tape, &engine.plan, rates, Some(&m));
            let expected = p.decode().unwrap_or(0.0);
            tracing::info!(
                "{} single tokens: {rate:.1} per second measured, {}{expected:.1} predicted, {:.1} is the ceiling",
                single.tokens,
                if p.at_most { "at most " } else { "" },
                p.ceiling
            );
            tracing::info!("limited by {}", p.limit_words(engine.tape.steps.len(), Some(&m)));
        }
        Err(why) => tracing::info!("{} single tokens: {rate:.1} per second; not predicted: {why}", single.tokens),
    }
    if let Some(n) = major_faults(Path::new("/")).filter(|n| *n > FAULTS) {
        tracing::info!("{n} times pages of files had to come from disk: another run finds them in memory, if they fit");
    }
}
