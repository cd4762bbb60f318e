//! `tandem explain`: what a model is, what a token costs, what fits where; from the header alone.
//! The report is this verb's answer, so it goes to stdout.

mod drive;
mod facts;
mod file;
mod formats;
mod json;
mod numa;
mod refused;
mod report;
mod speed;
mod summary;
mod verdict;

use std::io::Write;

use anyhow::{Context, Result};

use super::errors::{Failure, off, usage};
use super::human::{parse_size, write_sizes_in};
use super::predict::{Bandwidths, Card};
use super::terminal::Stdout;
use super::{args, gpus, open};
use crate::cpu::{Memory, NumaNodes, Pool};
use crate::gguf::Load;
use crate::plan;
use crate::session::{self, Numa, NumaPlan, RamLimit};
use facts::{ModelFacts, PlacedModel};
use numa::NumaFacts;
use speed::{GpuRates, Speed};
use verdict::MemoryFit;

/// Runs the verb.
pub(super) fn run(a: &args::ExplainArgs) -> Result<()> {
    let path = match (&a.path, &a.model.model) {
        (Some(_), Some(_)) => return usage("the model is given twice; give it once, with or without -m".into()),
        (a, b) => a.as_deref().or(b.as_deref()),
    };
    check_rates(a)?;
    let (ram, asked_vram) = sizes(a)?;
    let options = open::options(&a.model)?;
    // The header is all that is read here, whatever the flags say about loading.
    let gguf = open::header(path, &Load { mmap: true, mlock: false }, 0)?;
    // The headers of a model that is not fetched have no weights.
    let fetched = a.model.hub.hf_repo.is_none();
    match gguf.check_written() {
        Ok(notices) if fetched => notices.iter().for_each(|notice| tracing::warn!("{notice}")),
        Err(e) if fetched => tracing::warn!("{e:#}"),
        _ => {}
    }
    let memory = match ram {
        Some(n) => Some(Memory { total: n, free: n }),
        None => Memory::of_this_machine(),
    };
    let tape = match session::tape(&gguf, &options) {
        Ok(tape) => tape,
        Err(why) => return refused::explain(a, &gguf, memory, why),
    };
    super::unknown::unknown_keys(&gguf, &tape)?;
    let shape = session::shape(&gguf, &options).context(Failure::Model)?;
    let n_ctx = session::context(&gguf, options.n_ctx)?;
    if a.depth >= n_ctx {
        return usage(format!("--depth {}: expected less than the context of {n_ctx} tokens (-c)", a.depth));
    }
    let gpus = if a.vram.is_none() { gpus::open(&a.model, &options)? } else { Vec::new() };
    let free: Vec<usize> = match a.vram.is_some() {
        true => asked_vram,
        false => gpus.iter().map(|gpu| Ok(gpu.memory()?.0)).collect::<Result<_>>()?,
    };
    let budgets = match a.vram.is_some() {
        true => free.iter().map(|free| free - session::margin(*free, false)).collect(),
        false => gpus::budgets(&gpus)?,
    };
    if a.vram.is_some() {
        gpus::check(&a.model, &options, free.len())?;
    }
    let placed = plan::fit(tape, &options.ask, &budgets, shape)?;
    let shape = placed.shape;
    let measured = placed.plan.on_gpu() && (a.vram_gbps.is_none() || a.bus_gbps.is_none());
    let of_gpu = gpus.first().filter(|_| measured).map(|gpu| Bandwidths::measured(gpu)).transpose()?;
    let card = Card::of(free.iter().copied().max().unwrap_or(0));
    let vram = (!free.is_empty()).then(|| free.iter().sum());
    let (rates, gpu_from) = rates(a, of_gpu, card);
    let model = PlacedModel { gguf: &gguf, placed: &placed, vram, options: &options, shape };
    let facts = ModelFacts::new(&model)?;
    let fit = MemoryFit::new(&model, &facts, memory, a.drive_gbps);
    let speed = Speed::new(a, (&placed, shape), &Pool::new(options.threads)?, rates, gpu_from);
    let numa = numa_facts(&model, &speed)?;
    print(a, &model, (&facts, &fit, &speed, &numa))
}

