//! `tandem perplexity`: how well a model predicts a text, or how far it is from a base model over
//! that text. The final figures go to stdout; what they are after each chunk goes to stderr.

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::errors::{Failure, usage};
use super::files::read_text;
use super::stats::stats;
use super::terminal::Stdout;
use super::{args, open, signals};
use crate::eval::base::{BaseReader, BaseWriter, file_bytes};
use crate::eval::{self, Chunks, Divergence, Likelihood, LogProbs};
use crate::gguf::Gguf;
use crate::session::{Options, Session, Want, context};
use crate::text::Tokenizer;

/// Tokens in a chunk when -c does not say: the length that published perplexities are measured
/// with.
const DEFAULT_CHUNK: usize = 512;

/// Runs the verb.
pub(super) fn run(a: &args::PerplexityArgs) -> Result<()> {
    if a.chunks == 0 {
        return usage("--chunks 0 reads nothing; give 1 or more, or -1 for all".into());
    }
    let limit = usize::try_from(a.chunks).unwrap_or(usize::MAX);
    match &a.kl_divergence_base {
        Some(base) if a.kl_divergence => compare(a, base, limit),
        base => measure(a, base.as_deref(), limit),
    }
}

/// Perplexity; the logits are kept in the file `base` if there is one.
fn measure(a: &args::PerplexityArgs, base: Option<&Path>, limit: usize) -> Result<()> {
    let Some(file) = &a.file else {
        return usage("no text to read; give one with -f FILE".into());
    };
    let text = read_text(file)?;
    let o = open::for_all_logits(open::options(&a.model)?);
    let gguf = open::header(a.model.model.as_deref(), &o.first_load(), o.threads)?;
    let n_ctx = context(&gguf, Some(a.model.ctx_size.unwrap_or(DEFAULT_CHUNK)))?;
    let tokenizer = Tokenizer::new(&gguf).context(Failure::Model)?;
    let mut tokens = encode(&tokenizer, &text)?;
    let chunks = Chunks::cut(tokens.len(), n_ctx, limit).with_context(|| file.display().to_string())?;
    tracing::info!("{}: {} tokens, {} chunks of {n_ctx}", file.display(), tokens.len(), chunks.n);
    tokens.truncate(chunks.n_tokens());

    let mut chunk_reader = ChunkReader::new(gguf, (o, &a.model), &tokenizer, chunks, tokens)?;
    let n_vocab = chunk_reader.session.n_vocab();
    let mut writer = base.map(|path| BaseWriter::create(path, chunks, n_vocab, &chunk_reader.tokens)).transpose()?;
    if let Some(path) = base {
        let mb = file_bytes(chunks, n_vocab) as f64 / 1e6;
        tracing::info!("{}: writing the logits of {} rows, {mb:.1} MB", path.display(), chunks.n_rows());
    }
    let mut sum = Likelihood::default();
    for i in 0..chunks.n {
        let read = chunk_reader.chunk(i, |rows, next| {
            rows.iter().zip(next).for_each(|(row, &token)| sum.add(row.nll(token)));
            writer.as_mut().map_or(Ok(()), |w| w.rows(rows))
        });
        if i > 0 && read.is_err() {
            say("\n"); // the error gets a line of its own
        }
        read?;
        if i == 0 {
            chunk_reader.say_rest();
        }
        say(&format!("[{}]{:.4},", i + 1, sum.ppl().value));
    }
    say("\n");
    if let Some(writer) = writer {
        writer.finish()?;
    }
    stats(&chunk_reader.session, &a.model)?;
    answer(&sum.report())
}

