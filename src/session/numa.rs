//! Weights divided over the memory of NUMA nodes, so that each node's threads read what is in their own (`--numa`).
//!
//! Of every matrix the first rows are node 0's and so on, by the nodes' shares of the threads. The file is read for
//! that, as `--no-mmap` reads it; the context and the activations stay where they come to lie.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;

use super::ram::Needs;
use super::{Options, RamPool};
use crate::cpu::{Memory, NodeSplit, NumaNodes, Pool, WeightNode, default_threads, is_governed};
use crate::exec;
use crate::gguf::{Gguf, Load, OnNodes, OverNodes};
use crate::plan::{Plan, Shape};
use crate::tape::Tape;

/// What is asked of NUMA nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numa {
    /// Nothing, for this reason.
    Off(&'static str),
    /// To divide weights over them where that is worth reading the file for.
    Auto,
    /// To divide weights over them wherever that can be done.
    Distribute,
}

/// Bytes of weights for each node below which [`Numa::Auto`] leaves the file mapped: two caches of a server's socket
/// hold as much. A judgement, not a measurement.
const WORTH: usize = 1 << 30;
/// Of the memory that is free on a node, and of all, the part that is left to others: one byte in this many.
const LEFT: usize = 16;
/// Of the pages that are looked at, the percentage below which they are told to lie badly.
const GOOD: usize = 90;

/// How weights would be divided.
#[derive(Clone, Debug)]
pub struct NumaPlan {
    /// The nodes.
    pub nodes: Arc<NumaNodes>,
    /// The division of the threads that decode.
    pub split: NodeSplit,
    /// Bytes of weights in all: of the file, less what stays there.
    pub bytes: usize,
}

/// What became of it.
#[derive(Clone, Debug)]
pub enum NumaOutcome {
    /// The file stays as it was, for this reason.
    Off(String),
    /// Each node's threads read their own rows.
    On {
        /// The division.
        plan: NumaPlan,
        /// What lies where.
        found: OnNodes,
    },
}

impl NumaPlan {
    /// How this machine's nodes would share a model's weights under these options, or why they do not. `ram`: experts
    /// are read from the drive as they are needed.
    ///
    /// # Errors
    /// The reason.
    pub fn new(
        gguf: &Gguf,
        (tape, plan, shape): (&Tape, &Plan, Shape),
        ram: bool,
        o: &Options,
    ) -> Result<NumaPlan, String> {
        if let Numa::Off(why) = o.numa {
            return Err(why.into());
        }
        let nodes = NumaNodes::of_this_machine()?;
        let needs = Needs::of(gguf, tape, plan, shape);
        let mapped: usize = tape.mapped().map(|w| gguf.tensors[w.tensor].bytes).sum();
        let bytes = (gguf.bytes() as usize).saturating_sub(mapped);
        let is_mapped = (0..gguf.shards().count()).all(|shard| gguf.is_mapped(shard));
        let counts = threads(o);
        let asked = Asked {
            is_auto: o.numa == Numa::Auto,
            is_mapped,
            ram,
            threads: &counts,
            on_cpu: needs.dense + needs.experts,
            bytes,
            others: needs.others,
        };
        asked.check(&nodes, &nodes.free(Path::new("/")), Memory::of_this_machine())?;
        if is_governed() {
            return Err("this process has a memory policy already, as numactl sets one: start it without --membind, \
                        --interleave and --preferred"
                .into());
        }
        let split = NodeSplit::new(&nodes, counts[0]);
        Ok(NumaPlan { nodes, split, bytes })
    }

    /// Bytes of weights of a node, about: its share of the threads.
    pub fn bytes_of(&self, node: usize) -> usize {
        share(self.bytes, &self.split, node)
    }
}

/// Threads for single tokens, and for prompts if they were asked for.
fn threads(o: &Options) -> Vec<usize> {
    let counts = [Some(o.threads), o.threads_batch].into_iter().flatten();
    counts.map(|n| if n == 0 { default_threads() } else { n }).collect()
}

/// A node's share of bytes that are divided as its threads are.
fn share(bytes: usize, split: &NodeSplit, node: usize) -> usize {
    let all: usize = (0..split.nodes()).map(|n| split.threads_of(n)).sum();
    (bytes as f64 * split.threads_of(node) as f64 / all as f64) as usize
}

