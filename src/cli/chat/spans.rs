//! The spans of Markdown's inline text: what a marker opens, and where that ends.

use super::wrap::Style;

/// How many bytes may wait for the end of a span before its marker is taken for text. Longer ones
/// would hold up the stream.
pub(super) const SPAN: usize = 240;

impl Style {
    /// The look between such markers.
    pub(super) fn with(self, mark: char, n: usize) -> Style {
        match (mark, n) {
            ('`', _) => Style { code: true, ..self },
            ('~', _) => Style { strike: true, ..self },
            (_, 1) => Style { italic: true, ..self },
            (_, 2) => Style { bold: true, ..self },
            _ => Style { bold: true, italic: true, ..self },
        }
    }
}

/// What a marker turns out to be.
pub(super) enum Marked<'t> {
    /// It opens a span: the marker's length, what is between, the length of all.
    Found { mark: usize, inner: &'t str, len: usize },
    /// It is text, and this many bytes of it.
    Text(usize),
    /// What follows decides.
    Unknown,
}

/// Looks for the end of the span that `text` may begin with, after the character `last`.
pub(super) fn find_span(text: &str, last: char, whole: bool) -> Marked<'_> {
    let mark = text.chars().next().unwrap_or(' ');
    let run = text.len() - text.trim_start_matches(mark).len();
    let after = text[run..].chars().next();
    if after.is_none() && !whole && run < SPAN {
        return Marked::Unknown;
    }
    let can_open = match mark {
        '`' => true,
        '~' => run == 2,
        // Between letters a single one is text: 2*3*4, snake_case.
        _ => run <= 3 && (run > 1 && mark == '*' || !last.is_ascii_alphanumeric()),
    };
    let word_follows = after.is_some_and(|c| mark == '`' || !c.is_whitespace());
    if !can_open || !word_follows {
        return Marked::Text(run);
    }
    match find_end(text, mark, run, whole) {
        Some(at) if at <= SPAN => Marked::Found { mark: run, inner: &text[run..at], len: at + run },
        _ if whole || text.len() > SPAN => Marked::Text(run),
        _ => Marked::Unknown,
    }
}

/// Where the run of marks is that closes a span.
fn find_end(text: &str, mark: char, run: usize, whole: bool) -> Option<usize> {
    let mut at = run;
    let mut in_code = false;
    while let Some(c) = text[at..].chars().next().filter(|_| at <= SPAN) {
        let here = if c == mark || c == '`' { text[at..].len() - text[at..].trim_start_matches(c).len() } else { 0 };
        if c == '\\' && mark != '`' {
            at += 1 + text[at + 1..].chars().next().map_or(0, char::len_utf8);
            continue;
        }
        if c != mark || in_code {
            in_code ^= c == '`';
            at += if c == '`' { here } else { c.len_utf8() };
            continue;
        }
        let next = text[at + here..].chars().next();
        if next.is_none() && !whole {
            return None; // the run may go on
        }
        let before = text[..at].chars().next_back().unwrap_or(' ');
        let closes = mark == '`'
            || !before.is_whitespace() && (here > 1 && mark == '*' || !next.is_some_and(|c| c.is_ascii_alphanumeric()));
        if here == run && closes {
            return Some(at);
        }
        at += here;
    }
    None
}

/// What is shown of inline code: a blank on both sides only sets backticks apart.
pub(super) fn code(inner: &str) -> &str {
    let bare = inner.strip_prefix(' ').and_then(|t| t.strip_suffix(' '));
    bare.filter(|t| !t.trim().is_empty()).unwrap_or(inner)
}
