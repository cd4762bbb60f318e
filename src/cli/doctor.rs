//! `tandem doctor`: what this machine can do, and what slows it down. Every statement comes from a
//! measurement or from one of the system's files; what cannot be read is reported as unknown. The
//! report is this verb's answer, so it goes to stdout.
//!
//! `--json` prints one object; what the system does not say is null:
//! ```text
//! cpu           {name, isa: {used, detected}, matrix_tiles, flags, cores, efficiency_cores, logical, allowed, threads, cache_bytes}
//! limits        {cpus, memory_bytes, lockable_bytes}      a container's; lockable_bytes null where there is no limit
//! memory        {total_bytes, free_bytes, swap_bytes, swap_free_bytes, huge_pages, huge_reserved_bytes,
//!                sticks: [{place, bytes, rated_mts, runs_mts, gbps}], sticks_unknown}
//! nodes         [{node, cpus, total_bytes, free_bytes}]
//! numa          {divides, why}                            whether weights can be divided over them (--numa), or why not
//! governors     [{driver, governor, preference, cpus}]
//! others        {busy, stolen, load}                      shares of all CPUs' time while nothing ran here
//! virtual_machine
//! bandwidth     [{threads, gbps, siblings}]               siblings: with two threads on a core
//! drive         {file, reads: [{bytes, depth, in_order, gbps}], unknown}
//!                                                         reads past the page cache, so many at a time; unknown: why
//!                                                         there are none
//! gpu           {name, total_bytes, free_bytes, vram_gbps, bus_gbps, kernel_module, pins_mapped_files, lanes} or null,
//!               and gpu_unknown: why                      pins_mapped_files: experts are copied from a mapped file directly
//! more_gpus     [{name, total_bytes, free_bytes}]         gpu is the one with the most memory
//! models        [{memory_bytes, this_machine, model, architecture, format, file_bytes, needed_bytes,
//!                experts_bytes, bytes_per_token, experts_bytes_per_token, tokens_per_s}]
//!                                                         files to take for so much memory, the
//!                                                         most capable first; tokens_per_s: here
//! remarks       [{weight, about, words}]                  weight: slow, note or unknown
//! ```

mod drive;
mod judge;
mod measure;
mod models;

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::args;
use super::errors::usage;
use super::human::{size, table, wrapped};
use super::terminal::Stdout;
use crate::cpu::{Host, default_threads};
use crate::simd::Isa;
use drive::DriveReport;
use judge::Remark;
use measure::{GpuReport, Tested};
use models::Machine;

/// Runs the verb.
pub(super) fn run(a: &args::DoctorArgs) -> Result<()> {
    if let Some(file) = &a.file {
        let about = std::fs::metadata(file).with_context(|| format!("cannot read {}", file.display()))?;
        if !about.is_file() {
            return usage(format!("{}: expected a file, to measure the drive that it is on", file.display()));
        }
    }
    let root = Path::new("/");
    let host = Host::read(root);
    let tested = Tested::measure(root, &host)?;
    let drive = DriveReport::measure(a.file.as_deref());
    let remarks = judge::remarks(&host, &tested);
    let mut out = Stdout::of_reports();
    if a.json {
        serde_json::to_writer_pretty(&mut out, &object(&host, &tested, &drive, &remarks))
            .map_err(std::io::Error::from)?;
        writeln!(out)?;
    } else {
        out.write_all(report(&host, &tested, &drive, &remarks).as_bytes())?;
    }
    out.flush()?;
    Ok(())
}

/// Instructions that matter here, of those that the CPU has.
const FLAGS: [&str; 11] = [
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512_vbmi",
    "avx512_vnni",
    "avx512_bf16",
    "avx_vnni",
    "amx_bf16",
];

fn flags(h: &Host) -> Vec<&'static str> {
    // Linux writes avx512vbmi without the underscore.
    let has = |flag: &str| h.flags.iter().any(|f| *f == flag || *f == flag.replace('_', ""));
    FLAGS.into_iter().filter(|f| has(f)).collect()
}

/// Whether matrix tiles multiply prompts, or why not.
fn matrix_tiles(t: &Tested) -> String {
    match t.tiles {
        Ok(()) if t.isa >= Isa::Amx => "AMX for bf16, in use where many tokens share weights".into(),
        Ok(()) => format!("AMX for bf16, not used: TANDEM_ISA={}", t.isa.name()),
        Err(why) => why.into(),
    }
}

