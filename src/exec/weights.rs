//! The weights of a tape in memory: matrices stay in the file's map, small tensors are decoded once.

use anyhow::{Result, bail};

use crate::gguf::Gguf;
use crate::plan::{Place, Plan};
use crate::tape::{Tape, WeightId, WeightKind, WeightView};

/// Weights that are held in addition to the file's map.
#[derive(Debug)]
pub struct Weights {
    list: Vec<Loaded>,
}

#[derive(Debug, Default)]
struct Loaded {
    values: Vec<f32>,
    ints: Vec<i32>,
    /// The Twin's own copy of a matrix that it uses.
    twin: Vec<u8>,
}

impl Weights {
    /// Decodes the small weights and checks the integer tables.
    ///
    /// # Errors
    /// If a table names an expert that is not there.
    pub fn load(gguf: &Gguf, tape: &Tape, plan: &Plan) -> Result<Weights> {
        let mut list: Vec<Loaded> = Vec::with_capacity(tape.weights.len());
        for w in &tape.weights {
            let t = &gguf.tensors[w.tensor];
            let data = gguf.data(t);
            let mut loaded = Loaded::default();
            match w.kind {
                WeightKind::Matrix | WeightKind::Mapped => {}
                WeightKind::Vector => {
                    let ty = t.ty.quant().expect("the builder checked the type");
                    loaded.values.resize(w.count(), 0.0);
                    (ty.dequant)(data, &mut loaded.values);
                }
                WeightKind::Ints { below } => {
                    loaded.ints = data.as_chunks::<4>().0.iter().map(|b| i32::from_le_bytes(*b)).collect();
                    if let Some(bad) = loaded.ints.iter().find(|&&v| v < 0 || v as usize >= below) {
                        bail!(
                            "{}: tensor {} holds the number {bad}; numbers from 0 to {} expected",
                            gguf.path.display(),
                            w.name,
                            below - 1
                        );
                    }
                }
            }
            list.push(loaded);
        }
        for (step, &place) in tape.steps.iter().zip(&plan.places) {
            for w in step.weights.iter().filter(|_| place == Place::Twin) {
                let weight = &tape.weights[w.0 as usize];
                let t = &gguf.tensors[weight.tensor];
                if weight.kind == WeightKind::Matrix && list[w.0 as usize].twin.is_empty() && !gguf.stays(t) {
                    list[w.0 as usize].twin = gguf.data(t).to_vec();
                }
            }
        }
        Ok(Weights { list })
    }

    /// The decoded values or integers of a small tensor, as bytes.
    pub(super) fn bytes(&self, i: usize) -> Vec<u8> {
        let w = &self.list[i];
        [bytemuck::cast_slice::<f32, u8>(&w.values), bytemuck::cast_slice(&w.ints)].concat()
    }

    pub(super) fn view<'a>(&'a self, gguf: &'a Gguf, tape: &'a Tape, place: Place, id: WeightId) -> WeightView<'a> {
        let (w, loaded) = (&tape.weights[id.0 as usize], &self.list[id.0 as usize]);
        let t = &gguf.tensors[w.tensor];
        let data = match (w.kind, place) {
            (WeightKind::Matrix, Place::Twin) => &loaded.twin[..],
            (WeightKind::Matrix, Place::Cpu) | (WeightKind::Mapped, _) => gguf.data(t),
            _ => &[],
        };
        let ty = t.ty.quant().filter(|_| matches!(w.kind, WeightKind::Matrix | WeightKind::Mapped));
        WeightView { data, values: &loaded.values, ints: &loaded.ints, shape: w.shape, ty, slots: &[] }
    }
}
