//! The inputs of a batch for the GPU, brought over in one copy: tokens, positions, tables, places of experts.

use anyhow::Result;

use super::cache::ExpertCache;
use crate::cuda::{Arena, Event, Gpu, Pinned, Ptr};
use crate::plan::{self, ALIGN, LISTS, Place, Plan};
use crate::tape::{Batch, ExpertShare, Lists, Table, Tape};

/// The batch and the tables of all steps, in one piece of memory. Where each part begins depends on the batch's rows alone, so
/// that little is sent for few of them, and what was recorded for one row finds it again.
#[derive(Debug)]
pub(super) struct BatchInputs {
    host: Pinned,
    device: Ptr,
    /// Passed when the host's copy has been read.
    read: Event,
    tables: Vec<Table>,
    /// The tables of each step, by number.
    of_step: Vec<Vec<usize>>,
    /// Of each step of the GPU's share: its number, and its layer's experts.
    experts: Vec<(usize, usize)>,
    /// Where the parts of the current batch begin.
    at: InputLayout,
}

/// Where the parts begin, in bytes.
#[derive(Debug, Default)]
struct InputLayout {
    rows: usize,
    tables: Vec<usize>,
    experts: Vec<usize>,
    bytes: usize,
}

impl InputLayout {
    fn new(tables: &[Table], experts: &[(usize, usize)], rows: usize) -> InputLayout {
        let mut bytes = LISTS * rows * 4;
        let mut room = |n: usize| {
            let from = bytes.next_multiple_of(ALIGN);
            bytes = from + n;
            from
        };
        let tables = tables.iter().map(|t| room(t.row_bytes * rows)).collect();
        let experts = experts.iter().map(|(_, n)| room(n * 4)).collect();
        InputLayout { rows, tables, experts, bytes }
    }
}

impl BatchInputs {
    pub(super) fn new(
        gpu: &Gpu,
        memory: &Arena,
        tape: &Tape,
        (plan, place): (&Plan, Place),
        n_batch: usize,
    ) -> Result<BatchInputs> {
        let mut tables: Vec<Table> = Vec::new();
        let mut of_step = vec![Vec::new(); tape.steps.len()];
        let mut experts = Vec::new();
        for (i, step) in tape.steps.iter().enumerate().filter(|(i, _)| plan.places[*i] == place) {
            for table in step.tables() {
                let known = tables.iter().position(|t| t.key == table.key);
                of_step[i].push(known.unwrap_or(tables.len()));
                if known.is_none() {
                    tables.push(table);
                }
            }
            if step.share == ExpertShare::OnGpu {
                experts.push((i, plan::experts_of(tape, step)));
            }
        }
        let bytes = InputLayout::new(&tables, &experts, n_batch).bytes;
        let (host, device) = (gpu.pinned(bytes, "the batch")?, memory.take(bytes));
        Ok(BatchInputs { host, device, read: Event::new()?, tables, of_step, experts, at: InputLayout::default() })
    }

    /// Writes a batch into the host's copy.
    fn fill(&mut self, batch: &Batch, cached: &ExpertCache) {
        let n = batch.rows.len();
        if self.at.rows != n {
            self.at = InputLayout::new(&self.tables, &self.experts, n);
        }
        let bytes: &mut [u8] = self.host.as_mut_slice();
        let (lists, _) = bytes.split_at_mut(LISTS * n * 4);
        let lists: &mut [i32] = bytemuck::cast_slice_mut(lists);
        for (i, row) in batch.rows.iter().enumerate() {
            (lists[i], lists[n + i], lists[2 * n + i]) = (row.token as i32, row.seq as i32, row.pos as i32);
        }
        for (i, &row) in batch.output_rows.iter().enumerate() {
            lists[3 * n + i] = row as i32;
        }
        for (table, &at) in self.tables.iter().zip(&self.at.tables) {
            (table.fill)(batch, &mut bytes[at..at + table.row_bytes * n]);
        }
        for ((step, _), &at) in self.experts.iter().zip(&self.at.experts) {
            let slots: &[u8] = bytemuck::cast_slice(cached.slots(*step));
            bytes[at..at + slots.len()].copy_from_slice(slots);
        }
    }

    /// Brings a batch over, with the place of each expert that the GPU has.
    pub(super) fn send(&mut self, gpu: &Gpu, batch: &Batch, cached: &ExpertCache) -> Result<()> {
        self.read.wait()?;
        self.fill(batch, cached);
        gpu.bring(self.device, &self.host, 0..self.at.bytes)?;
        self.read.record(&gpu.work)
    }

    /// The lists of the batch that was sent, of the rows from `first` on; the output rows are as they were.
    pub(super) fn lists(&self, first: usize) -> Lists {
        let at = |i: usize, first: usize| self.device.at((i * self.at.rows + first) * 4);
        Lists { tokens: at(0, first), seqs: at(1, first), positions: at(2, first), output_rows: at(3, 0) }
    }

    /// The tables of a step.
    pub(super) fn tables(&self, step: usize) -> Vec<Ptr> {
        self.of_step[step].iter().map(|&t| self.device.at(self.at.tables[t])).collect()
    }

    /// The table of places of a step's experts.
    pub(super) fn places(&self, step: usize) -> Ptr {
        let i = self.experts.iter().position(|(s, _)| *s == step).expect("a step of the GPU's share");
        self.device.at(self.at.experts[i])
    }
}
