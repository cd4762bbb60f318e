//! The numbers: sums over the tensor directory, the tape and the plan.

use std::collections::{BTreeMap, HashSet};

use anyhow::Result;

use crate::gguf::Gguf;
use crate::plan::{self, Fit, Place, PlanStage, Refused, Shape};
use crate::session::{self, Options};
use crate::tape::{ExpertShare, Role, RowSet, StateKind, Step, Tape, UnusedKey, Weight, WeightKind};

/// A model that is recorded and placed.
pub(super) struct PlacedModel<'a> {
    pub(super) gguf: &'a Gguf,
    pub(super) placed: &'a Fit,
    /// Free memory of the GPU, if there is one.
    pub(super) vram: Option<usize>,
    /// Bytes per second between memory and the GPU.
    pub(super) bus: f64,
    pub(super) options: &'a Options,
    pub(super) shape: Shape,
}

/// The tensors of one format.
pub(super) struct FormatFacts {
    pub(super) name: &'static str,
    pub(super) tensors: usize,
    pub(super) weights: usize,
    pub(super) bytes: usize,
}

/// Tensors that the family leaves alone.
pub(super) struct UnusedFacts {
    pub(super) prefix: String,
    pub(super) why: &'static str,
    pub(super) tensors: usize,
    pub(super) bytes: usize,
}

/// What reports call the tables of which a token reads a few rows, and which stay in the file.
pub(super) const ON_DISK: &str = "tables on disk";

/// A part of the model.
pub(super) struct PartFacts {
    pub(super) name: &'static str,
    pub(super) bytes: usize,
    pub(super) bytes_per_token: usize,
}

/// The expert layers.
#[derive(Clone, Copy)]
pub(super) struct ExpertFacts {
    pub(super) layers: usize,
    /// In a layer.
    pub(super) count: usize,
    /// Chosen for a token, in a layer.
    pub(super) used: usize,
}

/// What is at one place.
pub(super) struct PlaceFacts {
    pub(super) name: &'static str,
    pub(super) steps: usize,
    pub(super) weight_bytes: usize,
    pub(super) state_bytes: usize,
    pub(super) buffer_bytes: usize,
    /// The expert cache.
    pub(super) cache_bytes: usize,
}

/// Where the model goes, and the speed to expect.
pub(super) struct PlacementFacts {
    pub(super) flags: String,
    pub(super) words: String,
    pub(super) refused: Vec<Refused>,
    pub(super) less: Option<String>,
    /// GPU memory that is free and that is needed; None without a GPU.
    pub(super) vram: Option<usize>,
    pub(super) needed: usize,
    /// Tokens per second of a long prompt, where experts pass over the bus.
    pub(super) prompt: Option<f64>,
}

impl PlacementFacts {
    fn new(m: &PlacedModel<'_>) -> PlacementFacts {
        let (tape, p) = (&m.placed.tape, m.placed);
        let halves = tape.steps.iter().filter(|s| s.share == ExpertShare::OnCpu);
        let passing = |s: &Step| (plan::experts_of(tape, s) - p.plan.cache.slots) * plan::expert_bytes(tape, s);
        let streamed: usize = halves.map(passing).sum();
        let all_there = p.plan.places.iter().all(|p| *p != Place::Cpu);
        let through = (p.plan.cache.ring > 0 && streamed > 0 && !all_there)
            .then(|| m.options.n_batch as f64 / (streamed as f64 / m.bus));
        PlacementFacts {
            flags: p.flags(&m.options.ask),
            words: if p.plan.on_gpu() { p.describe() } else { "everything on the CPU".into() },
            refused: p.refused.clone(),
            less: p.less.clone(),
            vram: m.vram,
            needed: p.footprint.total(),
            prompt: through,
        }
    }
}

/// Everything that the header tells.
pub(super) struct ModelFacts {
    pub(super) name: String,
    pub(super) arch: String,
    pub(super) files: Vec<(String, u64)>,
    pub(super) layers: usize,
    pub(super) n_vocab: usize,
    pub(super) n_ctx_trained: Option<usize>,
    pub(super) n_ctx: usize,
    pub(super) n_batch: usize,
    pub(super) params: usize,
    pub(super) active: usize,
    pub(super) experts: Option<ExpertFacts>,
    pub(super) formats: Vec<FormatFacts>,
    pub(super) unused: Vec<UnusedFacts>,
    pub(super) unused_keys: Vec<UnusedKey>,
    pub(super) bytes: usize,
    pub(super) parts: Vec<PartFacts>,
    pub(super) tied: bool,
    pub(super) bytes_per_token: usize,
    pub(super) state_bytes: usize,
    /// On average: some rows hold several tokens.
    pub(super) state_bytes_per_token: f64,
    pub(super) state_fixed_bytes: usize,
    pub(super) cache_types: (&'static str, &'static str),
    pub(super) places: Vec<PlaceFacts>,
    pub(super) placement: PlacementFacts,
}

