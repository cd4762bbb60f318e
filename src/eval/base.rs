//! The file of base logits that llama-perplexity writes with --kl-divergence-base, read and written.
//!
//! ```text
//! file    "_logits_" | u32 n_ctx | u32 n_vocab | u32 n_chunk | u32 token (n_chunk * n_ctx) | chunk..
//! chunk   row (n_ctx - 1 - n_ctx/2)                          the counted rows only
//! row     f32 scale | f32 min | u16 q (n_vocab) | u16 0 if n_vocab is odd
//! ```
//!
//! All little-endian. ln p(i) = scale * q\[i\] + min; min is the least of the row, but not below the largest - 16, and
//! what is smaller than min is stored as min. The tokens are the text's: where a chunk starts with BOS, the token that
//! BOS replaces.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::{Chunks, LogProbs};
use crate::cpu::in_parallel;

const MAGIC: &[u8; 8] = b"_logits_";
const HEAD_BYTES: usize = 20;

/// Bytes of a row.
pub fn row_bytes(n_vocab: usize) -> usize {
    8 + 2 * n_vocab.next_multiple_of(2)
}

/// Bytes of a file.
pub fn file_bytes(chunks: Chunks, n_vocab: usize) -> u128 {
    let rows = chunks.n_rows() as u128 * row_bytes(n_vocab) as u128; // a damaged head may ask for more than 64 bits
    (HEAD_BYTES + 4 * chunks.n_tokens()) as u128 + rows
}

/// One row of a base file.
#[derive(Clone, Copy, Debug)]
pub struct BaseRow<'a> {
    scale: f32,
    min: f32,
    q: &'a [[u8; 2]],
}

impl<'a> BaseRow<'a> {
    /// The row in these bytes, of which there must be [`row_bytes`].
    pub fn new(bytes: &'a [u8], n_vocab: usize) -> BaseRow<'a> {
        let float = |at: usize| f32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        BaseRow { scale: float(0), min: float(4), q: &bytes[8..].as_chunks().0[..n_vocab] }
    }

    /// ln p(token).
    pub fn log_prob(&self, token: usize) -> f32 {
        self.scale * u16::from_le_bytes(self.q[token]) as f32 + self.min
    }

    /// ln p of every token.
    pub fn log_probs(&self) -> impl Iterator<Item = f32> {
        self.q.iter().map(|&q| self.scale * u16::from_le_bytes(q) as f32 + self.min)
    }
}

impl LogProbs<'_> {
    /// Writes the row as a base file has it. Step for step in f32: the same logits must give the same bytes as they do
    /// in the program that this file is shared with.
    pub fn encode(&self, out: &mut [u8]) {
        let min = self.min.max(self.max - 16.0);
        let scale = (self.max - min) / 65535.0;
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        out[..4].copy_from_slice(&scale.to_le_bytes());
        out[4..8].copy_from_slice(&(min - self.max - self.log_sum as f32).to_le_bytes());
        let (q, _) = out[8..].as_chunks_mut::<2>();
        q.fill([0; 2]);
        for (q, &v) in q.iter_mut().zip(self.logits).filter(|(_, v)| **v > min) {
            *q = ((inverse * (v - min)).round_ties_even() as u16).to_le_bytes();
        }
    }
}

/// Writes a base file.
#[derive(Debug)]
pub struct BaseWriter<W: Write> {
    out: W,
    path: PathBuf,
    rows_left: usize,
    row_bytes: usize,
}

impl BaseWriter<BufWriter<File>> {
    /// Starts the file; `tokens` are those of the chunks.
    ///
    /// # Errors
    /// If the file cannot be created or written.
    pub fn create(path: &Path, chunks: Chunks, n_vocab: usize, tokens: &[u32]) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        BaseWriter::new(BufWriter::new(file), path, chunks, n_vocab, tokens)
    }
}

impl<W: Write> BaseWriter<W> {
    /// Starts a base file anywhere; errors call it `path`.
    ///
    /// # Errors
    /// If the head cannot be written.
    pub fn new(mut out: W, path: &Path, chunks: Chunks, n_vocab: usize, tokens: &[u32]) -> Result<Self> {
        assert_eq!(tokens.len(), chunks.n_tokens());
        let number = |name: &str, n: usize| {
            i32::try_from(n).with_context(|| format!("{}: {name} {n} does not fit the file's 31 bits", path.display()))
        };
        let mut head = MAGIC.to_vec();
        for (name, n) in [("n_ctx", chunks.n_ctx), ("n_vocab", n_vocab), ("n_chunk", chunks.n)] {
            head.extend(number(name, n)?.to_le_bytes());
        }
        head.extend(tokens.iter().flat_map(|t| t.to_le_bytes()));
        out.write_all(&head).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(BaseWriter { out, path: path.to_owned(), rows_left: chunks.n_rows(), row_bytes: row_bytes(n_vocab) })
    }

