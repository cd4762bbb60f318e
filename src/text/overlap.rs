//! Which tokens a text can come about in: what DRY's breakers are found by.
//!
//! A text is either whole inside a token, or begins at a token's end and goes on in others. For the second kind, one
//! way to go on is known: how the tokenizer cuts what is missing. This, and both limits, are llama.cpp's (src/llama-sampler.cpp,
//! `get_overlapping_token_sequences`).

use anyhow::Result;

use super::Tokenizer;

/// Bytes of a text that count, and tokens after the first.
const MOST_BYTES: usize = 40;
const MOST_TOKENS: usize = 20;

impl Tokenizer {
    /// The token sequences that each bring one of `texts` about, the first token its beginning. Where a token ends inside
    /// a character of the text, nothing is known to go on with.
    ///
    /// # Errors
    /// If a text cannot be encoded.
    pub fn sequences_with(&self, texts: &[String]) -> Result<Vec<Vec<u32>>> {
        let mut last = self.sequences.lock().unwrap_or_else(|e| e.into_inner());
        match &*last {
            Some((of, found)) if of == texts => Ok(found.clone()),
            _ => {
                let found = self.look_for(texts)?;
                *last = Some((texts.to_vec(), found.clone()));
                Ok(found)
            }
        }
    }

    fn look_for(&self, texts: &[String]) -> Result<Vec<Vec<u32>>> {
        // Each text with the tokens that continue each of its beginnings.
        let mut known = Vec::new();
        for text in texts.iter().filter(|t| !t.is_empty()) {
            let text = &text[..text.floor_char_boundary(MOST_BYTES)];
            let mut ways = Vec::new();
            for (at, _) in text.char_indices().skip(1) {
                let mut tail = self.encode(&text[at..], false, false)?;
                tail.truncate(MOST_TOKENS);
                ways.push((&text.as_bytes()[..at], tail));
            }
            known.push((text.as_bytes(), ways));
        }
        let mut all = Vec::new();
        for id in 0..self.n_vocab() as u32 {
            let bytes = self.bytes(id, true);
            let mut here: Vec<Vec<u32>> = Vec::new();
            for (text, ways) in &known {
                if bytes.windows(text.len()).any(|part| part == *text) {
                    here.push(vec![id]);
                    continue;
                }
                let ways = ways.iter().filter(|(beginning, _)| bytes.ends_with(beginning));
                here.extend(ways.map(|(_, tail)| [&[id], tail.as_slice()].concat()));
            }
            here.sort_unstable();
            here.dedup();
            all.append(&mut here);
        }
        Ok(all)
    }
}
