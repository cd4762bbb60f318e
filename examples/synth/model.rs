//! Puts a synthetic model together: a shape, formats for its parts, numbers for its weights.

mod chain;
mod fill;
mod mix;
mod shapes;
mod vocab;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use tandem::gguf::{HOLES, TensorType, Value, Writer};
use tandem::quant;

use chain::Chain;
use fill::Fill;
pub(crate) use mix::{Mix, Part};
use shapes::Extent;
pub(crate) use shapes::SHAPES;

/// What a tensor holds.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// A matrix in the mix's format: about unit length rows, so that what goes in at unit RMS comes out so.
    Weight(Part),
    /// Numbers about `mean`, `spread` in RMS around it.
    F32 { mean: f32, spread: f32 },
    /// Decay rates of a delta net, -1 to -16.
    Decay,
    /// Time step biases of a delta net: softplus of them is 0.001 to 0.1.
    TimeStep,
    /// For every row, different expert numbers below this.
    Experts(usize),
    /// Divisors of rotation frequencies: 1 for this many pairs, then so large that the rest does
    /// not turn.
    Turning(usize),
    /// A row for each token of a chain.
    Tokens(TokenRows),
    /// A router over a chain's embedding, whose rows have blocks of this many numbers: each part that changes slowly has
    /// this RMS in its outputs, what is the token's own 1.
    Router { slow: f32, block: usize },
    /// A table in Q8_0 that is larger than a drive may be: always a hole, and the file says so.
    Hole,
    /// A matrix (n, 2 n) that takes the first half of its inputs as it is, in Q8_0.
    FirstHalf,
}

/// What a chain's rows are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum TokenRows {
    /// Of the embedding.
    Embedding,
    /// Of the head: from a token's embedding follows the one after it.
    Head,
    /// Of a draft head's own embedding: the right one for this share of the tokens, for the others that of the token after.
    Drafts(f32),
}

/// A tensor to write.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    pub(crate) name: String,
    /// (.., out, in)
    pub(crate) shape: Vec<usize>,
    pub(crate) kind: Kind,
    /// How many times its numbers are halved on top.
    pub(crate) halved: u32,
}

/// A model to write: its metadata without the vocabulary, and its tensors.
#[derive(Debug, Default)]
pub(crate) struct Model {
    pub(crate) arch: &'static str,
    pub(crate) meta: Vec<(String, Value)>,
    pub(crate) tensors: Vec<Spec>,
}

/// What is not written: holes in the file, which take no space and read as zeros.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(dead_code)] // each program that is made of this file writes some of them
pub(crate) enum Holes {
    None,
    /// The matrices of experts, which are most of a model: they add nothing then, everything else
    /// is as real.
    Experts,
    /// All weights.
    All,
}

impl Holes {
    fn has(self, kind: Kind) -> bool {
        match self {
            _ if matches!(kind, Kind::Hole) => true,
            Holes::None => false,
            Holes::Experts => matches!(kind, Kind::Weight(Part::Experts | Part::Down)),
            Holes::All => true,
        }
    }
}

/// What was asked for beside the shape.
#[derive(Clone, Debug)]
pub(crate) struct Synth {
    pub(crate) layers: Option<usize>,
    pub(crate) mix: Mix,
    pub(crate) seed: u64,
    pub(crate) vocab: Option<usize>,
    pub(crate) holes: Holes,
}

/// What is known of a model's own greedy text, if anything.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct OwnText {
    /// Routers choose over it as trained ones do.
    pub(crate) skew: bool,
    /// A block for multi-token prediction drafts it, with this probability of being right.
    pub(crate) mtp: Option<f32>,
}

impl Synth {
    /// Writes the model, over `split` files if given. Returns the files and the bytes of each.
    #[allow(dead_code)] // the program itself always says what is known
    pub(crate) fn write(&self, shape: &str, split: Option<usize>, out: &Path) -> Result<Vec<(PathBuf, u64)>> {
        self.write_with(OwnText::default(), shape, split, out)
    }

    /// [`Synth::write`] of a model of which more is known.
    pub(crate) fn write_with(
        &self,
        OwnText { skew, mtp }: OwnText,
        shape: &str,
        split: Option<usize>,
        out: &Path,
    ) -> Result<Vec<(PathBuf, u64)>> {
        let Some(shape) = SHAPES.iter().find(|s| s.name == shape) else {
            let known: Vec<_> = SHAPES.iter().map(|s| s.name).collect();
            bail!("no shape is called {shape:?}; there are {}", known.join(", "));
        };
        let n_vocab = self.vocab.unwrap_or(shape.n_vocab);
        if self.layers.is_some_and(|n| n == 0 || n > shape.layers) {
            bail!("{} has {} layers: 1 to {} can be written", shape.name, shape.layers, shape.layers);
        }
        let mut model = (shape.build)(Extent { layers: self.layers, heads: mtp.is_some() }, n_vocab);
        let chain = (skew || mtp.is_some()).then(|| Chain::new(self.seed, n_vocab));
        if let Some(chain) = &chain {
            chain.apply(&mut model, &self.mix, (skew, mtp)).with_context(|| shape.name)?;
        }
        let mut w = Writer::new();
        w.set("general.architecture", model.arch).set("general.type", "model");
        w.set("general.name", format!("{} shape, random weights", shape.name));
        for (key, value) in &model.meta {
            w.set(&format!("{}.{key}", model.arch), value.clone());
        }
        let meant = |t: &&Spec| matches!(t.kind, Kind::Hole);
        let meant: Vec<String> = model.tensors.iter().filter(meant).map(|t| t.name.clone()).collect();
        if !meant.is_empty() {
            w.set(HOLES, meant);
        }
        w.set("general.file_type", self.mix.file_type()).set("general.quantization_version", 2u32);
        vocab::write(&mut w, n_vocab)?;
        let fill = Fill::new(self.seed, chain);
        for t in &model.tensors {
            let ty = match t.kind {
                Kind::Weight(part) => TensorType::Quant(self.mix.format(part, t.shape[t.shape.len() - 1])),
                Kind::Experts(_) => TensorType::I32,
                Kind::Tokens(_) => TensorType::Quant(chain::format(&self.mix, t.shape[1])),
                Kind::FirstHalf | Kind::Hole => {
                    TensorType::Quant(quant::by_name("Q8_0").expect("Q8_0 is always known"))
                }
                _ => TensorType::Quant(quant::by_name("F32").expect("F32 is always known")),
            };
            match self.holes.has(t.kind) {
                true => w.add_hole(&t.name, &t.shape, ty)?,
                false => w.add_tensor(&t.name, &t.shape, ty, fill.tensor(t, ty))?,
            };
        }
        let paths = match split {
            Some(n) => w.write_split(out, n)?,
            None => {
                w.write(out)?;
                vec![out.to_owned()]
            }
        };
        paths
            .into_iter()
            .map(|p| {
                let bytes = std::fs::metadata(&p)?.len();
                Ok((p, bytes))
            })
            .collect()
    }
}