    /// Appends rows, encoded side by side.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn rows(&mut self, rows: &[LogProbs<'_>]) -> Result<()> {
        use rayon::prelude::*;
        assert!(rows.len() <= self.rows_left, "more rows than the head says");
        self.rows_left -= rows.len();
        let mut bytes = vec![0; rows.len() * self.row_bytes];
        let encoded = bytes.par_chunks_exact_mut(self.row_bytes).zip(rows);
        in_parallel(|| encoded.for_each(|(out, row)| row.encode(out)))?;
        self.out.write_all(&bytes).with_context(|| format!("cannot write {}", self.path.display()))
    }

    /// Ends the file.
    ///
    /// # Errors
    /// If the last bytes cannot be written.
    pub fn finish(mut self) -> Result<W> {
        assert_eq!(self.rows_left, 0, "fewer rows than the head says");
        self.out.flush().with_context(|| format!("cannot write {}", self.path.display()))?;
        Ok(self.out)
    }
}

/// Reads a base file: its head and tokens at once, its rows as they are needed.
#[derive(Debug)]
pub struct BaseReader<R: Read> {
    /// How the text was cut.
    pub chunks: Chunks,
    /// Size of the vocabulary.
    pub n_vocab: usize,
    /// The text.
    pub tokens: Vec<u32>,
    input: R,
    path: PathBuf,
    rows_read: usize,
    bytes: Vec<u8>,
}

impl BaseReader<BufReader<File>> {
    /// Opens a file, which must be whole.
    ///
    /// # Errors
    /// If the file cannot be read, is no base file, or is not whole.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        let about = file.metadata().with_context(|| format!("cannot read {}", path.display()))?;
        BaseReader::new(BufReader::new(file), path, about.is_file().then_some(about.len()))
    }
}

