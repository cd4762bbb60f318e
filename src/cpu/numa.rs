//! NUMA nodes: which threads compute on which node, and which rows of a matrix are read there.
//!
//! From Linux's files (Documentation/ABI/stable/sysfs-devices-node and Documentation/filesystems/proc.rst in its
//! sources):
//! ```text
//! /sys/devices/system/node/nodeN/cpulist      0-31,64-95   of these count those that are online and allowed
//! /sys/devices/system/node/nodeN/meminfo      Node 0 MemTotal: 1 kB; MemFree; Active(file), Inactive(file): page cache
//! /sys/devices/system/node/nodeN/distance     10 21        to every node, in the order of their numbers
//! /proc/self/status, Mems_allowed_list        0-1          the nodes whose memory this process may have
//! ```
//! A node counts if it has memory and CPUs that this process may use both. CPUs of a node without such memory go with
//! the nearest node that has some; memory without CPUs (an expander) takes no weights.
//!
//! ```text
//! thread            0    1    2    3    4       the caller of a loop, then the workers
//! node              0    1    0    1    0       so that any first n of them are shared out as the cores are
//! its number        0    3    1    4    2       in a loop of 5: in the order of the nodes
//! rows of a matrix  |- node 0: 3/5 -|- node 1: 2/5 -|
//! ```
//! A loop gives its first indices to the thread of number 0. So the first rows of every matrix are always node 0's.
//!
//! Rejected: whole experts by node, of which a token's eight fall on two nodes as 4 and 4 in a quarter of the cases
//! only, and every step would wait for the node that has more. Threads in the order of the nodes without numbers of
//! their own: of `-t 16 -tb 32` the 16 would all be on node 0.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use super::Topology;
use super::memory::field;
use super::topology::{numbered, parse_list};
use crate::quant::panels::ROWS;

/// A node with memory for weights and CPUs that compute with them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightNode {
    /// The system's number of it.
    pub id: usize,
    /// Logical CPUs that this process may use, in the order in which threads take them: one of each core first.
    pub cpus: Vec<usize>,
    /// Cores of these CPUs.
    pub cores: usize,
}

/// A line of a node's meminfo, in bytes: those of /proc/meminfo after `Node 0 `.
fn of_node(dir: &Path, name: &str) -> usize {
    let meminfo = std::fs::read_to_string(dir.join("meminfo")).unwrap_or_default();
    let plain: Vec<&str> = meminfo.lines().filter_map(|l| l.splitn(3, ' ').nth(2)).collect();
    field(&plain.join("\n"), name).unwrap_or(0)
}

/// The nodes that weights can be divided over: two or more, by their numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NumaNodes {
    /// The nodes.
    pub list: Vec<WeightNode>,
}

impl NumaNodes {
    /// This machine's, as they were when it was first asked for: the CPUs that a thread may use are fewer once it is
    /// held on a node. `TANDEM_NODES=N` divides the CPUs of this machine into N nodes, whatever memory they read
    /// fastest.
    ///
    /// # Errors
    /// Why there is nothing to divide.
    pub fn of_this_machine() -> Result<Arc<NumaNodes>, String> {
        static NODES: OnceLock<Result<Arc<NumaNodes>, String>> = OnceLock::new();
        let read = || {
            let root = Path::new("/");
            match std::env::var("TANDEM_NODES") {
                Err(_) => NumaNodes::read(root),
                Ok(n) => NumaNodes::made_up(root, &n),
            }
        };
        NODES.get_or_init(|| read().map(Arc::new)).clone()
    }

