//! Whether a text is too long for a context, found out without tokenizing more of it than the
//! context holds: a tokenizer takes up to a hundred bytes of memory for every byte of a text without
//! spaces.

use anyhow::Result;

use super::tokenizer::Tokenizer;

/// Texts up to this size are tokenized as a whole, so that an error can tell how many tokens they
/// have.
const SMALL: usize = 1 << 20;
/// Bytes that are tokenized at once. A cut costs some tokens: of a thousandth of them, or less.
const PIECE: usize = 64 << 10;

/// A text that has more tokens than a context.
#[derive(Debug, PartialEq, Eq)]
pub struct TooLong {
    n_ctx: usize,
    /// Tokens of the first `read` bytes, of `bytes`.
    tokens: usize,
    read: usize,
    bytes: usize,
}

impl std::fmt::Display for TooLong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let TooLong { n_ctx, tokens, read, bytes } = self;
        write!(
            f,
            "the context of {n_ctx} tokens has no room for the text that was given: the first {read} of its {bytes} bytes \
             are {tokens} tokens already (a larger -c gives room)"
        )
    }
}

impl std::error::Error for TooLong {}

impl Tokenizer {
    /// Fails if a text certainly has more than `n_ctx` tokens. Where it passes, tokenizing takes
    /// memory in proportion to `n_ctx`, not to the text.
    ///
    /// # Errors
    /// [`TooLong`], or if a part of the text cannot be encoded.
    pub fn check_length(&self, text: &str, n_ctx: usize) -> Result<()> {
        let (mut read, mut tokens) = (0, 0);
        while text.len() > SMALL && read < text.len() {
            let end = text.floor_char_boundary(read + PIECE);
            // The texts of control tokens count as one, whether or not they become one.
            tokens += self.encode(&text[read..end], false, true)?.len();
            read = end;
            if tokens > n_ctx + n_ctx / 8 {
                return Err(TooLong { n_ctx, tokens, read, bytes: text.len() }.into());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::gguf::Gguf;

    #[test]
    fn a_text_that_is_too_long_is_refused_by_its_beginning_and_one_that_fits_is_not() {
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/demo.gguf");
        let t = Tokenizer::new(&Gguf::open(&demo).unwrap()).unwrap();
        let text = "But soft, what light through yonder window breaks? é\n".repeat(SMALL / 50);
        assert!(text.len() > SMALL);
        let n = t.encode(&text, false, true).unwrap().len();
        t.check_length(&text, n).unwrap();
        let e = t.check_length(&text, n / 10).unwrap_err().downcast::<TooLong>().unwrap();
        assert!(e.read < text.len() / 5 && e.tokens > n / 10, "{e}");
        // Whatever it is made of, and a small one is counted by those who tokenize it.
        assert!(t.check_length(&"\0".repeat(8 * SMALL), 8192).is_err());
        t.check_length(&text[..1000], 1).unwrap();
    }
}
