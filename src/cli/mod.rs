//! The verbs, and what they share: how a model is opened, how errors end the program.

pub mod args;
mod batch;
mod bench;
mod chat;
mod doctor;
mod dry;
mod explain;
mod generate;
mod kept;
mod logits;
mod perplexity;
mod predict;
mod run;
pub mod sampling;
mod signals;
mod structured;
mod talking;
mod template;
mod tokenize;
mod unknown;
mod verify;

use std::ffi::OsString;
use std::io::{ErrorKind, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Once};

use anyhow::{Context, Result, bail};
use clap::{CommandFactory, FromArgMatches};

use crate::cpu::{Memory, Pool, major_faults};
use crate::cuda::{Gpu, OutOfMemory};
use crate::exec::{Device, NoMemory};
use crate::gguf::{Gguf, Load};
use crate::plan::{Ask, CacheSize, Fit, Place, Rules};
use crate::quant;
use crate::session::{self, ContextFull, Interrupted, MAX_CONTEXT, Options, Session};
use crate::text::grammar::DeadEnd;
use args::{Cli, Verb};
pub use batch::check_request;
use predict::{Prediction, Rates};

/// The built-in model: 16 experts trained on Shakespeare's plays by demo/train.py.
static DEMO: &[u8] = include_bytes!("../../demo/demo.gguf");

/// Tokens that can be computed together: a GPU counts blocks in 16 bits, and 128 heads have one for every 64 tokens.
const MOST_AT_ONCE: usize = 16384;

/// Waits for the disk up to which nothing is said of them: the program itself is read with some tens.
const FAULTS: usize = 200;

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
    let there = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let argv = match args::with_verb(args::arguments(argv), there) {
        Ok(argv) => argv,
        Err(why) => {
            say!("tandem: wrong usage: {why}");
            return ExitCode::from(2);
        }
    };
    let mut command = Cli::command();
    let parsed = command.try_get_matches_from_mut(argv).and_then(|given| Ok((Cli::from_arg_matches(&given)?, given)));
    let (cli, given) = match parsed.map_err(|e| e.format(&mut command)) {
        Ok(parsed) => parsed,
        Err(e) => {
            let _ = e.print();
            return ExitCode::from(if e.use_stderr() { 2 } else { 0 });
        }
    };
    STRICT.store(cli.strict, Ordering::Relaxed);
    let level = match cli.verbose {
        0 if cli.quiet => tracing::Level::WARN,
        0 => tracing::Level::INFO,
        1 => tracing::Level::DEBUG,
        _ => tracing::Level::TRACE,
    };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_ansi(colour(std::io::stderr().is_terminal()))
        .without_time()
        .with_target(false)
        .with_level(false)
        .log_internal_errors(false) // nobody reads stderr: the answer goes on
        .init();
    let verb = |verb: &Verb| match verb {
        Verb::Chat(a) => chat::run(a),
        Verb::Run(a) => run::run(a),
        Verb::Batch(a) => batch::run(a),
        Verb::Logits(a) => logits::run(a),
        Verb::Bench(a) => bench::run(a),
        Verb::Explain(a) => explain::run(a),
        Verb::Doctor(a) => doctor::run(a),
        Verb::Perplexity(a) => perplexity::run(a),
        Verb::Template(a) => template::run(a),
        Verb::Tokenize(a) => tokenize::run(a),
        Verb::Verify(a) => verify::run(a),
        Verb::Completions(a) => generate::completions(a),
        Verb::Man(a) => generate::man(a),
    };
    let done = dry::run(&cli.verb, &given).and_then(|dry| if dry { Ok(()) } else { verb(&cli.verb) });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) if is_closed_pipe(&e) => ExitCode::SUCCESS,
        Err(e) => {
            if !e.is::<Interrupted>() {
                say!("tandem: {e:#}");
            }
            ExitCode::from(exit_status(&e))
        }
    }
}