    /// From the system's files below `root`, which is `/` but in tests.
    ///
    /// # Errors
    /// Why there is nothing to divide: there are not two nodes with memory and CPUs for this process.
    pub fn read(root: &Path) -> Result<NumaNodes, String> {
        let topology = Topology::read(root);
        let dirs = numbered(&root.join("sys/devices/system/node"), "node");
        let text = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
        let status = text(&root.join("proc/self/status"));
        let mems = status.lines().find_map(|l| l.strip_prefix("Mems_allowed_list:")).map(parse_list);
        let (mut list, mut cpus_of, mut has_memory) = (Vec::new(), Vec::new(), Vec::new());
        for (id, dir) in &dirs {
            has_memory.push(mems.as_ref().is_none_or(|m| m.contains(id)) && of_node(dir, "MemTotal") > 0);
            list.push(WeightNode { id: *id, cpus: Vec::new(), cores: 0 });
            cpus_of.push(parse_list(&text(&dir.join("cpulist"))));
        }
        for (own, cpus) in cpus_of.iter().enumerate() {
            let distances = text(&dirs[own].1.join("distance"));
            let distances: Vec<usize> = distances.split_whitespace().filter_map(|d| d.parse().ok()).collect();
            let far = |node: usize| if node == own { 0 } else { distances.get(node).copied().unwrap_or(usize::MAX) };
            let Some(home) = (0..list.len()).filter(|n| has_memory[*n]).min_by_key(|n| far(*n)) else { break };
            list[home].cpus.extend(cpus);
        }
        list.iter_mut().for_each(|node| node.order(&topology));
        list.retain(|node| !node.cpus.is_empty());
        match (dirs.len(), &list[..]) {
            (0, _) => Err("the system does not tell its NUMA nodes".into()),
            (1, _) => Err("this machine has one NUMA node".into()),
            (n, []) => Err(format!("of {n} NUMA nodes none has both memory and CPUs that this process may use")),
            (n, [one]) => Err(format!(
                "of {n} NUMA nodes only node {} has both memory and CPUs that this process may use",
                one.id
            )),
            _ => Ok(NumaNodes { list }),
        }
    }

    /// `n` nodes of this machine's CPUs in order, all with the memory of node 0.
    fn made_up(root: &Path, n: &str) -> Result<NumaNodes, String> {
        let topology = Topology::read(root);
        let allowed: Vec<usize> = topology.cpus.iter().filter(|c| c.allowed).map(|c| c.id).collect();
        let n = n.parse::<usize>().ok().filter(|n| (2..=allowed.len()).contains(n));
        let n = n.ok_or(format!("TANDEM_NODES: expected a number from 2 to the {} CPUs", allowed.len()))?;
        let node = |k: usize| {
            let cpus = allowed[allowed.len() * k / n..allowed.len() * (k + 1) / n].to_vec();
            let mut node = WeightNode { id: 0, cpus, cores: 0 };
            node.order(&topology);
            node
        };
        Ok(NumaNodes { list: (0..n).map(node).collect() })
    }

    /// Bytes of each node's memory, below `root`, that are free or hold pages of files, which the system gives up when
    /// they are wanted.
    pub fn free(&self, root: &Path) -> Vec<usize> {
        let dir = |node: &WeightNode| root.join(format!("sys/devices/system/node/node{}", node.id));
        let free = |dir: PathBuf| {
            ["MemFree", "Active(file)", "Inactive(file)"].iter().map(|name| of_node(&dir, name)).sum::<usize>()
        };
        self.list.iter().map(dir).map(free).collect()
    }

    /// The node of each thread of `threads`, the caller's first, and its CPU. The first threads of a longer list are
    /// those of a shorter one.
    fn places(&self, threads: usize) -> Vec<(usize, usize)> {
        let mut used = vec![0; self.list.len()];
        let place = |_| {
            // The node that would have the smallest part of its cores taken; of equals the first.
            let order = |a: &usize, b: &usize| {
                ((used[*a] + 1) * self.list[*b].cores).cmp(&((used[*b] + 1) * self.list[*a].cores))
            };
            let node = (0..used.len()).min_by(order).expect("there are nodes");
            let cpus = &self.list[node].cpus;
            used[node] += 1;
            (node, cpus[(used[node] - 1) % cpus.len()])
        };
        (0..threads).map(place).collect()
    }

    /// The CPU of each of so many threads, the caller's first.
    pub(super) fn cpus(&self, threads: usize) -> Vec<usize> {
        self.places(threads).into_iter().map(|p| p.1).collect()
    }
}

impl WeightNode {
    /// Keeps the CPUs that are allowed, one of each core first, and counts cores.
    fn order(&mut self, topology: &Topology) {
        let mut cpus: Vec<_> = topology.cpus.iter().filter(|c| c.allowed && self.cpus.contains(&c.id)).collect();
        let mut seen = BTreeSet::new();
        let mut rank: Vec<(bool, bool, usize)> =
            cpus.drain(..).map(|c| (c.efficient, !seen.insert(c.core), c.id)).collect();
        rank.sort_unstable();
        self.cores = seen.len();
        self.cpus = rank.into_iter().map(|r| r.2).collect();
    }
}

