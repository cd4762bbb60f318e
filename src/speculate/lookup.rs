//! Drafts from the text itself: where its last tokens came before, what followed them there may follow again.
//!
//! Nothing is kept: one pass over the tokens finds the place, at about a nanosecond for each, so that a sequence that was
//! cut, edited or replaced needs no care.

/// The longest and the shortest run of last tokens that is looked for.
const LONGEST: usize = 4;
const SHORTEST: usize = 2;

/// At most `most` tokens that followed where the last tokens of `tokens` and `next` came before: the longest run of them,
/// the latest place. Where that place is so late that what followed it ends, it goes round.
pub fn look_up(tokens: &[u32], next: u32, most: usize) -> Vec<u32> {
    let Some((last, before)) = tokens.split_last() else { return Vec::new() };
    let pair = [*last, next];
    let mut best: Option<(usize, usize)> = None; // tokens that agree, and the place after them
    // Pairs that end before the text's own last one.
    for at in (0..tokens.len().saturating_sub(1)).rev() {
        if [tokens[at], tokens[at + 1]] != pair {
            continue;
        }
        let longer = before.iter().rev().zip(tokens[..at].iter().rev()).take(LONGEST - SHORTEST);
        let n = SHORTEST + longer.take_while(|(a, b)| a == b).count();
        if best.is_none_or(|(most, _)| n > most) {
            best = Some((n, at + 2));
        }
        if n == LONGEST {
            break;
        }
    }
    let Some((_, from)) = best else { return Vec::new() };
    let mut drafts: Vec<u32> = tokens[from..].iter().copied().chain([next]).take(most).collect();
    let period = drafts.len();
    while drafts.len() < most {
        drafts.push(drafts[drafts.len() - period]);
    }
    drafts
}

#[cfg(test)]
mod tests {
    use super::look_up;

    #[test]
    fn the_longest_run_counts_then_the_latest_place() {
        //              a        b              c
        let text = [1, 2, 3, 9, 2, 3, 7, 5, 2, 3, 8, 1, 2];
        assert_eq!(look_up(&text, 3, 2), [9, 2], "1 2 3 is longer than 2 3");
        assert_eq!(look_up(&text[..12], 2, 1), [3], "1 2");
        let text = [4, 2, 3, 7, 5, 2, 3, 8, 6, 2];
        assert_eq!(look_up(&text, 3, 3), [8, 6, 2], "of equal runs the later");
    }

    #[test]
    fn a_text_that_repeats_itself_is_gone_round() {
        assert_eq!(look_up(&[7, 7, 7], 7, 4), [7, 7, 7, 7]);
        assert_eq!(look_up(&[1, 2, 1], 2, 5), [1, 2, 1, 2, 1]);
    }

    #[test]
    fn what_never_came_before_is_not_drafted() {
        assert!(look_up(&[], 1, 4).is_empty());
        assert!(look_up(&[1], 1, 4).is_empty());
        assert!(look_up(&[1, 2, 3, 4], 5, 4).is_empty());
        assert!(look_up(&[1, 2, 3, 2], 3, 0).is_empty());
    }
}
