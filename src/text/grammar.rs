//! Grammars: which tokens may come next if the text is to be of a given form, by the llguidance crate.
//!
//! A form is a JSON schema, a regular expression or a grammar, in llama.cpp's notation (GBNF) or in llguidance's own. The
//! tokens' bytes are laid out as a tree once per vocabulary; a form is compiled once; a text in that form is begun as
//! often as need be. Tokens are taken by their bytes, however a text could be cut into them: nothing is forced, so a
//! token's odds among the allowed ones stay the model's.
//!
//! Measured with 150,000 tokens: the tree takes half a second, a mask 0.01 to 1 ms.

mod gbnf;
mod lexemes;
mod schema;
mod trial;

pub use trial::{run_trial, try_with};

use std::collections::HashMap;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use llguidance::api::{GrammarInit, ParserLimits, StopReason, TopLevelGrammar};
use llguidance::panic_utils::catch_unwind;
use llguidance::toktrie::{
    ApproximateTokEnv, INVALID_TOKEN, InferenceCapabilities, SimpleVob, TokEnv, TokRxInfo, TokTrie,
};
use llguidance::{Logger, ParserFactory, TokenParser};
use serde_json::Value;

use super::Tokenizer;

/// The tree holds tokens of fewer than 1024 bytes; longer ones are only found in damaged files.
const LONGEST: usize = 1000;
/// Texts of which it is known beforehand which tokens are such: where any of them may come, as inside of a JSON string,
/// the tree need not be walked.
const COMMON: [&str; 2] = [r#"[^"\\\x00-\x1F\x7F]{1,30}"#, r#"[^"\\\x00-\x1F\x7F]+"#];
/// Compiled forms that are kept.
const KEPT: usize = 64;
/// Steps of the lexer for one mask, at most: 15 milliseconds. The hungriest of the schemas and grammars that were tried
/// with 150,000 tokens (those of `tests/structured`, `tests/data/grammars`, and larger ones) takes a tenth.
const STEP_FUEL: u64 = 200_000;
/// Items of the parser in one row, and for one mask, at most. A schema has four of them for each property that may come:
/// these are 2500 properties, where 300 are many.
const ROW: usize = 10_000;
const ITEMS: usize = 200_000;
/// The same for a grammar, which may be ambiguous: then the rows grow with the text, and the time with their square. Those
/// that were tried need fewer than 1000 for a mask and 100 in a row; of an ambiguous one, 500 in a row take 20 ms.
const GRAMMAR_ROW: usize = 500;
const GRAMMAR_ITEMS: usize = 20_000;
/// States of a lexer, at most; with half of them a form is compiled again for the next text.
const STATES: usize = 250_000;
/// Compiling goes as deep as a form's rules lead to each other; this suffices for the limits below and in the modules.
/// Only what is used of it becomes memory.
const STACK: usize = 256 << 20;
/// Rules of a grammar in llguidance's notation, at most: one is a line, or more.
const RULES: usize = 20_000;

/// The form that a text is to have.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A JSON document that this schema accepts.
    JsonSchema(Value),
    /// A grammar in llama.cpp's notation; its rule `root` is the whole text.
    Gbnf(String),
    /// A grammar in llguidance's notation, which is much like Lark's; its rule `start` is the whole text.
    Lark(String),
    /// A regular expression that matches the whole text.
    Regex(String),
}

impl Kind {
    /// A grammar in the notation that it is written in: only GBNF has `::=`.
    pub fn grammar(text: String) -> Kind {
        if text.contains("::=") { Kind::Gbnf(text) } else { Kind::Lark(text) }
    }

    /// What of it is not kept though it is no error: an unknown `format` of a JSON schema, with its place.
    ///
    /// # Errors
    /// If a part of a schema could not be kept.
    pub fn remarks(&self) -> Result<Vec<String>> {
        match self {
            Kind::JsonSchema(schema) => {
                schema::prepare(schema).map(|p| p.remarks).with_context(|| format!("{} cannot be used", self.what()))
            }
            _ => Ok(Vec::new()),
        }
    }

