//! What a tape and a plan tell beyond the header: the parts of the model, what a token reads, what
//! is where.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use anyhow::Result;

use super::file::FileFacts;
use crate::cli::human::size;
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
    pub(super) options: &'a Options,
    pub(super) shape: Shape,
}

/// Tensors that the family leaves alone.
pub(super) struct UnusedFacts {
    pub(super) prefix: String,
    pub(super) why: &'static str,
    pub(super) tensors: usize,
    pub(super) bytes: usize,
}

/// A part of the model.
pub(super) struct PartFacts {
    pub(super) name: &'static str,
    pub(super) bytes: usize,
    pub(super) bytes_per_token: usize,
}

/// What is at one place.
pub(super) struct PlaceFacts {
    pub(super) name: &'static str,
    pub(super) is_gpu: bool,
    pub(super) steps: usize,
    /// Without `mapped_bytes`.
    pub(super) weight_bytes: usize,
    /// Lookup tables that stay in the file: a token reads a few of their rows there.
    pub(super) mapped_bytes: usize,
    pub(super) state_bytes: usize,
    /// Of the CPU also what crosses to and from a GPU, and the ring's staging memory.
    pub(super) buffer_bytes: usize,
    /// The expert cache.
    pub(super) cache_bytes: usize,
}

/// Where the model goes.
pub(super) struct PlacementFacts {
    pub(super) flags: String,
    /// The batch, where it was chosen for this placement.
    pub(super) batch: Option<usize>,
    /// In a line of the verdict, and in the table's words.
    pub(super) line: String,
    pub(super) words: String,
    pub(super) refused: Vec<Refused>,
    pub(super) less: Option<String>,
    /// Groups of layers that share rows, and so are at one place.
    pub(super) together: Vec<String>,
    /// GPU memory that is free and that is needed; None without a GPU.
    pub(super) vram: Option<usize>,
    pub(super) needed: usize,
}

impl PlacementFacts {
    fn new(m: &PlacedModel<'_>) -> PlacementFacts {
        let p = m.placed;
        let on_cpu = "everything on the CPU".to_owned();
        let batch = m.options.ask.batch_up_to.filter(|_| p.plan.on_gpu()).map(|_| p.shape.n_batch);
        let flags = p.flags(&m.options.ask);
        PlacementFacts {
            flags: batch.map_or(flags.clone(), |n| format!("{flags} -ub {n}")),
            batch,
            line: if p.plan.on_gpu() { line(p) } else { on_cpu.clone() },
            words: if p.plan.on_gpu() {
                format!("{}; {} of GPU memory", p.layers_in_words(), size(p.footprint.total()))
            } else {
                on_cpu
            },
            refused: p.refused.clone(),
            less: p.less.clone(),
            together: sharing_layers(&p.tape),
            vram: m.vram,
            needed: p.footprint.total(),
        }
    }
}

/// A placement with a GPU in one line.
fn line(p: &Fit) -> String {
    let head = if p.gpu_layers > p.layers { " and the head" } else { "" };
    let layers = match p.gpu_layers {
        0 => "some steps".into(),
        1 => "the head".into(),
        n => format!("{} of {} layers{head}", n.saturating_sub(1).min(p.layers), p.layers),
    };
    if p.plan.places.iter().all(|place| place.is_gpu()) {
        return "everything on the GPU".into();
    }
    let split = p.tape.steps.iter().find(|s| s.share == ExpertShare::OnGpu);
    match split {
        Some(step) => {
            let (slots, n) = (p.slots_in_words(), plan::experts_of(&p.tape, step));
            format!("{layers} on the GPU with {slots} of {n} experts a layer cached there; the rest on the CPU")
        }
        None => format!("{layers} on the GPU, the rest on the CPU"),
    }
}

/// The draft heads of a file, and what they take besides the model.
pub(super) struct HeadFacts {
    pub(super) count: usize,
    /// Bytes of their weights that the model does not read.
    pub(super) weight_bytes: usize,
    /// Bytes of what they remember of a sequence, and of the rows that the model hands on to them.
    pub(super) state_bytes: usize,
    /// Whether the memory that the report gives has them in it.
    pub(super) is_counted: bool,
    /// Why there are none.
    pub(super) off: Option<String>,
}

impl HeadFacts {
    /// Of a file with blocks for multi-token prediction.
    fn new(m: &PlacedModel<'_>, n_ctx: usize) -> Result<HeadFacts> {
        let tape = session::tape(m.gguf, &Options { heads: true, ..m.options.clone() })?;
        let used = |steps: &[Step]| steps.iter().flat_map(|s| &s.weights).map(|w| w.0).collect::<HashSet<_>>();
        let model = used(tape.model());
        let own = used(&tape.steps).into_iter().filter(|w| !model.contains(w));
        Ok(HeadFacts {
            count: tape.heads.len(),
            weight_bytes: own.map(|w| tape.weights[w as usize].bytes).sum(),
            state_bytes: tape.states[tape.model_states()..].iter().map(|s| s.bytes(n_ctx, m.shape.n_batch)).sum(),
            is_counted: !m.placed.tape.heads.is_empty(),
            off: tape.heads_off,
        })
    }
}

