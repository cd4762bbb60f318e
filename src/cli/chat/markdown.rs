//! Light Markdown on a terminal, as it streams: headings, bold, italics, strikethrough, inline code,
//! lists, quotes, rules, code blocks.
//!
//! Text is decided line by line (CommonMark 0.31.2 is the model, not the measure). At the head of a
//! line, and from a marker that may open a span on, it is held back until it is clear what it is; a
//! marker that finds no partner in its line is text. A line break stays a line break: models mean
//! it. Code blocks and tables are not wrapped, so that they can be copied from the screen.

use super::spans::{Marked, SPAN, code, find_span};
use super::wrap::{Style, Wrap};

/// Bytes of quotes and lists in each other, after which a line is one of words.
const DEEP: usize = 64;

/// What a line is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum LineKind {
    /// Not known yet: at its head, or after the marker of a list or a quote.
    Head,
    /// Words.
    Words,
    /// Of a table or a code block.
    Whole,
}

/// The look of text as it comes.
#[derive(Debug)]
pub(super) struct Markdown {
    wrap: Wrap,
    /// Whether styles are written.
    paint: bool,
    /// Markers are shown as they are, where no style can take their place.
    verbatim: bool,
    line: LineKind,
    /// The look of the line's words.
    base: Style,
    /// What the line began with, for the further lines that it is broken into.
    lead: String,
    /// The marks that opened a code block.
    fence: Option<String>,
    /// The last character that was shown, for what may open or close a span.
    last: char,
    /// What came and is not decided.
    held: String,
}

impl Markdown {
    /// Markdown in styles, or with its markers as they are if not `paint`.
    pub(super) fn new(paint: bool, verbatim: bool) -> Markdown {
        Markdown {
            wrap: Wrap::new(None, paint),
            paint,
            verbatim: verbatim || !paint,
            line: LineKind::Head,
            base: Style::PLAIN,
            lead: String::new(),
            fence: None,
            last: '\n',
            held: String::new(),
        }
    }

    /// The columns to write in; None: lines are not broken.
    pub(super) fn set_width(&mut self, columns: Option<usize>) {
        self.wrap.width = columns;
    }

    /// Takes in Markdown; returns what can be written.
    pub(super) fn push(&mut self, text: &str) -> String {
        self.held.extend(text.chars().filter(|c| *c != '\r')); // of line ends as some systems have them
        self.decide(false);
        self.wrap.take()
    }

    /// Takes in text that is no Markdown, to be shown in this style.
    pub(super) fn aside(&mut self, text: &str, style: Style) -> String {
        self.wrap.set(style);
        text.chars().filter(|c| *c != '\r').for_each(|c| self.wrap.push(c));
        self.wrap.take()
    }

    /// The end of the text, or of a part of it: what was held back, and no style any more. What
    /// comes next begins a line.
    pub(super) fn finish(&mut self) -> String {
        self.decide(true);
        self.wrap.finish();
        let rest = self.wrap.take();
        self.wrap = Wrap::new(self.wrap.width, self.paint);
        (self.line, self.base, self.fence, self.last) = (LineKind::Head, Style::PLAIN, None, '\n');
        self.lead.clear();
        rest
    }

    /// Decides on what is held, as far as that can be done. `end`: nothing more will come.
    fn decide(&mut self, end: bool) {
        let held = std::mem::take(&mut self.held);
        let mut at = 0;
        while at < held.len() {
            let rest = &held[at..];
            let done = match self.line {
                LineKind::Head if self.fence.is_some() => self.code_head(rest, end),
                LineKind::Head => self.head(rest, end),
                LineKind::Words => self.words(rest, end),
                LineKind::Whole => self.whole(rest),
            };
            if done == 0 {
                break;
            }
            at += done;
        }
        self.held = held[at..].to_owned();
    }

