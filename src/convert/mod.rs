//! Checkpoints to GGUF: config.json, safetensors and tokenizer.json of one folder become one file.
//!
//! ```text
//! files        the folder: config.json, one safetensors file or an index of several
//! vocabulary   tokenizer.json, tokenizer_config.json and chat_template.jinja to metadata
//! here         both, and a family's recipe (models::checkpoint), to a list of tensors that are
//!              written one after the other
//! ```
//! A tensor is read from the mapped file, converted and written in pieces, so that a large model
//! needs no more memory than a small one. Nothing is written before all of it is known to fit.

mod files;
mod vocabulary;

use std::borrow::Cow;
use std::cell::RefCell;
use std::io::{self, Write};
use std::path::Path;

use anyhow::Result;
use rayon::prelude::*;

use crate::cpu::{Pool, in_parallel};
use crate::gguf::{TensorType, Value, Writer};
use crate::models::checkpoint::{self, Recipe, TensorRule};
use crate::quant::{self, QuantType};
use files::{Checkpoint, Source};

/// Values that are converted together, a multiple of every block: several pieces make a write, one
/// for each core.
const PIECE: usize = 1 << 16;
const PIECES: usize = 32;

/// A checkpoint whose conversion is settled: what is to be written, and from where.
#[derive(Debug)]
pub struct Conversion {
    /// The architecture of the file.
    pub arch: &'static str,
    /// The type of the file's matrices.
    pub ty: &'static QuantType,
    /// What a user should know before it is written.
    pub notes: Vec<String>,
    meta: Vec<(String, Value)>,
    tensors: Vec<Item>,
}

/// A tensor to be written.
#[derive(Debug)]
struct Item {
    rule: TensorRule,
    ty: &'static QuantType,
    source: Source,
}

impl Conversion {
    /// Reads the headers in the folder `dir`. The matrices become `ty`, or without one the type
    /// that most of the checkpoint's weights have.
    ///
    /// # Errors
    /// If a file is missing or broken, the model is of a type that cannot be converted, or the
    /// tensors are not those that its configuration tells of; the message names file, key or
    /// tensor.
    pub fn new(dir: &Path, ty: Option<&'static QuantType>) -> Result<Conversion> {
        let config = files::config(dir)?;
        let recipe = checkpoint::recipe(&config)?;
        let files = Checkpoint::open(dir)?;
        let ty = ty.unwrap_or_else(|| files.usual_type());
        let mut notes = Vec::new();
        let mut tensors = Vec::new();
        for rule in &recipe.tensors {
            if let Some(source) = files.find(rule)? {
                let ty = type_of(rule, ty);
                tensors.push(Item { rule: rule.clone(), ty, source });
            }
        }
        files.finish(&recipe)?;
        let mut others = tensors.iter().filter(|t| !t.rule.full && t.ty != ty).map(|t| t.rule.to.as_str());
        if let Some(first) = others.next() {
            let (n, block) = (1 + others.count(), ty.block);
            notes.push(format!("{n} tensors become F16 ({first}, ..): their rows are no multiple of {block} values"));
        }
        let mut meta = general(dir, &recipe, ty);
        meta.extend(recipe.keys);
        let n_vocab = tensors.iter().find(|t| t.rule.to == "token_embd.weight").map_or(0, |t| t.rule.shape[0]);
        meta.extend(vocabulary::keys(dir, &config, n_vocab, &mut notes)?);
        Ok(Conversion { arch: recipe.arch, ty, notes, meta, tensors })
    }

    /// How many tensors the file will have.
    pub fn n_tensors(&self) -> usize {
        self.tensors.len()
    }

    /// How many bytes of tensors the file will have.
    pub fn bytes(&self) -> u64 {
        let bytes = |t: &Item| TensorType::Quant(t.ty).row_bytes(t.rule.shape.iter().product());
        self.tensors.iter().map(|t| bytes(t) as u64).sum()
    }

