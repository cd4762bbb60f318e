//! Text broken between words at the width of a terminal, as it comes.
//!
//! A word is written once something follows it, since only then it is known whether it fits into
//! the line. Between wide characters (Chinese, Japanese) a line may break anywhere but before what
//! closes something. A word that is longer than a line is cut.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// How text looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Style {
    pub(super) bold: bool,
    pub(super) dim: bool,
    pub(super) italic: bool,
    pub(super) strike: bool,
    /// In another colour.
    pub(super) code: bool,
}

impl Style {
    pub(super) const DIM: Style = Style { dim: true, ..Style::PLAIN };
    pub(super) const PLAIN: Style = Style { bold: false, dim: false, italic: false, strike: false, code: false };

    /// The escape sequence (ECMA-48, SGR) that changes the look from `self` to `to`.
    fn change(self, to: Style) -> String {
        let mut codes = Vec::new();
        if (self.bold, self.dim) != (to.bold, to.dim) {
            let ends = self.bold || self.dim; // one code ends both
            codes.extend(ends.then_some("22"));
            codes.extend(to.bold.then_some("1"));
            codes.extend(to.dim.then_some("2"));
        }
        let mut one = |was: bool, is: bool, on, off| codes.extend((was != is).then_some(if is { on } else { off }));
        one(self.italic, to.italic, "3", "23");
        one(self.strike, to.strike, "9", "29");
        one(self.code, to.code, "36", "39");
        if codes.is_empty() { String::new() } else { format!("\x1b[{}m", codes.join(";")) }
    }
}

/// Breaks lines.
#[derive(Debug, Default)]
pub(super) struct Wrap {
    /// Columns of the terminal; None: lines are not broken.
    pub(super) width: Option<usize>,
    /// Whether styles are written.
    paint: bool,
    style: Style,
    /// Where the next word goes, and the blanks before it.
    col: usize,
    gap: usize,
    /// The word so far, with escape sequences, and its columns.
    word: String,
    word_cols: usize,
    /// The word ends in a wide character.
    wide: bool,
    /// What the further lines of a paragraph begin with.
    hang: String,
    out: String,
}

impl Wrap {
    /// Breaks lines at this width; whether styles are written.
    pub(super) fn new(width: Option<usize>, paint: bool) -> Wrap {
        Wrap { width, paint, ..Wrap::default() }
    }

    /// What is complete.
    pub(super) fn take(&mut self) -> String {
        std::mem::take(&mut self.out)
    }

    /// The look of what comes next.
    pub(super) fn set(&mut self, style: Style) {
        if self.paint {
            self.word += &self.style.change(style);
        }
        self.style = style;
    }

    /// What the further lines of this paragraph begin with; nothing where it would take half of
    /// the line.
    pub(super) fn hang(&mut self, text: &str) {
        let fits = self.width.is_none_or(|width| text.width() * 2 <= width);
        self.hang = if fits { text.to_owned() } else { String::new() };
    }

    /// A character of a text whose lines may be broken.
    pub(super) fn push(&mut self, c: char) {
        match c {
            '\n' => return self.newline(),
            ' ' => {
                self.end_word();
                self.gap += 1;
                return;
            }
            '\t' => return (0..4).for_each(|_| self.push(' ')),
            // A terminal would obey it.
            c if c.is_control() => return c.escape_unicode().for_each(|c| self.push(c)),
            _ => {}
        }
        let cols = c.width().unwrap_or(0);
        let closes = c.is_ascii_punctuation() || "、。，．：；！？）］｝」』】〉》”’…".contains(c);
        if (cols == 2 || self.wide) && cols > 0 && !closes {
            self.end_word();
        }
        let most = self.width.unwrap_or(usize::MAX).saturating_sub(self.hang.width()).max(2);
        if self.word_cols + cols > most {
            self.end_word();
        }
        self.word.push(c);
        self.word_cols += cols;
        self.wide = cols == 2 || self.wide && cols == 0;
    }