/// How the threads of a loop, and with them the rows of a matrix, are divided over nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSplit {
    /// The nodes' numbers by the system.
    pub ids: Vec<usize>,
    /// The number of each thread in a loop, the caller's first.
    numbers: Vec<usize>,
    /// The node of each thread, counted from 0, the caller's first.
    node_of: Vec<usize>,
    /// Where the numbers of each node's threads begin, and where the last one's end.
    bounds: Vec<usize>,
    /// CPUs of the caller's node.
    home: Vec<usize>,
}

/// A part of a loop: threads, by number, and the indices that they take first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LoopPart {
    pub(super) threads: Range<usize>,
    pub(super) items: Range<usize>,
}

impl NodeSplit {
    /// The division of a loop of `threads` threads.
    pub fn new(nodes: &NumaNodes, threads: usize) -> NodeSplit {
        let node_of: Vec<usize> = nodes.places(threads).into_iter().map(|p| p.0).collect();
        let count = |node: usize| node_of.iter().filter(|n| **n == node).count();
        let mut bounds = vec![0];
        (0..nodes.list.len()).for_each(|node| bounds.push(bounds[node] + count(node)));
        let mut next = bounds.clone();
        let number = |node: &usize| {
            next[*node] += 1;
            next[*node] - 1
        };
        let numbers = node_of.iter().map(number).collect();
        let home = nodes.list[node_of[0]].cpus.clone();
        NodeSplit { ids: nodes.list.iter().map(|n| n.id).collect(), numbers, node_of, bounds, home }
    }

    /// Nodes, those without a thread included.
    pub fn nodes(&self) -> usize {
        self.ids.len()
    }

    /// Threads of a node.
    pub fn threads_of(&self, node: usize) -> usize {
        self.bounds[node + 1] - self.bounds[node]
    }

    /// Nodes with a thread.
    pub fn in_use(&self) -> usize {
        (0..self.nodes()).filter(|node| self.threads_of(*node) > 0).count()
    }

    /// The node of a thread, counted from 0; the caller is thread 0.
    pub fn node_of(&self, thread: usize) -> usize {
        self.node_of[thread]
    }

    /// The number of each thread in a loop, the caller's first.
    pub(super) fn numbers(&self) -> &[usize] {
        &self.numbers
    }

    /// The numbers of a node's threads.
    pub(super) fn numbers_of(&self, node: usize) -> Range<usize> {
        self.bounds[node]..self.bounds[node + 1]
    }

    /// CPUs of the caller's node.
    pub(super) fn home(&self) -> &[usize] {
        &self.home
    }

    /// The rows of a matrix of `rows` that are a node's: a share as large as its share of the threads, in whole panels
    /// but for the end of the last one.
    pub fn rows_of(&self, node: usize, rows: usize) -> Range<usize> {
        self.share_of(node, rows, ROWS)
    }

    /// A node's share of `n` things, in whole multiples of `unit` but for the end of the last one.
    fn share_of(&self, node: usize, n: usize, unit: usize) -> Range<usize> {
        let all = self.numbers.len();
        let at = |bound: usize| if bound == all { n } else { n * bound / all / unit * unit };
        at(self.bounds[node])..at(self.bounds[node + 1])
    }

    /// The parts of a loop of `n` indices that stand for equal work: each node's is as its share of the threads.
    pub(super) fn parts(&self, n: usize) -> Vec<LoopPart> {
        let part = |node| LoopPart { threads: self.numbers_of(node), items: self.share_of(node, n, 1) };
        (0..self.nodes()).map(part).collect()
    }
}

/// Keeps the calling thread on these CPUs.
///
/// # Errors
/// What the system says; where it has no such call, that.
pub fn run_on(cpus: &[usize]) -> std::io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        let mut set = rustix::thread::CpuSet::new();
        let most = rustix::thread::CpuSet::MAX_CPU;
        cpus.iter().filter(|cpu| **cpu < most).for_each(|cpu| set.set(*cpu));
        Ok(rustix::thread::sched_setaffinity(None, &set)?)
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = cpus;
        Err(std::io::ErrorKind::Unsupported.into())
    }
}

