//! Which logical CPUs there are, what they share, and how many threads compute best on them.
//!
//! From Linux's files (Documentation/ABI/testing/sysfs-devices-system-cpu in its sources):
//! ```text
//! /sys/devices/system/cpu/online                  0-15
//! /sys/devices/system/cpu/cpuN/topology/core_cpus_list     0,8    the logical CPUs of N's core; thread_siblings_list
//!                                                                 before Linux 5.5
//! /sys/devices/system/cpu/cpuN/cpu_capacity       1024   of the fastest core, less of smaller ones
//! /sys/devices/cpu_atom/cpus                      16-23  Intel's efficiency cores, where there are two kinds
//! /sys/devices/system/node/nodeN/cpulist          0-7    a NUMA node's
//! /proc/self/status, Cpus_allowed_list            0-3    those that this process may use
//! ```

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A logical CPU that is online.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// Its number.
    pub id: usize,
    /// The lowest number among the logical CPUs of its core.
    pub core: usize,
    /// Whether it is an efficiency core's.
    pub efficient: bool,
    /// Whether this process may use it.
    pub allowed: bool,
}

/// The machine's logical CPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    /// In rising order; empty where the system does not say.
    pub cpus: Vec<Cpu>,
    /// Bytes of last-level cache, all that there is.
    pub cache: usize,
}

/// Below this share of the largest core's capacity a core counts as an efficiency core, where nothing else says so: Arm's
/// small cores are at a third, its middle ones above two thirds.
const SMALL: f64 = 0.5;

impl Topology {
    /// From the system's files below `root`, which is `/` but in tests.
    pub fn read(root: &Path) -> Topology {
        let text = |path: String| std::fs::read_to_string(root.join(path)).ok();
        let list = |path: String| text(path).map(|t| parse_list(&t));
        let Some(online) = list("sys/devices/system/cpu/online".into()) else { return Topology::default() };
        let status = text("proc/self/status".into()).unwrap_or_default();
        let allowed = status.lines().find_map(|l| l.strip_prefix("Cpus_allowed_list:")).map(parse_list);
        let atoms = list("sys/devices/cpu_atom/cpus".into()).filter(|_| root.join("sys/devices/cpu_core").exists());
        let of = |id: usize, name: &str| format!("sys/devices/system/cpu/cpu{id}/{name}");
        let capacity = |id: &usize| text(of(*id, "cpu_capacity"))?.trim().parse::<f64>().ok();
        let most = online.iter().filter_map(capacity).fold(0.0, f64::max);
        let cpus = online.iter().map(|&id| {
            let siblings = ["topology/core_cpus_list", "topology/thread_siblings_list"];
            let siblings = siblings.into_iter().find_map(|name| list(of(id, name))).unwrap_or_default();
            Cpu {
                id,
                core: siblings.first().copied().unwrap_or(id),
                efficient: match &atoms {
                    Some(atoms) => atoms.contains(&id),
                    None => capacity(&id).is_some_and(|c| c < most * SMALL),
                },
                allowed: allowed.as_ref().is_none_or(|a| a.contains(&id)),
            }
        });
        let cpus: Vec<Cpu> = cpus.collect();
        let mut caches = BTreeSet::new(); // (CPUs that share it, bytes): each once
        for cpu in &cpus {
            let levels = (0..8).filter_map(|i| {
                let field = |name: &str| text(of(cpu.id, &format!("cache/index{i}/{name}")));
                let level: usize = field("level")?.trim().parse().ok()?;
                let data = field("type").is_none_or(|t| t.trim() != "Instruction");
                Some((level, field("shared_cpu_list")?, parse_size(&field("size")?)?)).filter(|_| data)
            });
            if let Some((_, shared, bytes)) = levels.max_by_key(|l| l.0) {
                caches.insert((shared, bytes));
            }
        }
        Topology { cpus, cache: caches.iter().map(|c| c.1).sum() }
    }

    /// Cores with a logical CPU that `which` picks.
    pub fn cores(&self, which: impl Fn(&Cpu) -> bool) -> usize {
        self.cpus.iter().filter(|c| which(c)).map(|c| c.core).collect::<BTreeSet<_>>().len()
    }

