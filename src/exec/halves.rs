//! The batch of a prompt in two halves, so that the GPU and the CPU work at the same time.
//!
//! In a layer whose experts the CPU computes, each side waits for the other. Two halves take turns:
//!
//! ```text
//! as a whole    GPU   attention 1 . . . . . . attention 2 . . . . . .
//!               CPU   . . . . . . experts 1   . . . . . . experts 2
//! in halves     GPU   att. 1a  att. 1b  att. 2a  att. 2b  . . .
//!               CPU   . . . .  exp. 1a  exp. 1b  exp. 2a  exp. 2b
//! ```
//! The first half is always ahead: the attention of the second reads the keys that the first has stored. Experts that
//! are in slots are computed by the GPU in both halves. None stream through the ring meanwhile, since each would have to
//! pass twice; so a long batch goes as a whole where the bus is fast, and in halves where it is slow.
//!
//! Which of the two is chosen by the times measured so far:
//!
//! ```text
//! whole     the GPU's own work + in each layer the slower of its two sides (see `cache.rs`)
//! halves    the larger of the GPU's own work and the CPU's experts, which it reads once for each half,
//!           + what is not overlapped: the first half's first layer, the second half's last
//! ```
//! each times how much longer than expected the last ones of its kind took.

use std::time::Instant;

use anyhow::Result;

use super::cache::{Ema, ExpertCache};
use crate::cuda::{Event, Gpu};
use crate::plan::{Layout, Shape};
use crate::tape::Batch;

/// Rows of a half, at least: with fewer the CPU reads its experts for too few rows.
const LEAST: usize = 128;
/// A first half has a multiple of so many rows.
const STEP: usize = 64;
/// Halves are chosen where they are expected to take at most this share of the time.
const GAIN: f64 = 0.95;

/// A batch on its way through the plan: a whole one, or a half of one, with buffers of its own.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lane<'a> {
    /// The rows.
    pub batch: &'a Batch,
    /// 0, or 1 for a second half.
    pub number: usize,
    /// Rows and output rows of the first half, which shares the device's buffers; 0 for a batch that is first.
    pub before: [usize; 2],
    /// Whether it ends its batch.
    pub last: bool,
}

impl<'a> Lane<'a> {
    /// All of a batch.
    pub(super) fn whole(batch: &'a Batch) -> Lane<'a> {
        Lane { batch, number: 0, before: [0; 2], last: true }
    }

    /// Both halves.
    pub(super) fn halves([first, second]: &'a [Batch; 2]) -> [Lane<'a>; 2] {
        let before = [first.rows.len(), first.output_rows.len()];
        [Lane { last: false, ..Lane::whole(first) }, Lane { batch: second, number: 1, before, last: true }]
    }

    /// The first byte of its part of a buffer.
    pub(super) fn offset(&self, layout: &Layout, buffer: u32) -> usize {
        let [all, output] = layout.widths[buffer as usize];
        4 * (all * self.before[0]).max(output * self.before[1])
    }
}

/// A batch cut into two, if it is not too short for that and both find room in buffers that were made for `shape`.
pub(super) fn cut<'a>(
    batch: &Batch,
    shape: &Shape,
    layouts: impl IntoIterator<Item = &'a Layout>,
) -> Option<[Batch; 2]> {
    let at = (batch.rows.len() / 2).next_multiple_of(STEP);
    if at == 0 || at >= batch.rows.len() {
        return None;
    }
    let outputs = batch.output_rows.partition_point(|&row| (row as usize) < at);
    let halves = [
        Batch {
            rows: batch.rows[..at].to_vec(),
            output_rows: batch.output_rows[..outputs].to_vec(),
            follow: batch.follow.map(|n| n + batch.rows.len() - at),
            ..batch.clone()
        },
        Batch {
            rows: batch.rows[at..].to_vec(),
            output_rows: batch.output_rows[outputs..].iter().map(|row| row - at as u32).collect(),
            ..batch.clone()
        },
    ];
    let second = Lane::halves(&halves)[1];
    let rows = [halves[1].rows.len(), halves[1].output_rows.len()];
    let fits = |layout: &Layout| {
        layout.bytes(shape).enumerate().all(|(i, bytes)| {
            let [all, output] = layout.widths[i];
            second.offset(layout, i as u32) + 4 * (all * rows[0]).max(output * rows[1]) <= bytes
        })
    };
    layouts.into_iter().all(fits).then_some(halves)
}

