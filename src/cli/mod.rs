//! The verbs, and what they share: how a model is opened, how errors end the program, what Ctrl-C does.

pub mod args;
mod bench;
mod explain;
mod logits;
mod perplexity;
mod run;
mod tokenize;

use std::ffi::OsString;
use std::io::{ErrorKind, IsTerminal};
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use clap::Parser;

use crate::cpu::Memory;
use crate::gguf::{Gguf, Load};
use crate::plan::Rules;
use crate::quant;
use crate::session::{ContextFull, Interrupted, Options, Session};
use args::{Cli, Verb};

/// The built-in model: 16 experts trained on Shakespeare's plays by demo/train.py.
static DEMO: &[u8] = include_bytes!("../../demo/demo.gguf");

/// A failure with an exit status of its own, wrapped around the error that explains it.
#[derive(Debug)]
enum Failure {
    Usage,
    Model,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Failure::Usage => "wrong usage",
            Failure::Model => "cannot use this model",
        })
    }
}

/// Whether `--strict` was given; notices of options without effect become errors then.
static STRICT: AtomicBool = AtomicBool::new(false);

/// Runs the program: the whole of `main`.
pub fn main(argv: impl Iterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args::arguments(argv)) {
        Ok(cli) => cli,
        Err(e) => {
            let _ = e.print();
            return ExitCode::from(if e.use_stderr() { 2 } else { 0 });
        }
    };
    STRICT.store(cli.strict, Ordering::Relaxed);
    let level = match cli.verbose {
        0 => tracing::Level::INFO,
        1 => tracing::Level::DEBUG,
        _ => tracing::Level::TRACE,
    };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .without_time()
        .with_target(false)
        .with_level(false)
        .init();
    let done = match &cli.verb {
        Verb::Run(a) => run::run(a),
        Verb::Logits(a) => logits::run(a),
        Verb::Bench(a) => bench::run(a),
        Verb::Explain(a) => explain::run(a),
        Verb::Perplexity(a) => perplexity::run(a),
        Verb::Tokenize(a) => tokenize::run(a),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) if is_closed_pipe(&e) => ExitCode::SUCCESS,
        Err(e) => {
            if !e.is::<Interrupted>() {
                eprintln!("tandem: {e:#}");
            }
            ExitCode::from(exit_status(&e))
        }
    }
}

fn exit_status(e: &anyhow::Error) -> u8 {
    match e.downcast_ref::<Failure>() {
        Some(Failure::Usage) => return 2,
        Some(Failure::Model) => return 3,
        None => {}
    }
    if e.is::<ContextFull>() {
        4
    } else if e.is::<Interrupted>() {
        130
    } else {
        1
    }
}

/// Whether the error is only that nobody reads stdout any more, which is how `| head` ends a program.
fn is_closed_pipe(e: &anyhow::Error) -> bool {
    e.chain().any(|c| c.downcast_ref::<std::io::Error>().is_some_and(|io| io.kind() == ErrorKind::BrokenPipe))
}

/// Says on stderr that an option is without effect and why; an error under `--strict`.
pub(crate) fn off(option: &str, why: &str) -> Result<()> {
    if STRICT.load(Ordering::Relaxed) {
        return Err(anyhow::anyhow!("{option} is off, because {why}").context(Failure::Usage));
    }
    tracing::warn!("{option}: off, because {why}");
    Ok(())
}

/// A usage error.
pub(crate) fn usage<T>(text: String) -> Result<T> {
    Err(anyhow::anyhow!(text).context(Failure::Usage))
}

/// The model's header: a file, or the built-in model.
pub(crate) fn gguf(model: Option<&Path>, load: &Load) -> Result<Gguf> {
    let gguf = match model {
        Some(path) => Gguf::open_with(path, load).context(Failure::Model)?,
        None => {
            tracing::info!("no model given (-m FILE): using the built-in demo, a small model of Shakespeare's plays");
            Gguf::from_bytes(DEMO.to_vec(), Path::new("the built-in demo model")).context(Failure::Model)?
        }
    };
    for why in &gguf.unlocked {
        off("--mlock", why)?;
    }
    for key in gguf.meta.repaired() {
        tracing::warn!("{}: the text of {key} is not UTF-8; its bad bytes were replaced", gguf.path.display());
    }
    Ok(gguf)
}

/// How the flags say the model is to be opened.
pub(crate) fn options(a: &args::Model) -> Result<Options> {
    let cache = |flag: &str, name: &str| match quant::by_name(name) {
        Some(ty) if ty.kv.is_some() => Ok(ty),
        Some(ty) => usage(format!("{flag} {name}: {} cannot be a cache type; {} can", ty.name, quant::cache_types())),
        None => usage(format!("{flag} {name}: no such type; {} can be a cache type", quant::cache_types())),
    };
    let mut rules = Rules::default();
    for rule in &a.override_tensor {
        rules.add(rule).context(Failure::Usage)?;
    }
    let cpu_only = "this version computes on the CPU only";
    if let Some(n) = a.gpu_layers.as_deref().filter(|n| *n != "0") {
        off(&format!("-ngl {n}"), cpu_only)?;
    }
    if a.cpu_moe {
        tracing::debug!("-cmoe: on; every step is on the CPU anyway");
    }
    if let Some(n) = a.n_cpu_moe {
        tracing::debug!("-ncmoe {n}: on; every step is on the CPU anyway");
    }
    if a.batch_size == 0 || a.ubatch_size == 0 {
        return usage("-b and -ub must be at least 1".into());
    }
    Ok(Options {
        n_ctx: a.ctx_size,
        n_batch: a.batch_size.min(a.ubatch_size),
        n_seq: 1,
        threads: a.threads,
        threads_batch: a.threads_batch,
        type_k: cache("-ctk", &a.cache_type_k)?,
        type_v: cache("-ctv", &a.cache_type_v)?,
        rules,
        load: Load { mmap: !a.no_mmap, mlock: a.mlock },
    })
}

/// Opens the model that the flags name.
pub(crate) fn session(a: &args::Model) -> Result<Session> {
    let o = options(a)?;
    let gguf = gguf(a.model.as_deref(), &o.load)?;
    if let Some(memory) = Memory::of_this_machine().filter(|m| gguf.bytes() > m.total as u64) {
        let gb = |n: f64| n / 1e9;
        tracing::warn!(
            "the model's {:.1} GB are more than this machine's {:.1} GB of memory: parts of it are read from disk for \
             every token, which is slow (tandem explain says how slow)",
            gb(gguf.bytes() as f64),
            gb(memory.total as f64)
        );
    }
    Session::new(gguf, &o).context(Failure::Model)
}

/// Makes Ctrl-C raise the session's stop flag; a second one ends the program at once.
pub(crate) fn on_interrupt(session: &Session) -> Result<std::sync::Arc<AtomicBool>> {
    let asked = std::sync::Arc::new(AtomicBool::new(false));
    let (flag, stop) = (asked.clone(), session.stop_flag());
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        stop.store(true, Ordering::SeqCst);
    })
    .context("cannot listen for Ctrl-C")?;
    Ok(asked)
}

/// Reads a text file, naming it in the error.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    match String::from_utf8(bytes) {
        Ok(text) => Ok(text),
        Err(e) => bail!("{}: not UTF-8 text (byte {})", path.display(), e.utf8_error().valid_up_to()),
    }
}