    /// The head of a line. Returns how many bytes are decided.
    fn head(&mut self, held: &str, end: bool) -> usize {
        let blank = held.len() - held.trim_start_matches([' ', '\t']).len();
        let text = &held[blank..];
        let Some(first) = text.chars().next() else {
            return if end || blank > SPAN { self.words_from(held, 0, end) } else { 0 };
        };
        // A run of one character decides, once what follows it is there.
        let run = text.len() - text.trim_start_matches(first).len();
        let open = run == text.len() && !end && run < SPAN; // it may go on
        let next = text[run..].chars().next();
        match first {
            _ if self.lead.len() > DEEP => self.words_from(held, blank, end),
            '\n' => {
                self.newline();
                blank + 1
            }
            '`' | '~' if open => 0,
            '`' | '~' if run >= 3 => match self.opens_fence(text, first, run, end) {
                Some(true) => blank + self.fence_line(&held[..blank], text),
                Some(false) => self.words_from(held, blank, end),
                None => 0,
            },
            '#' if open && run <= 6 => 0,
            '#' if run <= 6 && next == Some(' ') => {
                self.base = Style { bold: !self.verbatim, ..self.base };
                self.lead(&held[..blank], if self.verbatim { &text[..run + 1] } else { "" });
                self.line = LineKind::Words;
                blank + run + 1
            }
            '>' => {
                if text.len() == 1 && !end {
                    return 0;
                }
                let space = usize::from(text[1..].starts_with(' '));
                self.lead(&held[..blank], if self.verbatim { "> " } else { "│ " });
                self.wrap.hang(&self.lead);
                blank + 1 + space
            }
            '-' | '*' | '+' | '_' if open => 0,
            '-' | '*' | '_' if run >= 3 => self.rule(held, blank, run, end),
            '-' | '*' | '+' if run == 1 && next == Some(' ') => {
                let mark = if self.verbatim { &text[..2] } else { "• " };
                self.item(&held[..blank], mark);
                blank + 2
            }
            '0'..='9' => self.number(held, blank, end),
            '|' => {
                self.lead(&held[..blank], "");
                self.line = LineKind::Whole;
                blank
            }
            _ => self.words_from(held, blank, end),
        }
    }

    /// The line is one of words; its blanks are the margin of its further lines too.
    fn words_from(&mut self, held: &str, blank: usize, end: bool) -> usize {
        self.lead(&held[..blank], "");
        self.wrap.hang(&self.lead);
        self.line = LineKind::Words;
        if blank == 0 { self.words(held, end) } else { blank }
    }

    /// Writes what a line begins with.
    fn lead(&mut self, blank: &str, mark: &str) {
        let text = blank.replace('\t', "    ") + mark;
        self.wrap.raw(&text);
        self.lead += &text;
    }

    /// The mark of a list's item: further lines begin below its first word.
    fn item(&mut self, blank: &str, mark: &str) {
        let outer = self.lead.len();
        self.lead(blank, mark);
        let own = self.lead[outer..].chars().count();
        self.lead.truncate(outer);
        self.lead.extend(std::iter::repeat_n(' ', own));
        self.wrap.hang(&self.lead);
        self.last = ' ';
    }

    /// A number that may be the mark of an item.
    fn number(&mut self, held: &str, blank: usize, end: bool) -> usize {
        let text = &held[blank..];
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        match (text[digits..].chars().next(), text[digits..].chars().nth(1)) {
            (None, _) | (Some('.' | ')'), None) if !end && digits <= 9 => 0,
            (Some('.' | ')'), Some(' ')) if digits <= 9 => {
                self.item(&held[..blank], &text[..digits + 2]);
                blank + digits + 2
            }
            _ => self.words_from(held, blank, end),
        }
    }

    /// A line of three marks or more, and nothing else, is a rule.
    fn rule(&mut self, held: &str, blank: usize, run: usize, end: bool) -> usize {
        let rest = &held[blank + run..];
        let after = rest.trim_start_matches(' ');
        if after.is_empty() && !end && rest.len() < SPAN && run < SPAN {
            return 0;
        }
        if !after.is_empty() && !after.starts_with('\n') {
            return self.words_from(held, blank, end);
        }
        let columns = self.wrap.width.unwrap_or(80).min(60);
        let line = if self.verbatim { held[blank..blank + run].to_owned() } else { "─".repeat(columns) };
        self.whole_in(Style::DIM, &line);
        held.len() - after.len()
    }

    /// Whether a line that begins with such a run opens a code block; None: that is not known yet.
    fn opens_fence(&self, text: &str, first: char, run: usize, end: bool) -> Option<bool> {
        let info = match text.split_once('\n') {
            Some((line, _)) => &line[run..],
            None if end => &text[run..],
            None if text.len() < SPAN => return None,
            None => return Some(false),
        };
        Some(first == '~' || !info.contains('`'))
    }

    /// Writes the line that opens or ends a code block. Returns its length.
    fn fence_line(&mut self, blank: &str, text: &str) -> usize {
        let line = text.split('\n').next().unwrap_or(text);
        let mark = line.chars().next().unwrap_or('`');
        let marks = &line[..line.len() - line.trim_start_matches(mark).len()];
        self.lead(blank, "");
        self.whole_in(Style::DIM, line);
        self.fence = if self.fence.is_some() { None } else { Some(marks.to_owned()) };
        line.len()
    }

    /// The head of a line in a code block, which may end it.
    fn code_head(&mut self, held: &str, end: bool) -> usize {
        let fence = self.fence.clone().unwrap_or_default();
        let blank = held.len() - held.trim_start_matches(' ').len();
        let text = &held[blank..];
        let line = text.split('\n').next().unwrap_or(text);
        let mark = fence.chars().next().unwrap_or('`');
        let ends = line.trim_end().len() >= fence.len() && line.trim_end().chars().all(|c| c == mark);
        let may = line.chars().all(|c| c == mark || c == ' ') && line.len() == text.len() && !end;
        if may {
            return 0;
        }
        if ends {
            return blank + self.fence_line(&held[..blank], text);
        }
        self.line = LineKind::Whole;
        self.whole(held)
    }