impl<R: Read> BaseReader<R> {
    /// Reads a base file from anywhere; errors call it `path`; `len` is how many bytes it has, if known.
    ///
    /// # Errors
    /// If the input is no base file, is cut short, or holds values out of range.
    pub fn new(mut input: R, path: &Path, len: Option<u64>) -> Result<Self> {
        let shown = path.display();
        let head = read_up_to(&mut input, HEAD_BYTES).with_context(|| format!("cannot read {shown}"))?;
        if !head.starts_with(MAGIC) {
            let found = String::from_utf8_lossy(&head[..head.len().min(8)]);
            bail!("{shown} is no file of base logits: it starts with {found:?}, not {:?}", "_logits_");
        }
        if head.len() < HEAD_BYTES {
            bail!("{shown} is cut short: {} bytes, its head alone has {HEAD_BYTES}", head.len());
        }
        let number = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("4 bytes"));
        let (n_ctx, n_vocab, n_chunk) = (number(8), number(12), number(16));
        for (name, n, least) in [("n_ctx", n_ctx, 3), ("n_vocab", n_vocab, 1), ("n_chunk", n_chunk, 1)] {
            if !(least..=i32::MAX as u32).contains(&n) {
                bail!("{shown}: {name} is {n}, at least {least} and at most {} expected", i32::MAX);
            }
        }
        let chunks = Chunks { n_ctx: n_ctx as usize, n: n_chunk as usize };
        let n_vocab = n_vocab as usize;
        let whole = file_bytes(chunks, n_vocab);
        if let Some(len) = len.filter(|&len| len as u128 != whole) {
            let why = if (len as u128) < whole { "it was cut short" } else { "it has bytes that do not belong to it" };
            bail!(
                "{shown} has {len} bytes, {whole} expected for {n_chunk} chunks of {n_ctx} tokens and a vocabulary of \
                 {n_vocab}: {why}, write it again"
            );
        }
        let bytes = read_up_to(&mut input, 4 * chunks.n_tokens()).with_context(|| format!("cannot read {shown}"))?;
        let tokens: Vec<u32> = bytes.as_chunks().0.iter().map(|&t| u32::from_le_bytes(t)).collect();
        if tokens.len() != chunks.n_tokens() {
            bail!("{shown} is cut short: {} tokens, {} expected", tokens.len(), chunks.n_tokens());
        }
        if let Some((i, t)) = tokens.iter().enumerate().find(|(_, t)| **t as usize >= n_vocab) {
            bail!("{shown}: token {i} is {t}, which is outside its vocabulary of {n_vocab}");
        }
        Ok(BaseReader { chunks, n_vocab, tokens, input, path: path.to_owned(), rows_read: 0, bytes: Vec::new() })
    }

    /// The next `n` rows.
    ///
    /// # Errors
    /// If the input ends early or cannot be read.
    pub fn rows(&mut self, n: usize) -> Result<Vec<BaseRow<'_>>> {
        let size = row_bytes(self.n_vocab);
        self.bytes.resize(n * size, 0);
        self.input.read_exact(&mut self.bytes).with_context(|| {
            let (from, shown) = (self.rows_read, self.path.display());
            format!("cannot read rows {from} to {} of {} from {shown}", from + n, self.chunks.n_rows())
        })?;
        self.rows_read += n;
        Ok(self.bytes.chunks_exact(size).map(|b| BaseRow::new(b, self.n_vocab)).collect())
    }

    /// Fails where the file was made with another vocabulary than a model's of `n_vocab` tokens.
    ///
    /// # Errors
    /// If the file was made with a vocabulary of another size; the message names both.
    pub fn check_vocabulary(&self, n_vocab: usize) -> Result<()> {
        if self.n_vocab != n_vocab {
            bail!(
                "{} has rows of {} logits, the model a vocabulary of {n_vocab}: compare models of one vocabulary",
                self.path.display(),
                self.n_vocab
            );
        }
        Ok(())
    }

    /// Fails where the file was made with another context than the `n_ctx` asked for.
    ///
    /// # Errors
    /// If the file was made with another context; the message names both.
    pub fn check_context(&self, n_ctx: usize) -> Result<()> {
        if self.chunks.n_ctx != n_ctx {
            let (shown, has) = (self.path.display(), self.chunks.n_ctx);
            bail!("{shown} has chunks of {has} tokens, {n_ctx} were asked for: give -c {has} or leave it out");
        }
        Ok(())
    }

    /// Fails where the file was made from another text, or cut otherwise into tokens.
    ///
    /// # Errors
    /// If the tokens differ; the message says where.
    pub fn check_tokens(&self, text: &[u32]) -> Result<()> {
        let shown = self.path.display();
        if let Some(i) = self.tokens.iter().zip(text).position(|(a, b)| a != b) {
            let (has, given) = (self.tokens[i], text[i]);
            bail!("{shown} was made from another text or tokenizer: its token {i} is {has}, the text's is {given}");
        }
        if text.len() < self.tokens.len() {
            let (has, given) = (self.tokens.len(), text.len());
            bail!("{shown} was made from a longer text: it has {has} tokens, the text {given}");
        }
        Ok(())
    }
}

