//! The tokens that are still in the running, with their logits.
//!
//! At first they are a row as wide as the vocabulary, where a token is found by its number. The first stage that has to
//! leaves a list, in the row's order or likeliest first. A token at -inf (masked, forbidden, NaN) is not in the running.

use std::cmp::Ordering;
use std::collections::HashMap;

/// A token that may be chosen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    pub(super) id: u32,
    pub(super) logit: f32,
    /// Its probability, where [`Candidates::softmax`] was the last to change anything.
    pub(super) p: f32,
}

/// The likelier first; of equals the lower number.
fn likelier(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id))
}

/// The largest value, -inf if there is none; NaN counts for nothing. Sixteen maxima side by side, because a single chain
/// of comparisons is not vectorized.
pub(super) fn peak(values: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (parts, rest) = values.as_chunks::<16>();
    let mut best = [f32::NEG_INFINITY; 16];
    for part in parts {
        for (best, v) in best.iter_mut().zip(part) {
            *best = larger(*best, *v);
        }
    }
    best.iter().chain(rest).fold(f32::NEG_INFINITY, |a, &b| larger(a, b))
}

/// The likeliest token; the lower number on a tie.
pub fn argmax(logits: &[f32]) -> u32 {
    let best = peak(logits);
    // Sixteen at a time here too.
    let part = logits.chunks(16).position(|part| part.iter().fold(false, |any, l| any | (*l == best))).unwrap_or(0);
    let at = logits.iter().skip(16 * part).position(|l| *l == best).unwrap_or(0);
    (16 * part + at) as u32
}

/// Fills `list` with the `k` likeliest of a row, likeliest first. Only what is above the k-th so far is looked at closer,
/// sixteen logits at a time.
pub(super) fn top(row: &[f32], k: usize, list: &mut Vec<Candidate>) {
    list.clear();
    if k == 0 {
        return;
    }
    let mut floor = f32::NEG_INFINITY;
    let most = k.saturating_mul(2).saturating_add(16);
    for (at, part) in row.chunks(16).enumerate() {
        if !part.iter().fold(false, |any, l| any | (*l > floor)) {
            continue;
        }
        let part = part.iter().enumerate().filter(|(_, l)| **l > floor);
        list.extend(part.map(|(i, &logit)| Candidate { id: (at * 16 + i) as u32, logit, p: 0.0 }));
        if list.len() > most {
            list.select_nth_unstable_by(k - 1, likelier);
            list.truncate(k);
            floor = list[k - 1].logit;
        }
    }
    order(list, k);
    list.truncate(k);
}

/// Brings the `n` likeliest to the front, likeliest first.
fn order(list: &mut [Candidate], n: usize) {
    if n < list.len() {
        list.select_nth_unstable_by(n, likelier);
    }
    let n = n.min(list.len());
    list[..n].sort_unstable_by(likelier);
}

/// See the file's head.
#[derive(Clone, Debug, Default)]
pub(super) struct Candidates {
    row: Vec<f32>,
    list: Vec<Candidate>,
    /// The row holds, and no list has been made of it.
    whole: bool,
}

impl Candidates {
    /// All tokens that the mask allows (32 to a word, the lowest bit first; words that it lacks allow nothing).
    pub(super) fn load(&mut self, logits: &[f32], allowed: Option<&[u32]>, bias: &[(u32, f32)]) {
        self.whole = true;
        self.list.clear();
        self.row.clear();
        match allowed {
            None => self.row.extend_from_slice(logits),
            Some(words) => {
                for (part, word) in logits.chunks(32).zip(words.iter().copied().chain(std::iter::repeat(0))) {
                    let masked = |(bit, l): (usize, &f32)| if word >> bit & 1 == 1 { *l } else { f32::NEG_INFINITY };
                    match word {
                        u32::MAX => self.row.extend_from_slice(part),
                        0 => self.row.extend(std::iter::repeat_n(f32::NEG_INFINITY, part.len())),
                        _ => self.row.extend(part.iter().enumerate().map(masked)),
                    }
                }
            }
        }
        for &(id, by) in bias {
            if let Some(logit) = self.row.get_mut(id as usize) {
                *logit += by;
            }
        }
    }

    /// The list, made of the row if there is none yet.
    pub(super) fn list(&mut self) -> &mut Vec<Candidate> {
        if self.whole {
            self.keep(f32::NEG_INFINITY);
        }
        &mut self.list
    }

    /// Keeps the logits that are at least `floor`.
    pub(super) fn keep(&mut self, floor: f32) {
        if !self.whole {
            self.list.retain(|c| c.logit >= floor);
            return;
        }
        let row = self.row.iter().enumerate().filter(|(_, l)| **l >= floor && **l > f32::NEG_INFINITY);
        self.list.extend(row.map(|(id, &logit)| Candidate { id: id as u32, logit, p: 0.0 }));
        self.whole = false;
    }