#[cfg(test)]
mod tests {
    use super::super::topology::tests::machine;
    use super::*;

    /// A machine of nodes by their CPU lists, memory in kB and distances; `siblings` cores apart are two threads of a
    /// core.
    fn files(nodes: &[(&str, usize, &str)], cpus: usize, siblings: usize, status: &str) -> Vec<(String, String)> {
        let mut files = vec![
            ("sys/devices/system/cpu/online".to_owned(), format!("0-{}\n", cpus - 1)),
            ("proc/self/status".to_owned(), status.to_owned()),
        ];
        for cpu in 0..cpus {
            let core = cpu % siblings;
            let list = if cpus > siblings { format!("{core},{}\n", core + siblings) } else { format!("{core}\n") };
            files.push((format!("sys/devices/system/cpu/cpu{cpu}/topology/core_cpus_list"), list));
        }
        for (id, (list, kb, distance)) in nodes.iter().enumerate() {
            let dir = format!("sys/devices/system/node/node{id}");
            files.push((format!("{dir}/cpulist"), format!("{list}\n")));
            files.push((format!("{dir}/distance"), format!("{distance}\n")));
            let meminfo = format!(
                "Node {id} MemTotal:       {kb} kB\nNode {id} MemFree:        10 kB\nNode {id} Active(file):        5 kB\n\
                 Node {id} Inactive(file):        3 kB\nNode {id} Shmem:        2 kB\n"
            );
            files.push((format!("{dir}/meminfo"), meminfo));
        }
        files
    }

    fn root(files: &[(String, String)]) -> tempfile::TempDir {
        let files: Vec<(&str, &str)> = files.iter().map(|(p, t)| (&p[..], &t[..])).collect();
        machine(&files)
    }

    fn read(files: &[(String, String)]) -> Result<NumaNodes, String> {
        NumaNodes::read(root(files).path())
    }

    /// Nodes of so many cores each, one CPU to a core.
    fn nodes(cores: &[usize]) -> NumaNodes {
        let mut next = 0;
        let node = |(id, n): (usize, &usize)| {
            next += n;
            WeightNode { id, cpus: (next - n..next).collect(), cores: *n }
        };
        NumaNodes { list: cores.iter().enumerate().map(node).collect() }
    }

    #[test]
    fn two_sockets_with_hyperthreads_give_threads_a_core_each_by_turns() {
        let root = root(&files(&[("0-1,4-5", 1000, "10 21"), ("2-3,6-7", 900, "21 10")], 8, 4, ""));
        let two = NumaNodes::read(root.path()).unwrap();
        assert_eq!(two.free(root.path()), [18 << 10; 2], "free, or pages of files");
        let cpus: Vec<_> = two.list.iter().map(|n| (n.id, n.cpus.clone(), n.cores)).collect();
        assert_eq!(cpus, [(0, vec![0, 1, 4, 5], 2), (1, vec![2, 3, 6, 7], 2)]);
        assert_eq!(two.cpus(6), [0, 2, 1, 3, 4, 6], "the second thread of a core comes after all cores");
        assert_eq!(two.cpus(3), two.cpus(6)[..3], "a shorter list is the beginning of a longer one");
    }

    #[test]
    fn masks_offline_cpus_and_control_groups_bound_what_a_node_has() {
        let both = [("0-3", 1000, "10 21"), ("4-7", 1000, "21 10")];
        let of = |status: &str| read(&files(&both, 8, 8, status));
        let some = of("Cpus_allowed_list:\t1,3,4-6\nMems_allowed_list:\t0-1\n").unwrap();
        assert_eq!((&some.list[0].cpus[..], &some.list[1].cpus[..]), (&[1, 3][..], &[4, 5, 6][..]));
        let one = of("Cpus_allowed_list:\t0-3\n").unwrap_err();
        assert!(one.contains("of 2 NUMA nodes only node 0 has both"), "{one}");
        // All CPUs, but the memory of one node alone.
        let one = of("Cpus_allowed_list:\t0-7\nMems_allowed_list:\t1\n").unwrap_err();
        assert!(one.contains("only node 1"), "{one}");
        // CPUs 6 and 7 are offline: a node's list may still have them for a moment.
        let offline = read(&files(&both, 6, 6, "")).unwrap();
        assert_eq!(offline.list[1].cpus, [4, 5]);
    }

