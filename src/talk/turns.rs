//! From a conversation to tokens, of which a sequence reads only those that it has not read yet.
//!
//! What was read is compared with the new prompt piece by piece: control tokens by their numbers, the text between them
//! as text, since a model may cut its own words in other tokens than a tokenizer would. So an answer is never read again
//! because of how it was cut; where a template drops what an earlier answer thought, reading begins there.

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use crate::session::{ContextFull, Session, Want};
use crate::text::{Clock, Reader, Template, Tokenizer};

/// How conversations become prompts: a template and its variables other than the messages.
#[derive(Debug)]
pub struct Turns {
    template: Template,
    variables: Map<String, Value>,
    clock: Clock,
    /// What [`Turns::user_opens`] returns.
    opens: Option<String>,
}

impl Turns {
    /// With the template's further variables (`enable_thinking`, `documents`, ...).
    pub fn new(template: Template, tokenizer: &Tokenizer, further: Map<String, Value>, clock: Clock) -> Turns {
        let mut variables = guarded(tokenizer, &further);
        tokenizer.add_variables(&mut variables);
        let mut turns = Turns { template, variables, clock, opens: None };
        turns.opens = turns.find_opening(tokenizer);
        turns
    }

    /// The prompt of a conversation, `open` for an answer.
    ///
    /// # Errors
    /// If the template fails, with its line.
    pub fn prompt(&self, tokenizer: &Tokenizer, messages: &[Value], open: bool) -> Result<String> {
        self.prompt_with(tokenizer, messages, None, None, open)
    }

    /// The prompt of a conversation, with tools and additional variables.
    ///
    /// # Errors
    /// If the template fails, with its line.
    pub fn prompt_with(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Value],
        tools: Option<&Value>,
        further: Option<&Map<String, Value>>,
        open: bool,
    ) -> Result<String> {
        let mut variables = self.variables.clone();
        variables.extend(further.map(|f| guarded(tokenizer, f)).unwrap_or_default());
        variables.insert("messages".into(), tokenizer.guarded(&Value::Array(messages.to_vec())));
        if let Some(tools) = tools {
            variables.insert("tools".into(), tokenizer.guarded(tools));
        }
        variables.insert("add_generation_prompt".into(), open.into());
        self.template.render(&Value::Object(variables), self.clock)
    }

    /// What splits the answer to a prompt into its parts.
    pub fn reader(&self, prompt: &str) -> Reader {
        Reader::new(self.template.source(), prompt)
    }

    /// The text with which the template opens a user's turn, where no control token does: a model of such a template
    /// may go on with the user's part itself.
    pub fn user_opens(&self) -> Option<&str> {
        self.opens.as_deref()
    }

    fn find_opening(&self, tokenizer: &Tokenizer) -> Option<String> {
        const MARK: &str = "\u{1}";
        let messages = [message("user", "a"), message("assistant", "b"), message("user", MARK)];
        let before = self.prompt(tokenizer, &messages[..2], false).ok()?;
        let whole = self.prompt(tokenizer, &messages, false).ok()?;
        let opens = whole.strip_prefix(before.as_str())?.split(MARK).next()?;
        let plain = !tokenizer.encode_prompt(opens).ok()?.iter().any(|id| tokenizer.is_control(*id));
        (plain && !opens.trim().is_empty()).then(|| opens.trim().to_owned())
    }
}

/// A template's variables; what is in them may be anybody's text.
fn guarded(tokenizer: &Tokenizer, variables: &Map<String, Value>) -> Map<String, Value> {
    variables.iter().map(|(name, value)| (name.clone(), tokenizer.guarded(value))).collect()
}

/// A message as templates read it.
pub fn message(role: &str, text: &str) -> Value {
    json!({ "role": role, "content": text })
}

/// Makes `text` the system message of a conversation; without text it has none.
pub fn set_system(messages: &mut Vec<Value>, text: &str) {
    messages.retain(|m| m["role"] != "system");
    if !text.is_empty() {
        messages.insert(0, message("system", text));
    }
}