fn exit_status(e: &anyhow::Error) -> u8 {
    if e.is::<OutOfMemory>() || e.is::<NoMemory>() {
        return 5;
    }
    match e.downcast_ref::<Failure>() {
        Some(Failure::Usage) => return 2,
        Some(Failure::Model) => return 3,
        None => {}
    }
    if e.is::<ContextFull>() {
        4
    } else if e.is::<DeadEnd>() {
        6
    } else if e.is::<Interrupted>() {
        signals::status() as u8
    } else {
        1
    }
}

/// Whether the error is only that nobody reads stdout any more, which is how `| head` ends a program.
fn is_closed_pipe(e: &anyhow::Error) -> bool {
    e.chain().any(|c| c.downcast_ref::<std::io::Error>().is_some_and(|io| io.kind() == ErrorKind::BrokenPipe))
}

/// Whether to write in colours to what may be a terminal.
fn colour(terminal: bool) -> bool {
    let set = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|t| t == "dumb");
    terminal && !set && !dumb
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
            static SAID: Once = Once::new(); // a verb may open it more than once
            SAID.call_once(|| {
                tracing::info!(
                    "no model given (-m FILE): using the built-in demo, a small model of Shakespeare's plays"
                )
            });
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

/// How the flags say the model is to be opened, by one who wants the logits of one token of a batch.
pub(crate) fn options(a: &args::Model) -> Result<Options> {
    let cache_type = |flag: &str, name: &str| match quant::by_name(name) {
        Some(ty) if ty.kv.is_some() => Ok(ty),
        Some(ty) => usage(format!("{flag} {name}: {} cannot be a cache type; {} can", ty.name, quant::cache_types())),
        None => usage(format!("{flag} {name}: no such type; {} can be a cache type", quant::cache_types())),
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
            Ok(-1) => Some(usize::MAX),
            _ => return usage(format!("-ngl {n}: a number of layers expected, or all, or auto")),
        },
    };
    let cache = match a.expert_cache.as_str() {
        "auto" => CacheSize::Auto,
        "off" | "0" => CacheSize::Off,
        text => match size(text) {
            Some(bytes) => CacheSize::Bytes(bytes),
            None => return usage(format!("--expert-cache {text}: a size like 6G or 800M expected, or off, or auto")),
        },
    };
    let cpu_moe = if a.cpu_moe { Some(usize::MAX) } else { a.n_cpu_moe };
    if a.threads.max(a.threads_batch.unwrap_or(0)) > Pool::MOST {
        return usage(format!("-t and -tb: {} threads at most; one per core is best", Pool::MOST));
    }
    if let Some(n) = a.ctx_size.filter(|n| *n > MAX_CONTEXT) {
        return usage(format!("-c {n}: {MAX_CONTEXT} tokens at most"));
    }
    if a.batch_size == 0 || a.ubatch_size == 0 {
        return usage("-b and -ub must be at least 1".into());
    }
    if a.batch_size.min(a.ubatch_size) > MOST_AT_ONCE {
        return usage(format!("-b and -ub: no more than {MOST_AT_ONCE} tokens can be computed together"));
    }
    Ok(Options {
        n_ctx: a.ctx_size,
        n_batch: a.batch_size.min(a.ubatch_size),
        n_output_rows: Some(1),
        n_seq: 1,
        threads: a.threads,
        threads_batch: a.threads_batch,
        type_k: cache_type("-ctk", &a.cache_type_k)?,
        type_v: cache_type("-ctv", &a.cache_type_v)?,
        ask: Ask { gpu_layers, cpu_moe, cache, rules },
        deterministic: a.deterministic,
        stats: a.stats,
        load: Load { mmap: !a.no_mmap, mlock: a.mlock },
    })
}