/// Reads `n` bytes, or fewer where the input ends: never makes room for more than there are.
fn read_up_to(input: &mut impl Read, n: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    input.take(n as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNKS: Chunks = Chunks { n_ctx: 4, n: 2 };
    const TOKENS: [u32; 8] = [0, 1, 2, 0, 1, 2, 0, 1];
    const NAME: &str = "base.kld";

    fn file() -> Vec<u8> {
        let mut w = BaseWriter::new(Vec::new(), Path::new(NAME), CHUNKS, 3, &TOKENS).unwrap();
        for logits in [[1.0, 2.0, 4.0], [0.5, -20.0, 0.0]] {
            w.rows(&[LogProbs::new(&logits).unwrap()]).unwrap();
        }
        w.finish().unwrap()
    }

    fn open(bytes: &[u8]) -> Result<BaseReader<&[u8]>> {
        BaseReader::new(bytes, Path::new(NAME), Some(bytes.len() as u64))
    }

    fn error(bytes: &[u8]) -> String {
        format!("{:#}", open(bytes).expect_err("it is refused"))
    }

    #[test]
    fn a_file_has_the_bytes_drawn_above() {
        let f = file();
        assert_eq!(f.len(), 20 + 8 * 4 + 2 * (8 + 4 * 2));
        assert_eq!(f[..28], *b"_logits_\x04\0\0\0\x03\0\0\0\x02\0\0\0\0\0\0\0\x01\0\0\0");
        let row = &f[52..68];
        assert_eq!(row[..4], (3.0f32 / 65535.0).to_le_bytes());
        let min = f32::from_le_bytes(row[4..8].try_into().unwrap());
        assert!((min as f64 - -(1.0 + 1f64.exp() + 3f64.exp()).ln()).abs() < 1e-6, "{min}");
        assert_eq!(row[8..], [0, 0, 0x55, 0x55, 0xff, 0xff, 0, 0]); // 0, 1/3 and all of 65535, and the odd one's filler
    }

    #[test]
    fn what_is_written_is_read_back_within_half_a_step() {
        let f = file();
        let mut r = open(&f).unwrap();
        assert_eq!((r.chunks, r.n_vocab, &r.tokens[..]), (CHUNKS, 3, &TOKENS[..]));
        let want = LogProbs::new(&[1.0, 2.0, 4.0]).unwrap();
        let row = r.rows(1).unwrap()[0];
        for (i, got) in row.log_probs().enumerate() {
            assert!((got as f64 - want.of(i)).abs() < 0.5 * 3.0 / 65535.0 + 1e-6, "{i}: {got}");
        }
        let clamped: Vec<f32> = r.rows(1).unwrap()[0].log_probs().collect();
        assert!((clamped[0] - clamped[1] - 16.0).abs() < 1e-4, "what is far below the top is kept at 16 below it");
    }

    #[test]
    fn a_row_of_equal_logits_is_written_without_dividing_by_zero() {
        let mut bytes = vec![1; row_bytes(4)];
        LogProbs::new(&[7.0; 4]).unwrap().encode(&mut bytes);
        let row = BaseRow::new(&bytes, 4);
        assert!(row.log_probs().all(|p| (p - 0.25f32.ln()).abs() < 1e-6));
    }

    #[test]
    fn a_file_cut_short_anywhere_names_itself_and_both_lengths() {
        let f = file();
        for n in 0..f.len() {
            let e = error(&f[..n]);
            let told = if n < 8 {
                "no file of base logits"
            } else if n < HEAD_BYTES {
                "cut short"
            } else {
                "84 expected"
            };
            assert!(e.contains(NAME) && e.contains(told), "{n}: {e}");
            assert!(n < 8 || e.contains(&format!("{n} bytes")), "{n}: {e}");
        }
        assert!(error(&[&f[..], &[0]].concat()).contains("do not belong"));
    }

    #[test]
    fn a_cut_file_of_unknown_length_still_fails_where_it_ends() {
        let f = file();
        let e = |n: usize| BaseReader::new(&f[..n], Path::new(NAME), None);
        assert!(format!("{:#}", e(40).err().unwrap()).contains("5 tokens, 8 expected"));
        let text = format!("{:#}", e(70).unwrap().rows(2).err().unwrap());
        assert!(text.contains(NAME) && text.contains("rows 0 to 2 of 2"), "{text}");
    }

    #[test]
    fn another_kind_of_file_and_impossible_heads_are_refused_with_what_was_found() {
        assert!(error(b"GGUF\x03\0\0\0and so on and so on").contains("GGUF"));
        let mut f = file();
        f[8] = 2;
        assert!(error(&f).contains("n_ctx is 2"));
        let mut f = file();
        f[15] = 0xff;
        assert!(error(&f).contains("n_vocab is 4278190083"));
        let mut f = file();
        f[20] = 3;
        assert!(error(&f).contains("token 0 is 3"));
        let mut f = file();
        f[8..20].copy_from_slice(&[0xff, 0xff, 0xff, 0x7f].repeat(3)); // sizes whose product exceeds 64 bits
        assert!(error(&f).contains("cut short"));
    }

    #[test]
    fn a_base_of_another_vocabulary_context_or_text_is_refused_with_both_sides() {
        let f = file();
        let r = open(&f).unwrap();
        let text = |e: Result<()>| e.unwrap_err().to_string();
        let e = text(r.check_vocabulary(4));
        assert!(e.contains(NAME) && e.contains("rows of 3") && e.contains("vocabulary of 4"), "{e}");
        let e = text(r.check_context(512));
        assert!(e.contains(NAME) && e.contains("chunks of 4") && e.contains("512") && e.contains("-c 4"), "{e}");
        let e = text(r.check_tokens(&[0, 1, 1]));
        assert!(e.contains(NAME) && e.contains("token 2 is 2") && e.contains("text's is 1"), "{e}");
        assert!(text(r.check_tokens(&[0, 1, 2])).contains("has 8 tokens, the text 3"));
        assert!(r.check_vocabulary(3).and(r.check_context(4)).is_ok());
        assert!(
            r.check_tokens(&[0, 1, 2, 0, 1, 2, 0, 1, 9, 9]).is_ok(),
            "a rest that fills no chunk is not in the file"
        );
    }
}
