//! The lines that a chat begins with: what it is, where it is placed, how fast it can be.

use std::collections::{BTreeMap, BTreeSet};

use crate::cli::human::{grouped, size};
use crate::cli::predict::{Bandwidths, Prediction};
use crate::cpu::Bandwidth;
use crate::exec::Device;
use crate::gguf::Gguf;
use crate::plan::{self, Plan};
use crate::session::Session;
use crate::tape::{ExpertShare, Role, Tape};

/// Bytes that are read to measure memory's rate: more than most caches hold, little enough that
/// nobody waits for it.
const MEASURED: usize = 128 << 20;

/// The model: name, format, size.
pub(super) fn model(gguf: &Gguf) -> String {
    let named = gguf.meta.opt_str("general.name").ok().flatten().filter(|name| !name.trim().is_empty());
    let stem = gguf.path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let name = named.map(String::from).or(stem).unwrap_or_default();
    let name: String = name.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    let mut formats: BTreeMap<&str, usize> = BTreeMap::new();
    for tensor in &gguf.tensors {
        *formats.entry(tensor.ty.name()).or_default() += tensor.bytes;
    }
    let bytes: usize = formats.values().sum();
    let (format, most) = formats.into_iter().max_by_key(|f| f.1).unwrap_or(("no tensors", 0));
    let mostly = if most * 10 < bytes * 9 { "mostly " } else { "" };
    format!("{}, {mostly}{format}, {}", name.trim(), size(bytes))
}

/// Where layers and experts are.
pub(super) fn placement(tape: &Tape, plan: &Plan) -> String {
    let (mut layers, mut on_gpu) = (BTreeSet::new(), BTreeSet::new());
    let (mut with_experts, mut experts_here, mut experts) = (BTreeSet::new(), BTreeSet::new(), 0);
    for (step, place) in tape.model().iter().zip(&plan.places) {
        let Some(layer) = step.layer else { continue };
        layers.insert(layer);
        if step.role != Role::Experts {
            on_gpu.extend(place.is_gpu().then_some(layer));
            continue;
        }
        with_experts.insert(layer);
        experts_here.extend((!place.is_gpu()).then_some(layer));
        if step.op.name() == "experts" && !step.weights.is_empty() {
            experts = experts.max(plan::experts_of(tape, step));
        }
    }
    let all = layers.len();
    let each = if experts > 0 { format!(" with {experts} experts each") } else { String::new() };
    if on_gpu.is_empty() && !plan.on_gpu() {
        return format!("{all} layers{each}, on the CPU");
    }
    let mut text = format!("{} of {all} layers{each} on the GPU", on_gpu.len());
    if !experts_here.is_empty() {
        let n = experts_here.len();
        let which = if n == with_experts.len() { "all".into() } else { n.to_string() };
        text += &format!(", experts of {which} layers on the CPU");
        if tape.steps.iter().any(|step| step.share == ExpertShare::OnGpu) {
            let most = plan.caches.iter().map(|c| c.slots).max().unwrap_or(0);
            text += &format!(" ({most} of each layer cached on the GPU)");
        }
    }
    text
}

/// The context, and the tokens per second that memory allows.
pub(super) fn limits(session: &Session) -> String {
    let engine = session.engine();
    let here: usize = engine.tape.weights.iter().map(|w| w.bytes).sum();
    let ram = Bandwidth::of(here.min(MEASURED), &engine.pool).measure(&engine.pool) * 1e9;
    let rates = Bandwidths::of_gpu(engine.devices().first().map(Device::gpu));
    let ceiling = Prediction::new(&engine.tape, &engine.plan, 0, Bandwidths { ram: Some(ram), ..rates }, None).ceiling;
    describe(session.n_ctx(), ceiling)
}

/// The context and the rate, which is left out where a token reads so little that memory is not
/// what limits it.
fn describe(n_ctx: usize, ceiling: f64) -> String {
    let context = format!("context {} tokens", grouped(n_ctx));
    match ceiling {
        0.0..10.0 => format!("{context}; at most {ceiling:.1} tokens/s, as fast as memory is read"),
        10.0..1000.0 => format!("{context}; at most {ceiling:.0} tokens/s, as fast as memory is read"),
        _ => context,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_told_where_memory_limits_it() {
        assert_eq!(describe(8192, 4.321), "context 8,192 tokens; at most 4.3 tokens/s, as fast as memory is read");
        assert_eq!(describe(8192, 43.21), "context 8,192 tokens; at most 43 tokens/s, as fast as memory is read");
        assert_eq!(describe(512, 93226.0), "context 512 tokens");
    }
}
