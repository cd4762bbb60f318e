//! How a model is opened: from its flags to options, from its file to a header, from both to a
//! session.

use std::path::Path;
use std::sync::Once;
use std::time::Instant;

use anyhow::{Context, Result};

use super::errors::{Failure, off, usage};
use super::human::{parse_size, size};
use super::{args, gpus, overrides};
use crate::cpu::{Memory, Pool};
use crate::cuda::OutOfMemory;
use crate::exec::{self, Device};
use crate::gguf::{Gguf, Load};
use crate::plan::{Ask, CacheSize, Fit, LARGEST_BATCH, Rules};
use crate::quant;
use crate::schedule::PIECE;
use crate::session::{self, MAX_CONTEXT, Numa, NumaOutcome, Options, RamLimit, Session};

/// The built-in model: 16 experts trained on Shakespeare's plays by demo/train.py.
static DEMO: &[u8] = include_bytes!("../../demo/demo.gguf");

/// Tokens that can be computed together: a GPU counts blocks in 16 bits, and 128 heads have one for
/// every 64 tokens.
const MOST_AT_ONCE: usize = 16384;

/// Prompt tokens that the CPU computes together: more are hardly faster, and take memory.
const USUAL_BATCH: usize = 1024;

/// The model's header: a file, or the built-in model. As many `threads` (0: the default) read a file that is not mapped.
pub(super) fn header(model: Option<&Path>, load: &Load, threads: usize) -> Result<Gguf> {
    let start = Instant::now();
    let _threads = if load.mmap { None } else { Some(Pool::new(threads)?) };
    let mut gguf = match model {
        Some(path) => session::open_files(path, load).context(Failure::Model)?,
        None => {
            static SAID: Once = Once::new(); // a verb may open it more than once
            let mut first = false;
            SAID.call_once(|| first = true);
            if first {
                tracing::info!(
                    "no model given (-m FILE): using the built-in demo, a small model of Shakespeare's plays"
                );
                for (flag, _) in [("--mlock", load.mlock), ("--no-mmap", !load.mmap)].iter().filter(|f| f.1) {
                    off(flag, "the built-in model is part of the program, which is in memory anyway")?;
                }
            }
            Gguf::from_bytes(DEMO.to_vec(), Path::new("the built-in demo model")).context(Failure::Model)?
        }
    };
    overrides::apply(&mut gguf.meta).context(Failure::Model)?;
    for why in &gguf.unlocked {
        off("--mlock", why)?;
    }
    tracing::debug!(
        "{}: GGUF version {}, {} metadata keys, {} tensors, {} in {} file(s), {} in {:.2} s",
        gguf.path.display(),
        gguf.version,
        gguf.meta.iter().count(),
        gguf.tensors.len(),
        size(gguf.bytes() as usize),
        gguf.shards().count(),
        if load.mmap || model.is_none() { "mapped" } else { "read" },
        start.elapsed().as_secs_f64()
    );
    for key in gguf.meta.repaired() {
        tracing::warn!("{}: metadata key {key} is not UTF-8; its invalid bytes were replaced", gguf.path.display());
    }
    Ok(gguf)
}

