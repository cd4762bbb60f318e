//! Tool calls out of what a model wrote.
//!
//! The chat template tells in which markup a model calls ([`Markup::of`]); [`Markup::take`] reads the calls out of a whole
//! text, so that they are the same however it came. What counts:
//!
//! ```text
//! where      in the answer; in reasoning only whole calls of offered tools at its very end, where no answer follows
//! not        in a code fence or between backticks, or where no tools are offered
//! marked     a whole, marked call counts whatever it names; a guess (marks missing) needs an offered name
//! ends       where its own syntax does: a JSON object at its brace, a tagged value at a tag that another one follows
//! cut off    whole calls count; the rest of a begun one is in neither content nor calls, but told apart
//! ended      closing marks may be missing; what cannot be read stays in the content as it is
//! ```
//! All other text is content, in order.

mod call;
mod forms;
mod json;
mod keyed;
mod named;
mod objects;
mod others;
mod rules;
mod tagged;
mod typed;
mod values;

pub use call::{Call, Tools};
use call::{Found, Offer, begins, blank};
pub use forms::Markup;
use forms::{Bare, CallForm};
pub(super) use json::QUOTE;
pub use rules::CallGrammars;

/// What a model wrote, with the calls taken out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Taken {
    /// What is left of the reasoning.
    pub reasoning: String,
    /// What is left of the answer.
    pub content: String,
    /// The calls, in order.
    pub calls: Vec<Call>,
    /// The text of a call that was begun and cut off.
    pub incomplete: String,
}

/// Tokens that end a turn or a message: never content, if they come as text.
const ENDS: &[&str] = &[
    "<|im_end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|eot|>",
    "<|eom|>",
    "<|end|>",
    "<|call|>",
    "<|calls|>",
    "<|return|>",
    "<|role_end|>",
    "<|end_of_msg|>",
    "<|close|>message<|sep|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|message_sep|>",
    "<｜end▁of▁sentence｜>",
    "<｜hy_eos:opensource｜>",
    "<turn|>",
    "<|tool_response>",
    "<|user|>",
    "<|observation|>",
    "</assistant>",
    "</s>",
    "[e~[",
    "<end_of_sentence>",
    "<seed:eos>",
    "<sep>",
    "<SPECIAL_12>",
    "<|eos|>",
];

/// A part of a text.
enum TextPart {
    Text(String),
    Calls(Vec<Call>),
    /// From this byte on a call that is cut.
    Cut(usize),
}

impl Markup {
    /// Takes the calls out of what a model wrote when these tools were offered; `complete`: it ended, and was not cut off.
    pub fn take(&self, tools: &Tools, reasoning: &str, answer: &str, complete: bool) -> Taken {
        let source = Offer { tools, complete };
        let mut taken = Taken { reasoning: reasoning.to_owned(), ..Taken::default() };
        if tools.is_empty() {
            taken.content = answer.to_owned();
            return taken;
        }
        let (said, answer) = (answer, self.cleared(answer));
        if said.trim().is_empty() {
            self.take_last(source, &mut taken);
            return taken;
        }
        for piece in self.pieces(source, &answer) {
            match piece {
                TextPart::Text(text) => taken.content.push_str(&text),
                TextPart::Calls(calls) => taken.calls.extend(calls),
                TextPart::Cut(at) => answer[at..].clone_into(&mut taken.incomplete),
            }
        }
        if let Some(rest) = taken.content.strip_prefix(self.leads) {
            taken.content = rest.to_owned();
        }
        if !taken.calls.is_empty() || !taken.incomplete.is_empty() {
            taken.content = taken.content.trim().to_owned();
        } else if taken.content == said.trim_end() {
            taken.content = said.to_owned();
        }
        taken
    }

    /// Whether a call can open at this place of an answer so far: in code it is an example.
    pub fn is_open(&self, answer: &str, at: usize) -> bool {
        let mut scan = CodeScan::new(answer, 0);
        let left = answer.len() - at;
        scan.find(|rest| rest.len() <= left).is_some_and(|found| found == at)
    }

    /// How much of an answer so far is content for certain: up to where a call may begin.
    pub fn certain(&self, answer: &str) -> usize {
        if !self.leads.is_empty() {
            return 0;
        }
        let mut scan = CodeScan::new(answer, 0);
        let marks: Vec<&str> = self.forms.iter().flat_map(|f| f.opens()).chain(self.drops.iter().copied()).collect();
        let longest = marks.iter().chain(ENDS).map(|m| m.len()).max().unwrap_or(0);
        let partly = |rest: &str| rest.len() < longest && (begins(rest, &marks) || begins(rest, ENDS));
        let may = |rest: &str| marks.iter().any(|m| rest.starts_with(m)) || partly(rest);
        let at = scan.find(|rest| may(rest));
        let at = at.unwrap_or(answer.len());
        // A fence or backticks may yet begin in the last line.
        let line = answer[..at].rfind('\n').map_or(0, |n| n + 1);
        match answer[line..at].contains('`') {
            true => line,
            false => answer[..at].trim_end().len(),
        }
    }