/// Everything that is known of a model that can run.
pub(super) struct ModelFacts {
    pub(super) file: FileFacts,
    /// None where the file has no blocks for them.
    pub(super) heads: Option<HeadFacts>,
    pub(super) n_ctx: usize,
    pub(super) n_batch: usize,
    pub(super) unused: Vec<UnusedFacts>,
    pub(super) unused_keys: Vec<UnusedKey>,
    /// What is taken as known where the file does not say.
    pub(super) notes: Vec<String>,
    /// The first layer that leaves out most of a long prompt, where one does, and the parameters that a token is multiplied
    /// with which is left out there.
    pub(super) prompt_active: Option<(usize, usize)>,
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

/// The part of lookup tables other than the token embedding.
pub(super) const TABLES: &str = "lookup tables";

fn weights<'a>(tape: &'a Tape, step: &Step) -> Vec<&'a Weight> {
    step.weights.iter().map(|w| &tape.weights[w.0 as usize]).collect()
}

impl ModelFacts {
    pub(super) fn new(m: &PlacedModel<'_>) -> Result<ModelFacts> {
        let (gguf, tape, o, n_batch) = (m.gguf, &m.placed.tape, m.options, m.shape.n_batch);
        let n_ctx = session::context(gguf, o.n_ctx)?;
        let file = FileFacts::new(gguf, |t| tape.ignored.iter().any(|(prefix, _)| t.name.starts_with(prefix)));
        let (parts, tied) = parts(tape);
        let heads = file.mtp.is_some().then(|| HeadFacts::new(m, n_ctx)).transpose()?;
        let per_token = tape.states.iter().map(|s| match s.kind {
            StateKind::Rows { every, window: None, .. } => s.ty.row_bytes(s.width) as f64 / every as f64,
            _ => 0.0,
        });
        let bytes_of = |fixed: bool| {
            let list = tape.states.iter().filter(move |s| s.is_overwritten() == fixed);
            list.map(|s| s.bytes(n_ctx, n_batch)).sum::<usize>()
        };
        Ok(ModelFacts {
            file,
            heads,
            n_ctx,
            n_batch,
            unused: unused(gguf, tape),
            unused_keys: tape.unused_keys.clone(),
            notes: tape.notes.clone(),
            prompt_active: prompt_active(tape),
            parts,
            tied,
            bytes_per_token: tape.bytes_per_token(),
            state_bytes: bytes_of(false) + bytes_of(true),
            state_bytes_per_token: per_token.sum(),
            state_fixed_bytes: bytes_of(true),
            cache_types: (o.type_k.name, o.type_v.name),
            places: places(m, n_ctx),
            placement: PlacementFacts::new(m),
        })
    }
}

/// The first layer with steps that leave rows of a long prompt out, and the parameters of the steps that leave none out, as
/// far as a token is multiplied with them. The head is for the last token alone.
fn prompt_active(tape: &Tape) -> Option<(usize, usize)> {
    let first = tape.model().iter().find(|s| s.last.is_some())?.layer?;
    let of_all = |s: &&Step| s.last.is_none() && s.outs.iter().all(|x| tape.slots[x.0 as usize].rows == RowSet::All);
    let active = |s: &Step| {
        let list = weights(tape, s);
        let (bytes, all): (usize, usize) = (list.iter().map(|w| w.bytes).sum(), list.iter().map(|w| w.count()).sum());
        all as f64 * s.op.bytes_per_token(&list) as f64 / bytes.max(1) as f64
    };
    let all = tape.model().iter().filter(of_all).filter(|s| s.share != ExpertShare::OnGpu);
    Some((first, all.map(active).sum::<f64>() as usize))
}

/// The parts of a model in the order of reports, and whether the head reads the embedding again.
fn parts(tape: &Tape) -> (Vec<PartFacts>, bool) {
    let part = |name| PartFacts { name, bytes: 0, bytes_per_token: 0 };
    let mut parts = Role::ALL.map(|role| part(role.name()));
    let mut tables = part(TABLES);
    let (mut seen, mut tied) = (HashSet::new(), false);
    for step in tape.model().iter().filter(|s| s.share != ExpertShare::OnGpu && !tape.is_of_others(s)) {
        let list = weights(tape, step);
        let in_file = list.iter().any(|w| w.kind == WeightKind::Mapped);
        let part = if in_file { &mut tables } else { &mut parts[step.role as usize] };
        part.bytes_per_token += tape.step_bytes(step);
        for w in list {
            if seen.insert(w.tensor) {
                part.bytes += w.bytes;
            } else {
                tied |= step.role == Role::Head;
            }
        }
    }
    let [embedding, others @ ..] = parts;
    let all = [embedding, tables].into_iter().chain(others);
    (all.filter(|p| p.bytes + p.bytes_per_token > 0).collect(), tied)
}