    /// Writes the file. `progress` is told of all bytes of tensors written so far. Until the file
    /// is complete it has `.partial` after its name.
    ///
    /// # Errors
    /// If it cannot be written; then whatever was at `path` is still there.
    pub fn write(&self, path: &Path, progress: &mut dyn FnMut(u64)) -> Result<()> {
        let _threads = Pool::new(0)?; // for all pieces, which would start their own
        let told = RefCell::new((0u64, progress));
        let mut writer = Writer::new();
        for (key, value) in &self.meta {
            writer.set(key, value.clone());
        }
        for t in &self.tensors {
            let told = &told;
            writer.add_tensor(&t.rule.to, &t.rule.shape, TensorType::Quant(t.ty), move |out| {
                t.write(out, &mut |bytes| {
                    let (sum, progress) = &mut *told.borrow_mut();
                    *sum += bytes as u64;
                    progress(*sum);
                })
            })?;
        }
        writer.write(path)
    }
}

/// The type of one tensor: one whose rows do not divide into blocks is F16.
fn type_of(rule: &TensorRule, ty: &'static QuantType) -> &'static QuantType {
    let row = rule.shape.last().copied().unwrap_or(1);
    match rule.full {
        true => named("f32"),
        false if row.is_multiple_of(ty.block) => ty,
        false => named("f16"),
    }
}

fn named(name: &str) -> &'static QuantType {
    quant::by_name(name).expect("a format of this version")
}

/// The keys that every file has.
fn general(dir: &Path, recipe: &Recipe, ty: &QuantType) -> Vec<(String, Value)> {
    // `llama_ftype` in llama.cpp's include/llama.h.
    let file_type: u32 = match ty.id {
        8 => 7,
        30 => 32,
        id => id,
    };
    let folder = dir.canonicalize().ok().and_then(|d| Some(d.file_name()?.to_str()?.to_owned()));
    let mut keys: Vec<(String, Value)> = vec![("general.architecture".into(), recipe.arch.into())];
    keys.extend(folder.map(|name| ("general.name".into(), name.into())));
    keys.push(("general.file_type".into(), file_type.into()));
    keys.push(("general.quantization_version".into(), 2u32.into()));
    keys
}

impl Item {
    /// Writes the tensor's bytes and tells how many, piece by piece.
    fn write(&self, out: &mut dyn Write, wrote: &mut dyn FnMut(usize)) -> io::Result<()> {
        let done = self.encode(out, wrote);
        self.source.check().map_err(io::Error::other)?; // first: other errors may come of it
        done
    }

    fn encode(&self, out: &mut dyn Write, wrote: &mut dyn FnMut(usize)) -> io::Result<()> {
        let (mut from, mut data) = (self.source.ty, Cow::Borrowed(self.source.bytes()));
        if self.rule.last_axis_first {
            data = Cow::Owned(last_axis_first(from, &data, self.rule.shape[0]));
            from = named("f32");
        }
        let (ty, encode) = (self.ty, quant::encoder(self.ty).expect("a type that can be written"));
        let mut bytes = Vec::new();
        for piece in data.chunks(PIECE * PIECES * from.bytes) {
            if from == ty {
                out.write_all(piece)?;
                wrote(piece.len());
                continue;
            }
            bytes.resize(piece.len() / from.bytes / ty.block * ty.bytes, 0);
            let parts = bytes.par_chunks_mut(PIECE / ty.block * ty.bytes).zip(piece.par_chunks(PIECE * from.bytes));
            let each = |(to, part): (&mut [u8], &[u8])| {
                let mut values = vec![0f32; part.len() / from.bytes];
                (from.dequant)(part, &mut values);
                encode(&values, to);
            };
            in_parallel(|| parts.for_each(each)).map_err(io::Error::other)?;
            out.write_all(&bytes)?;
            wrote(bytes.len());
        }
        Ok(())
    }
}

/// Values in groups of `n`, the first of every group before all the second ones and so on, as f32.
fn last_axis_first(from: &QuantType, data: &[u8], n: usize) -> Vec<u8> {
    let mut values = vec![0f32; data.len() / from.bytes];
    (from.dequant)(data, &mut values);
    (0..n).flat_map(|i| values.iter().skip(i).step_by(n)).flat_map(|v| v.to_le_bytes()).collect()
}