    /// The calls with which reasoning ends that no answer follows.
    fn take_last(&self, source: Offer, taken: &mut Taken) {
        let reasoning = self.cleared(&taken.reasoning);
        let mut left = String::new();
        let mut calls: Vec<Call> = Vec::new();
        let mut begin = 0; // what `left` had before the first of the calls
        for piece in self.pieces(source, &reasoning) {
            match piece {
                TextPart::Text(text) if text.trim().is_empty() => left.push_str(&text),
                TextPart::Calls(more) if more.iter().all(|c| source.tools.has(&c.name)) => {
                    if calls.is_empty() {
                        begin = left.len();
                    }
                    calls.extend(more);
                }
                TextPart::Text(text) if calls.is_empty() => left.push_str(&text),
                // What follows a call makes it none; and what cannot be read stays where it is.
                TextPart::Text(_) | TextPart::Calls(_) | TextPart::Cut(_) => {
                    return self.take_end(source, &reasoning, taken);
                }
            }
        }
        if !calls.is_empty() {
            taken.reasoning = left[..begin].trim_end().to_owned();
            taken.calls = calls;
        }
    }

    /// As [`Markup::take_last`], where other calls are talked of before.
    fn take_end(&self, source: Offer, reasoning: &str, taken: &mut Taken) {
        let mut from = 0;
        while let Some(at) = CodeScan::new(reasoning, from).find(|rest| self.opens(rest)) {
            let mut end = at;
            let mut calls = Vec::new();
            while let Some(block) = self.block(source, &reasoning[end..])
                && block.cut.is_none()
            {
                calls.extend(block.calls);
                end += block.end;
                end += blank(&reasoning[end..]);
            }
            if end == reasoning.len() && !calls.is_empty() && calls.iter().all(|c| source.tools.has(&c.name)) {
                taken.reasoning = reasoning[..at].trim_end().to_owned();
                taken.calls = calls;
                return;
            }
            from = end.max(at + reasoning[at..].chars().next().map_or(1, char::len_utf8));
        }
    }

    fn opens(&self, rest: &str) -> bool {
        self.forms.iter().flat_map(|f| f.opens()).any(|m| rest.starts_with(m))
    }

    /// A text without the marks that are never content, and without what ends a turn.
    fn cleared(&self, text: &str) -> String {
        let mut text = text.trim_end();
        while let Some(rest) = ENDS.iter().find_map(|end| text.strip_suffix(end)) {
            text = rest.trim_end();
        }
        if self.leads.is_empty() {
            return text.to_owned();
        }
        // The prompt ended with this mark.
        format!("{}{text}", self.leads)
    }

    /// The parts of a text.
    fn pieces(&self, source: Offer, text: &str) -> Vec<TextPart> {
        let mut pieces = Vec::new();
        let mut from = 0;
        let mut scan = CodeScan::new(text, 0);
        let drop = |rest: &str| self.drops.iter().find(|d| rest.starts_with(**d)).map(|d| d.len());
        while let Some(at) = scan.find(|rest| self.opens(rest) || drop(rest).is_some()) {
            let block = self.block(source, &text[at..]);
            let (calls, end, cut) = match (block, drop(&text[at..])) {
                (Some(block), _) => (block.calls, at + block.end, block.cut.map(|cut| at + cut)),
                (None, Some(n)) => (Vec::new(), at + n, None),
                (None, None) => {
                    scan.step();
                    continue;
                }
            };
            pieces.push(TextPart::Text(text[from..at].to_owned()));
            if !calls.is_empty() {
                pieces.push(TextPart::Calls(calls));
            }
            if let Some(cut) = cut {
                pieces.push(TextPart::Cut(cut));
                return pieces;
            }
            from = end;
            scan.at = end;
        }
        pieces.push(TextPart::Text(text[from..].to_owned()));
        pieces
    }

    /// The calls at the beginning of a text; None if there are none.
    fn block(&self, source: Offer, text: &str) -> Option<Block> {
        self.forms.iter().find_map(|form| form.block(source, text))
    }
}

/// Calls that stand together.
struct Block {
    calls: Vec<Call>,
    /// Where they end.
    end: usize,
    /// Where a call begins that the text's end cuts, in a text that was cut off.
    cut: Option<usize>,
}

