//! A session with a GPU: what is placed there and read for it when it is opened, and how it goes on
//! when the GPU fails.
//!
//! A GPU that is lost takes along what the sequences remembered there. What they have read is known
//! as tokens, so the session can be made again on the CPU and read them again; whoever called sees
//! a call that takes longer.

use std::sync::Arc;

use anyhow::{Context, Result};

use super::numa::Divided;
use super::{Options, Sequence, Session, Want, settle, shape, tape};
use crate::cpu::{Memory, Pool};
use crate::cuda::{self, Gpu, HostMemory, OutOfMemory};
use crate::exec::{Device, Engine, GpuLost, RamPool, Weights};
use crate::gguf::{Gguf, Load};
use crate::plan::{self, Fit, Place};
use crate::tape::{ExpertShare, Tape};

/// Of the memory that programs could have, the share that the weights may take where they are read
/// without being asked for.
const SHARE: f64 = 0.8;

/// Of the GPU memory that is free, what is left to the driver: graphs, and what the display may
/// want. A GPU that is `shown` draws a screen too. (Page tables of pinned memory are in a
/// placement's [`Footprint::needed`](plan::Footprint::needed); kernels' code is loaded before free
/// memory is asked for.)
pub fn margin(free: usize, shown: bool) -> usize {
    let screen = if shown { (free / 8).min(512 << 20) } else { 0 };
    (free / 16).min(384 << 20) + screen
}

/// What may be taken of a GPU's memory now: what is free, without the [`margin`].
///
/// # Errors
/// If the driver reports an error.
pub fn budget(gpu: &Gpu) -> Result<usize> {
    let free = gpu.memory()?.0;
    Ok(free.saturating_sub(margin(free, gpu.shown)))
}

/// Called with each placement that is tried, and with what the one before it had no room for.
type Placed<'a> = &'a mut dyn FnMut(&Fit, Option<&OutOfMemory>) -> Result<()>;

impl Session {
    /// Opens a model on the CPU and GPUs, one or several. Where the driver has less memory to give than it said,
    /// what had no room is told to `placed`, and the next smaller placement is tried. Where a GPU
    /// cannot copy from a mapped file by itself, and [`Options::read_to_pin`] allows it, the
    /// weights are read into memory that it can copy from.
    ///
    /// # Errors
    /// As [`Session::open`]; if the driver fails, unless [`Options::gpu_fallback`] says to go on;
    /// or with what `placed` returns.
    pub fn hybrid(
        mut gguf: Gguf,
        o: &Options,
        gpus: &[Arc<Gpu>],
        mut placed: impl FnMut(&Fit, Option<&OutOfMemory>) -> Result<()>,
    ) -> Result<Session> {
        let (fit, weights, devices, (ram, numa)) = match on_gpus(&mut gguf, o, gpus, &mut placed) {
            Err(e) if o.gpu_fallback && cuda::is_failure(&e) => {
                tracing::warn!("{e:#}; the CPU takes its place (--gpu-fallback)");
                let fit = on_cpu(&gguf, o)?;
                let settled = settle(&mut gguf, (&fit.tape, &fit.plan, fit.shape), o)?;
                let weights = Weights::load(&gguf, &fit.tape, &fit.plan)?;
                (fit, weights, Vec::new(), settled)
            }
            opened => opened?,
        };
        Session::with(gguf, (fit.tape, fit.plan, fit.shape), o, (weights, ram, numa), devices)
    }

    /// The error of a GPU that was lost, if one was: the sequences are then empty, and nothing more
    /// is computed.
    pub fn lost(&self) -> Option<&GpuLost> {
        self.lost.as_ref()
    }

