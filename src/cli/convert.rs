//! `tandem convert`: a published checkpoint to a GGUF file.

use anyhow::{Context, Result};

use super::args;
use super::errors::{Failure, usage};
use super::files::{apart, has_folder};
use super::human::size;
use super::terminal::WriteBar;
use crate::convert::Conversion;
use crate::quant::{self, QuantType};

/// Runs the verb.
pub(super) fn run(a: &args::ConvertArgs) -> Result<()> {
    let conversion = settled(a)?;
    conversion.notes.iter().for_each(|note| tracing::warn!("{note}"));
    let replaces = a.output.exists();
    let what = format!("{} tensors, {}", conversion.n_tensors(), size(conversion.bytes() as usize));
    let bar = WriteBar::new(conversion.bytes());
    conversion.write(&a.output, &mut |bytes| bar.progress(bytes))?;
    bar.finish();
    let replaced = if replaces { ", in place of the file that was there" } else { "" };
    tracing::info!("{}: {}, {}: {what}{replaced}", a.output.display(), conversion.arch, conversion.ty.name);
    Ok(())
}

/// What is to be written, if the arguments allow it.
pub(super) fn settled(a: &args::ConvertArgs) -> Result<Conversion> {
    let ty = a.ty.as_deref().map(type_named).transpose()?;
    has_folder("-o", &a.output)?;
    let read = ["config.json", "tokenizer.json", "model.safetensors"].map(|name| a.dir.join(name));
    let read: Vec<_> = read.iter().map(|file| ("a file of the checkpoint", Some(file.as_path()))).collect();
    apart("-o", &a.output, &read)?;
    if a.output.exists() && !a.overwrite {
        return usage(format!("-o {}: the file exists; name another one, or give --overwrite", a.output.display()));
    }
    Conversion::new(&a.dir, ty).context(Failure::Model)
}

fn type_named(name: &str) -> Result<&'static QuantType> {
    match quant::by_name(name).filter(|ty| quant::encoder(ty).is_some()) {
        Some(ty) => Ok(ty),
        None => usage(format!("--type {name}: unknown type, expected {}", quant::written_types())),
    }
}