impl CallForm {
    /// The calls at the beginning of a text.
    fn block(&self, source: Offer, text: &str) -> Option<Block> {
        let section = self.sections.iter().find(|s| text.starts_with(**s)).map_or(0, |s| s.len());
        if section == 0 && (self.bare == Bare::No || !self.begins.iter().any(|b| text.starts_with(b))) {
            return None;
        }
        let guess = section == 0 && self.bare == Bare::Guess;
        let mut block = Block { calls: Vec::new(), end: 0, cut: None };
        let (mut at, mut list) = (section, false);
        loop {
            let before = block.calls.len();
            let ended = self.between(text, &mut at, &mut list, &mut block);
            if ended {
                break;
            }
            let rest = &text[at..];
            if rest.is_empty() || begins(rest, self.ends) || begins(rest, self.closes) || begins(rest, self.begins) {
                if before > 0 && !rest.is_empty() {
                    // A mark that the text's end cuts.
                    let call = begins(rest, self.begins) && !begins(rest, self.ends) && !begins(rest, self.closes);
                    block.cut = Some(at).filter(|_| call && !source.complete);
                    block.end = text.len();
                } else if before == 0 && !source.complete {
                    block.cut = Some(0);
                }
                break;
            }
            if before > 0 && self.sections.iter().any(|s| rest.starts_with(s)) {
                break; // the next section
            }
            match self.unit.find(source, rest) {
                Found::Whole(call, n) => {
                    at += n;
                    block.calls.push(call);
                    block.end = at;
                }
                Found::Cut if !source.complete => {
                    block.cut = Some(if before == 0 { 0 } else { at });
                    break;
                }
                Found::Cut | Found::Nothing => break,
            }
        }
        if guess {
            let named = |text: &str| source.tools.iter().any(|(name, _)| text.contains(name));
            block.cut = block.cut.filter(|cut| named(&text[*cut..]));
            if !block.calls.iter().all(|c| source.tools.has(&c.name)) {
                return None;
            }
        }
        (!block.calls.is_empty() || block.cut.is_some()).then_some(block)
    }

    /// Goes over the text between calls; true where the last mark closed them all.
    fn between(&self, text: &str, at: &mut usize, list: &mut bool, block: &mut Block) -> bool {
        let begun = |rest: &str| self.begins.iter().any(|b| !b.is_empty() && rest.starts_with(b));
        loop {
            // A mark may begin with white space.
            *at += if *at > 0 { blank(&text[*at..]) } else { 0 };
            let rest = &text[*at..];
            let closed = self.closes.iter().find(|m| rest.starts_with(**m));
            let ended = self.ends.iter().find(|m| rest.starts_with(**m));
            if let Some(mark) = closed.or(ended) {
                *at += mark.len();
                if !block.calls.is_empty() {
                    block.end = *at;
                }
                if closed.is_some() && !self.ends.contains(mark) {
                    return true;
                }
            } else if self.listed && rest.starts_with('[') && block.calls.is_empty() && !*list {
                (*at, *list) = (*at + 1, true);
            } else if *list && rest.starts_with(']') {
                (*at, *list) = (*at + 1, false);
                if !block.calls.is_empty() {
                    block.end = *at;
                }
            } else if let Some(mark) = self.separators.iter().find(|m| rest.starts_with(**m) && !begun(rest)) {
                if block.calls.is_empty() {
                    return false;
                }
                *at += mark.len();
            } else {
                return false;
            }
        }
    }
}

/// A text that is searched outside of code: fences, and backticks within a line.
struct CodeScan<'t> {
    text: &'t str,
    at: usize,
    fence: Option<(char, usize)>,
}

impl<'t> CodeScan<'t> {
    fn new(text: &'t str, at: usize) -> CodeScan<'t> {
        CodeScan { text, at, fence: None }
    }

    /// Goes past one sign.
    fn step(&mut self) {
        self.at += self.text[self.at..].chars().next().map_or(1, char::len_utf8);
    }

    /// The next place outside of code at which this holds, where the search stops.
    fn find(&mut self, holds: impl Fn(&str) -> bool) -> Option<usize> {
        while self.at < self.text.len() {
            let rest = &self.text[self.at..];
            let line = rest.find('\n').map_or(rest, |n| &rest[..n]);
            if self.at == 0 || self.text.as_bytes()[self.at - 1] == b'\n' {
                let mark = line.trim_start_matches(' ');
                let sign = mark.chars().next().filter(|c| matches!(c, '`' | '~') && line.len() - mark.len() < 4);
                let n = sign.map_or(0, |c| mark.len() - mark.trim_start_matches(c).len());
                let after = mark[n..].trim();
                let (is_fence, sign) = (n >= 3, sign.unwrap_or('`'));
                let closes = self.fence.is_some_and(|(c, m)| c == sign && n >= m && after.is_empty());
                let opens = self.fence.is_none() && is_fence && !(sign == '`' && after.contains('`'));
                if closes || opens {
                    self.fence = if closes { None } else { Some((sign, n)) };
                    self.at = (self.at + line.len() + 1).min(self.text.len());
                    continue;
                }
            }
            if self.fence.is_some() {
                self.at = (self.at + line.len() + 1).min(self.text.len());
                continue;
            }
            if line.starts_with('`') {
                let n = line.len() - line.trim_start_matches('`').len();
                self.at += n + close_of(&line[n..], n);
                continue;
            }
            if holds(rest) {
                return Some(self.at);
            }
            self.step();
        }
        None
    }
}

/// How many bytes a span of code takes that `n` backticks opened; 0 if the line does not close it.
fn close_of(line: &str, n: usize) -> usize {
    let mut at = 0;
    while let Some(next) = line[at..].find('`') {
        let run = line[at + next..].len() - line[at + next..].trim_start_matches('`').len();
        at += next + run;
        if run == n {
            return at;
        }
    }
    0
}