/// Refuses rates that are no rates.
fn check_rates(a: &args::ExplainArgs) -> Result<()> {
    let rates = [
        ("--ram-gbps", a.ram_gbps),
        ("--vram-gbps", a.vram_gbps),
        ("--bus-gbps", a.bus_gbps),
        ("--drive-gbps", a.drive_gbps),
    ];
    for (flag, rate) in rates {
        if let Some(rate) = rate.filter(|r| !(*r > 0.0 && r.is_finite())) {
            return usage(format!("{flag} {rate}: expected more than 0 GB/s"));
        }
    }
    Ok(())
}

/// What `--ram` and `--vram` say, the latter for each GPU. The report has sizes in the unit that they are in.
fn sizes(a: &args::ExplainArgs) -> Result<(Option<usize>, Vec<usize>)> {
    let size = |flag: &str, text: Option<&str>| match text {
        None => Ok(None),
        Some(text) => match parse_size(text) {
            Some(size) => Ok(Some(size)),
            None => usage(format!("{flag} {text}: expected a size like 16G (or 16GiB), or 16GB for powers of 1000")),
        },
    };
    let ram = size("--ram", Some(a.model.ram.as_str()).filter(|text| !["auto", "off"].contains(text)))?;
    let each = a.vram.iter().flat_map(|text| text.split(','));
    let vram = each.filter_map(|text| size("--vram", Some(text)).transpose()).collect::<Result<Vec<_>>>()?;
    if vram.len() > plan::MAX_GPUS {
        return usage(format!("--vram: {} sizes; expected at most {}, one for each GPU", vram.len(), plan::MAX_GPUS));
    }
    if let Some((_, unit)) = ram.or(vram.first().copied()) {
        write_sizes_in(unit);
    }
    Ok((ram.map(|r| r.0), vram.into_iter().map(|v| v.0).collect()))
}

/// The rates to predict with: as given, else as measured on the GPU (bus, memory), else those of a usual card.
fn rates(a: &args::ExplainArgs, of_gpu: Option<Bandwidths>, card: Card) -> (Bandwidths, GpuRates) {
    let known = of_gpu.unwrap_or(card.rates());
    let rates = Bandwidths {
        ram: a.ram_gbps.map(|r| r * 1e9),
        vram: a.vram_gbps.map_or(known.vram, |r| r * 1e9),
        bus: a.bus_gbps.map_or(known.bus, |r| r * 1e9),
        ..known
    };
    let from = match (of_gpu, a.vram_gbps.is_some() && a.bus_gbps.is_some()) {
        (Some(_), _) => GpuRates::Measured,
        (None, true) => GpuRates::Given,
        (None, false) => GpuRates::Assumed(card.name),
    };
    (rates, from)
}

/// How this machine's NUMA nodes would share the weights.
fn numa_facts(m: &PlacedModel<'_>, speed: &Speed) -> Result<NumaFacts> {
    let plan = match m.options.ram {
        RamLimit::Bytes(_) => Err("--ram is for a machine whose nodes are not known".into()),
        _ => NumaPlan::new(m.gguf, (&m.placed.tape, &m.placed.plan, m.shape), false, m.options),
    };
    if let (Err(why), Numa::Distribute) = (&plan, m.options.numa) {
        off("--numa distribute", why)?;
    }
    let p = &speed.prediction;
    let measured = (speed.rates.ram.is_none() && p.ram.is_finite()).then_some((p.ceiling, p.cpu_bytes, p.ram));
    Ok(NumaFacts::new(plan, NumaNodes::of_this_machine().is_ok(), measured))
}

fn print(
    a: &args::ExplainArgs,
    model: &PlacedModel<'_>,
    (facts, fit, speed, numa): (&ModelFacts, &MemoryFit, &Speed, &NumaFacts),
) -> Result<()> {
    let mut out = Stdout::of_reports();
    if a.json {
        let mut object = json::object(facts, fit, speed);
        object["numa"] = json::numa(numa);
        if a.steps {
            object["steps"] = facts::steps(model).iter().filter_map(json::step).collect();
        }
        serde_json::to_writer_pretty(&mut out, &object).map_err(std::io::Error::from)?;
        writeln!(out)?;
    } else {
        out.write_all(report::report(facts, fit, speed, &numa.words()).as_bytes())?;
        if a.steps {
            out.write_all(report::steps(&facts::steps(model)).as_bytes())?;
        }
    }
    out.flush()?;
    Ok(())
}
