//! Text in a given form: what is written has it, whatever the model would like to say, and masks allow exactly the tokens
//! that lead to it.

#[path = "../common/mod.rs"]
mod common;

mod command;
mod generate;
mod llama_cpp;
mod masks;

use common::local;
use tandem::gguf::Gguf;
use tandem::text::Tokenizer;
use tandem::text::grammar::Grammar;

/// A vocabulary of the repository: 256 bytes, and some words.
fn small() -> Tokenizer {
    Tokenizer::new(&Gguf::open(&local().join("models/qwen3moe.gguf")).unwrap()).unwrap()
}

fn has(mask: &[u32], token: u32) -> bool {
    mask.get(token as usize / 32).is_some_and(|word| word >> (token % 32) & 1 == 1)
}

/// Whether these tokens, and then the end, are what the grammar allows.
fn takes(mut grammar: Grammar, tokens: &[u32]) -> bool {
    for &token in tokens {
        if grammar.is_done() || !has(grammar.mask().unwrap(), token) {
            return false;
        }
        grammar.accept(token).unwrap();
    }
    grammar.may_end()
}

/// A text byte by byte: every cut through a character is tried.
fn bytes(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    let all: Vec<Vec<u8>> = (0..256).map(|id| tokenizer.bytes(id, false)).collect();
    text.bytes().map(|b| all.iter().position(|t| t[..] == [b]).expect("a token for every byte") as u32).collect()
}