    /// Threads that compute best: one for each performance core that this process may use, and no more than `quota` CPUs'
    /// time (a container's limit) is enough for. Two threads of one core share its arithmetic units, and a loop that ends
    /// when the last thread does waits for the slowest core. None where the system does not say what there is.
    pub fn threads(&self, quota: Option<f64>) -> Option<usize> {
        let fast = self.cores(|c| c.allowed && !c.efficient);
        let cores = if fast > 0 { fast } else { self.cores(|c| c.allowed) };
        // A thread more than the quota would spin away the others' time.
        let most = quota.map_or(usize::MAX, |q| (q as usize).max(1));
        (cores > 0).then_some(cores.min(most))
    }
}

/// The numbers of a list as Linux writes it: `0-3,8,10-11`.
pub(super) fn parse_list(text: &str) -> Vec<usize> {
    let range = |part: &str| {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let (from, to): (usize, usize) = (from.trim().parse().ok()?, to.trim().parse().ok()?);
        Some(from..=to.min(from.saturating_add(1 << 16))) // a bound on what a strange file can ask for
    };
    text.trim().split(',').filter_map(range).flatten().collect()
}

/// Folders below `dir` whose names are `prefix` and a number, in its order.
pub(super) fn numbered(dir: &Path, prefix: &str) -> Vec<(usize, PathBuf)> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let number = |name: &str| name.strip_prefix(prefix)?.parse().ok();
    let mut list: Vec<_> = entries.filter_map(|e| Some((number(e.file_name().to_str()?)?, e.path()))).collect();
    list.sort();
    list
}