    /// Goes on with the CPU alone. The sequences are empty afterwards.
    ///
    /// # Errors
    /// With the session as it was: [`NoMemory`](crate::exec::NoMemory) if the machine cannot hold
    /// what the sequences remember.
    pub fn leave_gpu(&mut self) -> Result<()> {
        let gguf = self.engine.share_gguf();
        let o = &self.options;
        let fit = on_cpu(&gguf, o)?;
        let weights = Weights::load(&gguf, &fit.tape, &fit.plan)?;
        let many = o.threads_batch.filter(|n| *n != o.threads).map(Pool::new).transpose()?;
        let pools = (Pool::new(o.threads)?, many);
        self.engine = Engine::new(gguf, (fit.tape, fit.plan), pools, fit.shape, weights, Vec::new())?;
        self.ram.iter().try_for_each(|pool| self.engine.pool_experts(pool))?;
        self.shape = fit.shape;
        self.seqs = (0..self.shape.n_seq).map(|_| Sequence::default()).collect();
        self.lost = None;
        Ok(())
    }

    /// Waits for all that the GPU was given, and for draft heads to read what they have not read yet, so that a sequence can
    /// be saved and nothing fails meanwhile.
    ///
    /// # Errors
    /// [`GpuLost`], with all sequences empty, or read again on the CPU where
    /// [`Options::gpu_fallback`] asks for that.
    pub fn settle(&mut self) -> Result<()> {
        let had = self.lengths();
        let heads = (0..self.seqs.len()).try_for_each(|seq| self.heads_follow(seq));
        match heads.and_then(|()| self.engine.settle()) {
            Err(e) if self.lost.is_none() && e.is::<GpuLost>() => self.after_loss(&had, e),
            _ => Ok(()),
        }
    }

    /// The number of tokens of each sequence.
    pub(super) fn lengths(&self) -> Vec<usize> {
        self.seqs.iter().map(|s| s.tokens.len()).collect()
    }

    /// After a call that failed with `e`, since the GPU did: makes the sequences what they were
    /// when they had `had` tokens, on the CPU.
    ///
    /// # Errors
    /// With all sequences empty, where that is not asked for or not possible: `e`, which says so.
    /// What reading returns.
    pub(super) fn after_loss(&mut self, had: &[usize], e: anyhow::Error) -> Result<()> {
        let lost = e.downcast::<GpuLost>()?;
        let mut tokens: Vec<Vec<u32>> = self.seqs.iter_mut().map(|s| std::mem::take(&mut s.tokens)).collect();
        tokens.iter_mut().zip(had).for_each(|(t, n)| t.truncate(*n));
        self.seqs.iter_mut().for_each(|s| s.checkpoints.clear());
        let lost = match self.options.gpu_fallback {
            true => match self.leave_gpu() {
                Ok(()) => {
                    let n: usize = tokens.iter().map(Vec::len).sum();
                    tracing::warn!("{lost}");
                    tracing::warn!("going on with the CPU, which reads {n} tokens again (--gpu-fallback)");
                    let mut again = tokens.iter().enumerate().filter(|(_, t)| !t.is_empty());
                    return again.try_for_each(|(seq, t)| self.feed(seq, t, Want::None).map(drop));
                }
                Err(why) => lost.with_remedy(&format!("the CPU cannot go on: {why:#}")),
            },
            false => lost.with_remedy("start again, or use --gpu-fallback, which goes on with the CPU"),
        };
        self.lost = Some(lost.clone());
        Err(lost.into())
    }
}

/// The placement without a GPU.
fn on_cpu(gguf: &Gguf, o: &Options) -> Result<Fit> {
    plan::fit(tape(gguf, o)?, &o.ask, &[], shape(gguf, o)?)
}

/// A placement with what it has on the GPUs, the experts that are kept in memory where not all are, and what became of NUMA
/// nodes.
type OnGpus = (Fit, Weights, Vec<Device>, (Option<RamPool>, Divided));