/// Opens a model whose header is read, with the GPU if there is one.
pub(crate) fn open(gguf: Gguf, a: &args::Model, o: &Options) -> Result<Session> {
    unknown::unknown_keys(&gguf, &session::tape(&gguf, o).context(Failure::Model)?)?;
    if let Some(memory) = Memory::of_this_machine().filter(|m| gguf.bytes() > m.total as u64) {
        let gb = |n: f64| n / 1e9;
        tracing::warn!(
            "the model's {:.1} GB are more than this machine's {:.1} GB of memory: parts of it are read from disk for \
             every token, which is slow (tandem explain says how slow)",
            gb(gguf.bytes() as f64),
            gb(memory.total as f64)
        );
    }
    let trained = gguf.meta.opt_usize(&format!("{}.context_length", gguf.meta.str("general.architecture")?))?;
    if let (Some(trained), Some(asked)) = (trained, o.n_ctx)
        && asked > trained
    {
        tracing::warn!(
            "-c {asked}: the model was made for {trained} tokens; what it writes behind them may be nonsense"
        );
    }
    let cores = if o.threads > 0 { crate::cpu::best_threads() } else { 0 };
    if o.threads > cores {
        tracing::warn!("-t {}: more threads than the {cores} that there are cores for wait for each other", o.threads);
    }
    let Some(gpu) = gpu(a, o)? else { return Session::new(gguf, o).context(Failure::Model) };
    let (name, free) = (format!("{gpu:?}"), gpu.memory()?.0);
    let session =
        Session::hybrid(gguf, o, gpu, |fit, lack| placed(&name, free, fit, lack, a)).context(Failure::Model)?;
    if let Some(words) = session.engine().devices().first().and_then(Device::expert_memory) {
        tracing::info!("{words}");
    }
    Ok(session)
}

/// What `--stats` asks for, on stderr.
pub(crate) fn stats(session: &Session, a: &args::Model) -> Result<()> {
    if !a.stats {
        return Ok(());
    }
    speed(session);
    let Some(device) = session.engine().devices().first() else { return Ok(()) };
    if let Some(w) = device.waits().filter(|w| w.walks > 0) {
        let ms = |s: f64| s * 1e3 / w.walks as f64;
        tracing::info!(
            "{} single tokens, {:.2} ms each: the CPU waited {:.2} ms for the GPU; the GPU worked {:.2} ms and waited \
             {:.2} ms for the CPU",
            w.walks,
            ms(w.whole),
            ms(w.cpu_waited),
            ms(w.gpu_worked),
            ms(w.gpu_waited)
        );
    }
    let Some(memory) = device.expert_memory() else { return Ok(()) };
    let c = device.cache_stats();
    let gb = |n: usize| n as f64 / 1e9;
    tracing::info!(
        "expert cache: {:.1}% of {} choices in single tokens were there; {} experts brought ({:.2} GB), {} passed through \
         while prompts were read ({:.2} GB)",
        100.0 * c.hits as f64 / c.chosen.max(1) as f64,
        c.chosen,
        c.uploads,
        gb(c.upload_bytes),
        c.passed,
        gb(c.passed_bytes)
    );
    tracing::info!("{memory}");
    Ok(())
}

/// How fast single tokens were read, beside what was to be expected.
fn speed(session: &Session) {
    let (engine, single) = (session.engine(), session.decode_stats());
    if single.together > 0 {
        tracing::info!("{} tokens were made several at once; what is predicted is one at a time", single.together);
    }
    if single.tokens == 0 {
        return;
    }
    let rate = single.tokens as f64 / single.seconds.max(1e-9);
    let depth = session.tokens(0).len().saturating_sub(single.tokens / 2);
    let rates = engine.devices().first().and_then(|d| d.rates().ok());
    let rates = rates.map_or(Rates::ASSUMED, |(bus, vram)| Rates { ram: None, vram, bus });
    match predict::measure(&engine.tape, &engine.plan, &engine.pool, depth) {
        Ok(m) => {
            let p = Prediction::new(&engine.tape, &engine.plan, rates, Some(&m));
            let expected = p.decode().unwrap_or(0.0);
            tracing::info!(
                "{} single tokens: {rate:.1} per second measured, {}{expected:.1} predicted, {:.1} is the ceiling",
                single.tokens,
                if p.at_most { "at most " } else { "" },
                p.ceiling
            );
            tracing::info!("limited by {}", p.limit_words(engine.tape.steps.len(), Some(&m)));
        }
        Err(why) => tracing::info!("{} single tokens: {rate:.1} per second; not predicted: {why}", single.tokens),
    }
    if let Some(n) = major_faults(Path::new("/")).filter(|n| *n > FAULTS) {
        tracing::info!("{n} times pages of files had to come from disk: another run finds them in memory, if they fit");
    }
}

