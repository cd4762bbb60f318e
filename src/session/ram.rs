//! How much of a model that is larger than memory is kept there: what every token reads, and as many
//! experts as the rest of the memory holds.

use anyhow::Result;

use super::Options;
use crate::cpu::Memory;
use crate::exec::{NoMemory, RamPool, pool_bytes, pooled_steps, slots_within};
use crate::gguf::{Gguf, Load};
use crate::plan::{self, Plan, Shape};
use crate::tape::{Tape, WeightKind};

/// How much memory a model's weights may take. Experts beyond that stay on the drive, and are read when
/// they are needed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RamLimit {
    /// What is free, where weights and context are more than that; else there is no limit.
    #[default]
    Auto,
    /// No limit: what does not fit is left to the system's page cache.
    Off,
    /// So many bytes.
    Bytes(usize),
    /// What every token reads, and so many experts of each layer.
    Slots(usize),
}

/// Of the memory that is free, the part that is left to others and to what is not counted here (page tables, texts,
/// what the page cache has of lookup tables): one in this many bytes, but no less and no more than [`LEFT_WITHIN`].
const LEFT: usize = 32;
const LEFT_WITHIN: (usize, usize) = (96 << 20, 1 << 30);
/// Tokens of a batch that there is always memory for. Where a larger one comes, some slots give theirs.
const FEW: usize = 64;

/// Of so much free memory, what is not given to weights.
fn left(free: usize) -> usize {
    (free / LEFT).clamp(LEFT_WITHIN.0, LEFT_WITHIN.1)
}

/// What a model's weights and its context take of the CPU's memory.
pub(super) struct Needs {
    /// Weights that every token reads, in bytes.
    pub(super) dense: usize,
    /// All experts.
    pub(super) experts: usize,
    /// The context, and the working memory of the largest batch; and the same with that of a batch of [`FEW`] tokens.
    pub(super) others: usize,
    others_few: usize,
    /// The tensors (places in [`Gguf::tensors`]) that stay in the file: experts, those that only a
    /// GPU reads, and those that nothing reads again.
    stays: Vec<usize>,
}

impl Needs {
    pub(super) fn of(gguf: &Gguf, tape: &Tape, plan: &Plan, shape: Shape) -> Needs {
        let pooled: Vec<usize> = pooled_steps(tape, plan)
            .flat_map(|(_, s)| plan::stacks(tape, s))
            .map(|(w, _)| tape.weights[w].tensor)
            .collect();
        let mut dense = vec![false; gguf.tensors.len()];
        for (step, _) in tape.steps.iter().zip(&plan.places).filter(|(_, place)| !place.is_gpu()) {
            let matrices = step.weights.iter().map(|w| &tape.weights[w.0 as usize]);
            let read = matrices.filter(|w| w.kind == WeightKind::Matrix && !pooled.contains(&w.tensor));
            read.for_each(|w| dense[w.tensor] = true);
        }
        let bytes = |list: &mut dyn Iterator<Item = usize>| list.map(|i| gguf.tensors[i].bytes).sum::<usize>();
        let states = tape.states.iter().zip(&plan.state_places).filter(|(_, place)| !place.is_gpu());
        let states = shape.n_seq * states.map(|(s, _)| s.bytes(shape.n_ctx, shape.n_batch)).sum::<usize>();
        let few = Shape { n_batch: shape.n_batch.min(FEW), ..shape };
        Needs {
            dense: bytes(&mut (0..dense.len()).filter(|i| dense[*i])),
            experts: bytes(&mut pooled.into_iter()),
            others: states + plan::host_bytes(tape, plan, &shape),
            others_few: states + plan::host_bytes(tape, plan, &few),
            stays: (0..dense.len()).filter(|i| !dense[*i]).collect(),
        }
    }
}

/// Reads what every token reads into memory, if experts are to stay on the drive, and returns how many
/// are kept. None changes nothing: there is memory for all, or the model has no experts on the CPU, or its
/// file is not mapped.
///
/// # Errors
/// [`NoMemory`] if the limit is below what a token needs, or above what this machine has; if the file
/// cannot be read.
pub(super) fn settle(
    gguf: &mut Gguf,
    (tape, plan, shape): (&Tape, &Plan, Shape),
    o: &Options,
) -> Result<Option<RamPool>> {
    let is_mapped = (0..gguf.shards().count()).all(|shard| gguf.is_mapped(shard));
    let counts = pooled_steps(tape, plan).map(|(_, step)| plan::experts_of(tape, step));
    let may = is_mapped && o.load.mmap && !o.load.mlock && o.ram != RamLimit::Off;
    let Some(most) = counts.max().filter(|_| may) else {
        return Ok(None);
    };
    let needs = Needs::of(gguf, tape, plan, shape);
    let memory = Memory::of_this_machine();
    let one = pool_bytes(tape, plan, 1);
    let gb = |bytes: usize| format!("{:.2} GB", bytes as f64 / 1e9);
    let limit = match (o.ram, memory) {
        (RamLimit::Off, _) | (RamLimit::Auto, None) => return Ok(None),
        (RamLimit::Slots(n), _) => needs.dense + pool_bytes(tape, plan, n),
        (RamLimit::Bytes(b), _) if needs.dense + needs.experts <= b => return Ok(None),
        (RamLimit::Auto, Some(m)) if needs.dense + needs.experts + needs.others <= m.free => return Ok(None),
        (RamLimit::Auto, Some(m)) => m.free.saturating_sub(needs.others_few + left(m.free)),
        (RamLimit::Bytes(b), Some(m)) if b > m.total => {
            return Err(
                NoMemory(format!("--ram {}: expected at most the {} of this machine", gb(b), gb(m.total))).into()
            );
        }
        (RamLimit::Bytes(b), _) => b,
    };
    let slots = slots_within(tape, plan, limit.saturating_sub(needs.dense));
    if slots == 0 {
        let text = format!(
            "what every token reads and one expert of each layer take {}, more than the {} for weights",
            gb(needs.dense + one),
            gb(limit)
        );
        if o.ram != RamLimit::Auto {
            return Err(NoMemory(format!("{}: {text}: expected a larger --ram", gguf.path.display())).into());
        }
        tracing::warn!("the file stays mapped, though it is larger than the free memory: {text}");
        return Ok(None);
    }
    let k = pooled_steps(tape, plan).map(|(_, step)| tape.width(step.ins[1])).max().unwrap_or(0);
    if slots * 5 < k * 6 {
        tracing::warn!(
            "a token chooses {k} experts of each layer, and memory holds {slots}: nearly all of them are read from the \
             drive for every token; close programs, or choose a smaller file"
        );
    }
    gguf.settle(&Load { mmap: false, mlock: false }, &needs.stays)?;
    tracing::info!(
        "{} of weights do not fit into memory: {slots} of {most} experts of each layer are kept there ({} with what \
         every token reads), the others are read from the drive when they are needed (--ram)",
        gb(needs.dense + needs.experts),
        gb(needs.dense + pool_bytes(tape, plan, slots))
    );
    // A limit that was asked for is one for weights alone.
    let shape = (o.ram == RamLimit::Auto).then_some(Shape { n_batch: shape.n_batch.min(FEW), ..shape });
    Ok(Some(RamPool { slots, batch: shape, lock: o.lock_ram, read: o.read_at, uses: o.expert_uses.clone() }))
}
