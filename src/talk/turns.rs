//! From a conversation to tokens, of which a sequence reads only those that it has not read yet.
//!
//! What was read is compared with the new prompt piece by piece: control tokens by their numbers, the text between them
//! as text, since a model may cut its own words in other tokens than a tokenizer would. So an answer is never read again
//! because of how it was cut; where a template drops what an earlier answer thought, reading begins there.
//!
//! Messages come as the API has them and are made what templates read: `"content": null` is empty, and the arguments of
//! calls, which are text there, are objects, or text where the template wants that.

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

use super::tools::ToolUse;
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
    /// The arguments of calls are text in the template's messages, not objects.
    text_arguments: bool,
    /// What was thought before a call is `thinking` in them.
    thinking: bool,
    /// A message with calls and no content must have none at all, not an empty one.
    null_content: bool,
}

impl Turns {
    /// With the template's further variables (`enable_thinking`, `documents`, ...).
    ///
    /// # Errors
    /// As [`Prompter::new`].
    pub fn new(template: Template, tokenizer: &Tokenizer, further: Map<String, Value>, clock: Clock) -> Result<Turns> {
        let prompter = Prompter::new(template, tokenizer)?;
        let (text_arguments, null_content) = (false, false);
        let has = |text: &str| prompter.source().contains(text);
        let thinking = has(".thinking") && !has("reasoning_content");
        let (markers, opens) = (None, None);
        let mut turns =
            Turns { prompter, variables: further, clock, markers, opens, text_arguments, thinking, null_content };
        turns.opens = turns.find_opening(tokenizer);
        turns.find_call_form();
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

    /// What the template's file says.
    pub fn source(&self) -> &str {
        self.prompter.source()
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
        variables.insert("messages".into(), messages.iter().map(|m| self.shaped(m)).collect());
        if let Some(tools) = tools {
            variables.insert("tools".into(), tools.clone());
            // SmolLM3 and Firefunction have names of their own for them.
            if self.source().contains("xml_tools") {
                variables.entry("xml_tools").or_insert_with(|| tools.clone());
            }
            if self.source().contains("functools[") {
                variables.entry("functions").or_insert_with(|| tools.to_string().into());
            }
        }
        variables.insert("add_generation_prompt".into(), open.into());
        self.prompter.prompt(&Value::Object(variables), self.clock)
    }

    /// What splits the answer to a prompt into its parts; in the text of calls, if tools are offered, it changes nothing.
    pub fn reader(&self, prompt: &Prompt, tools: Option<&ToolUse>) -> Reader {
        let reader = match self.markers {
            Some(markers) => Reader::with_markers(markers, prompt.text()),
            None => Reader::new(self.prompter.source(), prompt.text()),
        };
        match tools.and_then(ToolUse::markup) {
            Some(markup) => reader.watching(markup),
            None => reader,
        }
    }

    /// The prompt of a conversation whose last message, the model's, is begun and gone on with, and what splits the rest
    /// of it into its parts. Where only its reasoning has text, that is gone on with.
    ///
    /// # Errors
    /// If the last message is not the model's or has no text, or the template fails or does not write that text.
    pub fn begun(
        &self,
        messages: &[Value],
        tools: Option<&ToolUse>,
        further: Option<&Map<String, Value>>,
    ) -> Result<(Prompt, Reader)> {
        let last = messages.last().filter(|m| m["role"] == "assistant").context(
            "continue_final_message: the last message is not the assistant's; end messages with one that begins the answer",
        )?;
        let said = |key: &str| last[key].as_str().unwrap_or("").trim();
        let texts = [said("content"), said("reasoning_content")];
        let text = texts
            .into_iter()
            .find(|t| !t.is_empty())
            .context("continue_final_message: the last message has no text; leave it out to let the model begin")?;
        let prompt = self.prompt_with(messages, tools.map(ToolUse::list), further, false)?;
        let start = prompt
            .text()
            .rfind(text)
            .context("continue_final_message: the chat template does not write the last message's text as it is")?;
        // White space at its end belongs to it where the template writes it, too.
        let whole = [last["content"].as_str(), last["reasoning_content"].as_str()];
        let whole = whole.into_iter().flatten().find(|t| !t.trim().is_empty()).unwrap_or(text).trim_start();
        let n = if prompt.text()[start..].starts_with(whole) { whole.len() } else { text.len() };
        let mut reader = self.reader(&prompt.part(0, start), tools);
        reader.push(&prompt.text()[start..start + n]);
        Ok((prompt.part(0, start + n), reader))
    }

    /// Whether a prompt tells the model of the tools that it is given.
    pub fn takes_tools(&self) -> bool {
        const NAME: &str = "tool_that_is_probed";
        let parameters = json!({ "type": "object", "properties": {} });
        let function = json!({ "name": NAME, "description": "none", "parameters": parameters });
        let tools = json!([{ "type": "function", "function": function }]);
        match self.prompt_with(&[message("user", "a")], Some(&tools), None, true) {
            Ok(prompt) => prompt.text().contains(NAME),
            // It may want other tools or messages than these.
            Err(_) => self.prompter.source().contains("tools"),
        }
    }

    /// The tools of a request, for this template.
    ///
    /// # Errors
    /// If the template neither tells the model of tools nor has a known markup of calls.
    pub fn check_tools(&self, tools: ToolUse) -> Result<ToolUse> {
        let tools = tools.for_template(self.source())?;
        if self.takes_tools() {
            if tools.markup().is_none() {
                tracing::warn!("the chat template's markup of calls is not known: they stay in the text");
            }
            return Ok(tools);
        }
        if tools.markup().is_none() {
            bail!(
                "tools: the chat template takes none, so that the model would not know of them; use a template that \
                 does (--chat-template tool_use where the file has one, or --chat-template-file), or leave tools out"
            );
        }
        tracing::warn!("the chat template does not tell the model of the tools; describe them in the system message");
        Ok(tools)
    }

    /// A message as the template reads it: without content it has an empty one, and a call's arguments are an object.
    fn shaped(&self, message: &Value) -> Value {
        let mut message = message.clone();
        let calls = message["tool_calls"].as_array().is_some_and(|c| !c.is_empty());
        let Some(object) = message.as_object_mut() else { return message };
        if object.get("content").is_none_or(Value::is_null) {
            object.insert("content".into(), "".into());
        }
        if calls && self.null_content && object["content"].as_str().is_some_and(|t| t.trim().is_empty()) {
            object.insert("content".into(), Value::Null);
        }
        // What was thought before a call is part of the same answer; gpt-oss's template has a name of its own for it.
        let thought = object.get("reasoning_content").cloned().filter(|_| calls && self.thinking);
        if let Some(thought) = thought.filter(|_| object["content"].as_str().is_some_and(str::is_empty)) {
            object.entry("thinking").or_insert(thought);
        }
        for call in object.get_mut("tool_calls").and_then(Value::as_array_mut).into_iter().flatten() {
            let arguments = match call.pointer("/function/arguments") {
                Some(Value::String(text)) if text.trim().is_empty() => json!({}),
                Some(Value::String(text)) => match serde_json::from_str(text) {
                    Ok(object @ Value::Object(_)) => object,
                    _ => continue,
                },
                Some(Value::Null) => json!({}),
                Some(other) => other.clone(),
                None => continue,
            };
            call["function"]["arguments"] = if self.text_arguments { arguments.to_string().into() } else { arguments };
        }
        message
    }

    /// Finds how the template reads the calls of a message: with arguments as an object or as text, with an empty
    /// content or none. What it writes must have the call in it.
    fn find_call_form(&mut self) {
        let call = json!({ "id": "call00000", "type": "function", "function": {
            "name": "probed_name", "arguments": { "probed_key": "probed_value" } } });
        let calls = json!({ "role": "assistant", "content": "", "tool_calls": [call] });
        for (text, null) in [(false, false), (true, false), (false, true), (true, true)] {
            (self.text_arguments, self.null_content) = (text, null);
            let Ok(prompt) = self.prompt(&[message("user", "a"), calls.clone()], false) else { continue };
            let says = |word: &str| prompt.text().contains(word);
            if says("probed_name") && says("probed_key") && says("probed_value") && !says("{'probed_key'") {
                return;
            }
        }
        (self.text_arguments, self.null_content) = (false, false);
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