/// The figures of the model against those in the file `base`.
fn compare(a: &args::PerplexityArgs, base: &Path, limit: usize) -> Result<()> {
    let mut base = BaseReader::open(base)?;
    let o = open::for_all_logits(open::options(&a.model)?);
    let gguf = open::header(a.model.model.as_deref(), &o.first_load(), o.threads)?;
    if let Some(n) = a.model.ctx_size {
        base.check_context(context(&gguf, Some(n))?)?;
    }
    let tokenizer = Tokenizer::new(&gguf).context(Failure::Model)?;
    if let Some(file) = &a.file {
        base.check_tokens(&encode(&tokenizer, &read_text(file)?)?).with_context(|| file.display().to_string())?;
    }
    let chunks = Chunks { n: base.chunks.n.min(limit), ..base.chunks };
    if chunks.n_rows() < Divergence::LEAST_ROWS {
        bail!(
            "{} chunks of {} tokens give {} rows, fewer than {} needed: use more or longer chunks",
            chunks.n,
            chunks.n_ctx,
            chunks.n_rows(),
            Divergence::LEAST_ROWS
        );
    }
    let mut chunk_reader = ChunkReader::new(gguf, (o, &a.model), &tokenizer, chunks, base.tokens.clone())?;
    base.check_vocabulary(chunk_reader.session.n_vocab())?;
    let mut sum = Divergence::default();
    for i in 0..chunks.n {
        chunk_reader.chunk(i, |rows, next| {
            eval::pairs(rows, &base.rows(rows.len())?, next)?.iter().for_each(|p| sum.add(p));
            Ok(())
        })?;
        if i == 0 {
            chunk_reader.say_rest();
            say(&format!("{}\n", Divergence::COLUMNS));
        }
        say(&format!("{}\n", sum.running(i + 1)));
    }
    stats(&chunk_reader.session, &a.model)?;
    answer(&sum.report())
}

/// The text's tokens. The line break that editors put at a file's end is not of the text, nor is an
/// end token.
fn encode(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    let mut tokens = tokenizer.encode(text.strip_suffix('\n').unwrap_or(text), true, false)?;
    if tokenizer.adds_eos() {
        tokens.pop();
    }
    Ok(tokens)
}

/// A text that a model reads chunk by chunk.
struct ChunkReader {
    session: Session,
    chunks: Chunks,
    tokens: Vec<u32>,
    bos: Option<u32>,
    n_batch: usize,
    start: Instant,
}

impl ChunkReader {
    fn new(
        gguf: Gguf,
        (mut o, flags): (Options, &args::ModelArgs),
        tokenizer: &Tokenizer,
        chunks: Chunks,
        tokens: Vec<u32>,
    ) -> Result<ChunkReader> {
        let trained = context(&gguf, Some(0))?;
        if chunks.n_ctx > trained {
            tracing::warn!("chunks of {} tokens exceed the model's training context of {trained} tokens", chunks.n_ctx);
        }
        o.n_ctx = Some(chunks.n_ctx);
        let session = open::session(gguf, flags, &o)?;
        signals::listen(&session, true)?;
        let bos = tokenizer.bos().filter(|_| tokenizer.adds_bos());
        Ok(ChunkReader { session, chunks, tokens, bos, n_batch: o.n_batch, start: Instant::now() })
    }

    /// Reads chunk `i`. `take` gets its counted rows, as many as a batch gives at a time (all of
    /// them would be gigabytes where context and vocabulary are large), each with the token that
    /// came next.
    fn chunk(&mut self, i: usize, mut take: impl FnMut(&[LogProbs<'_>], &[u32]) -> Result<()> + Send) -> Result<()> {
        let tokens = self.chunks.tokens(i, &self.tokens);
        let counted = self.chunks.counted();
        let mut input = tokens[..counted.end].to_vec(); // nothing is asked after the last token
        if let Some(bos) = self.bos {
            input[0] = bos;
        }
        self.session.clear(0);
        for (j, part) in input.chunks(self.n_batch).enumerate() {
            let from = j * self.n_batch;
            let skip = counted.start.saturating_sub(from).min(part.len());
            let logits = self.session.feed(0, part, Want::From(skip))?.into_logits();
            let next = &tokens[from + skip + 1..from + part.len() + 1];
            take(&eval::log_probs(&logits, self.session.n_vocab())?, next)
                .with_context(|| format!("chunk {} of {}", i + 1, self.chunks.n))?;
        }
        Ok(())
    }

    /// Tells, after the first chunk, how long all of them will take.
    fn say_rest(&self) {
        let seconds = self.start.elapsed().as_secs_f64();
        let all = seconds * self.chunks.n as f64;
        let all = if all < 60.0 { format!("{all:.0} seconds") } else { format!("{:.1} minutes", all / 60.0) };
        tracing::info!("{seconds:.2} seconds per chunk, about {all} in all");
    }
}

/// Writes to stderr; a closed stderr is no reason to stop.
fn say(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// Writes to stdout.
fn answer(text: &str) -> Result<()> {
    let mut out = Stdout::of_reports();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}