/// The GPU, if there is one to use: where there is none, that is said.
fn gpu(a: &args::Model, o: &Options) -> Result<Option<Arc<Gpu>>> {
    if o.ask.gpu_layers == Some(0) && !o.ask.rules.name(Place::Gpu(0)) {
        return Ok(None);
    }
    let why = match Gpu::open() {
        Ok(gpu) => return Ok(Some(Arc::new(gpu))),
        Err(e) => format!("{e:#}"),
    };
    // An option that needs a GPU is without effect; without one, a machine is what it is.
    match (&a.gpu_layers, o.ask.cache) {
        (Some(n), _) if n != "auto" => off(&format!("-ngl {n}"), &why)?,
        _ if o.ask.rules.name(Place::Gpu(0)) => off("-ot ...=GPU", &why)?,
        (_, CacheSize::Bytes(_)) => off(&format!("--expert-cache {}", a.expert_cache), &why)?,
        _ => tracing::info!("GPU: off, because {why}"),
    }
    Ok(None)
}

/// Says where a model went.
fn placed(gpu: &str, free: usize, fit: &Fit, lack: Option<&OutOfMemory>, a: &args::Model) -> Result<()> {
    if let Some(lack) = lack {
        tracing::warn!("{gpu}: there was no room for {lack}; a smaller placement is tried");
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
            "GPU: off, because nothing of the model fits into the {:.1} GB that are free",
            free as f64 / 1e9
        );
        return Ok(());
    }
    tracing::info!("{gpu}: {}", fit.describe());
    Ok(())
}

/// A size as people write it: 6G, 1.5G, 800M, 4096K, or bytes; K, M and G are powers of 1024, as memory is sold.
pub(crate) fn size(text: &str) -> Option<usize> {
    let text = text.trim().trim_end_matches(['B', 'b']).trim_end_matches('i');
    let (number, by) = match text.char_indices().last()? {
        (at, 'K' | 'k') => (&text[..at], 1 << 10),
        (at, 'M' | 'm') => (&text[..at], 1 << 20),
        (at, 'G' | 'g') => (&text[..at], 1 << 30),
        (at, 'T' | 't') => (&text[..at], 1u64 << 40),
        _ => (text, 1),
    };
    let n: f64 = number.trim().parse().ok()?;
    (n.is_finite() && n >= 0.0).then_some((n * by as f64) as usize)
}

/// Refuses to write where something is read from: the file would be gone before it is read.
pub(crate) fn apart(flag: &str, out: &Path, others: &[(&str, Option<&Path>)]) -> Result<()> {
    let Ok(own) = out.canonicalize() else { return Ok(()) }; // not there yet
    for (what, other) in others {
        if other.is_some_and(|o| o.canonicalize().is_ok_and(|o| o == own)) {
            return usage(format!("{flag} {}: that is {what}, which would be lost: give another file", out.display()));
        }
    }
    Ok(())
}

/// Refuses a file whose folder is not there: it would be found out when there is something to lose.
pub(crate) fn has_folder(flag: &str, file: &Path) -> Result<()> {
    if file.is_dir() {
        return usage(format!("{flag} {}: that is a folder; the name of a file expected", file.display()));
    }
    match file.parent().filter(|p| !p.as_os_str().is_empty() && !p.is_dir()) {
        Some(no) => usage(format!("{flag} {}: there is no folder {}", file.display(), no.display())),
        None => Ok(()),
    }
}

/// This program's folder in a place of the system's for such files, made if it is not there; None without a home.
pub(crate) fn own_folder(variable: &str, in_home: &str) -> Result<Option<PathBuf>> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let Some(place) = set(variable).or_else(|| Some(set("HOME")?.join(in_home))) else { return Ok(None) };
    let dir = place.join("tandem");
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(Some(dir))
}

/// Reads a text file, naming it in the error.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    match String::from_utf8(bytes) {
        Ok(text) => Ok(text),
        Err(e) => bail!("{}: not UTF-8 text (byte {})", path.display(), e.utf8_error().valid_up_to()),
    }
}