/// What the decision depends on besides the machine.
#[derive(Clone, Copy, Debug)]
struct Asked<'a> {
    is_auto: bool,
    is_mapped: bool,
    ram: bool,
    /// Threads for single tokens, and for prompts if these are others.
    threads: &'a [usize],
    /// Bytes of weights that the CPU multiplies by.
    on_cpu: usize,
    /// Bytes that would be read.
    bytes: usize,
    /// Bytes of the context and of working memory.
    others: usize,
}

impl Asked<'_> {
    /// Why weights are not divided over these nodes, of which so many bytes are free each.
    fn check(&self, nodes: &NumaNodes, free: &[usize], memory: Option<Memory>) -> Result<(), String> {
        let gb = |bytes: usize| format!("{:.1} GB", bytes as f64 / 1e9);
        let left = |bytes: usize| bytes - bytes / LEFT;
        if self.ram {
            return Err("experts are read from the drive into memory that is not divided (--ram)".into());
        }
        if !self.is_mapped {
            return Err("the model is in memory already, or its file cannot be mapped".into());
        }
        if self.on_cpu == 0 {
            return Err("the CPU multiplies by no weights".into());
        }
        let least = WORTH * nodes.list.len();
        if self.is_auto && self.on_cpu < least {
            let (has, least) = (gb(self.on_cpu), gb(least));
            return Err(format!(
                "{has} of weights are little, less than {least}: --numa distribute divides them all the same"
            ));
        }
        for n in self.threads {
            let in_use = NodeSplit::new(nodes, *n).in_use();
            if in_use < 2 {
                return Err(format!("-t {n}: all threads are on one node of {}", nodes.list.len()));
            }
        }
        let need = self.bytes + self.others;
        if let Some(m) = memory.filter(|m| need > left(m.free)) {
            return Err(format!("reading the file takes {} of memory, and {} are free", gb(need), gb(m.free)));
        }
        let split = NodeSplit::new(nodes, self.threads[0]);
        for (node, (WeightNode { id, .. }, free)) in nodes.list.iter().zip(free).enumerate() {
            let need = share(self.bytes, &split, node);
            if need > left(*free) {
                return Err(format!("node {id} has {} free for its {} of the weights", gb(*free), gb(need)));
            }
        }
        Ok(())
    }
}

/// What became of NUMA nodes, and the pool that keeps the threads on them until a session has pools of its own.
pub(super) struct Divided {
    pub(super) outcome: NumaOutcome,
    pub(super) pool: Option<Pool>,
}

impl Divided {
    /// Whether weights are divided over nodes.
    pub(super) fn is_on(&self) -> bool {
        self.pool.is_some()
    }
}

/// Divides the weights of a model whose file is mapped over this machine's nodes, if it is to be; else reads or locks
/// the file as the options say.
///
/// # Errors
/// If the file cannot be read, or threads cannot be started.
pub(super) fn settle(
    gguf: &mut Gguf,
    (tape, plan, shape): (&Tape, &Plan, Shape),
    ram: Option<&RamPool>,
    o: &Options,
) -> Result<Divided> {
    let mapped: Vec<usize> = tape.mapped().map(|w| w.tensor).collect();
    let divided = match NumaPlan::new(gguf, (tape, plan, shape), ram.is_some(), o) {
        Ok(divided) => divided,
        Err(why) => {
            // What was put off until this was known.
            if o.first_load() != o.load {
                if !o.load.mmap {
                    exec::check_weights(gguf, &mapped, Memory::of_this_machine())?;
                }
                gguf.settle(&o.load, &mapped)?;
            }
            tracing::debug!("NUMA: off, because {why}");
            return Ok(Divided { outcome: NumaOutcome::Off(why), pool: None });
        }
    };
    let (n, gb) = (divided.split.in_use(), |bytes: usize| bytes as f64 / 1e9);
    tracing::info!(
        "reading the weights ({:.1} GB) into the memory of {n} NUMA nodes (--numa off leaves the file mapped)",
        gb(divided.bytes)
    );
    let pool = Pool::over_nodes(threads(o).into_iter().max().unwrap_or(0), &divided.nodes)?;
    let over = OverNodes { nodes: &divided.nodes, split: &divided.split };
    let found = gguf.settle_over(over, o.load.mlock, &mapped)?;
    let node = |(i, node): (usize, &WeightNode)| {
        format!("node {}: {:.2} GB, {} threads", node.id, gb(found.bytes[i]), divided.split.threads_of(i))
    };
    let list: Vec<String> = divided.nodes.list.iter().enumerate().map(node).collect();
    tracing::debug!("NUMA: {}; {}", list.join("; "), lies(&found));
    if found.right * 100 < found.seen * GOOD {
        tracing::warn!(
            "NUMA: only {}: a node was short of free memory; close programs there, or use --numa off",
            lies(&found)
        );
    }
    Ok(Divided { outcome: NumaOutcome::On { plan: divided, found }, pool: Some(pool) })
}