    /// Text of a line that is not broken.
    fn whole(&mut self, held: &str) -> usize {
        let line = held.split('\n').next().unwrap_or(held);
        if line.is_empty() {
            self.newline();
            return 1;
        }
        let style = Style { code: self.fence.is_some(), ..Style::PLAIN };
        self.whole_in(style, line);
        line.len()
    }

    /// Writes text that is not broken, in a style that the line's end takes back.
    fn whole_in(&mut self, style: Style, text: &str) {
        self.wrap.set(if self.verbatim { Style::PLAIN } else { style });
        self.wrap.raw(text);
        self.line = LineKind::Whole;
    }

    fn newline(&mut self) {
        self.base = Style::PLAIN;
        self.wrap.set(Style::PLAIN);
        self.wrap.newline();
        self.lead.clear();
        self.line = LineKind::Head;
        self.last = '\n';
    }

    /// Words up to the end of the line. Returns how many bytes are decided.
    fn words(&mut self, held: &str, end: bool) -> usize {
        match held.split_once('\n') {
            Some((line, _)) => {
                self.spans(line, self.base, true);
                self.newline();
                line.len() + 1
            }
            None => self.spans(held, self.base, end),
        }
    }

    /// Words with spans in them. `whole`: nothing that belongs to them will come. Returns how many
    /// bytes are decided.
    fn spans(&mut self, text: &str, style: Style, whole: bool) -> usize {
        self.wrap.set(style);
        let mut at = 0;
        while let Some(c) = text[at..].chars().next() {
            let rest = &text[at..];
            if self.verbatim || !matches!(c, '*' | '_' | '`' | '~' | '\\') {
                self.show(c);
                at += c.len_utf8();
                continue;
            }
            if c == '\\' {
                match rest[1..].chars().next() {
                    None if !whole => return at,
                    Some(next) if "*_`~#\\|".contains(next) => self.show(next),
                    _ => {
                        self.show(c);
                        at += 1;
                        continue;
                    }
                }
                at += 2;
                continue;
            }
            match find_span(rest, self.last, whole) {
                Marked::Found { mark, inner, len } => {
                    let inner_style = style.with(c, mark);
                    if c == '`' {
                        self.wrap.set(inner_style);
                        code(inner).chars().for_each(|c| self.show(c));
                    } else {
                        self.last = c;
                        self.spans(inner, inner_style, true);
                    }
                    self.wrap.set(style);
                    self.last = c;
                    at += len;
                }
                Marked::Text(run) => {
                    rest[..run].chars().for_each(|c| self.show(c));
                    at += run;
                }
                Marked::Unknown => return at,
            }
        }
        at
    }

