//! What a container's control group leaves this process of the machine's CPUs and memory.
//!
//! `/proc/self/cgroup` names the group, `/proc/self/mountinfo` where its files are; both versions may be there at once. A
//! group's limits hold for all groups in it, so those above it are read too (Documentation/admin-guide/cgroup-v1 and
//! cgroup-v2.rst in Linux's sources):
//! ```text
//! version 2   cpu.max                        150000 100000 (microseconds in a period; or max)
//!             memory.max, memory.current     bytes (or max); memory.stat has what of it are files' pages, and what of
//!                                            these are in memory alone (tmpfs, shared memory)
//! version 1   cpu.cfs_quota_us / cpu.cfs_period_us     -1 for no limit
//!             memory.limit_in_bytes, memory.usage_in_bytes
//! ```

use std::path::{Path, PathBuf};

/// The tightest limits of a group and those above it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Limits {
    /// CPUs' worth of time.
    pub cpus: Option<f64>,
    /// Bytes of memory, and how many of them are left: what files' pages take can be had back.
    pub memory: Option<(usize, usize)>,
}

impl Limits {
    /// From the system's files below `root`, which is `/` but in tests.
    pub fn read(root: &Path) -> Limits {
        let text = |path: &str| std::fs::read_to_string(root.join(path)).unwrap_or_default();
        let (own, mounts) = (text("proc/self/cgroup"), text("proc/self/mountinfo"));
        let mut limits = Limits::default();
        for controller in ["", "cpu", "memory"] {
            for dir in folders(root, &own, &mounts, controller) {
                let read = |name: &str| std::fs::read_to_string(dir.join(name)).ok();
                let number = |name: &str| read(name)?.trim().parse::<usize>().ok();
                if let Some(cpus) = cpus(&read) {
                    limits.cpus = Some(limits.cpus.map_or(cpus, |c| c.min(cpus)));
                }
                let names = [
                    ("memory.max", "memory.current", "file ", "shmem "),
                    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache ", "total_shmem "),
                ];
                for (limit, used, files, shared) in names {
                    let Some(limit) = number(limit) else { continue };
                    let stat = read("memory.stat").unwrap_or_default();
                    let part =
                        |name: &str| stat.lines().find_map(|l| l.strip_prefix(name)?.trim().parse::<usize>().ok());
                    let of_files = part(files).unwrap_or(0).saturating_sub(part(shared).unwrap_or(0));
                    let used = number(used).unwrap_or(0).saturating_sub(of_files);
                    let (all, left) = limits.memory.unwrap_or((usize::MAX, usize::MAX));
                    limits.memory = Some((all.min(limit), left.min(limit.saturating_sub(used))));
                }
            }
        }
        limits
    }
}

/// CPUs' worth of time that a group may take.
fn cpus(read: &dyn Fn(&str) -> Option<String>) -> Option<f64> {
    let number = |text: &str| text.trim().parse::<f64>().ok().filter(|n| *n > 0.0);
    if let Some(text) = read("cpu.max") {
        let (quota, period) = text.trim().split_once(' ')?;
        return Some(number(quota)? / number(period)?);
    }
    Some(number(&read("cpu.cfs_quota_us")?)? / number(&read("cpu.cfs_period_us")?)?)
}

/// The folders of this process's groups of version 2, which have files on waits for memory, from its own upwards.
pub(super) fn memory_groups(root: &Path) -> Vec<PathBuf> {
    let text = |path: &str| std::fs::read_to_string(root.join(path)).unwrap_or_default();
    folders(root, &text("proc/self/cgroup"), &text("proc/self/mountinfo"), "")
}