    #[test]
    fn cpus_without_memory_go_with_the_nearest_that_has_some_and_memory_without_cpus_is_left_out() {
        let list = [
            ("0-1", 1000, "10 20 12 30"),
            ("2-3", 1000, "20 10 30 12"),
            ("4", 0, "20 12 10 30"),   // of a socket without memory, near node 1
            ("", 5000, "12 20 30 10"), // an expander
        ];
        let n = read(&files(&list, 5, 5, "")).unwrap();
        let cpus: Vec<_> = n.list.iter().map(|n| (n.id, n.cpus.clone())).collect();
        assert_eq!(cpus, [(0, vec![0, 1]), (1, vec![2, 3, 4])]);
    }

    #[test]
    fn one_node_or_none_is_told_as_that() {
        assert_eq!(read(&files(&[("0-3", 1000, "10")], 4, 4, "")).unwrap_err(), "this machine has one NUMA node");
        assert!(read(&[]).unwrap_err().contains("does not tell"));
        let expander = read(&files(&[("0-3", 1000, "10 14"), ("", 1000, "14 10")], 4, 4, "")).unwrap_err();
        assert!(expander.contains("only node 0"), "{expander}");
    }

    #[test]
    fn every_thread_and_every_row_is_of_one_node_whatever_the_counts() {
        for cores in [&[4][..], &[4, 4], &[2, 6], &[1, 1, 1, 1], &[16, 16, 16, 16], &[60, 4], &[3, 5, 7]] {
            let nodes = nodes(cores);
            let all: usize = cores.iter().sum();
            for threads in 1..=all + 3 {
                let split = NodeSplit::new(&nodes, threads);
                let mut numbers = split.numbers().to_vec();
                for (thread, number) in numbers.iter().enumerate() {
                    let of = split.numbers_of(split.node_of(thread));
                    assert!(of.contains(number), "{cores:?}, {threads}: thread {thread}");
                }
                numbers.sort_unstable();
                assert!(numbers.iter().copied().eq(0..threads), "{cores:?}, {threads}: {numbers:?}");
                for (rows, unit) in [(0, 16), (1, 16), (15, 16), (100, 16), (4096, 16), (7, 1), (1001, 1)] {
                    let mut at = 0;
                    for node in 0..split.nodes() {
                        let of = split.share_of(node, rows, unit);
                        assert!(
                            of.start == at && (of.end == rows || of.end.is_multiple_of(unit)),
                            "{cores:?}, {threads}"
                        );
                        assert!(of.is_empty() || split.threads_of(node) > 0, "rows that no thread of the node takes");
                        at = of.end;
                    }
                    assert_eq!(at, rows);
                }
            }
        }
    }

    #[test]
    fn threads_are_shared_out_as_the_cores_are() {
        let counts = |cores: &[usize], threads: usize| {
            let split = NodeSplit::new(&nodes(cores), threads);
            (0..cores.len()).map(|n| split.threads_of(n)).collect::<Vec<_>>()
        };
        assert_eq!(counts(&[4, 4], 8), [4, 4]);
        assert_eq!(counts(&[4, 4], 5), [3, 2]);
        assert_eq!(counts(&[2, 6], 8), [2, 6]);
        assert_eq!(counts(&[2, 6], 4), [1, 3]);
        assert_eq!(counts(&[4, 4, 4, 4], 2), [1, 1, 0, 0], "fewer threads than nodes");
        assert_eq!(NodeSplit::new(&nodes(&[4, 4, 4, 4]), 2).in_use(), 2);
        assert_eq!(NodeSplit::new(&nodes(&[60, 4]), 2).in_use(), 1, "one thread on four cores would be slow");
    }

    #[test]
    fn the_first_share_of_the_rows_is_node_0_s_and_as_large_as_its_share_of_the_threads() {
        let split = NodeSplit::new(&nodes(&[3, 3]), 5);
        assert_eq!(split.numbers(), [0, 3, 1, 4, 2]);
        assert_eq!((split.rows_of(0, 1000), split.rows_of(1, 1000)), (0..576, 576..1000));
        let parts = split.parts(11);
        assert_eq!(parts[0], LoopPart { threads: 0..3, items: 0..6 });
        assert_eq!(parts[1], LoopPart { threads: 3..5, items: 6..11 });
    }
}
