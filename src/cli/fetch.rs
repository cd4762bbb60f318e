//! `tandem fetch`, and `-hf` of all other verbs: a model of a hub becomes a file in the cache.
//!
//! A model that is whole in the cache is opened without a request. Verbs that need the header alone
//! (`explain`, `tokenize`, `template`, `--dry-run`) fetch only that.

use std::cell::RefCell;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use indicatif::{ProgressBar, ProgressStyle};
use tempfile::TempDir;

use super::args::{FetchArgs, HubArgs, ModelArgs, Verb};
use super::errors::{Failure, off, usage};
use super::human::size;
use super::signals;
use crate::hub::{CachedModel, FetchEvent, FetchPlan, FetchStopped, Hub, HubUnreachable, ModelName};
use crate::session::Interrupted;

/// What is taken of a repository where the user names no quant: llama.cpp's first two choices, then
/// others of about 4 bits.
const USUAL: [&str; 12] =
    ["Q4_K_M", "Q8_0", "Q4_K_XL", "MXFP4", "Q4_K_S", "IQ4_XS", "IQ4_NL", "Q4_0", "Q4_1", "Q5_K_M", "Q6_K", "Q3_K_M"];

/// Whole models or headers alone.
#[derive(Clone, Copy, PartialEq)]
enum Extent {
    Whole,
    Header,
}

/// A model's first file, and the folder that it is removed with if it has headers alone.
type Found = (PathBuf, Option<TempDir>);

/// Runs the verb: its answer is the path of the model's first file.
pub(super) fn run(a: &FetchArgs) -> Result<()> {
    let name = match (&a.name, &a.hub.hf_repo) {
        (Some(_), Some(_)) => return usage("the model is given twice; give it once, with or without -hf".into()),
        (None, None) => return usage("no model given: tandem fetch USER/REPO:QUANT".into()),
        (Some(name), None) | (None, Some(name)) => name_of(name, &a.hub)?,
    };
    let hub = hub(&a.hub)?;
    let path = if a.dry_run {
        let stop = signals::while_fetching()?;
        let plan = hub.plan(&name, &USUAL, &stop, &say_note).map_err(|e| explained(e, &hub, &name))?;
        stop.store(true, Ordering::SeqCst);
        return list_plan(&plan);
    } else if hub.offline {
        hub.cached(&name, &USUAL, false).map(|m| m.path).ok_or_else(|| not_cached(&hub, &name))?
    } else {
        or_cached(fetched(&hub, &name).map(|path| (path, None)), &hub, &name)?.0
    };
    writeln!(std::io::stdout(), "{}", path.display())?;
    Ok(())
}

/// Turns `-hf` of a verb into the path of a file. The result holds the folder of headers, which is
/// removed when dropped.
///
/// # Errors
/// If the model is named twice, or cannot be fetched.
pub(super) fn settle(verb: &mut Verb) -> Result<Option<TempDir>> {
    let (hub, file, extent) = match verb {
        Verb::Chat(a) => whole(&mut a.model),
        Verb::Run(a) => whole(&mut a.model),
        Verb::Batch(a) => whole(&mut a.model),
        Verb::Logits(a) => whole(&mut a.model),
        Verb::Perplexity(a) => whole(&mut a.model),
        Verb::Bench(a) => whole(&mut a.model),
        Verb::Verify(a) => whole(&mut a.model),
        Verb::Explain(a) if a.path.is_some() => (a.model.hub.clone(), &mut a.path, Extent::Header),
        Verb::Explain(a) => (a.model.hub.clone(), &mut a.model.model, Extent::Header),
        Verb::Tokenize(a) => (a.hub.clone(), &mut a.model, Extent::Header),
        Verb::Template(a) => (a.hub.clone(), &mut a.model, Extent::Header),
        _ => return Ok(None),
    };
    let Some(repo) = &hub.hf_repo else {
        let given =
            [("-hff", hub.hf_file.is_some()), ("--hf-token", hub.hf_token.is_some()), ("--offline", hub.offline)];
        given
            .iter()
            .filter(|(_, given)| *given)
            .try_for_each(|(flag, _)| off(flag, "no model of a hub is named (-hf)"))?;
        return Ok(None);
    };
    if let Some(file) = file {
        return usage(format!("the model is given twice, as {} and with -hf {repo}; give one of them", file.display()));
    }
    let name = name_of(repo, &hub)?;
    let (path, headers) = found(&self::hub(&hub)?, &name, extent)?;
    *file = Some(path);
    Ok(headers)
}