/// Options from the flags, for a session that returns the logits of one token per batch.
pub(super) fn options(a: &args::ModelArgs) -> Result<Options> {
    let cache_type = |flag: &str, name: &str| match quant::by_name(name) {
        Some(ty) if ty.kv.is_some() => Ok(ty),
        Some(ty) => usage(format!("{flag} {name}: {} is no cache type, expected {}", ty.name, quant::cache_types())),
        None => usage(format!("{flag} {name}: unknown type, expected {}", quant::cache_types())),
    };
    let mut rules = Rules::default();
    for rule in &a.override_tensor {
        rules.add(rule).context(Failure::Usage)?;
    }
    let gpu_layers = match a.gpu_layers.as_deref() {
        None | Some("auto") => None,
        Some("all") => Some(usize::MAX),
        Some(n) => match n.parse::<i64>() {
            Ok(n) if n >= 0 => Some(n as usize),
            _ => return usage(format!("-ngl {n}: expected a number of layers, all or auto")),
        },
    };
    let cache = match a.expert_cache.as_str() {
        "auto" => CacheSize::Auto,
        "off" | "0" => CacheSize::Off,
        text => match parse_size(text) {
            Some((bytes, _)) => CacheSize::Bytes(bytes),
            None => return usage(format!("--expert-cache {text}: expected a size like 6G or 800M, off or auto")),
        },
    };
    let ram = ram(a)?;
    let cpu_moe = if a.cpu_moe { Some(usize::MAX) } else { a.n_cpu_moe };
    if a.threads.max(a.threads_batch.unwrap_or(0)) > Pool::MOST {
        return usage(format!("-t and -tb: at most {} threads; one per physical core is best", Pool::MOST));
    }
    if let Some(n) = a.ctx_size.filter(|n| *n > MAX_CONTEXT) {
        return usage(format!("-c {n}: at most {MAX_CONTEXT} tokens"));
    }
    let (n_batch, batch_up_to) = batch(a)?;
    Ok(Options {
        n_ctx: a.ctx_size,
        n_batch,
        n_output_rows: Some(1),
        n_seq: 1,
        threads: a.threads,
        threads_batch: a.threads_batch,
        type_k: cache_type("-ctk", &a.cache_type_k)?,
        type_v: cache_type("-ctv", &a.cache_type_v)?,
        heads: false, // for verbs that draft
        ask: Ask { gpu_layers, cpu_moe, cache, rules, split: gpus::shares(a.tensor_split.as_deref())?, batch_up_to },
        deterministic: a.deterministic,
        halves: halves()?,
        stats: a.stats,
        load: Load { mmap: !a.no_mmap, mlock: a.mlock && !matches!(ram, RamLimit::Bytes(_)) },
        ram,
        numa: numa(a)?,
        lock_ram: a.mlock,
        read_at: exec::read_at,
        expert_uses: None, // for verbs whose texts are the user's
        read_to_pin: !(a.no_mmap || a.keep_mmap || a.mlock),
        gpu_fallback: a.gpu_fallback,
        drafts: 0,
    })
}

/// `--ram`: the memory that weights may take.
fn ram(a: &args::ModelArgs) -> Result<RamLimit> {
    let other = [("--no-mmap", a.no_mmap), ("--keep-mmap", a.keep_mmap), ("--mlock", a.mlock)];
    match (a.ram.as_str(), parse_size(&a.ram)) {
        ("off", _) => Ok(RamLimit::Off),
        // These say where all weights are.
        ("auto", _) if other.iter().any(|o| o.1) => Ok(RamLimit::Off),
        ("auto", _) => Ok(RamLimit::Auto),
        (_, Some((bytes, _))) => match other.iter().find(|o| o.1 && o.0 != "--mlock") {
            Some((flag, _)) => usage(format!("--ram {}: cannot be used with {flag}, which is for all weights", a.ram)),
            None => Ok(RamLimit::Bytes(bytes)),
        },
        (text, None) => usage(format!("--ram {text}: expected a size like 48G or 900M, auto or off")),
    }
}

/// `--numa`, with llama.cpp's other two words for it.
fn numa(a: &args::ModelArgs) -> Result<Numa> {
    const MAPPED: &str = "with --keep-mmap the file's pages stay where they are";
    match a.numa.as_str() {
        "auto" if a.keep_mmap => Ok(Numa::Off(MAPPED)),
        "distribute" if a.keep_mmap => usage(
            "--numa distribute: found with --keep-mmap, which leaves the file's pages where they are; expected one of the two"
                .into(),
        ),
        "auto" => Ok(Numa::Auto),
        "distribute" => Ok(Numa::Distribute),
        "off" => Ok(Numa::Off("--numa off")),
        // A verb may read the flags more than once.
        "numactl" => {
            static SAID: Once = Once::new();
            SAID.call_once(|| {
                tracing::info!("--numa numactl: the CPUs that numactl allows are kept to anyway; taken as --numa auto");
            });
            Ok(Numa::Auto)
        }
        "isolate" => {
            static SAID: Once = Once::new();
            let (mut told, why) = (Ok(()), "numactl --cpunodebind=0 --membind=0 tandem .. keeps a program on node 0");
            SAID.call_once(|| told = off("--numa isolate", why));
            told.map(|()| Numa::Off("--numa isolate is not here"))
        }
        other => usage(format!("--numa {other}: expected auto, distribute or off")),
    }
}