    /// What errors call it.
    fn what(&self) -> &'static str {
        match self {
            Kind::JsonSchema(_) => "the JSON schema",
            Kind::Gbnf(_) | Kind::Lark(_) => "the grammar",
            Kind::Regex(_) => "the regular expression",
        }
    }

    /// Whether it may ask for a token by its number, besides asking for text.
    fn names_tokens(&self) -> bool {
        matches!(self, Kind::Gbnf(text) | Kind::Lark(text) if text.contains('<'))
    }
}

/// A schema as it is written after `%json` in llguidance's notation, with one blank between the parts of a document, as
/// templates write calls. What of it cannot be kept is left out with a warning.
pub(super) fn schema_rule(schema: &Value) -> String {
    let mut ready = match schema::prepare(schema) {
        Ok(prepared) => prepared.schema,
        Err(e) => {
            tracing::warn!("the grammar of a tool's arguments leaves something out: {e:#}");
            schema::lenient(schema)
        }
    };
    if ready.is_object() {
        ready["x-guidance"]["whitespace_pattern"] = r"\x20".into();
    }
    ready.to_string()
}

/// No token can follow: what the form demands next, none of the vocabulary's tokens says, or the model gives none of
/// those that do a finite logit.
#[derive(Debug, PartialEq, Eq)]
pub struct DeadEnd;

impl fmt::Display for DeadEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the grammar came to a dead end: no token that it allows can follow the text so far")
    }
}

impl std::error::Error for DeadEnd {}

/// The forms of a vocabulary.
pub struct Grammars<'t> {
    tokenizer: &'t Tokenizer,
    factory: ParserFactory,
    /// Tokens outside the tree, each with the one of the same bytes that is in it: (inside, outside).
    twins: Arc<[(u32, u32)]>,
    compiled: Mutex<HashMap<Kind, TokenParser>>,
}

impl fmt::Debug for Grammars<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Grammars({:?})", self.tokenizer)
    }
}

