//! Texts that end an answer, found while it streams: what may become one is held back until it is or is not.

/// Looks for the first of several texts.
#[derive(Clone, Debug, Default)]
pub struct Stops {
    texts: Vec<String>,
    held: String,
}

impl Stops {
    /// Empty texts would end everything at once; they are left out.
    pub fn new(texts: impl IntoIterator<Item = String>) -> Stops {
        Stops { texts: texts.into_iter().filter(|t| !t.is_empty()).collect(), held: String::new() }
    }

    /// What of the text so far can be shown, and the text that ended it, if one did: it and all after it is dropped.
    pub fn push(&mut self, text: &str) -> (String, Option<String>) {
        self.held.push_str(text);
        let found = self.texts.iter().filter_map(|t| Some((self.held.find(t.as_str())?, t)));
        if let Some((at, stop)) = found.min_by_key(|(at, t)| (*at, std::cmp::Reverse(t.len()))) {
            let stop = stop.clone();
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), Some(stop));
        }
        let begins = |at: usize| self.texts.iter().any(|t| t.starts_with(&self.held[at..]));
        let at = self.held.char_indices().map(|(i, _)| i).find(|&i| begins(i)).unwrap_or(self.held.len());
        let rest = self.held.split_off(at);
        (std::mem::replace(&mut self.held, rest), None)
    }

    /// What is still held back, at the end.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is shown of `text` when it comes in pieces of `n` characters, and what ended it.
    fn streamed(stops: &[&str], text: &str, n: usize) -> (String, Option<String>) {
        let mut s = Stops::new(stops.iter().map(|t| t.to_string()));
        let mut shown = String::new();
        for piece in text.chars().collect::<Vec<_>>().chunks(n) {
            let (out, stop) = s.push(&piece.iter().collect::<String>());
            shown += &out;
            if stop.is_some() {
                return (shown, stop);
            }
        }
        (shown + &s.finish(), None)
    }

    #[test]
    fn a_stop_is_found_however_it_is_cut_and_never_shown_in_part() {
        for n in 1..12 {
            assert_eq!(streamed(&["\nUser:"], "Hi\nUser: x", n), ("Hi".into(), Some("\nUser:".into())), "{n}");
            assert_eq!(streamed(&["aab"], "aaab", n), ("a".into(), Some("aab".into())), "{n}");
            assert_eq!(streamed(&["é!", "ß"], "schöné ß", n), ("schöné ".into(), Some("ß".into())), "{n}");
        }
    }

    #[test]
    fn what_only_began_like_a_stop_is_shown_after_all() {
        for n in 1..8 {
            assert_eq!(streamed(&["END"], "the EN", n), ("the EN".into(), None), "{n}");
            assert_eq!(streamed(&["", "END"], "the ENd", n), ("the ENd".into(), None), "{n}");
        }
    }

    #[test]
    fn of_two_stops_the_one_that_comes_first_counts_and_of_two_at_one_place_the_longer() {
        assert_eq!(streamed(&["b", "a"], "xab", 3), ("x".into(), Some("a".into())));
        assert_eq!(streamed(&["a", "ab"], "xab", 3), ("x".into(), Some("ab".into())));
    }
}
