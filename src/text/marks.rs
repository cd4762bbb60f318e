//! The characters that a guard puts into text from outside. What they mean is told in `guard.rs`.
//!
//! They are noncharacters, which Unicode keeps for a program's own use.

pub(super) const MARK: char = '\u{fdd0}';
pub(super) const ESCAPE: char = '\u{fdd1}';
pub(super) const WAS_MARK: char = '\u{fdd2}';
pub(super) const WAS_ESCAPE: char = '\u{fdd3}';

/// Whether a guard put this character in.
pub(super) fn is_mark(c: char) -> bool {
    (MARK..=WAS_ESCAPE).contains(&c)
}