    fn show(&mut self, c: char) {
        self.wrap.push(c);
        self.last = c;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is shown of a text, whole, cut in two everywhere, and letter by letter: always the
    /// same. Styles are written as letters in braces.
    fn shown(text: &str) -> String {
        in_columns(text, 40, true)
    }

    fn in_columns(text: &str, columns: usize, paint: bool) -> String {
        let all = |pieces: &[&str]| {
            let mut page = Markdown::new(paint, false);
            page.set_width(Some(columns));
            let mut out: String = pieces.iter().map(|p| page.push(p)).collect();
            out += &page.finish();
            out
        };
        let whole = all(&[text]);
        for (cut, _) in text.char_indices() {
            let (a, b) = text.split_at(cut);
            assert_eq!(all(&[a, b]), whole, "{a:?} and {b:?}");
        }
        let letters: Vec<String> = text.chars().map(String::from).collect();
        assert_eq!(all(&letters.iter().map(String::as_str).collect::<Vec<_>>()), whole, "{text:?}");
        let names = [
            ("1", "b"),
            ("22", "/b"),
            ("2", "d"),
            ("3", "i"),
            ("23", "/i"),
            ("36", "c"),
            ("39", "/c"),
            ("9", "s"),
            ("29", "/s"),
        ];
        names.iter().fold(whole, |text, (code, name)| text.replace(&format!("\x1b[{code}m"), &format!("{{{name}}}")))
    }

    #[test]
    fn spans_are_styled_and_their_markers_left_out() {
        assert_eq!(shown("a **bold** b\n"), "a {b}bold{/b} b\n");
        assert_eq!(shown("an *old* and _new_ one"), "an {i}old{/i} and {i}new{/i} one");
        assert_eq!(shown("run `ls *.rs` now"), "run {c}ls *.rs{/c} now");
        assert_eq!(shown("**a *b* c**, ~~no~~"), "{b}a {i}b{/i} c{/b}, {s}no{/s}");
        assert_eq!(shown("**你好**世界"), "{b}你好{/b}世界");
        assert_eq!(shown("``a ` b``"), "{c}a ` b{/c}");
        assert_eq!(shown(r"\*not\* \(x\)"), r"*not* \(x\)");
    }

    #[test]
    fn a_marker_without_a_partner_is_text() {
        for text in [
            "2 * 3 * 4 = 24\n",
            "2*3*4\n",
            "snake_case_name\n",
            "use *args, **kwargs\n",
            "a ` b\n",
            "~ 5 ~\n",
            "**open\n\nnext\n",
        ] {
            assert_eq!(shown(text), text);
        }
        assert_eq!(shown("*one\ntwo*\n"), "*one\ntwo*\n", "a span ends with its line");
    }

    #[test]
    fn a_long_wait_for_a_partner_does_not_hold_up_the_text() {
        let mut page = Markdown::new(true, false);
        let mut out = page.push("see *this ");
        assert_eq!(out, "see");
        out += &page.push(&"and that ".repeat(SPAN / 9 + 1));
        assert!(out.starts_with("see *this and"), "{out:?}");
    }

    #[test]
    fn lines_of_a_kind_are_known_by_their_heads() {
        assert_eq!(shown("# One\ntwo\n"), "{b}One{/b}\ntwo\n");
        assert_eq!(shown("- a\n  * b\n10. c\n+ d"), "• a\n  • b\n10. c\n• d");
        assert_eq!(shown("> said\n> > twice\n"), "│ said\n│ │ twice\n");
        assert_eq!(shown("a\n\n---\nb"), format!("a\n\n{{d}}{}{{/b}}\nb", "─".repeat(40)));
        for text in ["#no\n", "-1\n", "3.14\n", "-- x\n", "10 men\n", "+1\n", "2024.\n"] {
            assert_eq!(shown(text), text);
        }
        assert_eq!(shown("- **Name**: what it is"), "• {b}Name{/b}: what it is");
        assert_eq!(shown("**Head**\ntext"), "{b}Head{/b}\ntext");
    }

    #[test]
    fn code_blocks_stay_as_they_are_and_end_where_they_end() {
        assert_eq!(
            shown("```rust\nlet a = *b;\n```\n**x**\n"),
            "{d}```rust{/b}\n{c}let a = *b;{/c}\n{d}```{/b}\n{b}x{/b}\n"
        );
        assert_eq!(shown("~~~\n```\n~~~\n# a"), "{d}~~~{/b}\n{c}```{/c}\n{d}~~~{/b}\n{b}a{/b}");
        assert_eq!(shown("1. so:\n   ```\n   x\n   ```\n"), "1. so:\n   {d}```{/b}\n{c}   x{/c}\n   {d}```{/b}\n");
        assert_eq!(shown("- ```sh\n  ls\n  ```\nb"), "• {d}```sh{/b}\n{c}  ls{/c}\n  {d}```{/b}\nb");
        let long = format!("```\n{}\n```\n", "word ".repeat(20));
        assert_eq!(shown(&long).lines().count(), 3, "no line of code is broken");
        let table = format!("| a | {} |\n", "b ".repeat(30));
        assert_eq!(shown(&table), table);
    }

    #[test]
    fn further_lines_of_an_item_and_a_quote_begin_below_its_first_word() {
        assert_eq!(in_columns("- one two three four", 10, true), "• one two\n  three\n  four");
        assert_eq!(in_columns("> one two three", 10, true), "│ one two\n│ three");
        assert_eq!(in_columns("> - one two three", 10, true), "│ • one\n│   two\n│   three");
        assert_eq!(in_columns("12. one two three", 10, true), "12. one\n    two\n    three");
    }

    #[test]
    fn text_without_an_end_is_shown_in_parts_and_in_proportion() {
        for part in
            ["*", "*a", "**a ", "`", "`a", "_", "~~", ">", "> ", "- ", "-", "#", "1. ", " ", "\\", "|", "a", "你"]
        {
            let text = part.repeat(5000);
            let mut page = Markdown::new(true, false);
            page.set_width(Some(40));
            let mut out = String::new();
            for piece in text.as_bytes().chunks(6 * part.len()) {
                out += &page.push(std::str::from_utf8(piece).unwrap());
            }
            let early = out.len();
            out += &page.finish();
            assert!(out.len() < 30 * text.len(), "{part:?}: {} bytes", out.len());
            assert!(early * 2 > out.len() || part == " ", "{part:?}: {early} of {} bytes before the end", out.len());
        }
    }

    #[test]
    fn without_styles_markers_stay() {
        let text = "# One\n- **a** `b`\n> c\n---\n```\nx\n```\n";
        assert_eq!(in_columns(text, 40, false), text);
    }
}