/// Places a model on GPUs, as much as fits, and brings it over; without a device where nothing fits.
fn on_gpus(gguf: &mut Gguf, o: &Options, gpus: &[Arc<Gpu>], placed: Placed<'_>) -> Result<OnGpus> {
    let shape = shape(gguf, o)?;
    let mut most = gpus.iter().map(|gpu| budget(gpu)).collect::<Result<Vec<usize>>>()?;
    let mut lack: Option<OutOfMemory> = None;
    let mut last = usize::MAX;
    let mut settled: Option<(Option<RamPool>, Divided)> = None;
    loop {
        let fit = plan::fit(tape(gguf, o)?, &o.ask, &most, shape)?;
        if is_tight(gpus, &fit, &mut most)? {
            continue;
        }
        if fit.footprint.total() >= last
            && let Some(lack) = lack
        {
            return Err(lack).context("-ot places more on the GPU than its memory holds");
        }
        last = fit.footprint.total();
        placed(&fit, lack.as_ref())?;
        // A smaller placement leaves more to the CPU, which may then be more than memory holds.
        let (ram, numa) = match settled.take() {
            Some((ram, numa)) if ram.is_some() || numa.is_on() => (ram, numa),
            _ => settle(gguf, (&fit.tape, &fit.plan, fit.shape), o)?,
        };
        if fit.plan.on_gpu() && o.read_to_pin && ram.is_none() {
            read_to_pin(gguf, &fit.tape, gpus)?;
        }
        let weights = Weights::load(gguf, &fit.tape, &fit.plan)?;
        if !fit.plan.on_gpu() {
            return Ok((fit, weights, Vec::new(), (ram, numa)));
        }
        let mut devices = Vec::with_capacity(gpus.len());
        for (n, gpu) in gpus.iter().enumerate() {
            let place = Place::Gpu(n as u8);
            match Device::open((gpu.clone(), place), gguf, &fit.tape, &fit.plan, &weights, fit.shape) {
                Ok(device) => devices.push(device),
                Err(e) => {
                    lack = Some(e.downcast::<OutOfMemory>()?);
                    most[n] = fit.each[n].total().min(most[n]) * 9 / 10;
                    break;
                }
            }
        }
        if devices.len() == gpus.len() {
            devices.iter_mut().for_each(|device| device.pin(gguf, ram.is_none()));
            return Ok((fit, weights, devices, (ram, numa)));
        }
        settled = Some((ram, numa));
    }
}

/// Loads the kernels of a placement. Their code takes memory that the placement was given: returns whether it must be made
/// again for what is left, which is then in `most`.
fn is_tight(gpus: &[Arc<Gpu>], fit: &Fit, most: &mut [usize]) -> Result<bool> {
    let mut tight = false;
    for (n, gpu) in gpus.iter().enumerate() {
        let place = Place::Gpu(n as u8);
        if !fit.plan.places.contains(&place) {
            continue;
        }
        plan::load_kernels((gpu, place), &fit.tape, &fit.plan, fit.shape)?;
        let left = budget(gpu)?;
        if left < most[n] && fit.each[n].needed() > left {
            (most[n], tight) = (left, true);
        }
    }
    Ok(tight)
}

/// Reads the weights into memory of the program's own, if experts are to be copied from them, the
/// GPU cannot copy from the mapped file by itself, and there is memory enough. A notice says which.
fn read_to_pin(gguf: &mut Gguf, tape: &Tape, gpus: &[Arc<Gpu>]) -> Result<()> {
    let shared = tape.steps.iter().any(|s| s.share == ExpertShare::OnGpu);
    let is_mapped = (0..gguf.shards().count()).any(|shard| gguf.is_mapped(shard));
    let Some(why) = gpus.iter().find_map(|gpu| gpu.pin_mode(HostMemory::Mapped).err()) else { return Ok(()) };
    if !shared || !is_mapped {
        return Ok(());
    }
    let mapped: Vec<usize> = tape.mapped().map(|w| w.tensor).collect();
    let stays: u64 = mapped.iter().map(|&i| gguf.tensors[i].bytes as u64).sum();
    let need = gguf.bytes().saturating_sub(stays) as f64;
    let free = Memory::of_this_machine().map_or(0.0, |m| m.free as f64);
    let (gb, has) = (need / 1e9, free / 1e9);
    if need > free * SHARE {
        tracing::info!(
            "the file stays mapped, though {why}: reading it (--no-mmap) takes {gb:.2} GB of the {has:.1} GB of memory \
             that are free"
        );
        return Ok(());
    }
    tracing::info!("reading the weights into memory ({gb:.2} GB), since {why} (--keep-mmap leaves the file mapped)");
    gguf.settle(&Load { mmap: false, mlock: false }, &mapped)
}