/// Seconds that a batch is expected to take: as a whole, and in halves. `dense`: of the GPU's own work. `whole` and `half`:
/// of the experts of all layers, where those of a layer begin when the GPU's work before them is done, and of one half's
/// without the ring.
pub(super) fn expected(dense: f64, whole: f64, half: f64, layers: usize) -> [f64; 2] {
    let experts = 2.0 * half;
    let ends = (dense + experts) / (2 * layers.max(1)) as f64;
    [dense + whole, dense.max(experts) + ends]
}

/// Whether a batch should go in halves that is expected to take so long as a whole and in halves.
fn go_in_halves([whole, halves]: [f64; 2]) -> bool {
    halves < GAIN * whole
}

/// How long the GPU works for a prompt besides the experts, and how good the expectations were.
#[derive(Debug)]
pub(super) struct DenseClock {
    /// Passed when a segment begins and ends, by its lane and number.
    events: Vec<[Event; 2]>,
    /// The segments of this walk.
    segments: Vec<usize>,
    /// When this walk began, what it was expected to take, and whether it goes in halves; None where that is not known.
    walk: Option<(Instant, f64, bool)>,
    /// Seconds for a row.
    row: Ema,
    /// Of walks as a whole and in halves, the time taken over the expected one.
    error: [Ema; 2],
}

impl DenseClock {
    /// For plans of so many stages.
    pub(super) fn new(stages: usize) -> Result<DenseClock> {
        let pair = |_| Ok([Event::timed()?, Event::timed()?]);
        let events = (0..2 * stages).map(pair).collect::<Result<_>>()?;
        Ok(DenseClock { events, segments: Vec::new(), walk: None, row: Ema::default(), error: [Ema::default(); 2] })
    }

    /// Whether a batch should go in halves, by what is known.
    pub(super) fn prefers_halves(&self, experts: &ExpertCache, batch: &Batch) -> bool {
        // The first batches go as a whole, which measures both sides.
        self.expected(experts, batch).is_some_and(go_in_halves)
    }

    /// Of a batch that is long enough for halves: it takes a look at every expert, which a token has no time for.
    fn expected(&self, experts: &ExpertCache, batch: &Batch) -> Option<[f64; 2]> {
        let rows = batch.rows.len();
        if rows < 2 * LEAST {
            return None;
        }
        let [whole, half] = experts.prompt_seconds(rows)?;
        let [a, b] = expected(self.row.get()? * rows as f64, whole, half, experts.layers());
        let error = |i: usize| self.error[i].get().unwrap_or(1.0);
        Some([a * error(0), b * error(1)])
    }

    /// A walk begins.
    pub(super) fn begin(&mut self, experts: &ExpertCache, batch: &Batch, in_halves: bool) {
        self.segments.clear();
        self.walk = self.expected(experts, batch).map(|e| (Instant::now(), e[in_halves as usize], in_halves));
    }

    /// A segment begins, before its work is started.
    pub(super) fn segment_begins(&mut self, gpu: &Gpu, lane: &Lane<'_>, segment: usize) -> Result<()> {
        let i = lane.number * self.events.len() / 2 + segment;
        self.segments.push(i);
        self.events[i][0].record(&gpu.work)
    }

    /// The segment that began last ends.
    pub(super) fn segment_ends(&mut self, gpu: &Gpu) -> Result<()> {
        match self.segments.last() {
            Some(&i) => self.events[i][1].record(&gpu.work),
            None => Ok(()),
        }
    }

