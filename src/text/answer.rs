//! What a chat model writes, split as it comes into reasoning and answer.
//!
//! Which form a model uses is read off its chat template:
//!
//! ```text
//! tags      <think> reasoning </think> answer, once, at the beginning; or the template opens <think> itself. Others
//!           write [THINK] and so on: see TAGS
//! channels  Gemma 4: <|channel>thought reasoning <channel|> answer, any number of times
//! harmony   gpt-oss: messages, each with a head that names its channel (openai/harmony, docs/format.md):
//!             <|start|>assistant<|channel|>analysis<|message|> reasoning <|end|>
//!             <|start|>assistant<|channel|>final<|message|> answer <|return|>
//!             <|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|> arguments <|call|>
//! recipient Muse Glimmer: messages as harmony's, each with a head that names who gets it:
//!             <|start|>assistant to=self<|message|> reasoning <|eom|>
//!             <|start|>assistant to=user<|message|> answer <|eot|>
//! plain     no template says anything: all is answer, but between tags that the vocabulary has, at the beginning
//! ```
//!
//! Markers are left out, and so are line breaks next to them; what may yet become a marker is held back. A call in
//! harmony is answer with its head, ` to=functions.f<|channel|>commentary json<|message|>`, since that names the tool.
//! Where tools are offered ([`Reader::watching`]), markers in a call's strings are text.

use std::mem::take;

use super::calls::{Markup, QUOTE};

/// A part of what a model writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// What it says to itself.
    Reasoning,
    /// What it says to the user, or to a tool.
    Answer,
}
use Part::{Answer, Reasoning};

/// Two texts between which a model reasons.
#[derive(Debug)]
struct Tags {
    open: &'static str,
    close: &'static str,
    /// They count wherever they occur, not only at the beginning.
    anywhere: bool,
    /// Markers in the answer that are left out too.
    drops: &'static [&'static str],
    /// What comes after `close`, where the answer does not begin with line breaks.
    begins: Option<&'static str>,
    /// A text of the template that tells it has these tags, where it makes them of their parts.
    sign: &'static str,
}

/// Tags that only part reasoning from answer, at the beginning.
const fn tags(open: &'static str, close: &'static str) -> Tags {
    Tags { open, close, anywhere: false, drops: &[], begins: None, sign: "" }
}

/// As the templates of Qwen, DeepSeek, GLM, Kimi and MiniMax; MiniMax M3; Mistral; Seed-OSS; Hy3; Command A; Apertus;
/// Gemma 4; Kimi K3 have them.
const TAGS: &[Tags] = &[
    tags("<think>", "</think>"),
    tags("<mm:think>", "</mm:think>"),
    tags("[THINK]", "[/THINK]"),
    tags("<seed:think>", "</seed:think>"),
    Tags { sign: "HYTK = ':opensource'", ..tags("<think:opensource>", "</think:opensource>") },
    tags("<|START_THINKING|>", "<|END_THINKING|>"),
    tags("<|inner_prefix|>", "<|inner_suffix|>"),
    Tags { anywhere: true, ..tags("<|channel>thought", "<channel|>") },
    Tags {
        drops: &["<|open|>response<|sep|>", "<|close|>response<|sep|>", "<|close|>message<|sep|>"],
        begins: Some("<|open|>response<|sep|>"),
        sign: "open_tag('think')",
        ..tags("<|open|>think<|sep|>", "<|close|>think<|sep|>")
    },
];

/// Tags of templates that are known by their sign alone: Granite 3.3 (what the answer is set in, in addition to the usual tags),
/// Apriel 1.5 and 1.6 (sentences), Solar Open (messages).
const SIGNED: &[Tags] = &[
    Tags {
        drops: &["<response>", "</response>"],
        begins: Some("<response>"),
        sign: "your response between <response></response>",
        ..tags("<think>", "</think>")
    },
    Tags {
        drops: &["[END FINAL RESPONSE]"],
        sign: "[BEGIN FINAL RESPONSE]",
        ..tags("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]")
    },
    Tags {
        drops: &["<|content|>"],
        begins: Some(""),
        sign: "<|begin|>assistant<|think|>",
        ..tags("<|think|>", "<|end|><|begin|>assistant<|content|>")
    },
];