/// What is where, for a context of `n_ctx` tokens.
fn places(m: &PlacedModel<'_>, n_ctx: usize) -> Vec<PlaceFacts> {
    let (tape, plan) = (&m.placed.tape, &m.placed.plan);
    let mut places = Vec::new();
    for place in Place::ALL {
        let here = || tape.steps.iter().zip(&plan.places).filter(|(_, p)| **p == place).map(|(s, _)| s);
        let ids: HashSet<_> = here().flat_map(|s| &s.weights).collect();
        let states = tape.states.iter().zip(&plan.state_places).filter(|(_, p)| **p == place);
        let gpu = place.is_gpu();
        let room = if let Place::Gpu(n) = place { m.placed.each.get(n as usize).copied() } else { None };
        let room = room.unwrap_or_default();
        let (mut weight_bytes, mut mapped_bytes) = (0, 0);
        for w in ids.iter().map(|w| &tape.weights[w.0 as usize]) {
            let bytes = if w.kind == WeightKind::Mapped { &mut mapped_bytes } else { &mut weight_bytes };
            *bytes += w.bytes;
        }
        let states = || states.clone().map(|(s, _)| s.bytes(n_ctx, m.shape.n_batch)).sum();
        let buffers = || match place {
            Place::Cpu => plan::host_bytes(tape, plan, &m.shape),
            _ => plan.buffer_bytes(place, &m.shape),
        };
        places.push(PlaceFacts {
            name: place.name(),
            is_gpu: gpu,
            steps: here().count(),
            weight_bytes: if gpu { room.weights } else { weight_bytes },
            mapped_bytes,
            state_bytes: if gpu { room.states } else { states() },
            buffer_bytes: if gpu { room.values + room.scratch + room.header } else { buffers() },
            cache_bytes: if gpu { room.cache + room.ring } else { 0 },
        });
    }
    places.retain(|p| p.steps > 0);
    places
}

/// The tensors that the family leaves alone, by prefix: those of one name in several layers together, as `blk.N.name`.
fn unused(gguf: &Gguf, tape: &Tape) -> Vec<UnusedFacts> {
    let of_layers = |prefix: &str| {
        let (layer, name) = prefix.strip_prefix("blk.")?.split_once('.')?;
        (layer == "N" || layer.parse::<usize>().is_ok()).then(|| format!("blk.N.{name}"))
    };
    let mut all: Vec<UnusedFacts> = Vec::new();
    for (prefix, why) in &tape.ignored {
        let hit = || gguf.tensors.iter().filter(|t| t.name.starts_with(prefix));
        let (tensors, bytes) = (hit().count(), hit().map(|t| t.bytes).sum());
        let shared = of_layers(prefix);
        let same = |u: &&mut UnusedFacts| u.why == *why && shared.is_some() && of_layers(&u.prefix) == shared;
        match (all.iter_mut().find(same), &shared) {
            _ if tensors == 0 => {}
            (Some(u), Some(name)) => {
                (u.tensors, u.bytes) = (u.tensors + tensors, u.bytes + bytes);
                u.prefix.clone_from(name);
            }
            _ => all.push(UnusedFacts { prefix: prefix.clone(), why, tensors, bytes }),
        }
    }
    all
}

/// Layers of which some read rows that another keeps, in words: `2 to 7`.
fn sharing_layers(tape: &Tape) -> Vec<String> {
    let groups = plan::shared_states(tape);
    let mut layers: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
    for (step, group) in tape.model().iter().zip(groups) {
        if let (Some(layer), Some(group)) = (step.layer, group) {
            layers.entry(group).or_default().insert(layer);
        }
    }
    let all: BTreeSet<BTreeSet<usize>> = layers.into_values().filter(|of| of.len() > 1).collect();
    // What lies within another group, as layers that share choices do, is said with that.
    let within = |of: &BTreeSet<usize>| all.iter().any(|other| other.len() > of.len() && of.is_subset(other));
    all.iter().filter(|of| !within(of)).cloned().map(ranges).collect()
}

/// Rising numbers in words, those that follow each other as a range.
fn ranges(numbers: BTreeSet<usize>) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for n in numbers {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == n => *last = n,
            _ => runs.push((n, n)),
        }
    }
    let run = |(from, to): (usize, usize)| if from == to { from.to_string() } else { format!("{from} to {to}") };
    runs.into_iter().map(run).collect::<Vec<_>>().join(", ")
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
                    let rows = match info.rows {
                        RowSet::All => "T".into(),
                        RowSet::Output | RowSet::Argmax => "W".into(),
                        RowSet::Others => "T - W".into(),
                        RowSet::Last(reach) => format!("last {}", reach + 1),
                    };
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