    /// Keeps the `k` likeliest, likeliest first.
    pub(super) fn top(&mut self, k: usize) {
        if self.whole {
            top(&self.row, k, &mut self.list);
            self.whole = false;
        } else {
            order(&mut self.list, k);
            self.list.truncate(k);
        }
    }

    /// The list with the `n` likeliest first; the others follow in any order.
    pub(super) fn ordered(&mut self, n: usize) -> &[Candidate] {
        order(self.list(), n);
        &self.list
    }

    /// Keeps the likeliest alone.
    pub(super) fn best(&mut self) {
        let best = if self.whole {
            let id = argmax(&self.row);
            self.row
                .get(id as usize)
                .map(|&logit| Candidate { id, logit, p: 0.0 })
                .filter(|c| c.logit > f32::NEG_INFINITY)
        } else {
            self.list.iter().min_by(|a, b| likelier(a, b)).copied()
        };
        self.whole = false;
        self.list.clear();
        self.list.extend(best);
    }

    /// The largest logit.
    pub(super) fn max(&self) -> f32 {
        if self.whole { peak(&self.row) } else { self.list.iter().fold(f32::NEG_INFINITY, |max, c| max.max(c.logit)) }
    }

    /// Shows every logit.
    pub(super) fn each(&self, mut see: impl FnMut(f32)) {
        if self.whole {
            self.row.iter().filter(|l| **l > f32::NEG_INFINITY).for_each(|l| see(*l));
        } else {
            self.list.iter().for_each(|c| see(c.logit));
        }
    }

    /// Changes the logits of the tokens that are in `map`.
    pub(super) fn change<T>(&mut self, map: &HashMap<u32, T>, new: impl Fn(f32, &T) -> f32) {
        if self.whole {
            for (id, with) in map {
                if let Some(logit) = self.row.get_mut(*id as usize) {
                    *logit = new(*logit, with);
                }
            }
        } else {
            for c in &mut self.list {
                if let Some(with) = map.get(&c.id) {
                    c.logit = new(c.logit, with);
                }
            }
        }
    }

    /// Divides all logits.
    pub(super) fn divide(&mut self, by: f32) {
        if self.whole {
            self.row.iter_mut().for_each(|l| *l /= by);
        } else {
            self.list.iter_mut().for_each(|c| c.logit /= by);
        }
    }

    /// Sets the probabilities. Returns ln sum exp(logit), so that ln p = logit - that.
    pub(super) fn softmax(&mut self) -> f64 {
        let list = self.list();
        let max = list.iter().fold(f32::NEG_INFINITY, |max, c| max.max(c.logit));
        let mut total = 0f64;
        for c in list.iter_mut() {
            c.p = (c.logit - max).exp();
            total += f64::from(c.p);
        }
        for c in list {
            c.p = (f64::from(c.p) / total) as f32;
        }
        f64::from(max) + total.ln()
    }

    /// Keeps the first candidates in an order, up to the one with which their probability and number are enough. The place
    /// of the cut is found by halving, so that no more than a few hundred are ever sorted.
    pub(super) fn cut(&mut self, by: impl Fn(&Candidate, &Candidate) -> Ordering, enough: impl Fn(f64, usize) -> bool) {
        let list = self.list();
        let sum = |part: &[Candidate]| part.iter().map(|c| f64::from(c.p)).sum::<f64>();
        // Entries before `kept` stay, entries from `open` on go.
        let (mut kept, mut open, mut reached) = (0, list.len(), 0.0);
        while open - kept > 256 {
            let half = (open - kept) / 2;
            list[kept..open].select_nth_unstable_by(half, &by);
            let with = reached + sum(&list[kept..kept + half]);
            if enough(with, kept + half) {
                open = kept + half;
            } else {
                (kept, reached) = (kept + half, with);
            }
        }
        list[kept..open].sort_unstable_by(&by);
        while kept < open {
            reached += f64::from(list[kept].p);
            kept += 1;
            if enough(reached, kept) {
                break;
            }
        }
        list.truncate(kept);
    }

    /// As [`Candidates::cut`], with the likeliest first.
    pub(super) fn cut_likeliest(&mut self, enough: impl Fn(f64, usize) -> bool) {
        self.cut(likelier, enough);
    }

    /// The place in the list that `unit`, of 0 to 1, falls on when the probabilities are laid end to end.
    pub(super) fn draw(&mut self, unit: f64) -> usize {
        let list = self.list();
        let mut left = unit * list.iter().map(|c| f64::from(c.p)).sum::<f64>();
        let at = list.iter().position(|c| {
            left -= f64::from(c.p);
            left < 0.0
        });
        at.unwrap_or(list.len().saturating_sub(1))
    }

    /// Where the memory is and how much there is of it.
    #[cfg(test)]
    pub(super) fn memory(&self) -> [usize; 4] {
        [self.row.as_ptr() as usize, self.row.capacity(), self.list.as_ptr() as usize, self.list.capacity()]
    }
}