/// Where the path goes for a verb that reads weights, unless `--dry-run` keeps it from that.
fn whole(m: &mut ModelArgs) -> (HubArgs, &mut Option<PathBuf>, Extent) {
    (m.hub.clone(), &mut m.model, if m.dry_run { Extent::Header } else { Extent::Whole })
}

/// The hub of the environment and the flags.
fn hub(a: &HubArgs) -> Result<Hub> {
    let mut hub = Hub::of(&|name| std::env::var_os(name)).context(Failure::Usage)?;
    if let Some(token) = &a.hf_token {
        hub.token = Some(token.clone());
    }
    hub.offline |= a.offline;
    Ok(hub)
}

fn name_of(name: &str, a: &HubArgs) -> Result<ModelName> {
    ModelName::parse(name, a.hf_file.as_deref()).context(Failure::Usage)
}

/// The path of a model: in the cache, or fetched into it, or of its headers.
fn found(hub: &Hub, name: &ModelName, extent: Extent) -> Result<Found> {
    if let Some(model) = hub.cached(name, &USUAL, !hub.offline) {
        if name.quant.is_none() && name.file.is_none() {
            tracing::info!("{name}: {} from the cache; tandem fetch {name} asks the hub again", model.path.display());
        }
        return Ok((model.path, None));
    }
    if hub.offline {
        return Err(not_cached(hub, name));
    }
    let answer = match extent {
        Extent::Whole => fetched(hub, name).map(|path| (path, None)),
        Extent::Header => headers(hub, name).map(|(path, dir)| (path, Some(dir))),
    };
    or_cached(answer, hub, name)
}

/// The answer, or what a machine that cannot reach the hub has in its cache.
fn or_cached(answer: Result<Found>, hub: &Hub, name: &ModelName) -> Result<Found> {
    match (answer, hub.cached(name, &USUAL, false)) {
        (Err(e), Some(model)) if e.is::<HubUnreachable>() => {
            tracing::warn!("{e:#}; {} from the cache is used", model.path.display());
            Ok((model.path, None))
        }
        (answer, _) => answer,
    }
}

/// Fetches a model; returns the path of its first file.
fn fetched(hub: &Hub, name: &ModelName) -> Result<PathBuf> {
    let stop = signals::while_fetching()?;
    let fetch = || {
        let plan = hub.plan(name, &USUAL, &stop, &say_note)?;
        let bytes = plan.choice.model.bytes();
        let missing = bytes - plan.cached_bytes;
        if missing == 0 {
            return hub.fetch(&plan, &stop, &say_note);
        }
        tracing::info!("{}", described(&plan, hub));
        let began = Instant::now();
        let bar = FetchBar::new(bytes, plan.cached_bytes + plan.begun_bytes);
        let path = hub.fetch(&plan, &stop, &|event| bar.event(event))?;
        drop(bar);
        let (new, time) = (missing - plan.begun_bytes, began.elapsed().as_secs_f64());
        let rate = size((new as f64 / time.max(1e-3)) as usize);
        tracing::info!("fetched {} in {time:.0} s ({rate}/s), length and hash are right", size(new as usize));
        Ok(path)
    };
    let path = fetch().map_err(|e| explained(e, hub, name));
    stop.store(true, Ordering::SeqCst); // from here on a signal ends the program
    path
}

/// Fetches the headers of a model into a folder of their own.
fn headers(hub: &Hub, name: &ModelName) -> Result<(PathBuf, TempDir)> {
    let stop = signals::while_fetching()?;
    let dir = tempfile::Builder::new().prefix("tandem-").tempdir().context("cannot make a temporary folder")?;
    let fetch = || {
        let plan = hub.plan(name, &USUAL, &stop, &say_note)?;
        let (path, read) = hub.headers(&plan, dir.path(), &stop, &|text| tracing::warn!("{text}"))?;
        let missing = plan.choice.model.bytes() - plan.cached_bytes - plan.begun_bytes;
        let quant = plan.choice.model.quant();
        let full =
            if quant.is_empty() || name.file.is_some() { name.to_string() } else { format!("{}:{quant}", plan.repo) };
        tracing::info!(
            "{full}: read {} of headers; {} are not fetched, which tandem fetch does",
            size(read as usize),
            size(missing as usize)
        );
        Ok(path)
    };
    let path = fetch().map_err(|e| explained(e, hub, name));
    stop.store(true, Ordering::SeqCst);
    Ok((path?, dir))
}

