//! What `--stats` prints when a verb is done: how fast tokens were made, what limits that, and what
//! the GPU did.

use std::path::Path;

use anyhow::Result;

use super::args;
use super::predict::{self, Bandwidths, Prediction};
use crate::cpu::major_faults;
use crate::exec::Device;
use crate::plan::Place;
use crate::session::Session;

/// Major page faults up to which there is no notice: loading the program itself takes some tens.
const FAULTS: usize = 200;

/// Prints the statistics on stderr if `--stats` asks for them.
pub(super) fn stats(session: &Session, a: &args::ModelArgs) -> Result<()> {
    if !a.stats {
        return Ok(());
    }
    speed(session);
    spared(session);
    let devices = session.engine().devices();
    for (device, n) in devices.iter().zip(0..) {
        let Some(w) = device.waits().filter(|w| w.walks > 0) else { continue };
        let ms = |s: f64| s * 1e3 / w.walks as f64;
        let name = if devices.len() == 1 { "the GPU" } else { Place::Gpu(n).name() };
        tracing::info!(
            "decode: {} tokens, {:.2} ms each; the CPU waited {:.2} ms for {name}; {name} worked {:.2} ms and waited \
             {:.2} ms for others",
            w.walks,
            ms(w.whole),
            ms(w.cpu_waited),
            ms(w.gpu_worked),
            ms(w.gpu_waited)
        );
    }
    from_drive(session);
    let Some(memory) = devices.iter().find_map(Device::expert_memory) else { return Ok(()) };
    let c = session.engine().cache_stats();
    let gb = |n: usize| n as f64 / 1e9;
    tracing::info!(
        "expert cache: {:.1}% hits of {} expert choices in decode; {} experts loaded ({:.2} GB), {} streamed for prompts \
         ({:.2} GB); {} batches of prompts in halves",
        100.0 * c.hits as f64 / c.chosen.max(1) as f64,
        c.chosen,
        c.uploads,
        gb(c.upload_bytes),
        c.passed,
        gb(c.passed_bytes),
        c.halved
    );
    tracing::info!("{memory}");
    Ok(())
}

/// What prompts left out, of a model whose last layers need only their end.
fn spared(session: &Session) {
    let rows = session.spared_rows();
    if rows.all > 0 {
        tracing::info!(
            "prompts: the layers that need only a prompt's end computed {:.1}% of its rows",
            100.0 * rows.computed as f64 / rows.all as f64
        );
    }
}

/// What was read from the drive, where experts are not all in memory.
fn from_drive(session: &Session) {
    let Some(d) = session.engine().drive_stats() else { return };
    tracing::info!(
        "experts in memory ({} of each layer): {:.1}% hits of {}; {:.2} GB read from the drive, {:.2} s waited for it",
        d.slots,
        100.0 * d.hits as f64 / d.needed.max(1) as f64,
        d.needed,
        d.bytes as f64 / 1e9,
        d.waited
    );
}

/// The decode rate, measured and, where the drive has no part in it, predicted.
fn speed(session: &Session) {
    let single = session.decode_stats();
    if single.together > 0 {
        tracing::info!(
            "{} tokens were decoded several at a time; the prediction is for one at a time",
            single.together
        );
    }
    if single.tokens == 0 {
        return;
    }
    let rate = single.tokens as f64 / single.seconds.max(1e-9);
    match session.ram() {
        // A prediction would leave the drive out, and measuring for it takes memory that experts have.
        Some(_) => tracing::info!(
            "decode: {} tokens, {rate:.1} tokens/s; tandem explain predicts it with the drive's rate",
            single.tokens
        ),
        None => predicted(session, rate),
    }
    if let Some(n) = major_faults(Path::new("/")).filter(|n| *n > FAULTS) {
        tracing::info!(
            "{n} major page faults: parts of the model were read from disk; the next run is faster if the model fits into memory"
        );
    }
}

/// The decode rate beside what is predicted for it, and what limits that.
fn predicted(session: &Session, rate: f64) {
    let (engine, tokens) = (session.engine(), session.decode_stats().tokens);
    let depth = session.tokens(0).len().saturating_sub(tokens / 2);
    let rates = Bandwidths::of_gpu(engine.devices().first().map(Device::gpu));
    match predict::measure(&engine.tape, &engine.plan, &engine.pool, depth) {
        Ok(m) => {
            let p = Prediction::new(&engine.tape, &engine.plan, depth, rates, Some(&m));
            let expected = p.decode().unwrap_or(0.0);
            tracing::info!(
                "decode: {tokens} tokens, {rate:.1} tokens/s measured, {expected:.1} predicted, ceiling {:.1}",
                p.ceiling
            );
            tracing::info!("limited by {}", p.limit_words(engine.tape.model().len(), Some(&m)));
        }
        Err(why) => tracing::info!("decode: {tokens} tokens, {rate:.1} tokens/s; not predicted: {why}"),
    }
}