fn report(h: &Host, t: &Tested, drive: &DriveReport, remarks: &[Remark]) -> String {
    let top = &h.topology;
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut row = |name: &str, words: String| rows.push(vec![name.into(), words]);
    row("processor", h.cpu.clone().unwrap_or_else(|| "unknown".into()));
    let (cores, efficient) = (top.cores(|c| !c.efficient), top.cores(|c| c.efficient));
    let mut kinds = vec![format!("{cores} cores"), format!("{} logical CPUs", top.cpus.len())];
    if efficient > 0 {
        kinds.insert(1, format!("{efficient} efficiency cores"));
    }
    if top.cpus.is_empty() {
        kinds = vec!["cannot be read".into()];
    }
    row("cores", format!("{}; {} threads by default", kinds.join(", "), default_threads()));
    if top.cache > 0 {
        row("last-level cache", size(top.cache));
    }
    let more = flags(h);
    row(
        "instructions",
        format!(
            "{} in use; the CPU has {}",
            t.isa.name(),
            if more.is_empty() { "none that the kernels use".into() } else { more.join(" ") }
        ),
    );
    row("matrix tiles", matrix_tiles(t));
    memory_rows(h, &mut row);
    for g in &h.governors {
        let prefers = g.preference.as_ref().map_or(String::new(), |p| format!(", prefers {p}"));
        row("clock", format!("{} ({}){prefers}, {} logical CPUs", g.name, g.driver, g.cpus));
    }
    others_rows(h, t, &mut row);
    let mut out = format!("This machine\n{}\nReading memory\n", table(&rows, &[false, false]));
    let bars = t.by_threads.iter().map(|x| (*x, "")).chain(t.siblings.map(|x| (x, "two threads on a core")));
    let most = t.siblings.map_or(0.0, |x| x.1).max(t.best()).max(1e-9);
    let bars = bars.map(|((n, gbps), note)| {
        let bar = "#".repeat((gbps / most * 40.0).round() as usize);
        let threads = if n == 1 { "1 thread".into() } else { format!("{n} threads") };
        vec![threads, format!("{gbps:.1} GB/s"), bar, note.into()]
    });
    out += &table(&bars.collect::<Vec<_>>(), &[true, true, false, false]);
    out += &wrapped(&format!(
        "A model that reads 1 GB of weights per token decodes at most {:.1} tokens/s here; tandem explain MODEL predicts the \
         speed of a model.",
        t.best()
    ));
    out += &drive.words();
    out += &models::report(&machine(h, t));
    out += "\nRemarks\n";
    for r in remarks {
        let lines = wrapped(&format!("{} ({}): {}.", r.weight.word(), r.about, r.words));
        out += &lines;
    }
    if remarks.is_empty() {
        out += "  None: nothing was found that slows this machine down.\n";
    }
    out
}

type AddRow<'a> = &'a mut dyn FnMut(&str, String);

/// Memory, swap, sticks, NUMA nodes and what the system allows.
fn memory_rows(h: &Host, row: AddRow<'_>) {
    match h.memory {
        Some(m) => row("memory", format!("{}, {} free", size(m.total), size(m.free))),
        None => row("memory", "cannot be read".into()),
    }
    if let Some((all, free)) = h.swap {
        row(
            "swap",
            if all == 0 { "none".into() } else { format!("{}, {} in use", size(all), size(all.saturating_sub(free))) },
        );
    }
    match &h.sticks {
        Some(Ok(sticks)) => {
            for s in sticks {
                let runs = s.runs.or(s.rated).map_or("an unknown rate".into(), |n| format!("{n} MT/s"));
                let gbps = s.gbps().map_or(String::new(), |g| format!(", {g:.1} GB/s"));
                row("memory module", format!("{} at {}: {runs}{gbps}", size(s.bytes as usize), s.place));
            }
        }
        Some(Err(why)) => row("memory modules", format!("unknown: {why}")),
        None => {}
    }
    for n in h.nodes.iter().filter(|_| h.nodes.len() > 1) {
        row("NUMA node", format!("{}: {} logical CPUs, {}, {} free", n.id, n.cpus, size(n.total), size(n.free)));
    }
    row("huge pages", h.huge_pages.clone().unwrap_or_else(|| "cannot be read".into()));
    row(
        "lockable",
        match h.lockable {
            Some(usize::MAX) => "no limit".into(),
            Some(n) => size(n),
            None => "cannot be read".into(),
        },
    );
}

/// A GPU's memory, of which so much is free.
fn memory_words(memory: Option<(usize, usize)>) -> String {
    memory.map_or("memory unknown".into(), |(free, all)| format!("{}, {} free", size(all), size(free)))
}

/// Other programs and the GPU.
fn others_rows(h: &Host, t: &Tested, row: AddRow<'_>) {
    if let Some((busy, stolen)) = t.others {
        let load = h.load.map_or(String::new(), |l| format!("; load {l:.1}"));
        let host = if stolen > 0.0 { format!(", the host took {:.0}%", stolen * 100.0) } else { String::new() };
        row("other programs", format!("used {:.0}% of the CPUs before the test{host}{load}", busy * 100.0));
    }
    match &t.gpu {
        GpuReport::None(why) => row("GPU", format!("none: {why}")),
        GpuReport::There { name, memory, rates, module, unpinnable } => {
            row("GPU", format!("{name}: {}", memory_words(*memory)));
            if let Ok((bus, within)) = rates {
                row("", format!("{:.0} GB/s memory bandwidth, {:.1} GB/s over the bus", within / 1e9, bus / 1e9));
            }
            let from = match unpinnable {
                None => "directly from the mapped model file",
                Some(_) => "from memory that the model is read into, or through staging copies; see the remarks",
            };
            row("experts reach it", from.into());
            row("kernel module", module.clone().unwrap_or_else(|| "version unknown".into()));
            for (name, memory) in &t.more_gpus {
                row("another GPU", format!("{name}: {}", memory_words(*memory)));
            }
            for l in &h.links {
                row("", format!("{} of {} lanes at {}", l.lanes.0, l.lanes.1, l.address));
            }
        }
    }
}