/// An error of a fetch, as the program ends with it.
fn explained(e: anyhow::Error, hub: &Hub, name: &ModelName) -> anyhow::Error {
    if e.is::<FetchStopped>() {
        tracing::info!("interrupted; what was fetched is kept, and the same command goes on from there");
        return Interrupted.into();
    }
    match e.downcast::<HubUnreachable>() {
        Ok(e) if hub.cached(name, &USUAL, false).is_some() => e.into(),
        Ok(e) => {
            let there = cached_words(hub, name);
            anyhow::Error::from(e)
                .context(format!("{name} is not in the cache ({}){there}", hub.cache.root().display()))
        }
        Err(e) => e,
    }
}

/// The error of a model that is not in the cache of a machine that is not to ask.
fn not_cached(hub: &Hub, name: &ModelName) -> anyhow::Error {
    anyhow!(
        "{name} is not in the cache ({}){}, and the hub is not asked (--offline, HF_HUB_OFFLINE); tandem list shows \
         what is there",
        hub.cache.root().display(),
        cached_words(hub, name)
    )
}

/// What else the cache has of a repository, in words.
fn cached_words(hub: &Hub, name: &ModelName) -> String {
    let of_repo = |m: &CachedModel| m.repo == name.repo && m.model.missing.is_none();
    let quants: Vec<String> = hub.list().iter().filter(|m| of_repo(m)).map(|m| m.model.quant().to_owned()).collect();
    if quants.is_empty() { String::new() } else { format!(", which has {}", quants.join(", ")) }
}

/// What is about to be fetched, and why that.
fn described(plan: &FetchPlan, hub: &Hub) -> String {
    let model = &plan.choice.model;
    let files = match &model.files[..] {
        [one] => one.path.clone(),
        [first, .., last] => format!("{} files, {} to {}", model.files.len(), first.path, last.path),
        [] => String::new(),
    };
    let why = plan.choice.why.as_ref().map(|w| format!(" ({w})")).unwrap_or_default();
    let have = match plan.cached_bytes + plan.begun_bytes {
        0 => String::new(),
        n => format!(", {} of them here already", size(n as usize)),
    };
    let (bytes, root) = (size(model.bytes() as usize), hub.cache.root().display());
    format!("fetching {}: {files}{why}; {bytes}{have}, to {root}", plan.repo)
}

/// Prints what a fetch would bring: bytes, a tab, and the path in the repository, one line per
/// file.
fn list_plan(plan: &FetchPlan) -> Result<()> {
    let mut out = std::io::stdout().lock();
    for file in &plan.choice.model.files {
        writeln!(out, "{}\t{}", file.size, file.path)?;
    }
    if let Some(why) = &plan.choice.why {
        tracing::info!("{}: {} ({why})", plan.repo, plan.choice.model.quant());
    }
    let missing = plan.choice.model.bytes() - plan.cached_bytes - plan.begun_bytes;
    tracing::info!("{} would be fetched", size(missing as usize));
    Ok(out.flush()?)
}

fn say_note(event: FetchEvent) {
    if let FetchEvent::Note(text) = event {
        tracing::warn!("{text}");
    }
}

/// Shows on stderr how much of a model is here: a bar on a terminal, else a line for every tenth.
struct FetchBar {
    bar: ProgressBar,
    bytes: u64,
    /// The last tenth that was told, where there is no bar.
    told: RefCell<u64>,
}

impl FetchBar {
    /// A bar for this many bytes, of which some are here.
    fn new(bytes: u64, have: u64) -> FetchBar {
        let bar = ProgressBar::new(bytes);
        let form = "{bar:30} {percent}% of {decimal_total_bytes}, {decimal_bytes_per_sec}, {eta} left";
        bar.set_style(ProgressStyle::with_template(form).expect("a template that is right"));
        let quiet = !tracing::enabled!(tracing::Level::INFO);
        if quiet || !std::io::stderr().is_terminal() {
            bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
        }
        bar.set_position(have);
        bar.reset_eta(); // the rate is of what comes, not of what was here
        FetchBar { bar, bytes, told: RefCell::new(have * 10 / bytes.max(1)) }
    }

    fn event(&self, event: FetchEvent) {
        match event {
            FetchEvent::Note(text) => self.bar.suspend(|| tracing::warn!("{text}")),
            FetchEvent::At(at) => {
                self.bar.set_position(at);
                let tenth = at * 10 / self.bytes.max(1);
                if self.bar.is_hidden() && tenth > self.told.replace(tenth) && tenth < 10 {
                    tracing::info!("{}% of {}", tenth * 10, size(self.bytes as usize));
                }
            }
        }
    }
}

impl Drop for FetchBar {
    /// An error leaves no bar on the screen.
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