/// The folders of this process's group under a controller of version 1, or of version 2 for "", and of those above it.
fn folders(root: &Path, own: &str, mounts: &str, controller: &str) -> Vec<PathBuf> {
    // hierarchy:controllers:path
    let group = own.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        controllers.split(',').any(|c| c == controller).then_some(path)
    });
    // id parent device root mount-point options.. - type source super-options
    let mount = mounts.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ').skip(3);
        let (top, at) = (left.next()?, left.next()?);
        let mut right = right.split(' ');
        let (kind, options) = (right.next()?, right.nth(1).unwrap_or(""));
        let fits = match controller {
            "" => kind == "cgroup2",
            _ => kind == "cgroup" && options.split(',').any(|o| o == controller),
        };
        fits.then_some((top, at))
    });
    let (Some(group), Some((top, at))) = (group, mount) else { return Vec::new() };
    let at = root.join(at.trim_start_matches('/'));
    // In a container the mount may show only its own group: then what is above is not to be seen.
    let below = group.strip_prefix(top.trim_end_matches('/')).unwrap_or("").trim_matches('/');
    let deepest = at.join(below);
    let upwards = deepest.ancestors().take_while(|d| d.starts_with(&at)).map(Path::to_path_buf);
    upwards.filter(|d| d.exists()).collect()
}

#[cfg(test)]
mod tests {
    use super::super::topology::tests::machine;
    use super::*;

    const V2: (&str, &str) = ("proc/self/mountinfo", "31 23 0:28 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n");
    const V1: (&str, &str) = (
        "proc/self/mountinfo",
        "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
         35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
         41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
    );

    #[test]
    fn version_2_limits_of_the_group_and_of_those_above_it_are_found() {
        let root = machine(&[
            V2,
            ("proc/self/cgroup", "0::/user.slice/app.scope\n"),
            ("sys/fs/cgroup/user.slice/cpu.max", "250000 100000\n"),
            ("sys/fs/cgroup/user.slice/app.scope/cpu.max", "max 100000\n"),
            ("sys/fs/cgroup/user.slice/memory.max", "8000\n"),
            ("sys/fs/cgroup/user.slice/memory.current", "5000\n"),
            ("sys/fs/cgroup/user.slice/memory.stat", "anon 2000\nfile 3500\nfile_mapped 1\nshmem 500\n"),
            ("sys/fs/cgroup/user.slice/app.scope/memory.max", "max\n"),
        ]);
        assert_eq!(Limits::read(root.path()), Limits { cpus: Some(2.5), memory: Some((8000, 6000)) });
    }

    #[test]
    fn version_1_limits_are_found_under_their_controllers() {
        let root = machine(&[
            V1,
            ("proc/self/cgroup", "4:memory:/box\n2:cpu,cpuacct:/box\n0::/\n"),
            ("sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us", "150000\n"),
            ("sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us", "100000\n"),
            ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n"),
            ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n"),
            ("sys/fs/cgroup/memory/box/memory.limit_in_bytes", "9000\n"),
            ("sys/fs/cgroup/memory/box/memory.usage_in_bytes", "1000\n"),
            ("sys/fs/cgroup/memory/box/memory.stat", "cache 1\nshmem 9\ntotal_cache 410\ntotal_shmem 10\n"),
        ]);
        assert_eq!(Limits::read(root.path()), Limits { cpus: Some(1.5), memory: Some((9000, 8400)) });
    }

    #[test]
    fn a_container_that_sees_only_its_own_group_finds_its_limits() {
        let mount = "35 31 0:32 /docker/abc /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        for own in ["0::/docker/abc\n", "0::/\n", "0::/../other\n"] {
            let root = machine(&[
                ("proc/self/mountinfo", mount),
                ("proc/self/cgroup", own),
                ("sys/fs/cgroup/cpu.max", "200000 100000\n"),
            ]);
            assert_eq!(Limits::read(root.path()).cpus, Some(2.0), "{own}");
        }
    }

    #[test]
    fn without_groups_or_limits_nothing_is_limited() {
        assert_eq!(Limits::read(machine(&[]).path()), Limits::default());
        let root = machine(&[V2, ("proc/self/cgroup", "0::/\n"), ("sys/fs/cgroup/cpu.max", "max 100000\n")]);
        assert_eq!(Limits::read(root.path()), Limits::default());
        let root = machine(&[V2, ("proc/self/cgroup", "0::/\n"), ("sys/fs/cgroup/cpu.max", "7\n")]);
        assert_eq!(Limits::read(root.path()), Limits::default(), "half a line");
    }
}