/// What was seen of where pages are.
fn lies(found: &OnNodes) -> String {
    match found.seen {
        0 => "where pages are cannot be told here".into(),
        n => {
            format!("{:.1}% of {n} pages that were looked at are on their node", found.right as f64 * 100.0 / n as f64)
        }
    }
}

impl Options {
    /// How a model's files are opened at first: mapped, where the weights may be divided over NUMA nodes, which is decided
    /// when the session is made; it then does what `load` says if they are not.
    pub fn first_load(&self) -> Load {
        match self.numa {
            Numa::Auto | Numa::Distribute if NumaNodes::of_this_machine().is_ok() => Load::default(),
            _ => self.load,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nodes of so many cores, and of so many free bytes each.
    fn nodes(cores: &[usize], free: &[usize]) -> (NumaNodes, Vec<usize>) {
        let node = |(id, n): (usize, &usize)| WeightNode { id, cpus: (0..*n).collect(), cores: *n };
        (NumaNodes { list: cores.iter().enumerate().map(node).collect() }, free.to_vec())
    }

    const GB: usize = 1 << 30;

    /// A model of 40 GB on two nodes of 16 cores.
    fn asked() -> Asked<'static> {
        Asked {
            is_auto: true,
            is_mapped: true,
            ram: false,
            threads: &[32],
            on_cpu: 39 * GB,
            bytes: 40 * GB,
            others: GB,
        }
    }

    fn why(asked: Asked<'_>, (nodes, each): &(NumaNodes, Vec<usize>), free: usize) -> String {
        asked.check(nodes, each, Some(Memory { total: 128 * GB, free })).err().unwrap_or_default()
    }

    #[test]
    fn weights_are_divided_where_they_fit_and_every_other_case_has_its_reason() {
        let two = nodes(&[16, 16], &[60 * GB, 60 * GB]);
        assert_eq!(why(asked(), &two, 120 * GB), "");
        let cases = [
            (Asked { ram: true, ..asked() }, 120, "--ram"),
            (Asked { is_mapped: false, ..asked() }, 120, "in memory already"),
            (Asked { on_cpu: 0, ..asked() }, 120, "no weights"),
            (Asked { on_cpu: GB, ..asked() }, 120, "are little"),
            (Asked { threads: &[1], ..asked() }, 120, "-t 1: all threads are on one node of 2"),
            (Asked { threads: &[32, 1], ..asked() }, 120, "-t 1"),
            (asked(), 42, "and 45.1 GB are free"),
            (Asked { bytes: 118 * GB, ..asked() }, 400, "node 0 has 64.4 GB free for its 63.4 GB"),
        ];
        for (asked, free, words) in cases {
            let why = why(asked, &two, free * GB);
            assert!(why.contains(words), "{words}: {why}");
        }
        assert_eq!(why(Asked { on_cpu: GB, is_auto: false, ..asked() }, &two, 120 * GB), "", "asked for by name");
    }

    #[test]
    fn uneven_nodes_need_memory_by_their_threads() {
        // 8 of 32 threads are on node 1: 10 of 40 GB.
        let uneven = |free: usize| nodes(&[24, 8], &[60 * GB, free]);
        assert_eq!(why(asked(), &uneven(11 * GB), 120 * GB), "");
        assert!(why(asked(), &uneven(10 * GB), 120 * GB).contains("node 1 has 10.7 GB"));
        let four = nodes(&[4, 4, 4, 4], &[11 * GB, 11 * GB, 11 * GB, 11 * GB]);
        assert_eq!(why(Asked { threads: &[16], ..asked() }, &four, 60 * GB), "");
        // Two threads on four nodes: two of them have half of the weights each.
        assert!(why(Asked { threads: &[2], ..asked() }, &four, 60 * GB).contains("for its 21.5 GB"));
    }
}