impl<'t> Grammars<'t> {
    /// Lays out the tokens' bytes.
    ///
    /// # Errors
    /// If the vocabulary cannot be made into llguidance's token tree.
    pub fn new(tokenizer: &'t Tokenizer) -> Result<Grammars<'t>> {
        catch_unwind(AssertUnwindSafe(|| Grammars::build(tokenizer)))
            .context("cannot use this vocabulary with grammars")
    }

    fn build(tokenizer: &'t Tokenizer) -> Result<Grammars<'t>> {
        let n = tokenizer.n_vocab() as u32;
        let words: Vec<Vec<u8>> = (0..n).map(|id| word(tokenizer, id)).collect();
        let ends = tokenizer.eog();
        let mut trie = TokTrie::from(&TokRxInfo::new(n, INVALID_TOKEN), &words);
        if !ends.is_empty() {
            trie = trie.with_eos_tokens(ends);
        }
        // Of tokens with the same bytes, the tree has the last one.
        let inside: HashMap<&[u8], u32> = words.iter().zip(0..).map(|(w, id)| (&w[..], id)).collect();
        let twins = words.iter().zip(0..).filter(|(w, _)| !w.is_empty()).map(|(w, id)| (inside[&w[..]], id));
        let twins = twins.filter(|(inside, outside)| inside != outside).collect();
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let factory = factory(&env)?;
        Ok(Grammars { tokenizer, factory, twins, compiled: Mutex::default() })
    }

    /// Begins a text. The first text in a form takes longer than the next ones.
    ///
    /// # Errors
    /// If the form has a mistake, or a part that cannot be kept.
    pub fn start(&self, kind: &Kind) -> Result<Grammar> {
        let mut compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        let ready = compiled.get(kind).and_then(|p| {
            // What one text has found out of a form serves the next: they share the lexer's states.
            let states = catch_unwind(AssertUnwindSafe(|| Ok(p.parser.lexer_stats()))).ok()?;
            (states.num_states < STATES / 2 && !states.error).then(|| p.clone())
        });
        let parser = match ready {
            Some(parser) => parser,
            None => {
                let parser = self.compile(kind)?;
                if compiled.len() == KEPT {
                    compiled.clear();
                }
                compiled.insert(kind.clone(), parser.clone());
                parser
            }
        };
        let twins = if kind.names_tokens() { Arc::default() } else { self.twins.clone() };
        Ok(Grammar { parser, twins, mask: SimpleVob::new() })
    }

    fn compile(&self, kind: &Kind) -> Result<TokenParser> {
        let what = kind.what();
        let token = |text: &str| match self.tokenizer.encode(text, false, true).ok()?[..] {
            [id] => Some(id),
            _ => None,
        };
        let tried = match trial::way() {
            Some(way) => way(&trial::Trial::new(kind, self.tokenizer).to_json()),
            None => Ok(()),
        };
        let done = tried.and_then(|()| compiled(&self.factory, kind, &token, self.tokenizer.eog()));
        let mut parser = done.map_err(plain).with_context(|| format!("{what} cannot be used"))?;
        for warning in parser.grammar_warnings() {
            tracing::warn!("{what}: {warning}");
        }
        Ok(parser)
    }
}

/// What compiles forms for these tokens.
fn factory(env: &TokEnv) -> Result<ParserFactory> {
    let mut factory = ParserFactory::new(env, InferenceCapabilities::default(), &COMMON.map(String::from))?;
    factory.quiet();
    Ok(factory)
}

/// What llguidance may do for a form of this kind; what is not said here is as it has it.
fn limits(kind: &Kind) -> ParserLimits {
    let (max_items_in_row, step_max_items) = match kind {
        Kind::JsonSchema(_) | Kind::Regex(_) => (ROW, ITEMS),
        Kind::Gbnf(_) | Kind::Lark(_) => (GRAMMAR_ROW, GRAMMAR_ITEMS),
    };
    ParserLimits {
        max_items_in_row,
        step_max_items,
        step_lexer_fuel: STEP_FUEL,
        max_lexer_states: STATES,
        verbose_errors: false,
        ..ParserLimits::default()
    }
}

/// A form that is ready for a text; `token` finds the token that a text in < > is, `ends` are those that end a generation.
fn compiled(
    factory: &ParserFactory,
    kind: &Kind,
    token: &(dyn Fn(&str) -> Option<u32> + Sync),
    ends: &[u32],
) -> Result<TokenParser> {
    let work = || {
        let grammar = notation(kind, token, ends)?;
        catch_unwind(AssertUnwindSafe(|| {
            let (init, capabilities) = (GrammarInit::Serialized(grammar), InferenceCapabilities::default());
            let mut parser =
                factory.create_parser_from_init_ext(init, Logger::new(0, 0), capabilities, limits(kind))?;
            parser.start_without_prompt();
            parser.check_stop()?; // it may be complete before it begins
            Ok(parser)
        }))
    };
    std::thread::scope(|s| {
        let thread = std::thread::Builder::new().stack_size(STACK).spawn_scoped(s, work)?;
        thread.join().unwrap_or_else(|_| bail!("compiling failed"))
    })
}

/// A form in llguidance's notation.
fn notation(kind: &Kind, token: &dyn Fn(&str) -> Option<u32>, ends: &[u32]) -> Result<TopLevelGrammar> {
    Ok(match kind {
        Kind::JsonSchema(schema) => TopLevelGrammar::from_json_schema(schema::prepare(schema)?.schema),
        Kind::Gbnf(text) => TopLevelGrammar::from_lark(lexemes::lark(&gbnf::parse(text, token, ends)?)?),
        Kind::Lark(text) if text.lines().nth(RULES).is_some() => bail!("more than {RULES} lines"),
        Kind::Lark(text) => TopLevelGrammar::from_lark(text.clone()),
        Kind::Regex(text) if text.is_empty() => TopLevelGrammar::from_lark("start: \"\"".into()),
        Kind::Regex(text) => {
            if let Err(e @ regex::Error::Syntax(_)) = regex::Regex::new(text) {
                bail!(e); // says where the mistake is
            }
            TopLevelGrammar::from_regex(text)
        }
    })
}

/// A token's bytes as the tree has them: structure after a byte that no text has, nothing for what is never allowed.
fn word(tokenizer: &Tokenizer, id: u32) -> Vec<u8> {
    const MARK: u8 = TokTrie::SPECIAL_TOKEN_MARKER;
    let word = if tokenizer.is_control(id) || tokenizer.is_eog(id) {
        [&[MARK], tokenizer.piece(id).as_bytes()].concat()
    } else {
        let bytes = tokenizer.bytes(id, false);
        if bytes.first() == Some(&MARK) { Vec::new() } else { bytes }
    };
    if word.len() > LONGEST { Vec::new() } else { word }
}

/// An error of llguidance, without what it says to its own developers.
fn plain(e: anyhow::Error) -> anyhow::Error {
    let text = format!("{e:#}");
    if text.contains("coerce_one_of") {
        return anyhow::anyhow!("the options of a oneOf are not known to exclude each other; use anyOf");
    }
    let text = text.split("<backtrace>").next().unwrap_or("");
    anyhow::anyhow!("{}", text.replace("<non-verbose/>", "").trim_end())
}

/// A text that is being written in a form.
#[derive(Clone)]
pub struct Grammar {
    parser: TokenParser,
    twins: Arc<[(u32, u32)]>,
    mask: SimpleVob,
}

impl fmt::Debug for Grammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Grammar({} tokens)", self.parser.num_tokens())
    }
}