/// `TANDEM_HALVES=on|off`: whether prompts go in halves, whatever the measured times suggest.
fn halves() -> Result<Option<bool>> {
    match std::env::var("TANDEM_HALVES").as_deref() {
        Err(_) => Ok(None),
        Ok("on") => Ok(Some(true)),
        Ok("off") => Ok(Some(false)),
        Ok(other) => usage(format!("TANDEM_HALVES={other}: expected on or off")),
    }
}

/// The rows of a batch, and up to how many may be chosen instead: `-ub` is not chosen anew.
fn batch(a: &args::ModelArgs) -> Result<(usize, Option<usize>)> {
    if a.batch_size == Some(0) || a.ubatch_size == Some(0) {
        return usage("-b and -ub must be at least 1".into());
    }
    let most = a.batch_size.unwrap_or(usize::MAX);
    let Some(rows) = a.ubatch_size.map(|n| n.min(most)) else {
        return Ok((USUAL_BATCH.min(most), Some(LARGEST_BATCH.min(most))));
    };
    if rows > MOST_AT_ONCE {
        return usage(format!("-b and -ub: at most {MOST_AT_ONCE} tokens can be computed together"));
    }
    Ok((rows, None))
}

/// These options for a session that returns the logits of every token: a batch has as many output rows, which take more
/// memory than all else, so that its size is not chosen anew.
pub(super) fn for_all_logits(mut o: Options) -> Options {
    (o.n_output_rows, o.ask.batch_up_to) = (None, None);
    o
}

/// These options for `n_seq` sequences, which answer requests or one conversation.
pub(super) fn for_sequences(mut o: Options, n_seq: usize, requests: bool) -> Options {
    (o.n_seq, o.n_output_rows) = (n_seq, Some(n_seq));
    if requests {
        // Nothing computes more rows together than a piece of a prompt has, or a token of every sequence.
        o.ask.batch_up_to = o.ask.batch_up_to.map(|n| n.min(PIECE.max(n_seq)));
    }
    o
}

/// Opens a model whose header is read, with the GPU if there is one.
pub(super) fn session(gguf: Gguf, a: &args::ModelArgs, o: &Options) -> Result<Session> {
    gguf.check_written().context(Failure::Model)?.iter().for_each(|notice| tracing::warn!("{notice}"));
    let trained = gguf.meta.opt_usize(&format!("{}.context_length", gguf.meta.str("general.architecture")?))?;
    if let (Some(trained), Some(asked)) = (trained, o.n_ctx)
        && asked > trained
    {
        tracing::warn!(
            "-c {asked} exceeds the model's training context of {trained} tokens; output beyond that may degrade"
        );
    }
    let cores = if o.threads > 0 { crate::cpu::best_threads() } else { 0 };
    if o.threads > cores {
        tracing::warn!("-t {}: more threads than the {cores} physical cores; expect it to be slower", o.threads);
    }
    // Threads that cannot be started are no fault of the model.
    let _threads = (Pool::new(o.threads)?, o.threads_batch.map(Pool::new).transpose()?);
    let session = on_device(gguf, a, o)?;
    report_ram(&session, a, o)?;
    report_numa(&session, o)?;
    super::unknown::unknown_keys(session.engine().gguf(), &session.engine().tape)?;
    overrides::report_idle(session.engine().gguf(), &session.engine().tape)?;
    let values = session.engine().tape.states.iter().any(|s| s.label.ends_with("attn.v"));
    if !values && ![o.type_k, Options::default().type_v].contains(&o.type_v) {
        let why = "this model's values are columns of the cached keys, which have the type of -ctk";
        off(&format!("-ctv {}", o.type_v.name.to_lowercase()), why)?;
    }
    let mut memory: Vec<String> = session.engine().devices().iter().filter_map(Device::expert_memory).collect();
    memory.dedup();
    memory.iter().for_each(|words| tracing::info!("{words}"));
    Ok(session)
}