fn weights<'a>(tape: &'a Tape, step: &Step) -> Vec<&'a Weight> {
    step.weights.iter().map(|w| &tape.weights[w.0 as usize]).collect()
}

impl ModelFacts {
    pub(super) fn new(m: &PlacedModel<'_>) -> Result<ModelFacts> {
        let (gguf, tape, plan, o) = (m.gguf, &m.placed.tape, &m.placed.plan, m.options);
        let arch = gguf.meta.str("general.architecture")?;
        let key = |name: &str| gguf.meta.opt_usize(&format!("{arch}.{name}"));
        let n_ctx = session::context(gguf, o.n_ctx)?;

        let part = |name| PartFacts { name, bytes: 0, bytes_per_token: 0 };
        let mut parts = Role::ALL.map(|role| part(role.name()));
        let mut on_disk = part(ON_DISK);
        let mut places: Vec<PlaceFacts> = Vec::new();
        let mut seen = HashSet::new(); // tensors; a tied head reads the embedding again
        let (mut active, mut experts, mut tied) = (0f64, None::<ExpertFacts>, false);
        for place in Place::ALL {
            let here = || tape.steps.iter().zip(&plan.places).filter(|(_, p)| **p == place).map(|(s, _)| s);
            let ids: HashSet<_> = here().flat_map(|s| &s.weights).collect();
            let states = tape.states.iter().zip(&plan.state_places).filter(|(_, p)| **p == place);
            let room = m.placed.footprint;
            let gpu = place.is_gpu();
            let held = |w: &&Weight| w.kind != WeightKind::Mapped;
            let weights = || ids.iter().map(|w| &tape.weights[w.0 as usize]).filter(held).map(|w| w.bytes).sum();
            let states = || states.clone().map(|(s, _)| s.bytes(n_ctx, o.n_batch)).sum();
            let buffers = || plan.buffer_bytes(place, &m.shape);
            places.push(PlaceFacts {
                name: place.name(),
                steps: here().count(),
                weight_bytes: if gpu { room.weights } else { weights() },
                state_bytes: if gpu { room.states } else { states() },
                buffer_bytes: if gpu { room.values + room.scratch + room.header } else { buffers() },
                cache_bytes: if gpu { room.cache + room.ring } else { 0 },
            });
        }
        places.retain(|p| p.steps > 0);
        for step in tape.steps.iter().filter(|s| s.share != ExpertShare::OnGpu) {
            let list = weights(tape, step);
            let mapped = list.iter().any(|w| w.kind == WeightKind::Mapped);
            let part = if mapped { &mut on_disk } else { &mut parts[step.role as usize] };
            let (all, read) = (list.iter().map(|w| w.bytes).sum::<usize>(), tape.step_bytes(step));
            part.bytes_per_token += read;
            let share = read as f64 / all.max(1) as f64;
            for w in list {
                if seen.insert(w.tensor) {
                    part.bytes += w.bytes;
                } else {
                    tied |= step.outs.first() == tape.logits.as_ref();
                }
                if !matches!(w.kind, WeightKind::Ints { .. }) {
                    active += w.count() as f64 * share;
                }
            }
            if step.op.name() == "experts" {
                let (count, used) = (tape.weights[step.weights[0].0 as usize].shape[0], tape.width(step.ins[1]));
                experts = Some(ExpertFacts { layers: 1 + experts.map_or(0, |e| e.layers), count, used });
            }
        }

        let per_token = tape.states.iter().map(|s| match s.kind {
            StateKind::Rows { every, window: None, .. } => s.ty.row_bytes(s.width) as f64 / every as f64,
            _ => 0.0,
        });
        let bytes_of = |fixed: bool| {
            let list = tape.states.iter().filter(move |s| s.is_overwritten() == fixed);
            list.map(|s| s.bytes(n_ctx, o.n_batch)).sum::<usize>()
        };
        Ok(ModelFacts {
            name: gguf.meta.opt_str("general.name")?.unwrap_or("unnamed model").to_owned(),
            arch: arch.to_owned(),
            files: gguf.shards().map(|p| (p.display().to_string(), file_bytes(gguf, p))).collect(),
            layers: tape.n_layers(),
            n_vocab: tape.n_vocab(),
            n_ctx_trained: key("context_length")?,
            n_ctx,
            n_batch: o.n_batch.min(n_ctx),
            params: gguf.tensors.iter().filter(|t| t.ty.quant().is_some()).map(|t| t.elements()).sum(),
            active: active.round() as usize,
            experts,
            formats: formats(gguf),
            unused: unused(gguf, tape),
            unused_keys: tape.unused_keys.clone(),
            bytes: gguf.tensors.iter().map(|t| t.bytes).sum(),
            parts: parts.into_iter().chain([on_disk]).filter(|p| p.bytes + p.bytes_per_token > 0).collect(),
            tied,
            bytes_per_token: tape.bytes_per_token(),
            state_bytes: bytes_of(false) + bytes_of(true),
            state_bytes_per_token: per_token.sum(),
            state_fixed_bytes: bytes_of(true),
            cache_types: (o.type_k.name, o.type_v.name),
            places,
            placement: PlacementFacts::new(m),
        })
    }

