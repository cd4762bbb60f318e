//! Reads a file's weights into memory of which the rows of every matrix are divided over NUMA nodes.
//!
//! ```text
//! file, memory   ..|= expert 0, first rows =|= expert 0, last rows =|= expert 1, first rows =|= expert 1, last ..
//! read by           threads of node 0         threads of node 1       threads of node 0        threads of node 1
//! ```
//! The bytes are in memory as they are in the file. A page lies on the node of the thread that writes it first, which
//! is pinned there, and is bound to it meanwhile, so that the system gives up that node's page cache rather than take
//! memory of another. Pages are of 4 KiB: one of 2 MiB holds rows of both nodes, since half an expert is often less.
//!
//! Rejected: the page cache placed by the thread that reads a part of the file first, which has no effect on what is
//! cached already, and whose reads ahead, in pieces of up to 2 MiB, go beyond the rows of one node. Moving its pages
//! (move_pages), which leaves those that another program maps. A policy for each range (mbind): two ranges for every
//! matrix of every expert are more than the 65530 that a process may have. All rows of a node together in one range
//! with huge pages: then an expert is in several pieces, which everything that reads a stack of them would have to
//! know.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use anyhow::Result;
use memmap2::{MmapMut, MmapOptions};

use super::Tensor;
use super::map::{READ, read_at};
use crate::cpu::{NodeSplit, NumaNodes, bound_to, in_parallel, leave_in_place, nodes_of};

/// Bytes of tensors that are read by any node's threads: a product with so few is one thread's.
const SMALL: usize = 64 << 10;
/// Pages of a file that are looked at, at most.
const LOOKED_AT: usize = 4096;
const PAGE: usize = 4096;

/// How rows are divided, and the threads that read them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OverNodes<'a> {
    pub(crate) nodes: &'a NumaNodes,
    pub(crate) split: &'a NodeSplit,
}

/// What lies on which node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OnNodes {
    /// Bytes of weights that are each node's.
    pub bytes: Vec<usize>,
    /// Pages that were looked at, where the system tells.
    pub seen: usize,
    /// Those of them that lie where they should.
    pub right: usize,
}

/// The bytes of a file that one node's threads read.
type NodeRange = (Range<usize>, usize);

/// A part of the memory that is to be read, and its place in the file.
type Part<'a> = (&'a mut [u8], u64);

/// The ranges of these tensors by node, in the order of the file.
pub(super) fn ranges<'a>(tensors: impl Iterator<Item = &'a Tensor>, split: &NodeSplit) -> Vec<NodeRange> {
    let mut list: Vec<NodeRange> = Vec::new();
    for t in tensors.filter(|t| t.bytes >= SMALL && t.shape.len() > 1) {
        let [rows, _] = t.shape[t.shape.len() - 2..] else { continue };
        let stride = t.bytes / (t.elements() / t.shape[t.shape.len() - 1]);
        for matrix in (t.range().start..t.range().end).step_by(rows * stride) {
            for node in 0..split.nodes() {
                let of = split.rows_of(node, rows);
                list.push((matrix + of.start * stride..matrix + of.end * stride, node));
            }
        }
    }
    list.retain(|(range, _)| !range.is_empty());
    list.sort_by_key(|(range, _)| range.start);
    list
}