/// Tags that are known otherwise than from a template.
#[derive(Clone, Copy, Debug)]
pub struct Markers {
    tags: &'static Tags,
    /// Nobody says that the model uses them: a grammar holds from the beginning on.
    doubtful: bool,
}

impl Markers {
    /// Tags that a user names. They are kept as long as the program runs.
    pub fn new(open: &str, close: &str) -> Markers {
        let text = |text: &str| -> &'static str { Box::leak(text.to_owned().into_boxed_str()) };
        Markers { tags: Box::leak(Box::new(tags(text(open), text(close)))), doubtful: false }
    }

    /// The tags of a model whose template names none, if its vocabulary does: `has` says whether a text is one token.
    pub fn of_vocabulary(has: impl Fn(&str) -> bool) -> Option<Markers> {
        let known = TAGS.iter().find(|t| !t.anywhere && has(t.open) && has(t.close))?;
        Some(Markers { tags: known, doubtful: true })
    }
}

const START: &str = "<|start|>";
const CHANNEL: &str = "<|channel|>";
const MESSAGE: &str = "<|message|>";

/// What ends the text of a message, besides the head of the next.
const ENDS: &[&str] = &["<|end|>", "<|return|>", "<|call|>", "<|eom|>", "<|eot|>", START, CHANNEL];

/// What a template says whose messages have no channel but a recipient.
const TO_SELF: &str = "<|start|>assistant to=self<|message|>";

/// Where a reader is.
#[derive(Debug, Clone, Copy, PartialEq)]
enum ReaderState {
    /// At the beginning, where reasoning may open.
    Begin,
    /// In reasoning between tags; the bool: line breaks are dropped, since nothing came yet.
    Inside(bool),
    /// In the answer; the bool: as above.
    After(bool),
    /// In the head of a message.
    Head,
    /// In the text of a message.
    Body(Part),
}
use ReaderState::{After, Begin, Body, Head, Inside};

/// Splits what a model writes.
#[derive(Debug)]
pub struct Reader {
    /// None in harmony.
    tags: Option<&'static Tags>,
    /// Messages name who gets them, and have no channel.
    recipients: bool,
    /// As in [`Markers`].
    doubtful: bool,
    state: ReaderState,
    /// The markup of calls, where tools are offered.
    calls: Option<&'static Markup>,
    /// In a call, in a string of it.
    quoted: Option<bool>,
    /// What came and is not decided.
    held: String,
    out: Vec<(Part, String)>,
}

impl Reader {
    /// A reader for the model with this chat template, after a prompt with this end.
    pub fn new(template_source: &str, prompt_tail: &str) -> Reader {
        let has = |text: &str| template_source.contains(text);
        let recipients = has(TO_SELF);
        let mut reader = Reader { recipients, state: Head, ..Reader::plain() };
        if has(CHANNEL) && has(MESSAGE) || recipients {
            // The template has begun the message, perhaps more of it than who writes it.
            if let Some((_, head)) = prompt_tail.rsplit_once(START).filter(|(_, head)| *head != "assistant") {
                reader.push(head);
            }
            return reader;
        }
        // Some only open it, some only take it out of what was said before.
        let has_tags = |t: &&Tags| has(t.close) || has(t.open) || !t.sign.is_empty() && has(t.sign);
        match SIGNED.iter().find(|t| has(t.sign)).or_else(|| TAGS.iter().find(has_tags)) {
            Some(tags) => Reader::with_markers(Markers { tags, doubtful: false }, prompt_tail),
            None => Reader::plain(),
        }
    }

    /// A reader for the model with these tags, after a prompt with this end.
    pub fn with_markers(markers: Markers, prompt_tail: &str) -> Reader {
        let Markers { tags, doubtful } = markers;
        let state = if prompt_tail.trim_end().ends_with(tags.open.trim_end()) { Inside(true) } else { Begin };
        Reader { tags: Some(tags), doubtful, state, ..Reader::plain() }
    }

    /// A reader of text that has no parts: all is answer.
    pub fn plain() -> Reader {
        Reader {
            tags: None,
            recipients: false,
            doubtful: false,
            state: After(false),
            calls: None,
            quoted: None,
            held: String::new(),
            out: Vec::new(),
        }
    }

