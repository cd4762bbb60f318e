//! A byte-level BPE vocabulary of any size: the 256 bytes, pieces of common words with the merges that build them,
//! filler words that no text contains, control tokens at the end.

use std::collections::HashSet;

use anyhow::{Result, ensure};
use tandem::gguf::Writer;

const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const SPECIAL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

const WORDS: &str = "the and of to in is was that for it with as on be at by this had not are but from or have an they \
    which one you were all her she there would their we him been has when who will no more if out so up said what its \
    about than into them can only other time new some could these two may first then do any like my now over such our \
    man me even most made after also did many before must well back through years where much your way down should \
    because long each just state people those how too little good world year day night water light house king queen \
    lord love heart hand head eyes word death life great sweet fair noble speak come know think make take give see \
    hear tell stand leave keep find call work place right left end old young high small large number model file name";

/// The character that stands for a byte: itself where it prints, else one from 256 up.
fn letter(byte: u8) -> char {
    let prints = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if prints(byte) {
        return byte as char;
    }
    let n = (0..byte).filter(|&b| !prints(b)).count() as u32;
    char::from_u32(256 + n).expect("no surrogates there")
}

/// Filler word `i`: a space and syllables.
fn filler(mut i: usize) -> String {
    const SYLLABLES: usize = 14 * 5;
    let mut word = String::from(letter(b' '));
    for _ in 0..3 {
        let (consonant, vowel) = (i % SYLLABLES / 5, i % 5);
        word.push(char::from(b"bdfgklmnprstvz"[consonant]));
        word.push(char::from(b"aeiou"[vowel]));
        i /= SYLLABLES;
    }
    word
}

/// Sets the `tokenizer.ggml` keys for `n` tokens.
pub(crate) fn write(w: &mut Writer<'_>, n: usize) -> Result<()> {
    let least = 256 + SPECIAL.len();
    let most = 70 * 70 * 70;
    ensure!((least..=most).contains(&n), "a vocabulary of {n} tokens: {least} to {most} can be made");
    let room = n - SPECIAL.len();
    let mut tokens: Vec<String> = (0..=255).map(|b| letter(b).to_string()).collect();
    let mut known: HashSet<String> = tokens.iter().cloned().collect();
    let mut merges: Vec<String> = Vec::new();
    for word in WORDS.split_whitespace() {
        for start in [letter(b' ').to_string(), String::new()] {
            let mut letters = word.chars();
            let mut piece = if start.is_empty() { letters.next().map(String::from).unwrap_or_default() } else { start };
            for c in letters {
                let longer = format!("{piece}{c}");
                if !known.contains(&longer) {
                    if tokens.len() == room {
                        break;
                    }
                    merges.push(format!("{piece} {c}"));
                    tokens.push(longer.clone());
                    known.insert(longer.clone());
                }
                piece = longer;
            }
        }
    }
    let fillers = (0..).map(filler).filter(|f| !known.contains(f)).take(room - tokens.len());
    tokens.extend(fillers);
    let mut kinds = vec![NORMAL; tokens.len()];
    tokens.extend(SPECIAL.map(String::from));
    kinds.extend([CONTROL; SPECIAL.len()]);
    let special = |i: usize| (room + i) as u32;
    w.set("tokenizer.ggml.model", "gpt2").set("tokenizer.ggml.pre", "gpt-2");
    w.set("tokenizer.ggml.tokens", tokens).set("tokenizer.ggml.token_type", kinds);
    w.set("tokenizer.ggml.merges", merges);
    w.set("tokenizer.ggml.bos_token_id", special(0)).set("tokenizer.ggml.eos_token_id", special(2));
    w.set("tokenizer.ggml.padding_token_id", special(0)).set("tokenizer.ggml.add_bos_token", false);
    Ok(())
}