impl Grammar {
    /// The tokens that may come next: token `t` is bit `t % 32` of word `t / 32`, and tokens past the end are not
    /// allowed. Where the text may end, the tokens that end a generation are among them.
    ///
    /// # Errors
    /// [`DeadEnd`] if there is none.
    pub fn mask(&mut self) -> Result<&[u32]> {
        self.mask = if self.is_done() {
            self.parser.token_env.tok_trie().eos_token_set()
        } else {
            match catch_unwind(AssertUnwindSafe(|| self.parser.compute_mask())) {
                Ok(mask) => mask,
                Err(_) if self.parser.stop_reason() == StopReason::NoExtensionBias => return Err(DeadEnd.into()),
                Err(e) => return Err(plain(e).context("the grammar cannot be followed further")),
            }
        };
        for &(inside, outside) in &*self.twins {
            if self.mask.is_allowed(inside) {
                self.mask.allow_token(outside);
            }
        }
        if self.mask.is_zero() {
            return Err(DeadEnd.into());
        }
        Ok(self.mask.as_slice())
    }

    /// Goes on with a token.
    ///
    /// # Errors
    /// If it is not allowed, or the grammar then has more ways to go on than are followed.
    pub fn accept(&mut self, token: u32) -> Result<()> {
        let done = catch_unwind(AssertUnwindSafe(|| {
            self.parser.consume_token(token)?;
            self.parser.check_stop()
        }));
        let Err(e) = done.map_err(plain) else { return Ok(()) };
        let limit = e.to_string().contains("Current row has"); // of llguidance, as `limits` has it
        Err(e.context(match limit {
            true => "the grammar has too many ways to go on, as an ambiguous one has".to_owned(),
            false => format!("the grammar does not allow token {token} here"),
        }))
    }

    /// Whether the text may end here.
    pub fn may_end(&mut self) -> bool {
        self.is_done() || catch_unwind(AssertUnwindSafe(|| Ok(self.parser.is_accepting()))).unwrap_or(false)
    }

    /// Whether the text can only end here.
    pub fn is_done(&self) -> bool {
        let reason = self.parser.stop_reason();
        reason.is_ok() && reason != StopReason::NotStopped && reason != StopReason::NoExtensionBias
    }
}