    /// Text that is never broken: the terminal does it where a line is too long.
    pub(super) fn raw(&mut self, text: &str) {
        self.end_word();
        self.out.extend(std::iter::repeat_n(' ', std::mem::take(&mut self.gap)));
        self.out += &std::mem::take(&mut self.word);
        self.out.extend(text.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }));
        self.col += text.width();
    }

    /// A new line, in which no paragraph has begun.
    pub(super) fn newline(&mut self) {
        self.end_word();
        self.out += &std::mem::take(&mut self.word); // the end of a style
        self.out.push('\n');
        (self.gap, self.col) = (0, 0);
        self.hang.clear();
    }

    /// Writes what is held back.
    pub(super) fn finish(&mut self) {
        self.set(Style::PLAIN);
        self.end_word();
        self.out += &std::mem::take(&mut self.word);
    }

    /// Writes the word, in this line or at the beginning of the next.
    fn end_word(&mut self) {
        if self.word_cols == 0 {
            return; // the beginning of a style goes with the word that follows
        }
        let begins = self.hang.width();
        if self.width.is_some_and(|width| self.col + self.gap + self.word_cols > width) && self.col > begins {
            self.out.push('\n');
            self.out += &self.hang;
            (self.gap, self.col) = (0, begins);
        }
        self.out.extend(std::iter::repeat_n(' ', self.gap));
        self.out += &std::mem::take(&mut self.word);
        self.col += self.gap + self.word_cols;
        (self.gap, self.word_cols, self.wide) = (0, 0, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrapped(width: usize, hang: &str, text: &str) -> String {
        let mut wrap = Wrap { width: Some(width), ..Wrap::default() };
        wrap.hang(hang);
        text.chars().for_each(|c| wrap.push(c));
        wrap.finish();
        wrap.take()
    }

    #[test]
    fn lines_are_broken_between_words_and_a_long_word_is_cut() {
        assert_eq!(wrapped(10, "", "one two three four"), "one two\nthree four");
        assert_eq!(wrapped(10, "", "one two tenletters"), "one two\ntenletters");
        assert_eq!(wrapped(10, "", "a twelveletter b"), "a\ntwelvelett\ner b");
        assert_eq!(wrapped(10, "  ", "one two three four"), "one two\n  three\n  four");
        assert_eq!(wrapped(10, "", "  one\n\ntwo  "), "  one\n\ntwo");
        assert_eq!(wrapped(40, "", "a\x1b]52;c;x\x07"), "a\\u{1b}]52;c;x\\u{7}", "nothing that a terminal obeys");
        assert_eq!(wrapped(6, "    ", "one two three"), "one\ntwo\nthree", "no room for so deep a hang");
    }

    #[test]
    fn a_wide_character_counts_two_columns_and_a_mark_on_a_letter_none() {
        assert_eq!(wrapped(8, "", "你好世界再见"), "你好世界\n再见");
        assert_eq!(wrapped(8, "", "你好世界。再见"), "你好世\n界。再见", "no line begins with a full stop");
        assert_eq!(wrapped(7, "", "ab你好cd"), "ab你好\ncd");
        assert_eq!(wrapped(4, "", "e\u{301}e\u{301}e\u{301}e\u{301} x"), "e\u{301}e\u{301}e\u{301}e\u{301}\nx");
    }

    #[test]
    fn a_style_goes_with_its_word_and_takes_no_columns() {
        let mut wrap = Wrap { width: Some(8), paint: true, ..Wrap::default() };
        let bold = Style { bold: true, ..Style::PLAIN };
        "one ".chars().for_each(|c| wrap.push(c));
        wrap.set(bold);
        "two six".chars().for_each(|c| wrap.push(c));
        wrap.set(Style { bold: false, dim: true, ..bold });
        wrap.push('\n');
        wrap.finish();
        assert_eq!(wrap.take(), "one \x1b[1mtwo\nsix\x1b[22;2m\n\x1b[22m");
    }
}