    /// A reader that expects calls in this markup.
    pub fn watching(mut self, calls: &'static Markup) -> Reader {
        self.calls = Some(calls);
        self
    }

    /// Whether reasoning can come.
    pub fn may_reason(&self) -> bool {
        self.tags.is_some() || self.state != After(false)
    }

    /// The part that comes next; None in a head, and at a beginning where either may come.
    pub fn part(&self) -> Option<Part> {
        match self.state {
            Inside(_) => Some(Reasoning),
            After(_) => Some(Answer),
            Body(part) => Some(part),
            Begin if self.doubtful => Some(Answer),
            Begin | Head => None,
        }
    }

    /// At a beginning, the text with which reasoning opens.
    pub fn may_open(&self) -> Option<&'static str> {
        self.tags.filter(|_| self.state == Begin && !self.doubtful).map(|t| t.open)
    }

    /// In the head of a message, what is left of the heads that reasoning or the answer can have; the answer's are those
    /// of `calls`, if there are some.
    pub fn heads(&self, calls: &[String]) -> Option<Vec<String>> {
        if self.tags.is_some() || self.state != Head {
            return None;
        }
        let begins: &[&str] = if self.held.is_empty() { &["", START] } else { &["", "assistant", START] };
        let whole = begins.iter().flat_map(|begin| {
            let who = if *begin == START { "assistant" } else { "" };
            let [thought, said] =
                if self.recipients { [" to=self", " to=user"] } else { ["<|channel|>analysis", "<|channel|>final"] };
            let said = if calls.is_empty() { vec![said] } else { calls.iter().map(String::as_str).collect() };
            let heads = std::iter::once(thought).chain(said);
            heads.map(move |head| format!("{begin}{who}{head}{MESSAGE}")).collect::<Vec<_>>()
        });
        let left: Vec<String> = whole.filter_map(|head| head.strip_prefix(&self.held).map(String::from)).collect();
        // A template may have begun another one.
        Some(if left.is_empty() { vec![MESSAGE.into()] } else { left })
    }

    /// In reasoning, the text that ends it and begins the answer.
    pub fn close(&self) -> Option<String> {
        match (self.part(), self.tags) {
            (Some(Reasoning), Some(Tags { close, begins: Some(begins), .. })) => Some(format!("{close}{begins}")),
            (Some(Reasoning), Some(tags)) => Some(format!("\n{}\n\n", tags.close)),
            (Some(Reasoning), None) if self.recipients => Some(format!("<|eom|>{START}assistant to=user{MESSAGE}")),
            (Some(Reasoning), None) => Some(format!("<|end|>{START}assistant{CHANNEL}final{MESSAGE}")),
            _ => None,
        }
    }

    /// Whether a control token of this text means something here, and is not to be left out of what is read.
    pub fn knows(&self, piece: &str) -> bool {
        self.calls.is_some_and(|calls| calls.knows(piece)) || self.knows_part(piece)
    }

    fn knows_part(&self, piece: &str) -> bool {
        match self.tags {
            Some(_) if self.doubtful && matches!(self.state, After(_)) => false,
            Some(tags) => [tags.open, tags.close].iter().chain(tags.drops).any(|text| text.contains(piece)),
            None if self.state == After(false) => false,
            None => ENDS.contains(&piece) || [MESSAGE, "<|constrain|>"].contains(&piece),
        }
    }

    /// The parts that are certain with this text, which has those control tokens written out that the reader knows.
    pub fn push(&mut self, text: &str) -> Vec<(Part, String)> {
        self.held += text;
        while match self.tags {
            Some(tags) => self.tag_step(tags),
            None if self.state == After(false) => self.give_all(Answer),
            None => self.harmony_step(),
        } {}
        take(&mut self.out)
    }

    /// What was held back: at the end it is what it looks like.
    pub fn finish(mut self) -> Vec<(Part, String)> {
        let rest = take(&mut self.held);
        match self.state {
            Inside(_) => self.give(Reasoning, &rest),
            Begin | After(_) => self.give(Answer, &rest),
            Body(part) => self.give(part, &rest),
            // A model that keeps to no form has said something; the beginning of a head says nothing.
            Head if !rest.contains("<|") => self.give(Answer, &rest),
            Head => {}
        }
        self.out
    }

    fn give(&mut self, part: Part, text: &str) {
        match self.out.last_mut() {
            _ if text.is_empty() => {}
            Some((last, all)) if *last == part => *all += text,
            _ => self.out.push((part, text.to_owned())),
        }
    }

    fn give_all(&mut self, part: Part) -> bool {
        let all = take(&mut self.held);
        self.give(part, &all);
        false
    }

    /// One step between tags; false when more text is needed.
    fn tag_step(&mut self, tags: &Tags) -> bool {
        match self.state {
            Begin => {
                let text = self.held.trim_start();
                if let Some(rest) = text.strip_prefix(tags.open) {
                    self.held = rest.to_owned();
                    self.state = Inside(true);
                    return true;
                }
                // Closed at once, where the prompt has opened it or the model thinks that it has.
                if let Some(rest) = text.strip_prefix(tags.close) {
                    self.held = rest.to_owned();
                    self.state = After(true);
                    return true;
                }
                let open = tags.open.starts_with(text) || tags.close.starts_with(text);
                if !open {
                    self.state = After(false);
                }
                !open
            }
            Inside(true) | After(true) => {
                self.held = self.held.trim_start_matches(['\n', '\r']).to_owned();
                if !self.held.is_empty() {
                    self.state = if self.state == Inside(true) { Inside(false) } else { After(false) };
                }
                !self.held.is_empty()
            }
            Inside(false) => self.until(&[tags.close], Reasoning, |r, _| r.state = After(true)),
            After(false) if !tags.drops.is_empty() => self.until(tags.drops, Answer, |_, _| {}),
            After(false) if tags.anywhere && self.calls.is_some() => self.until_channel(tags),
            After(false) if tags.anywhere => self.until(&[tags.open], Answer, |r, _| r.state = Inside(true)),
            _ => self.give_all(Answer),
        }
    }

    /// As [`Reader::until`] the next channel opens; one between the quotes of a call's string is text.
    fn until_channel(&mut self, tags: &Tags) -> bool {
        let channel = self.held.find(tags.open);
        let quote = self.held.find(QUOTE).filter(|at| channel.is_none_or(|c| *at < c) || self.quoted == Some(true));
        let Some(at) = quote else {
            if self.quoted == Some(true) {
                let keep = (1..QUOTE.len()).rev().find(|n| self.held.ends_with(&QUOTE[..*n])).unwrap_or(0);
                let text: String = self.held.drain(..self.held.len() - keep).collect();
                self.give(Answer, &text);
                return false;
            }
            // What may become a quote is held back as well.
            return self.until(&[tags.open, QUOTE], Answer, |r, _| r.state = Inside(true));
        };
        let text: String = self.held.drain(..at + QUOTE.len()).collect();
        self.give(Answer, &text);
        self.quoted = Some(self.quoted != Some(true));
        true
    }

    /// The text of a call in harmony, up to the end of its message; ends in a string are text.
    fn call_step(&mut self) -> bool {
        let string = self.quoted == Some(true);
        let first = |text: &str, signs: &[char]| text.find(signs);
        let n = match string {
            true => match first(&self.held, &['"', '\\']) {
                Some(at) if self.held[at..].starts_with('"') => {
                    self.quoted = Some(false);
                    at + 1
                }
                Some(at) => match self.held[at + 1..].chars().next() {
                    Some(c) => at + 1 + c.len_utf8(),
                    None => return false,
                },
                None => self.held.len(),
            },
            false => {
                let end = ENDS.iter().filter_map(|e| self.held.find(e)).min();
                match first(&self.held, &['"']).filter(|at| end.is_none_or(|end| *at < end)) {
                    Some(at) => {
                        self.quoted = Some(true);
                        at + 1
                    }
                    None => return self.end_step(Answer),
                }
            }
        };
        let text: String = self.held.drain(..n).collect();
        self.give(Answer, &text);
        !self.held.is_empty()
    }

    /// Up to the end of a message.
    fn end_step(&mut self, part: Part) -> bool {
        self.until(ENDS, part, |r, end| {
            r.state = Head;
            r.quoted = None;
            if [START, CHANNEL].contains(&end) {
                r.held.insert_str(0, end);
            }
        })
    }

    /// Gives what comes before the first of the markers, and then goes on after it, or stops before what may become
    /// one. Line breaks before a marker go with it.
    fn until(&mut self, markers: &[&'static str], part: Part, then: impl Fn(&mut Reader, &'static str)) -> bool {
        let found = markers.iter().filter_map(|m| Some((self.held.find(m)?, *m))).min();
        let end = match found {
            Some((at, _)) => at,
            None => {
                let partial = |n: &usize| {
                    self.held.is_char_boundary(*n) && markers.iter().any(|m| m.starts_with(&self.held[*n..]))
                };
                (0..self.held.len()).find(partial).unwrap_or(self.held.len())
            }
        };
        let text = self.held[..end].trim_end_matches(['\n', '\r']).to_owned();
        self.give(part, &text);
        match found {
            Some((at, marker)) => {
                self.held.drain(..at + marker.len());
                then(self, marker);
            }
            None => {
                self.held.drain(..text.len());
            }
        }
        found.is_some()
    }

    /// One step in harmony's messages.
    fn harmony_step(&mut self) -> bool {
        let Body(part) = self.state else { return self.head_step() };
        if self.quoted.is_some() { self.call_step() } else { self.end_step(part) }
    }

    /// A head, from the end of a message to `<|message|>`.
    fn head_step(&mut self) -> bool {
        // No head has a second line: this is text, from a model that keeps to no form.
        let plain = self.held.find("<|").unwrap_or(self.held.len());
        if self.held[..plain].contains('\n') {
            self.state = Body(Answer);
            return true;
        }
        let Some((head, rest)) = self.held.split_once(MESSAGE) else { return false };
        let (head, rest) = (head.to_owned(), rest.to_owned());
        // Who writes it is left out.
        let head = head.rsplit_once(START).map_or(&head[..], |(_, head)| head);
        let head = head.strip_prefix("assistant").unwrap_or(head);
        // Of several channels the last one counts: those before it are heads that were not gone on with.
        let head = match head.match_indices(CHANNEL).map(|(at, _)| at).collect::<Vec<_>>()[..] {
            [first, .., last] => format!("{}{}", &head[..first], &head[last..]),
            _ => head.to_owned(),
        };
        let to = head.split_once(" to=").map_or("user", |(_, to)| to);
        let call = if self.recipients { !matches!(to, "self" | "user") } else { head.contains(" to=") };
        let channel = head.split_once(CHANNEL).map_or("", |(_, channel)| channel.trim_start());
        let thought = channel.starts_with("analysis") || self.recipients && to == "self";
        let part = if thought && !call { Reasoning } else { Answer };
        if call && !(self.recipients && self.calls.is_some()) {
            self.give(part, &head);
            self.give(part, MESSAGE);
        }
        self.quoted = (call && self.calls.is_some() && !self.recipients).then_some(false);
        self.held = rest;
        self.state = Body(part);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The parts of a text that comes in pieces, neighbours of one kind joined.
    fn read(template: &str, tail: &str, pieces: &[&str]) -> Vec<(Part, String)> {
        let mut reader = Reader::new(template, tail);
        let mut all: Vec<(Part, String)> = Vec::new();
        let mut given: Vec<(Part, String)> = pieces.iter().flat_map(|p| reader.push(p)).collect();
        given.extend(reader.finish());
        for (part, text) in given {
            match all.last_mut() {
                Some((last, joined)) if *last == part => *joined += &text,
                _ => all.push((part, text)),
            }
        }
        all
    }

    /// Reads a text whole, cut in two everywhere, and letter by letter: always the same, which is returned as
    /// reasoning between brackets, answer as it is.
    fn every_way(template: &str, tail: &str, text: &str) -> String {
        let whole = read(template, tail, &[text]);
        for (cut, _) in text.char_indices() {
            let (a, b) = text.split_at(cut);
            assert_eq!(read(template, tail, &[a, b]), whole, "{a:?} and {b:?}");
        }
        let letters: Vec<String> = text.chars().map(String::from).collect();
        assert_eq!(read(template, tail, &letters.iter().map(String::as_str).collect::<Vec<_>>()), whole);
        let show = |(part, text): &(Part, String)| match part {
            Reasoning => format!("[{text}]"),
            Answer => text.clone(),
        };
        whole.iter().map(show).collect()
    }

    #[test]
    fn tags_at_the_beginning_part_reasoning_from_answer() {
        let think = |text: &str| every_way("{{ '<think>' }}{{ '</think>' }}", "user: <think>\nassistant:\n", text);
        assert_eq!(think("<think>\nhm\n\nso\n</think>\n\nyes\nno\n"), "[hm\n\nso]yes\nno\n");
        assert_eq!(think("\n <think>hm</think>yes"), "[hm]yes");
        assert_eq!(think("<think>\n\n</think>\n\nyes"), "yes", "an empty block is no reasoning");
        assert_eq!(think("  yes <think>no</think>"), "  yes <think>no</think>", "only at the beginning");
        assert_eq!(think("<think>é</think>a</think>b<think>c"), "[é]a</think>b<think>c", "only once");
        assert_eq!(think("<thin"), "<thin");
        assert_eq!(think("<think>hm</thi"), "[hm</thi]");
        assert_eq!(think("<think>hm\n"), "[hm\n]");
        assert_eq!(think("<think>1 < 2 </ 3 </th</think>\n<b"), "[1 < 2 </ 3 </th]<b");
        assert_eq!(think(""), "");
        let others = [
            ("[THINK]", "[/THINK]"),
            ("<seed:think>", "</seed:think>"),
            ("<mm:think>", "</mm:think>"),
            ("<|START_THINKING|>", "<|END_THINKING|>"),
            ("<|inner_prefix|>", "<|inner_suffix|>"),
        ];
        for (open, close) in others {
            assert_eq!(every_way(&format!("{open}x{close}"), "", &format!("{open}hm{close}yes")), "[hm]yes");
        }
    }

    #[test]
    fn what_the_prompt_opened_is_open_and_what_it_closed_is_closed() {
        let after = |tail: &str, text: &str| every_way("<think></think>", tail, text);
        assert_eq!(after("assistant\n<think>\n", "\nhm\n</think>\n\nyes"), "[hm]yes");
        assert_eq!(after("<｜Assistant｜><think>", "hm</think>yes"), "[hm]yes");
        assert_eq!(after("<think>\n\n</think>\n\n", "yes</think>"), "yes</think>");
        assert_eq!(after("what is <think>?\nassistant\n", "a tag"), "a tag");
        assert_eq!(after("<think>\n", "\n"), "");
    }

    #[test]
    fn gemmas_channels_open_and_close_anywhere() {
        let gemma = |tail: &str, text: &str| every_way("'<|channel>thought\n' + x + '\n<channel|>'", tail, text);
        assert_eq!(gemma("<|turn>model\n", "<|channel>thought\nhm\n<channel|>yes"), "[hm]yes");
        assert_eq!(gemma("<|turn>model\n<|channel>thought\n<channel|>", "yes"), "yes");
        assert_eq!(gemma("", "a\n<|channel>thought\nb\n<channel|>\nc<|chan"), "a[b]c<|chan");
    }

    #[test]
    fn a_message_to_itself_is_reasoning_and_one_to_the_user_is_the_answer() {
        let template = "'<|start|>assistant to=self<|message|>' + x";
        let says = |text: &str| every_way(template, "<|eot|><|start|>assistant", text);
        let yes = "<|start|>assistant to=user<|message|>yes<|eot|>";
        assert_eq!(says(&format!(" to=self<|message|>hm\nso<|eom|>{yes}")), "[hm\nso]yes");
        assert_eq!(says(" to=user<|message|>yes"), "yes");
        assert_eq!(says(" to=f.g<|message|>{}<|eot|>"), " to=f.g<|message|>{}");
        let mut reader = Reader::new(template, "<|start|>assistant");
        assert_eq!(reader.heads(&[]).unwrap()[0], " to=self<|message|>");
        reader.push(" to=self<|message|>hm");
        assert_eq!(reader.close().unwrap(), "<|eom|><|start|>assistant to=user<|message|>");
    }

    #[test]
    fn tags_that_a_template_makes_of_parts_are_known_and_the_answers_own_are_left_out() {
        let kimi = |tail: &str, text: &str| every_way("{{- open_tag('think') -}}", tail, text);
        let yes = "<|open|>response<|sep|>yes<|close|>response<|sep|>";
        let thinks = "<|open|>think<|sep|>";
        assert_eq!(kimi(thinks, &format!("hm<|close|>think<|sep|>{yes}<|close|>message<|sep|>")), "[hm]yes");
        assert_eq!(kimi("<|open|>response<|sep|>", "yes<|close|>response<|sep|>"), "yes");
        assert_eq!(kimi(thinks, "h<|close|>th<|close|>think<|sep|>a<|close|>b<|op"), "[h<|close|>th]a<|close|>b<|op");
        let hunyuan = |text: &str| every_way("{%- set HYTK = ':opensource' %}", "", text);
        assert_eq!(hunyuan("<think:opensource>hm</think:opensource>yes"), "[hm]yes");
    }

    #[test]
    fn templates_that_are_known_by_a_sentence_have_its_tags() {
        let granite = |text: &str| every_way(SIGNED[0].sign, "", text);
        assert_eq!(granite("<think>hm</think>\n<response>yes</response>"), "[hm]yes");
        assert_eq!(granite("yes"), "yes");
        let apriel = |tail: &str, text: &str| every_way(SIGNED[1].sign, tail, text);
        let tail = "<|begin_assistant|>\nHere are my reasoning steps:\n";
        assert_eq!(apriel(tail, "hm\n[BEGIN FINAL RESPONSE]\nyes\n[END FINAL RESPONSE]\n"), "[hm]yes\n");
        assert_eq!(apriel("", "Here are my reasoning steps:\nhm [BEGIN FINAL RESPONSE]\nyes"), "[hm ]yes");
        let solar = |text: &str| every_way(SIGNED[2].sign, "<|begin|>assistant", text);
        assert_eq!(solar("<|think|>hm<|end|><|begin|>assistant<|content|>yes"), "[hm]yes");
        assert_eq!(solar("<|content|>yes"), "yes");
        let reader = Reader::new(SIGNED[2].sign, "<|begin|>assistant<|think|>");
        assert_eq!(reader.close().unwrap(), "<|end|><|begin|>assistant<|content|>");
    }

    #[test]
    fn tags_come_from_the_vocabulary_or_the_user_where_no_template_names_them() {
        assert!(Markers::of_vocabulary(|text| text == "<think>").is_none(), "half a pair is none");
        let known = Markers::of_vocabulary(|text| text.contains("think>")).unwrap();
        let mut reader = Reader::with_markers(known, "assistant\n");
        assert_eq!((reader.part(), reader.may_open()), (Some(Answer), None), "a grammar holds at once");
        let parts = |mut all: Vec<(Part, String)>, reader: Reader| {
            all.extend(reader.finish());
            all
        };
        let came = reader.push("<think>\nhm\n</think>\n\nyes");
        assert_eq!(parts(came, reader), [(Reasoning, "hm".into()), (Answer, "yes".into())]);
        let mut reader = Reader::with_markers(Markers::new("(((", ")))"), "");
        let came = reader.push("(((hm)))yes");
        assert_eq!(parts(came, reader), [(Reasoning, "hm".into()), (Answer, "yes".into())]);
    }

    /// Every template of llama.cpp, where they are there, with the tag that opens reasoning.
    #[test]
    fn the_tags_of_real_templates_are_found() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/oracle/templates/llama.cpp-b11434");
        let Ok(list) = std::fs::read_dir(dir) else { return };
        let expected = |name: &str| match name.split(['-', '.', '_']).next().unwrap_or_default() {
            _ if name.contains("gpt-oss") || name.contains("llm-jp") || name.contains("muse") => "messages",
            "Apertus" => "<|inner_prefix|>",
            "Apriel" => "Here are my reasoning steps:",
            _ if name.contains("Apriel") => "Here are my reasoning steps:",
            _ if name.contains("Solar") => "<|think|>",
            "ByteDance" => "<seed:think>",
            "Cohere2MoE" => "<|START_THINKING|>",
            _ if name.contains("command-r7b") => "<|START_THINKING|>",
            _ if name.contains("Kimi-K3") => "<|open|>think<|sep|>",
            _ if name.contains("MiniMax-M3") => "<mm:think>",
            _ if name.contains("Ministral-3") => "[THINK]",
            _ if name.contains("gemma-4") => "<|channel>thought",
            _ if name.contains("Hy3") => "<think:opensource>",
            _ => {
                // No model of these reasons, or its template does not tell.
                let none = [
                    "command-r-plus",
                    "GigaChat",
                    "Kimi-K2-Instruct",
                    "moonshotai-Kimi-K2",
                    "LFM2-8B",
                    "MiMo-VL",
                    "MiniMax-M1",
                    "Mistral-Small",
                    "Hermes",
                    "Qwen2.5",
                    "Qwen3-Coder",
                    "firefunction",
                    "gemma-2",
                    "granite-4",
                    "functionary",
                    "Llama-3",
                    "Phi-3.5",
                    "Nemo-Instruct",
                    "Devstral",
                ];
                // A distilled model has Llama in its name, and reasons all the same.
                if none.iter().any(|n| name.contains(n)) && !name.contains("DeepSeek-R1") { "" } else { "<think>" }
            }
        };
        let mut seen = 0;
        for file in list.map(|f| f.unwrap().path()).filter(|f| f.extension().is_some_and(|e| e == "jinja")) {
            let name = file.file_stem().unwrap().to_string_lossy().into_owned();
            let reader = Reader::new(&std::fs::read_to_string(&file).unwrap(), "");
            let found = match reader.tags {
                Some(tags) => tags.open,
                None if reader.may_reason() => "messages",
                None => "",
            };
            assert_eq!(found, expected(&name), "{name}");
            seen += 1;
        }
        assert!(seen > 60, "{seen} templates");
    }

    #[test]
    fn harmonys_channels_say_what_is_reasoning() {
        let template = "<|start|>assistant<|channel|>final<|message|>";
        let says = |text: &str| every_way(template, "user<|message|>Hi<|end|><|start|>assistant", text);
        let final_yes = "<|start|>assistant<|channel|>final<|message|>yes";
        assert_eq!(says(&format!("<|channel|>analysis<|message|>hm\nso<|end|>{final_yes}<|return|>")), "[hm\nso]yes");
        assert_eq!(says("<|channel|>final<|message|>a < b <| c"), "a < b <| c");
        assert_eq!(says(&format!("<|channel|>commentary<|message|>I look.<|end|>{final_yes}")), "I look.yes");
        assert_eq!(says(&format!("<|channel|>analysis<|message|>hm{final_yes}")), "[hm]yes", "an end left out");
        assert_eq!(says("<|channel|>analysis<|message|>hm<|channel|>final<|message|>yes"), "[hm]yes");
        assert_eq!(says("<|channel|>analysis<|message|>hm<|end|><|start|>assist"), "[hm]");
        assert_eq!(says("<|channel|>analysis<|mess"), "");
    }

    #[test]
    fn harmonys_calls_come_with_the_head_that_names_the_tool() {
        let says = |text: &str| every_way("<|channel|><|message|>", "<|start|>assistant", text);
        let call = "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{\"a\": 1}";
        assert_eq!(
            says(&format!("<|channel|>analysis<|message|>hm<|end|><|start|>assistant{call}<|call|>")),
            format!("[hm]{call}")
        );
        let call = " to=functions.f<|channel|>commentary json<|message|>{}";
        assert_eq!(says(call), call);
    }

    #[test]
    fn a_head_that_the_prompt_began_is_gone_on_with() {
        let says = |tail: &str, text: &str| every_way("<|channel|><|message|>", tail, text);
        assert_eq!(says("<|start|>assistant<|channel|>analysis<|message|>", "hm<|end|>"), "[hm]");
        assert_eq!(says("<|start|>assistant<|channel|>final", "<|message|>yes"), "yes");
    }

    #[test]
    fn a_model_that_keeps_to_no_form_is_heard() {
        let says = |text: &str| every_way("<|channel|><|message|>", "<|start|>assistant", text);
        assert_eq!(says("Hello\nthere <|x"), "Hello\nthere <|x");
        assert_eq!(says("Hello"), "Hello");
        assert_eq!(every_way("no form", "<think>", "<think>a</think>"), "<think>a</think>");
        assert_eq!(every_way("", "", "a <|channel|>"), "a <|channel|>");
    }
}
