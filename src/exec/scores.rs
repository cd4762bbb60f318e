//! Which experts of a layer are used most: what both caches of experts, in a GPU's memory and in RAM,
//! keep and give up by.

/// A token's choice counts half when this many tokens have followed it.
pub(super) const HALF_LIFE: f32 = 200.0;

/// A score per expert of a layer: how often it was chosen, old choices fading with every token.
#[derive(Clone, Debug)]
pub(super) struct ExpertScores {
    scores: Vec<f32>,
    half_life: f32,
}

impl ExpertScores {
    /// `n` experts that were never chosen.
    pub(super) fn new(n: usize) -> ExpertScores {
        ExpertScores::from(vec![0.0; n], HALF_LIFE)
    }

    /// Experts with scores from before, which count half after `half_life` tokens.
    pub(super) fn from(scores: Vec<f32>, half_life: f32) -> ExpertScores {
        ExpertScores { scores, half_life }
    }

    /// Experts.
    pub(super) fn len(&self) -> usize {
        self.scores.len()
    }

    /// Old choices fade, since `tokens` more are read.
    pub(super) fn fade(&mut self, tokens: usize) {
        let by = 0.5f32.powf(tokens as f32 / self.half_life);
        self.scores.iter_mut().for_each(|s| *s *= by);
    }

    /// Counts a choice.
    pub(super) fn choose(&mut self, expert: u32) {
        self.scores[expert as usize] += 1.0;
    }

    /// The score of an expert.
    pub(super) fn of(&self, expert: u32) -> f32 {
        self.scores[expert as usize]
    }

    /// All scores, by expert.
    pub(super) fn all(&self) -> &[f32] {
        &self.scores
    }

    /// The sum of all scores.
    pub(super) fn total(&self) -> f32 {
        self.scores.iter().sum()
    }

    /// Experts by falling score.
    pub(super) fn order(&self) -> Vec<u32> {
        let mut order: Vec<u32> = (0..self.scores.len() as u32).collect();
        order.sort_by(|a, b| self.of(*b).total_cmp(&self.of(*a)).then(a.cmp(b)));
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_counts_half_after_its_half_life_and_the_newest_of_equals_comes_first() {
        let mut s = ExpertScores::new(4);
        s.choose(3);
        s.fade(HALF_LIFE as usize);
        assert_eq!((s.of(3), s.total()), (0.5, 0.5));
        s.choose(1);
        s.fade(1);
        s.choose(2);
        assert_eq!(s.order(), [2, 1, 3, 0]);
        (0..3).for_each(|_| s.choose(3));
        assert_eq!(s.order()[0], 3, "frequency counts, not the last choice alone");
    }
}