    /// Bits per weight over all weights of the file.
    pub(super) fn bits(&self) -> f64 {
        let bytes: usize = self.formats.iter().map(|f| f.bytes).sum();
        let weights: usize = self.formats.iter().map(|f| f.weights).sum();
        bytes as f64 * 8.0 / weights.max(1) as f64
    }
}

/// The tensors that the family leaves alone, by prefix.
fn unused(gguf: &Gguf, tape: &Tape) -> Vec<UnusedFacts> {
    tape.ignored
        .iter()
        .map(|(prefix, why)| {
            let hit = || gguf.tensors.iter().filter(|t| t.name.starts_with(prefix));
            UnusedFacts { prefix: prefix.clone(), why, tensors: hit().count(), bytes: hit().map(|t| t.bytes).sum() }
        })
        .filter(|u| u.tensors > 0)
        .collect()
}

/// The file's tensors by format, the largest share first.
fn formats(gguf: &Gguf) -> Vec<FormatFacts> {
    let mut formats: BTreeMap<&str, FormatFacts> = BTreeMap::new();
    for t in &gguf.tensors {
        let name = t.ty.name();
        let f = formats.entry(name).or_insert(FormatFacts { name, tensors: 0, weights: 0, bytes: 0 });
        f.tensors += 1;
        f.weights += t.elements();
        f.bytes += t.bytes;
    }
    let mut formats: Vec<FormatFacts> = formats.into_values().collect();
    formats.sort_by_key(|f| std::cmp::Reverse(f.bytes));
    formats
}

/// Bytes of a file on disk; of a model that is no file, those of its tensors.
fn file_bytes(gguf: &Gguf, path: &std::path::Path) -> u64 {
    std::fs::metadata(path).map_or_else(|_| gguf.bytes(), |m| m.len())
}

/// A line of the table of steps.
pub(super) enum StepFacts {
    Step {
        label: String,
        op: &'static str,
        shape: String,
        formats: String,
        bytes: usize,
        bytes_per_token: usize,
        place: &'static str,
    },
    /// A value carried from one place to another before the next step.
    Copy { label: String, from: &'static str, to: &'static str },
}

/// The steps in the order in which they run, with the copies between them.
pub(super) fn steps(m: &PlacedModel<'_>) -> Vec<StepFacts> {
    let tape = &m.placed.tape;
    let mut list = Vec::new();
    for stage in &m.placed.plan.stages {
        match stage {
            PlanStage::Copy(slot, from, to) => {
                let maker = tape.steps.iter().find(|s| s.outs.contains(slot)).expect("every value is made by a step");
                list.push(StepFacts::Copy { label: maker.label.clone(), from: from.name(), to: to.name() });
            }
            PlanStage::Run(place, range) => list.extend(tape.steps[range.clone()].iter().map(|s| {
                let shape = |x: &crate::tape::Slot| {
                    let info = tape.slots[x.0 as usize];
                    let rows = if info.rows == RowSet::All { "T" } else { "W" };
                    format!("({rows}, {})", info.width)
                };
                let list = weights(tape, s);
                let mut formats: Vec<&str> = list.iter().map(|w| w.format()).collect();
                formats.dedup();
                StepFacts::Step {
                    label: s.label.clone(),
                    op: s.op.name(),
                    shape: s.outs.iter().map(shape).collect::<Vec<_>>().join(" "),
                    formats: formats.join(" "),
                    bytes: list.iter().map(|w| w.bytes).sum(),
                    bytes_per_token: tape.step_bytes(s),
                    place: place.name(),
                }
            })),
        }
    }
    list
}
