//! From a conversation to tokens, of which a sequence reads only those that it has not read yet.
//!
//! What was read is compared with the new prompt piece by piece: control tokens by their numbers, the text between them
//! as text, since a model may cut its own words in other tokens than a tokenizer would. So an answer is never read again
//! because of how it was cut; where a template drops what an earlier answer thought, reading begins there.

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use crate::session::{ContextFull, Output, Progress, Session, Want};
use crate::text::{Clock, Markers, Prompt, Prompter, Reader, Template, Tokenizer};

/// How conversations become prompts: a template and the variables that it is given with the messages.
#[derive(Debug)]
pub struct Turns {
    prompter: Prompter,
    variables: Map<String, Value>,
    clock: Clock,
    /// What parts reasoning from the answer, where the template does not tell.
    markers: Option<Markers>,
    /// What [`Turns::user_opens`] returns.
    opens: Option<String>,
}

impl Turns {
    /// With the template's further variables (`enable_thinking`, `documents`, ...).
    ///
    /// # Errors
    /// As [`Prompter::new`].
    pub fn new(template: Template, tokenizer: &Tokenizer, further: Map<String, Value>, clock: Clock) -> Result<Turns> {
        let prompter = Prompter::new(template, tokenizer)?;
        let mut turns = Turns { prompter, variables: further, clock, markers: None, opens: None };
        turns.opens = turns.find_opening(tokenizer);
        if !turns.may_reason() {
            let one = |text: &str| tokenizer.encode(text, false, true).is_ok_and(|ids| ids.len() == 1);
            turns.markers = Markers::of_vocabulary(one);
        }
        Ok(turns)
    }

    /// With these tags around what is thought, whatever the template says.
    pub fn with_markers(self, markers: Markers) -> Turns {
        Turns { markers: Some(markers), ..self }
    }

    /// Whether reasoning can come that is told from the answer.
    pub fn may_reason(&self) -> bool {
        self.markers.is_some() || Reader::new(self.prompter.source(), "").may_reason()
    }

    /// The prompt of a conversation, `open` for an answer.
    ///
    /// # Errors
    /// If the template fails, with its line.
    pub fn prompt(&self, messages: &[Value], open: bool) -> Result<Prompt> {
        self.prompt_with(messages, None, None, open)
    }

    /// The prompt of a conversation with tools, and with variables of its own.
    ///
    /// # Errors
    /// If the template fails, with its line.
    pub fn prompt_with(
        &self,
        messages: &[Value],
        tools: Option<&Value>,
        further: Option<&Map<String, Value>>,
        open: bool,
    ) -> Result<Prompt> {
        let mut variables = self.variables.clone();
        variables.extend(further.cloned().unwrap_or_default());
        variables.insert("messages".into(), messages.into());
        if let Some(tools) = tools {
            variables.insert("tools".into(), tools.clone());
        }
        variables.insert("add_generation_prompt".into(), open.into());
        self.prompter.prompt(&Value::Object(variables), self.clock)
    }

    /// What splits the answer to a prompt into its parts.
    pub fn reader(&self, prompt: &Prompt) -> Reader {
        match self.markers {
            Some(markers) => Reader::with_markers(markers, prompt.text()),
            None => Reader::new(self.prompter.source(), prompt.text()),
        }
    }

    /// The text with which the template opens a user's turn, where no control token does: a model of such a template
    /// may go on with the user's part itself.
    pub fn user_opens(&self) -> Option<&str> {
        self.opens.as_deref()
    }

    fn find_opening(&self, tokenizer: &Tokenizer) -> Option<String> {
        const MARK: &str = "\u{1}";
        let messages = [message("user", "a"), message("assistant", "b"), message("user", MARK)];
        let before = self.prompt(&messages[..2], false).ok()?;
        let whole = self.prompt(&messages, false).ok()?;
        let opens = whole.text().strip_prefix(before.text())?.split(MARK).next()?;
        let start = before.text().len();
        let ids = tokenizer.encode_prompt(&whole.part(start, start + opens.len())).ok()?;
        let plain = !ids.iter().any(|id| tokenizer.is_control(*id));
        (plain && !opens.trim().is_empty()).then(|| opens.trim().to_owned())
    }
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
/// nothing is read again; `progress` is called as by [`Session::feed_with_progress`].
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
) -> Result<Output> {
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
    session.feed_with_progress(seq, &rest, want, progress)
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
        tokenizer.encode_prompt(&turns.prompt(&next, false)?)
    };
    let (one, other) = (with("a")?, with("b")?);
    let (keep, rest) = rest(tokenizer, session.tokens(seq), &one[..shared(&one, &other)]);
    if rest.is_empty() || keep + rest.len() >= session.n_ctx() {
        return Ok(());
    }
    session.rewind(seq, keep)?;
    session.feed(seq, &rest, Want::None).map(drop)
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