    /// A walk of so many rows is over.
    pub(super) fn end(&mut self, rows: usize) -> Result<()> {
        let mut sum = 0.0;
        for &i in &self.segments {
            let [began, ended] = &self.events[i];
            ended.wait()?;
            sum += ended.since(began)?;
        }
        if !self.segments.is_empty() {
            self.row.add(sum / rows as f64);
        }
        if let Some((began, expected, in_halves)) = self.walk.take() {
            let error = &mut self.error[in_halves as usize];
            let known = error.get().unwrap_or(1.0);
            error.add(began.elapsed().as_secs_f64() / (expected / known).max(1e-9));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tape::Row;

    fn batch(n: u32, output_rows: Vec<u32>) -> Batch {
        let rows = (0..n).map(|pos| Row { token: pos, seq: 0, pos: 7 + pos }).collect();
        Batch { rows, output_rows, ..Batch::default() }
    }

    fn layout(widths: &[[usize; 2]]) -> Layout {
        Layout { buffer: Vec::new(), widths: widths.to_vec(), coded: Vec::new() }
    }

    #[test]
    fn halves_are_the_rows_of_the_batch_in_order_and_share_its_buffers() {
        let shape = Shape { n_seq: 1, n_ctx: 1000, n_batch: 500, n_output_rows: 3 };
        let layout = layout(&[[64, 0], [0, 900], [8, 100]]);
        let whole = batch(500, vec![100, 255, 499]);
        let halves = cut(&whole, &shape, [&layout]).expect("it fits");
        let joined: Vec<Row> = halves.iter().flat_map(|h| h.rows.clone()).collect();
        assert_eq!(joined, whole.rows);
        assert_eq!((halves[0].rows.len(), &halves[0].output_rows[..]), (256, &[100, 255][..]));
        assert_eq!(halves[1].output_rows, [499 - 256]);
        let [first, second] = Lane::halves(&halves);
        for (i, bytes) in layout.bytes(&shape).enumerate() {
            let [all, output] = layout.widths[i];
            let end = |l: &Lane<'_>| {
                l.offset(&layout, i as u32) + 4 * (all * l.batch.rows.len()).max(output * l.batch.output_rows.len())
            };
            assert!(end(&first) <= second.offset(&layout, i as u32) && end(&second) <= bytes, "buffer {i}");
        }
    }

    #[test]
    fn a_batch_that_is_short_or_finds_no_room_in_halves_goes_as_a_whole() {
        let shape = Shape { n_seq: 1, n_ctx: 1000, n_batch: 512, n_output_rows: 512 };
        assert!(cut(&batch(64, vec![63]), &shape, []).is_none());
        assert!(cut(&batch(65, vec![64]), &shape, []).is_some());
        // All output rows are the second half's: after the first half's rows they find no room.
        let narrow = layout(&[[100, 200]]);
        assert!(cut(&batch(512, (256..512).collect()), &shape, [&narrow]).is_some());
        let shape = Shape { n_output_rows: 256, ..shape };
        assert!(cut(&batch(512, (256..512).collect()), &shape, [&narrow]).is_none());
    }

    /// By the model of costs: whatever the machine, the choice is within a tenth of the best regime alone, and never slower
    /// than all experts on the CPU.
    #[test]
    fn no_regime_alone_is_much_faster_than_what_is_chosen() {
        let mut rng = crate::quant::Rng(7);
        let mut halved = 0;
        for _ in 0..10_000 {
            // Seconds of a batch: the GPU's own work, the experts on the CPU, over the bus, on the CPU for half the rows.
            let [dense, cpu, bus] = [(); 3].map(|()| 10f64.powf(rng.unit() as f64 * 4.0 - 2.0));
            let half = cpu * (0.5 + 0.5 * rng.unit() as f64);
            let both = cpu * bus / (cpu + bus);
            let times = expected(dense, both, half, 48);
            let chosen = times[go_in_halves(times) as usize];
            halved += go_in_halves(times) as usize;
            let alone = [dense + cpu, dense + bus, dense + both, times[1]];
            assert!(alone.iter().all(|t| chosen <= 1.1 * t) && chosen <= dense + cpu, "{chosen} of {alone:?}");
        }
        assert!((500..9_500).contains(&halved), "{halved}: both are chosen");
    }

    /// Without a ring a layer of a whole takes the GPU's work and then the CPU's, in halves the larger of both.
    #[test]
    fn halves_gain_where_both_sides_are_alike_and_lose_where_the_bus_is_fast() {
        let layers = 40;
        let gain = |dense: f64, whole: f64, half: f64| {
            let [a, b] = expected(dense, whole, half, layers);
            a / b
        };
        // Equal sides: nearly twice as fast. One side alone: no gain, and hardly a loss.
        assert!(gain(1.0, 1.0, 0.5) > 1.9);
        assert!((0.97..1.0).contains(&gain(1e-9, 1.0, 0.5)));
        assert!((0.97..1.0).contains(&gain(1.0, 1e-9, 0.5e-9)));
        // Experts whose weights are read twice, for few rows each.
        assert!(gain(0.3, 1.0, 1.0) < 1.0);
        // The bus brings them in a third of the CPU's time.
        assert!(gain(0.3, 0.25, 0.5) < 1.0);
    }
}