/// Reads a file of `len` bytes into fresh pages, all but the places in `keep`, which are in order; `ranges` by the
/// threads of their nodes.
pub(super) fn read(
    file: &File,
    len: usize,
    keep: &[Range<usize>],
    (over, ranges): (OverNodes<'_>, &[NodeRange]),
) -> Result<MmapMut> {
    let mut options = MmapOptions::new();
    if !keep.is_empty() {
        options.no_reserve_swap(); // what stays in the file is no memory that is promised
    }
    let mut pages = options.len(len).map_anon()?;
    #[cfg(target_os = "linux")]
    let _ = pages.advise(memmap2::Advice::NoHugePage); // a system without them need not be told
    let nodes = over.split.nodes();
    let mut queues: Vec<VecDeque<Part<'_>>> = (0..=nodes).map(|_| VecDeque::new()).collect(); // the last is anybody's
    let (mut rest, mut at) = (&mut pages[..], 0);
    for (range, to) in jobs(len, keep, ranges, nodes) {
        let (part, after) = std::mem::take(&mut rest).split_at_mut(range.start - at).1.split_at_mut(range.len());
        (rest, at) = (after, range.end);
        let parts = part.chunks_mut(READ).zip((range.start as u64..).step_by(READ));
        queues[to].extend(parts);
    }
    let queues: Vec<Mutex<VecDeque<Part<'_>>>> = queues.into_iter().map(Mutex::new).collect();
    let next = |queue: usize| queues[queue].lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let drain = |queue: usize| -> io::Result<()> {
        while let Some((part, at)) = next(queue) {
            read_at(file, part, at)?;
        }
        Ok(())
    };
    let done = in_parallel(|| {
        let threads = NodeSplit::new(over.nodes, rayon::current_num_threads());
        rayon::broadcast(|thread| {
            // As the threads are pinned: the last one has the CPU of a loop's caller.
            let node = threads.node_of((thread.index() + 1) % thread.num_threads());
            bound_to(over.split.ids[node], || drain(node))?;
            drain(nodes)
        })
    })?;
    done.into_iter().collect::<io::Result<()>>()?;
    leave_in_place(&pages);
    Ok(pages)
}

/// What is to be read of a file of `len` bytes, in order, with the queue of each part: its node's, or `anybody`'s.
fn jobs(len: usize, keep: &[Range<usize>], ranges: &[NodeRange], anybody: usize) -> Vec<NodeRange> {
    let kept = keep.iter().map(|range| (range.clone(), None));
    let mut marked: Vec<(Range<usize>, Option<usize>)> = kept.collect();
    marked.extend(ranges.iter().map(|(range, node)| (range.clone(), Some(*node))));
    marked.sort_by_key(|(range, _)| range.start);
    marked.push((len..len, None)); // the end
    let (mut jobs, mut at): (Vec<NodeRange>, usize) = (Vec::new(), 0);
    for (range, node) in marked {
        let start = range.start.max(at); // tensors of a strange file may share bytes
        if at < start {
            jobs.push((at..start, anybody));
        }
        if let Some(node) = node.filter(|_| start < range.end) {
            jobs.push((start..range.end, node));
        }
        at = at.max(range.end);
    }
    jobs
}

/// Looks at some pages of what was read, and adds what is found.
pub(super) fn look(pages: &[u8], ranges: &[NodeRange], split: &NodeSplit, found: &mut OnNodes) {
    found.bytes.resize(split.nodes(), 0);
    ranges.iter().for_each(|(range, node)| found.bytes[*node] += range.len());
    let all: usize = ranges.iter().map(|(range, _)| range.len()).sum();
    let step = (all / LOOKED_AT).max(PAGE);
    let (mut before, mut next, mut places) = (0, 0, Vec::new());
    for (range, node) in ranges {
        while next < before + range.len() {
            // A page that is the node's alone.
            let page = (range.start + next - before).next_multiple_of(PAGE);
            if page + PAGE <= range.end {
                places.push((pages[page..].as_ptr(), split.ids[*node]));
            }
            next += step;
        }
        before += range.len();
    }
    let list: Vec<*const u8> = places.iter().map(|p| p.0).collect();
    let Ok(nodes) = nodes_of(&list) else { return }; // a container may forbid to look
    found.seen += nodes.len();
    found.right += nodes.iter().zip(&places).filter(|(is, (_, should))| **is == Some(*should)).count();
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;

    use super::*;
    use crate::cpu::{Pool, WeightNode};
    use crate::gguf::TensorType;

    fn nodes(cores: &[usize]) -> Arc<NumaNodes> {
        let node = |(id, n): (usize, &usize)| WeightNode { id: 0, cpus: vec![id; *n], cores: *n };
        Arc::new(NumaNodes { list: cores.iter().enumerate().map(node).collect() })
    }

    fn tensor(shape: &[usize], offset: u64) -> Tensor {
        let ty = TensorType::by_id(0).unwrap(); // of 4 bytes
        let bytes = shape.iter().product::<usize>() * 4;
        Tensor { name: "t".into(), shape: shape.into(), ty, shard: 0, offset, bytes }
    }

    #[test]
    fn every_expert_s_first_rows_are_node_0_s_and_small_tensors_are_nobody_s() {
        let split = NodeSplit::new(&nodes(&[3, 1]), 4);
        let tensors = [tensor(&[2, 64, 256], 1000), tensor(&[64, 4], 500), tensor(&[70_000], 200_000)];
        let row = 1024;
        let list = ranges(tensors.iter(), &split);
        let at = |expert: usize, rows: Range<usize>| {
            let start = 1000 + expert * 64 * row;
            start + rows.start * row..start + rows.end * row
        };
        // 48 rows would be three quarters; a share is of whole panels.
        let want = [(at(0, 0..32), 0), (at(0, 32..64), 1), (at(1, 0..32), 0), (at(1, 32..64), 1)];
        assert_eq!(list, want);
        assert!(ranges([tensor(&[64, 255], 0)].iter(), &split).is_empty());
    }

    #[test]
    fn every_byte_that_does_not_stay_is_read_once() {
        let ranges = [(100..200, 0), (200..300, 1), (250..260, 0), (500..600, 1), (580..700, 0)];
        let jobs = jobs(1000, &[300..400, 700..720], &ranges, 2);
        let want =
            [(0..100, 2), (100..200, 0), (200..300, 1), (400..500, 2), (500..600, 1), (600..700, 0), (720..1000, 2)];
        assert_eq!(jobs, want);
        assert_eq!(super::jobs(50, &[], &[], 2), [(0..50, 2)]);
        assert_eq!(super::jobs(50, std::slice::from_ref(&(0..50)), &[], 2), []);
    }

    #[test]
    fn a_file_that_is_read_over_nodes_is_read_whole_and_its_pages_are_looked_at() {
        let bytes: Vec<u8> = (0..3_000_000usize).map(|i| (i * 7 + i / 256) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        let nodes = nodes(&[1, 1]);
        let _pool = Pool::over_nodes(2, &nodes).unwrap();
        let split = NodeSplit::new(&nodes, 2);
        let tensors = [tensor(&[5, 256, 400], 4096), tensor(&[200, 500], 2_100_000)];
        let ranges = ranges(tensors.iter(), &split);
        let keep: [Range<usize>; 1] = std::array::from_fn(|_| 2_600_000..2_700_000);
        let pages = read(&file, bytes.len(), &keep, (OverNodes { nodes: &nodes, split: &split }, &ranges)).unwrap();
        assert!(pages[..keep[0].start] == bytes[..keep[0].start] && pages[keep[0].end..] == bytes[keep[0].end..]);
        assert!(pages[keep[0].clone()].iter().all(|b| *b == 0), "what stays in the file is not read");
        let mut found = OnNodes::default();
        look(&pages, &ranges, &split, &mut found);
        assert_eq!(found.bytes.iter().sum::<usize>(), tensors.iter().map(|t| t.bytes).sum::<usize>());
        // All of a machine with one node is node 0's; a system may not tell.
        assert!(found.seen == 0 || found.seen > 400 && found.right <= found.seen, "{found:?}");
        // A file that ends too early is an error, not a page of zeros.
        file.set_len(1_000_000).unwrap();
        assert!(read(&file, bytes.len(), &[], (OverNodes { nodes: &nodes, split: &split }, &ranges)).is_err());
    }
}
