//! `tandem run`: continues a prompt. stdout carries the model's text and nothing else.

use std::io::{IsTerminal, Read, Write};
use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

use super::args::{self, Sampling};
use super::{Failure, on_interrupt, read_text, session, stats, structured, usage};
use crate::sample::Sampler;
use crate::session::{ContextFull, Interrupted, Session, Want};
use crate::text::Tokenizer;
use crate::text::grammar::DeadEnd;

/// Runs the verb.
pub(super) fn run(a: &args::Run) -> Result<()> {
    let prompt = prompt(a)?;
    check(&a.sampling)?;
    let form = structured::form(&a.structured)?;
    let mut session = session(&a.model)?;
    let mut sampler = sampler(&a.sampling);
    let tokenizer = Tokenizer::new(session.engine().gguf()).context(Failure::Model)?;
    let mut grammar = form.map(|f| structured::grammar(&tokenizer, &f)).transpose()?;
    let tokens = tokenizer.encode(&prompt, true, true)?;
    if tokens.is_empty() {
        return usage("the prompt is empty; give some text with -p, -f or on stdin".into());
    }
    if tokens.len() > session.n_ctx() {
        // Said before the first batch is read, with the whole count.
        return Err(ContextFull { n_ctx: session.n_ctx(), used: 0, given: tokens.len() }.into());
    }
    let asked = on_interrupt(&session)?;

    let start = Instant::now();
    let mut logits = read(&mut session, &tokens)?;
    let prompt_s = start.elapsed().as_secs_f64();

    let mut out = std::io::stdout().lock();
    let mut stream = tokenizer.stream();
    let start = Instant::now();
    let mut made = 0usize;
    let room = session.n_ctx() - tokens.len();
    let limit = usize::try_from(a.n_predict).unwrap_or(usize::MAX);
    let ended = loop {
        if made >= limit {
            break "the asked number of tokens";
        }
        if asked.load(Ordering::SeqCst) {
            break "Ctrl-C";
        }
        let allowed = match &mut grammar {
            Some(g) if g.is_done() => break "the end of what the grammar allows",
            Some(g) => Some(g.mask()?),
            None => None,
        };
        let token = match sampler.pick(finite(&logits)?, allowed) {
            Some(token) => token,
            None if grammar.is_some() => return Err(DeadEnd.into()),
            None => bail!("the model computed no logit above minus infinity"),
        };
        if let Some(g) = &mut grammar {
            g.accept(token)?;
        }
        if tokenizer.is_eog(token) && !a.ignore_eos {
            break "the model's end of text";
        }
        made += 1;
        out.write_all(stream.push(token).as_bytes())?;
        out.flush()?;
        if made > room {
            break "the end of the context (a larger -c gives room)";
        }
        if made < limit {
            logits = session.feed(0, &[token], Want::Last)?;
        }
    };
    out.write_all(stream.finish().as_bytes())?;
    out.flush()?;
    if std::io::stdout().is_terminal() {
        eprintln!();
    }
    if let Some(g) = &mut grammar
        && !g.may_end()
    {
        tracing::warn!("the text is not complete by its grammar: it was ended by {ended}");
    }
    let rate = |n: usize, s: f64| n as f64 / s.max(1e-9);
    tracing::info!(
        "prompt: {} tokens, {:.1} per second; text: {made} tokens, {:.1} per second; ended by {ended}",
        tokens.len(),
        rate(tokens.len(), prompt_s),
        rate(made, start.elapsed().as_secs_f64()),
    );
    stats(&session, &a.model)?;
    if asked.load(Ordering::SeqCst) {
        return Err(Interrupted.into());
    }
    Ok(())
}

/// The prompt from -p, -f or piped stdin.
fn prompt(a: &args::Run) -> Result<String> {
    if let Some(text) = &a.prompt {
        return Ok(text.clone());
    }
    if let Some(path) = &a.file {
        return read_text(path);
    }
    if std::io::stdin().is_terminal() {
        return usage("no prompt; give one with -p TEXT or -f FILE, or pipe it in".into());
    }
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes).context("cannot read stdin")?;
    String::from_utf8(bytes).context("stdin is not UTF-8 text")
}

/// Refuses sampling parameters that mean nothing.
fn check(a: &Sampling) -> Result<()> {
    if !(a.temp >= 0.0 && a.temp.is_finite()) {
        return usage(format!("--temp {}: 0 or more expected", a.temp));
    }
    if !(0.0..=1.0).contains(&a.top_p) || !(0.0..=1.0).contains(&a.min_p) {
        return usage(format!("--top-p {} --min-p {}: 0 to 1 expected", a.top_p, a.min_p));
    }
    Ok(())
}

/// The sampler that the flags ask for; a seed of its own choosing is said.
fn sampler(a: &Sampling) -> Sampler {
    let seed = a.seed.unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let seed = now.map_or(0, |d| d.as_nanos() as u64) & 0xffff_ffff;
        if a.temp > 0.0 {
            tracing::info!("seed {seed} (--seed {seed} gives this text again)");
        }
        seed
    });
    Sampler::new(a.temp, a.top_k, a.top_p, a.min_p, seed)
}

/// Reads the prompt, with progress on a terminal, and returns the logits after it.
fn read(session: &mut Session, tokens: &[u32]) -> Result<Vec<f32>> {
    let bar = ProgressBar::new(tokens.len() as u64);
    bar.set_style(ProgressStyle::with_template(
        "reading the prompt {bar:30} {pos}/{len} tokens, {per_sec}, {eta} left",
    )?);
    // Drawn on stderr, and only where that is a terminal; short prompts are over before the first drawing.
    let chunk = 512;
    let last = (tokens.len() - 1) / chunk;
    let mut logits = Vec::new();
    for (i, part) in tokens.chunks(chunk).enumerate() {
        logits = session.feed(0, part, if i == last { Want::Last } else { Want::None })?;
        bar.inc(part.len() as u64);
    }
    bar.finish_and_clear();
    Ok(logits)
}

/// The logits, if they are numbers.
fn finite(logits: &[f32]) -> Result<&[f32]> {
    if logits.iter().any(|v| v.is_nan()) {
        bail!("the model computed NaN; the file is damaged, or this is a bug worth reporting with the model's name");
    }
    Ok(logits)
}