/// With how many tokens both lists begin.
pub fn shared(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// How many of the tokens that were read a prompt begins with, and the tokens that are left of it.
pub fn rest(tokenizer: &Tokenizer, read: &[u32], ids: &[u32]) -> (usize, Vec<u32>) {
    let same = shared(read, ids);
    if same == read.len() || same == ids.len() {
        return (same, ids[same..].to_vec());
    }
    // Piece by piece: a control token, or the text up to the next.
    let (mut at, mut done) = (0, 0); // tokens of `read`, tokens of `ids`
    loop {
        let piece = |list: &[u32], from: usize| match list[from..].iter().position(|t| tokenizer.is_control(*t)) {
            Some(0) => from + 1,
            Some(n) => from + n,
            None => list.len(),
        };
        if at == read.len() || done == ids.len() {
            break;
        }
        let (a, b) = (piece(read, at), piece(ids, done));
        let (x, y) = (&read[at..a], &ids[done..b]);
        if x != y
            && (tokenizer.is_control(x[0]) || tokenizer.is_control(y[0]) || bytes(tokenizer, x) != bytes(tokenizer, y))
        {
            let (more, also) = meet(tokenizer, x, y);
            (at, done) = (at + more, done + also);
            break;
        }
        (at, done) = (a, b);
    }
    (at, ids[done..].to_vec())
}

fn bytes(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<u8> {
    ids.iter().flat_map(|id| tokenizer.bytes(*id, true)).collect()
}

/// How many tokens of both lists write the same text, for the last time that tokens of both end at its end. An answer may
/// have been cut otherwise and have ended early.
fn meet(tokenizer: &Tokenizer, x: &[u32], y: &[u32]) -> (usize, usize) {
    if x.is_empty() || y.is_empty() || tokenizer.is_control(x[0]) || tokenizer.is_control(y[0]) {
        return (0, 0);
    }
    let same = bytes(tokenizer, x).iter().zip(&bytes(tokenizer, y)).take_while(|(a, b)| a == b).count();
    let (mut best, mut i, mut j, mut x_bytes, mut y_bytes) = ((0, 0), 0, 0, 0, 0);
    while x_bytes <= same && y_bytes <= same {
        if x_bytes == y_bytes {
            best = (i, j);
        }
        let (list, n, sum) = if x_bytes <= y_bytes { (x, &mut i, &mut x_bytes) } else { (y, &mut j, &mut y_bytes) };
        let Some(id) = list.get(*n) else { break };
        *n += 1;
        *sum += tokenizer.bytes(*id, true).len();
    }
    best
}

/// Makes a sequence one that has read the prompt `ids`, and returns what is wanted after it. Of what it has read already
/// nothing is read again; `progress` is told how many tokens are to be read, and then of each batch.
///
/// # Errors
/// [`ContextFull`] before anything is read, if the prompt has no room; [`Interrupted`](crate::session::Interrupted), with
/// what was read so far kept; others as [`Session::feed`].
pub fn read(
    session: &mut Session,
    seq: usize,
    tokenizer: &Tokenizer,
    ids: &[u32],
    want: Want,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<f32>> {
    let (mut keep, mut rest) = rest(tokenizer, session.tokens(seq), ids);
    if rest.is_empty() {
        // Logits follow a token: the last one is read once more.
        keep = keep.checked_sub(1).context("the prompt is empty")?;
        rest = vec![session.tokens(seq)[keep]];
    }
    if keep + rest.len() > session.n_ctx() {
        return Err(ContextFull { n_ctx: session.n_ctx(), used: 0, given: keep + rest.len() }.into());
    }
    session.rewind(seq, keep)?;
    feed(session, seq, &rest, want, progress)
}

/// Reads what the next prompt of a conversation will begin with, whatever the user says next: a template may drop what an
/// answer thought once the next message is there, and what is left of that answer can be read while the user types.
///
/// # Errors
/// [`Interrupted`](crate::session::Interrupted), with what was read so far kept; others as [`Session::feed`], or the template's.
pub fn read_ahead(
    session: &mut Session,
    seq: usize,
    tokenizer: &Tokenizer,
    turns: &Turns,
    messages: &[Value],
) -> Result<()> {
    let with = |text: &str| {
        let next = [messages, &[message("user", text)]].concat();
        tokenizer.encode_prompt(&turns.prompt(tokenizer, &next, false)?)
    };
    let (one, other) = (with("a")?, with("b")?);
    let (keep, rest) = rest(tokenizer, session.tokens(seq), &one[..shared(&one, &other)]);
    if rest.is_empty() || keep + rest.len() >= session.n_ctx() {
        return Ok(());
    }
    session.rewind(seq, keep)?;
    session.feed(seq, &rest, Want::None).map(drop)
}

/// What is told of a prompt that is being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// This many tokens will be read.
    Begins(usize),
    /// This many more of them have been read.
    Read(usize),
}

/// Reads tokens in parts that are told of.
///
/// # Errors
/// As [`Session::feed`].
pub fn feed(
    session: &mut Session,
    seq: usize,
    tokens: &[u32],
    want: Want,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<f32>> {
    progress(Progress::Begins(tokens.len()));
    let parts = tokens.chunks(session.n_batch());
    let last = parts.len().saturating_sub(1);
    let mut logits = Vec::new();
    for (i, part) in parts.enumerate() {
        logits = session.feed(seq, part, if i == last { want } else { Want::None })?;
        progress(Progress::Read(part.len()));
    }
    Ok(logits)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::gguf::Gguf;

    #[test]
    fn of_an_answer_that_was_cut_otherwise_and_ended_early_little_is_read_again() {
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/demo.gguf");
        let t = Tokenizer::new(&Gguf::open(&demo).unwrap()).unwrap();
        let whole = "KING:\nhello there, my good friends and lords\n\nROMEO:";
        let ids = t.encode(whole, false, false).unwrap();
        for early in ["KING:\nhello there, my good frie", "KING:\nhello there, my goo", whole] {
            let read: Vec<u32> = early.chars().flat_map(|c| t.encode(&c.to_string(), false, false).unwrap()).collect();
            let (kept, left) = rest(&t, &read, &ids);
            assert_eq!(t.decode(&[&read[..kept], &left].concat(), true), whole);
            // At most the letters of the one token of the prompt that it stopped in: " friends".
            assert!(kept + 8 > early.len(), "{kept} of {} letters", early.len());
        }
        let (kept, _) = rest(&t, &t.encode("KING:\nhullo there", false, false).unwrap(), &ids);
        assert!(kept > 0 && t.decode(&ids[..kept], true).len() <= 7, "up to where the text is another");
    }
}