/// `32768K` or `32M` in bytes.
fn parse_size(text: &str) -> Option<usize> {
    let text = text.trim();
    let (digits, by) = match text.strip_suffix(['K', 'M']) {
        Some(digits) => (digits, if text.ends_with('K') { 1 << 10 } else { 1 << 20 }),
        None => (text, 1),
    };
    digits.parse::<usize>().ok()?.checked_mul(by)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A simulated machine: files of these paths and contents.
    pub(in crate::cpu) fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        root
    }

    /// Logical CPUs by their siblings, which may use those of `allowed`, with more files.
    fn topology(siblings: &[&str], allowed: &str, more: &[(&str, &str)]) -> Topology {
        let online = format!("0-{}\n", siblings.len() - 1);
        let status = format!("Name:\tx\nCpus_allowed:\tff\nCpus_allowed_list:\t{allowed}\n");
        let mut files =
            vec![("sys/devices/system/cpu/online".to_owned(), online), ("proc/self/status".to_owned(), status)];
        for (i, s) in siblings.iter().enumerate() {
            files.push((format!("sys/devices/system/cpu/cpu{i}/topology/core_cpus_list"), format!("{s}\n")));
        }
        files.extend(more.iter().map(|(p, t)| (p.to_string(), t.to_string())));
        let files: Vec<(&str, &str)> = files.iter().map(|(p, t)| (p.as_str(), t.as_str())).collect();
        Topology::read(machine(&files).path())
    }

    #[test]
    fn hyperthreads_of_one_core_count_once() {
        let t = topology(&["0,4", "1,5", "2,6", "3,7", "0,4", "1,5", "2,6", "3,7"], "0-7", &[]);
        assert_eq!((t.cpus.len(), t.threads(None)), (8, Some(4)));
        let t = topology(&["0-1", "0-1", "2-3", "2-3"], "0-3", &[]);
        assert_eq!(t.threads(None), Some(2));
    }

    #[test]
    fn efficiency_cores_are_left_out_unless_they_are_all_that_may_be_used() {
        // Two performance cores with two threads each, four efficiency cores.
        let siblings = ["0-1", "0-1", "2-3", "2-3", "4", "5", "6", "7"];
        let kinds = [("sys/devices/cpu_core/cpus", "0-3\n"), ("sys/devices/cpu_atom/cpus", "4-7\n")];
        assert_eq!(topology(&siblings, "0-7", &kinds).threads(None), Some(2));
        assert_eq!(topology(&siblings, "1,4-7", &kinds).threads(None), Some(1));
        assert_eq!(topology(&siblings, "4-6", &kinds).threads(None), Some(3));
        // A processor of efficiency cores alone has one kind: no folder of the other.
        assert_eq!(topology(&siblings[4..], "0-3", &[("sys/devices/cpu_atom/cpus", "0-3\n")]).threads(None), Some(4));
    }

    #[test]
    fn small_cores_are_told_by_their_capacity_where_nothing_else_tells_them() {
        let capacity = |i: usize, c: &'static str| (format!("sys/devices/system/cpu/cpu{i}/cpu_capacity"), c);
        let files: Vec<(String, &str)> =
            ["1024", "760", "760", "330", "330"].iter().enumerate().map(|(i, c)| capacity(i, c)).collect();
        let files: Vec<(&str, &str)> = files.iter().map(|(p, t)| (p.as_str(), *t)).collect();
        assert_eq!(topology(&["0", "1", "2", "3", "4"], "0-4", &files).threads(None), Some(3));
    }

    #[test]
    fn the_mask_and_the_container_s_limit_bound_the_threads() {
        let siblings = ["0,4", "1,5", "2,6", "3,7", "0,4", "1,5", "2,6", "3,7"];
        assert_eq!(topology(&siblings, "0-1,4-5", &[]).threads(None), Some(2), "two cores, four logical CPUs");
        assert_eq!(topology(&siblings, "4", &[]).threads(None), Some(1), "a sibling alone is its core");
        let t = topology(&siblings, "0-7", &[]);
        assert_eq!(t.threads(Some(2.5)), Some(2));
        assert_eq!(t.threads(Some(0.5)), Some(1));
        assert_eq!(t.threads(Some(64.0)), Some(4));
    }

    #[test]
    fn cpus_that_are_offline_or_numbered_with_gaps_do_not_end_the_count() {
        let t = Topology::read(
            machine(&[
                ("sys/devices/system/cpu/online", "0,2-3\n"),
                ("sys/devices/system/cpu/cpu0/topology/thread_siblings_list", "0\n"),
                ("sys/devices/system/cpu/cpu2/topology/thread_siblings_list", "2\n"),
                ("sys/devices/system/cpu/cpu3/topology/thread_siblings_list", "3\n"),
            ])
            .path(),
        );
        assert_eq!(t.threads(None), Some(3));
        assert_eq!(Topology::read(machine(&[]).path()).threads(None), None);
    }

    #[test]
    fn a_cache_that_cores_share_counts_once() {
        let cache = |cpu: usize, shared: &'static str| {
            let dir = format!("sys/devices/system/cpu/cpu{cpu}/cache");
            [
                (format!("{dir}/index0/level"), "1"),
                (format!("{dir}/index0/size"), "32K\n"),
                (format!("{dir}/index0/shared_cpu_list"), "0"),
                (format!("{dir}/index3/level"), "3\n"),
                (format!("{dir}/index3/size"), "16384K\n"),
                (format!("{dir}/index3/shared_cpu_list"), shared),
            ]
        };
        let files: Vec<(String, &str)> = [cache(0, "0-1\n"), cache(1, "0-1\n"), cache(2, "2-3\n"), cache(3, "2-3\n")]
            .into_iter()
            .flatten()
            .collect();
        let files: Vec<(&str, &str)> = files.iter().map(|(p, t)| (p.as_str(), *t)).collect();
        assert_eq!(topology(&["0", "1", "2", "3"], "0-3", &files).cache, 32 << 20);
    }

    #[test]
    fn lists_are_read_as_linux_writes_them_and_strange_ones_end() {
        assert_eq!(parse_list("0-2,5,8-9\n"), [0, 1, 2, 5, 8, 9]);
        assert!(parse_list("\n").is_empty() && parse_list("x-y").is_empty());
        assert!(parse_list("0-18446744073709551615").len() < 100_000);
    }
}