/// What counts for the speed of a model.
fn machine(h: &Host, t: &Tested) -> Machine {
    let gpu = match &t.gpu {
        GpuReport::There { memory: Some((free, _)), rates: Ok((_, vram)), .. } => Some((*free, *vram)),
        _ => None,
    };
    Machine { memory: h.memory.map(|m| m.total), rate: t.best() * 1e9, gpu }
}

fn object(h: &Host, t: &Tested, drive: &DriveReport, remarks: &[Remark]) -> Value {
    let top = &h.topology;
    let sticks = h.sticks.as_ref().and_then(|s| s.as_ref().ok()).map(|list| {
        let one = |s: &crate::cpu::Stick| {
            json!({ "place": s.place, "bytes": s.bytes, "rated_mts": s.rated, "runs_mts": s.runs, "gbps": s.gbps() })
        };
        list.iter().map(one).collect::<Vec<_>>()
    });
    let rate = |(threads, gbps): (usize, f64), siblings: bool| json!({ "threads": threads, "gbps": gbps, "siblings": siblings });
    let bandwidth = t.by_threads.iter().map(|x| rate(*x, false)).chain(t.siblings.map(|x| rate(x, true)));
    let (gpu, none) = match &t.gpu {
        GpuReport::None(why) => (Value::Null, Some(why)),
        GpuReport::There { name, memory, rates, module, unpinnable } => {
            let rates = rates.as_ref().ok();
            let gpu = json!({
                "name": name,
                "total_bytes": memory.map(|m| m.1),
                "free_bytes": memory.map(|m| m.0),
                "vram_gbps": rates.map(|r| r.1 / 1e9),
                "bus_gbps": rates.map(|r| r.0 / 1e9),
                "kernel_module": module,
                "pins_mapped_files": unpinnable.is_none(),
                "lanes": h.links.iter().map(|l| json!({ "at": l.address, "now": l.lanes.0, "most": l.lanes.1 })).collect::<Vec<_>>(),
            });
            (gpu, None)
        }
    };
    json!({
        "cpu": {
            "name": h.cpu,
            "isa": { "used": t.isa.name(), "detected": t.detected.name() },
            "matrix_tiles": matrix_tiles(t),
            "flags": flags(h),
            "cores": top.cores(|c| !c.efficient),
            "efficiency_cores": top.cores(|c| c.efficient),
            "logical": top.cpus.len(),
            "allowed": top.cpus.iter().filter(|c| c.allowed).count(),
            "threads": default_threads(),
            "cache_bytes": top.cache,
        },
        "limits": {
            "cpus": h.limits.cpus,
            "memory_bytes": h.limits.memory.map(|m| m.0).filter(|n| h.memory.is_some_and(|m| *n <= m.total)),
            "lockable_bytes": h.lockable.filter(|n| *n < usize::MAX),
        },
        "memory": {
            "total_bytes": h.memory.map(|m| m.total),
            "free_bytes": h.memory.map(|m| m.free),
            "swap_bytes": h.swap.map(|s| s.0),
            "swap_free_bytes": h.swap.map(|s| s.1),
            "huge_pages": h.huge_pages,
            "huge_reserved_bytes": h.huge_reserved.map(|(n, bytes)| n.saturating_mul(bytes)),
            "sticks": sticks,
            "sticks_unknown": h.sticks.as_ref().and_then(|s| s.as_ref().err()),
        },
        "nodes": h.nodes.iter().map(|n| {
            json!({ "node": n.id, "cpus": n.cpus, "total_bytes": n.total, "free_bytes": n.free })
        }).collect::<Vec<_>>(),
        "numa": {
            "divides": h.numa.as_ref().is_some_and(Result::is_ok),
            "why": h.numa.as_ref().and_then(|n| n.as_ref().err()),
        },
        "governors": h.governors.iter().map(|g| {
            json!({ "driver": g.driver, "governor": g.name, "preference": g.preference, "cpus": g.cpus })
        }).collect::<Vec<_>>(),
        "others": {
            "busy": t.others.map(|o| o.0),
            "stolen": t.others.map(|o| o.1),
            "load": h.load,
        },
        "virtual_machine": h.virtual_machine,
        "bandwidth": bandwidth.collect::<Vec<_>>(),
        "drive": drive.object(),
        "more_gpus": t.more_gpus.iter().map(|(name, memory)| {
            json!({ "name": name, "total_bytes": memory.map(|m| m.1), "free_bytes": memory.map(|m| m.0) })
        }).collect::<Vec<_>>(),
        "gpu": gpu,
        "gpu_unknown": none,
        "models": models::object(&machine(h, t)),
        "remarks": remarks.iter().map(|r| {
            json!({ "weight": r.weight.word(), "about": r.about, "words": r.words })
        }).collect::<Vec<_>>(),
    })
}
