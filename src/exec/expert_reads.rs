//! How many different experts walks read, by their rows: where experts stream from memory, what a drafted row costs.

/// Rows up to which walks are counted: single steps, and those that verify drafts.
const MOST: usize = 8;

/// Experts that layers read on the CPU, or on both sides, in walks of 1 to 8 rows of the model.
#[derive(Clone, Debug, Default)]
pub struct ExpertReads {
    /// By rows: layers that were counted, and the sum of their different experts.
    by_rows: [(usize, usize); MOST + 1],
    /// Of one layer: the experts that were seen.
    seen: Vec<bool>,
}

impl ExpertReads {
    /// A layer of a walk of `rows` rows reads these experts, by their numbers; negative ones are none.
    pub(super) fn note(&mut self, rows: usize, ids: &[f32]) {
        let Some((layers, experts)) = self.by_rows.get_mut(rows) else { return };
        self.seen.fill(false);
        *layers += 1;
        for id in ids.iter().filter(|id| **id >= 0.0).map(|id| *id as usize) {
            if self.seen.len() <= id {
                self.seen.resize(id + 1, false);
            }
            *experts += usize::from(!std::mem::replace(&mut self.seen[id], true));
        }
    }

    /// Different experts that a layer read in a walk of `rows` rows, on average; None where there was none.
    pub fn per_layer(&self, rows: usize) -> Option<f64> {
        let (layers, experts) = *self.by_rows.get(rows)?;
        (layers > 0).then(|| experts as f64 / layers as f64)
    }

    /// Experts that a layer read for each row beyond the first, on average over all walks of several rows.
    pub fn per_further_row(&self) -> Option<f64> {
        let one = self.per_layer(1)?;
        let (mut further, mut extra) = (0.0, 0.0);
        for (rows, (layers, experts)) in self.by_rows.iter().enumerate().skip(2) {
            further += (layers * (rows - 1)) as f64;
            extra += *experts as f64 - *layers as f64 * one;
        }
        (further > 0.0).then(|| extra / further)
    }

    /// What was read since `before`.
    pub fn since(&self, before: &ExpertReads) -> ExpertReads {
        let mut since = self.clone();
        for (now, then) in since.by_rows.iter_mut().zip(before.by_rows) {
            *now = (now.0 - then.0, now.1 - then.1);
        }
        since
    }
}

#[cfg(test)]
mod tests {
    use super::ExpertReads;

    #[test]
    fn an_expert_that_two_rows_share_counts_once() {
        let mut reads = ExpertReads::default();
        assert_eq!((reads.per_layer(1), reads.per_further_row()), (None, None));
        reads.note(1, &[3.0, 7.0]);
        reads.note(3, &[3.0, 7.0, 7.0, 1.0, -1.0, 3.0]);
        reads.note(100, &[0.0]); // a prompt
        assert_eq!((reads.per_layer(1), reads.per_layer(3), reads.per_layer(2)), (Some(2.0), Some(3.0), None));
        assert_eq!(reads.per_further_row(), Some(0.5));
        let before = reads.clone();
        reads.note(3, &[5.0, 9.0]);
        assert_eq!(reads.since(&before).per_layer(3), Some(2.0));
    }
}