/// Tells the user that a model is larger than memory and the system reads it, or that `--ram` changes nothing.
fn report_ram(session: &Session, a: &args::ModelArgs, o: &Options) -> Result<()> {
    if session.ram().is_some() {
        return Ok(());
    }
    let gguf = session.engine().gguf();
    // Lookup tables stay in the file: their rows are read there as tokens need them.
    let resident: u64 = gguf.tensors.iter().filter(|t| !t.is_lookup_table()).map(|t| t.bytes as u64).sum();
    if let Some(memory) = Memory::of_this_machine().filter(|m| resident > m.total as u64) {
        let gb = |n: f64| n / 1e9;
        tracing::warn!(
            "the model ({:.1} GB) is larger than this machine's memory ({:.1} GB): parts of it are read from disk for \
             every token, which is slow (tandem explain estimates how slow)",
            gb(resident as f64),
            gb(memory.total as f64)
        );
    }
    if matches!(o.ram, RamLimit::Bytes(_)) {
        off(&format!("--ram {}", a.ram), "all weights fit into it, or no experts are read by the CPU from a file")?;
    }
    Ok(())
}

/// Tells the user that `--numa distribute` changes nothing, and what was not locked of a file that was read for it.
fn report_numa(session: &Session, o: &Options) -> Result<()> {
    if o.first_load() != o.load {
        session.engine().gguf().unlocked.iter().try_for_each(|why| off("--mlock", why))?;
    }
    match session.numa() {
        NumaOutcome::Off(why) if o.numa == Numa::Distribute => off("--numa distribute", why),
        _ => Ok(()),
    }
}

/// Opens a model on the GPUs, if there are any, and the CPU.
pub(super) fn on_device(gguf: Gguf, a: &args::ModelArgs, o: &Options) -> Result<Session> {
    let gpus = gpus::open(a, o)?;
    let opened = match gpus.is_empty() {
        true => Session::new(gguf, o),
        false => {
            let name = gpus.iter().map(|gpu| format!("{gpu:?}")).collect::<Vec<_>>().join(" + ");
            let free = gpus.iter().map(|gpu| Ok(gpu.memory()?.0)).sum::<Result<usize>>()?;
            Session::hybrid(gguf, o, &gpus, |fit, lack| placed(&name, free, fit, lack, a))
        }
    };
    opened.context(Failure::Model)
}

/// Tells the user where a model was placed.
fn placed(gpu: &str, free: usize, fit: &Fit, lack: Option<&OutOfMemory>, a: &args::ModelArgs) -> Result<()> {
    if let Some(lack) = lack {
        tracing::warn!("{gpu}: not enough memory for {lack}; trying a smaller placement");
    }
    if let Some(less) = &fit.less {
        let flag = a.gpu_layers.as_deref().unwrap_or("auto");
        off(&format!("-ngl {flag}"), &format!("{less}; -ngl {} fits", fit.gpu_layers))?;
    }
    for r in &fit.refused {
        let others = if r.steps > 1 { format!(" and {} more steps", r.steps - 1) } else { String::new() };
        tracing::info!("{}{others} stay on the CPU: {}", r.first, r.why);
    }
    if !fit.plan.on_gpu() {
        tracing::info!(
            "no GPU is used: no part of the model fits into the {:.1} GB of free GPU memory",
            free as f64 / 1e9
        );
        return Ok(());
    }
    tracing::info!("{gpu}: {}", fit.describe());
    Ok(())
}
