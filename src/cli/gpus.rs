//! Which GPUs are used: `-dev`, `-sm`, `-mg`, `-ts`, with llama.cpp's meanings.

use std::sync::Arc;

use anyhow::Result;

use super::args::ModelArgs;
use super::errors::{off, usage};
use crate::cuda::Gpu;
use crate::plan::{CacheSize, MAX_GPUS, gpu_number};
use crate::session::{self, Options};

/// The GPUs that the flags allow, in the driver's order; none with a notice of the reason.
pub(super) fn open(a: &ModelArgs, o: &Options) -> Result<Vec<Arc<Gpu>>> {
    if o.ask.gpu_layers == Some(0) && o.ask.rules.gpus().next().is_none() {
        return without(a, o, "-ngl 0 keeps everything on the CPU").map(|_| Vec::new());
    }
    let Some(only) = devices(a)? else {
        return without(a, o, "-dev none keeps everything on the CPU").map(|_| Vec::new());
    };
    let alone = is_alone(a)?;
    let opened = match (&only[..], alone) {
        ([], Alone::No) => Gpu::open_all(None),
        (list, Alone::No) => Gpu::open_all(Some(list)),
        ([], Alone::Best) => Gpu::open().map(|gpu| vec![gpu]),
        (list, Alone::Best) => Gpu::open_all(Some(&list[..1])),
        (_, Alone::Number(n)) => Gpu::open_all(Some(&[n])),
    };
    let mut gpus: Vec<Arc<Gpu>> = match opened {
        Ok(gpus) => gpus.into_iter().map(Arc::new).collect(),
        Err(e) => {
            let why = format!("{e:#}");
            if !without(a, o, &why)? {
                tracing::info!("no GPU is used: {why}");
            }
            return Ok(Vec::new());
        }
    };
    if gpus.len() > MAX_GPUS {
        tracing::warn!("{} GPUs are there, {MAX_GPUS} of them are used; -dev chooses which", gpus.len());
        gpus.truncate(MAX_GPUS);
    }
    check(a, o, gpus.len())?;
    for gpu in &gpus {
        gpu.join(&gpus)?;
    }
    Ok(gpus)
}

/// What may be taken of each GPU's memory.
///
/// # Errors
/// If the driver reports an error.
pub(super) fn budgets(gpus: &[Arc<Gpu>]) -> Result<Vec<usize>> {
    gpus.iter().map(|gpu| session::budget(gpu)).collect()
}

/// Whether one GPU alone has the model, and which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Alone {
    No,
    /// The one with the most memory, or the first of `-dev`.
    Best,
    Number(usize),
}

/// `-sm` and `-mg`.
fn is_alone(a: &ModelArgs) -> Result<Alone> {
    match (a.split_mode.as_str(), a.main_gpu) {
        ("none", None) => Ok(Alone::Best),
        ("none", Some(n)) => Ok(Alone::Number(n)),
        ("layer", main) => {
            if let Some(n) = main.filter(|n| *n != 0) {
                off(&format!("-mg {n}"), "layers are spread over all GPUs; -sm none takes one alone")?;
            }
            Ok(Alone::No)
        }
        (mode @ ("row" | "tensor" | "graph" | "attn"), _) => {
            off(&format!("-sm {mode}"), "several GPUs have whole layers each, as with -sm layer")?;
            Ok(Alone::No)
        }
        (mode, _) => usage(format!("-sm {mode}: expected layer or none")),
    }
}

/// The numbers of `-dev`, none of them for all GPUs; None for no GPU.
fn devices(a: &ModelArgs) -> Result<Option<Vec<usize>>> {
    let Some(text) = a.device.as_deref().filter(|t| !t.eq_ignore_ascii_case("auto")) else {
        return Ok(Some(Vec::new()));
    };
    if text.eq_ignore_ascii_case("none") {
        return Ok(None);
    }
    let number = |name: &str| match gpu_number(name.trim()) {
        Some(n) => Ok(n),
        None => {
            usage(format!("-dev {text}: found {name:?}, expected CUDA0, CUDA1 and so on, separated by commas, or none"))
        }
    };
    let list = text.split(',').map(number).collect::<Result<Vec<usize>>>()?;
    if let Some(twice) = list.iter().enumerate().find(|(i, n)| list[..*i].contains(n)).map(|(_, n)| n) {
        return usage(format!("-dev {text}: GPU {twice} is named twice"));
    }
    Ok(Some(list))
}

/// The shares of `-ts`: numbers of at least 0, separated by commas or slashes.
pub(super) fn shares(text: Option<&str>) -> Result<Vec<f64>> {
    let Some(text) = text else { return Ok(Vec::new()) };
    let list: Option<Vec<f64>> = text.split([',', '/']).map(|n| n.trim().parse().ok()).collect();
    match list.filter(|l| l.iter().all(|n| n.is_finite() && *n >= 0.0) && l.iter().sum::<f64>() > 0.0) {
        Some(list) => Ok(list),
        None => usage(format!("-ts {text}: expected a share of the layers for each GPU, like 3,1")),
    }
}

/// Reports what names a GPU that is not used.
pub(super) fn check(a: &ModelArgs, o: &Options, n: usize) -> Result<()> {
    let have = if n == 1 { "one GPU is used".to_owned() } else { format!("{n} GPUs are used") };
    if let Some(missing) = o.ask.rules.gpus().filter(|g| *g >= n).max() {
        off(&format!("-ot ...=GPU{missing}"), &have)?;
    }
    if let Some(text) = a.tensor_split.as_deref().filter(|_| o.ask.split.iter().skip(n).any(|s| *s > 0.0)) {
        off(&format!("-ts {text}"), &format!("{have}; the shares of others are left out"))?;
    }
    Ok(())
}

/// Reports the options that only a GPU gives an effect; returns whether there were any. A machine
/// without a GPU is no reason for a warning by itself.
fn without(a: &ModelArgs, o: &Options, why: &str) -> Result<bool> {
    let layers = a.gpu_layers.as_deref().filter(|n| *n != "auto" && o.ask.gpu_layers != Some(0));
    let sized = matches!(o.ask.cache, CacheSize::Bytes(_));
    let chosen = a.device.as_deref().filter(|d| !["none", "auto"].contains(&d.to_ascii_lowercase().as_str()));
    let given = [
        layers.map(|n| format!("-ngl {n}")),
        o.ask.rules.gpus().next().map(|_| "-ot ...=GPU".into()),
        sized.then(|| format!("--expert-cache {}", a.expert_cache)),
        a.cpu_moe.then(|| "-cmoe".into()),
        a.n_cpu_moe.map(|n| format!("-ncmoe {n}")),
        a.gpu_fallback.then(|| "--gpu-fallback".into()),
        chosen.map(|d| format!("-dev {d}")),
        a.tensor_split.as_deref().map(|t| format!("-ts {t}")),
    ];
    given.iter().flatten().try_for_each(|flag| off(flag, why))?;
    Ok(given.iter().flatten().next().is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_numbers_of_which_one_is_above_zero() {
        assert!(shares(None).unwrap().is_empty());
        assert_eq!(shares(Some("3,1")).unwrap(), [3.0, 1.0]);
        assert_eq!(shares(Some("0/ 2.5")).unwrap(), [0.0, 2.5]);
        for bad in ["", "3,", "a", "-1,2", "0,0", "nan,1", "inf"] {
            assert!(shares(Some(bad)).is_err(), "{bad}");
        }
    }
}
