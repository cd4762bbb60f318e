//! What the system's files tell of a machine besides its cores: what `tandem doctor` looks at.
//!
//! Everything is read below a root folder, which is `/` but in tests. What a file does not say is None: nothing is guessed.

use std::path::Path;

use super::memory::field;
use super::topology::{numbered, parse_list};
use super::{Limits, Memory, NumaNodes, Stick, Topology, sticks};

/// A NUMA node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NumaNode {
    /// Its number.
    pub id: usize,
    /// Logical CPUs.
    pub cpus: usize,
    /// Bytes of memory: all, and free.
    pub total: usize,
    /// Of them free.
    pub free: usize,
}

/// How the clock of the cores is governed, and on how many logical CPUs so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Governor {
    /// The driver: `intel_pstate`, `amd-pstate-epp`, `acpi-cpufreq`.
    pub driver: String,
    /// The governor: `performance`, `powersave`, `schedutil`.
    pub name: String,
    /// What the processor is told to prefer, where it chooses its clock itself.
    pub preference: Option<String>,
    /// Logical CPUs.
    pub cpus: usize,
}

impl Governor {
    /// Whether it holds the clock down. Where the processor chooses its clock itself, `powersave` is only the name of the
    /// driver's usual mode, and its preference is what counts (Documentation/admin-guide/pm/intel_pstate.rst).
    pub fn saves_power(&self) -> bool {
        match &self.preference {
            Some(preference) => preference == "power" || preference == "balance_power",
            None => self.name == "powersave",
        }
    }
}

/// How a graphics card sits in its slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its address on the bus: `0000:01:00.0`.
    pub address: String,
    /// Lanes in use, and lanes that the card has.
    pub lanes: (usize, usize),
}

/// Jiffies that the CPUs have spent since the system started, all of them together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spent {
    /// In all.
    pub all: u64,
    /// Of them for programs or the system.
    pub busy: u64,
    /// Of them taken away by the host of a virtual machine.
    pub stolen: u64,
}

/// A machine as its system's files describe it.
#[derive(Clone, Debug, Default)]
pub struct Host {
    /// The processor's name.
    pub cpu: Option<String>,
    /// The processor's flags as /proc/cpuinfo lists them.
    pub flags: Vec<String>,
    /// Cores.
    pub topology: Topology,
    /// What a container's control group allows.
    pub limits: Limits,
    /// Memory, within those limits.
    pub memory: Option<Memory>,
    /// Bytes of swap: all, and free.
    pub swap: Option<(usize, usize)>,
    /// Transparent huge pages: `always`, `madvise` or `never`.
    pub huge_pages: Option<String>,
    /// Huge pages set aside by the administrator, and their bytes each.
    pub huge_reserved: Option<(usize, usize)>,
    /// Bytes that this process may lock in memory; the largest number there is for no limit.
    pub lockable: Option<usize>,
    /// NUMA nodes.
    pub nodes: Vec<NumaNode>,
    /// Those of them that weights can be divided over, or why they cannot.
    pub numa: Option<Result<NumaNodes, String>>,
    /// Governors of the clock, a line for each kind.
    pub governors: Vec<Governor>,
    /// Runnable tasks on average over the last minute.
    pub load: Option<f64>,
    /// Whether a hypervisor runs this system, and its name where it is told.
    pub virtual_machine: Option<String>,
    /// Memory sticks, or why they cannot be read.
    pub sticks: Option<Result<Vec<Stick>, String>>,
    /// Graphics cards of the kind that can be used.
    pub links: Vec<Link>,
}

impl Host {
    /// Reads what is there.
    pub fn read(root: &Path) -> Host {
        let text = |path: &str| std::fs::read_to_string(root.join(path)).unwrap_or_default();
        let info = text("proc/cpuinfo");
        let info = |name: &str| {
            let line = info.lines().find(|l| l.split(':').next().is_some_and(|key| key.trim() == name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let flags: Vec<String> = info("flags").unwrap_or_default().split_whitespace().map(str::to_owned).collect();
        let vendor = ["sys/hypervisor/type", "sys/class/dmi/id/sys_vendor"].into_iter().map(text);
        let vendor = vendor.map(|t| t.trim().to_owned()).find(|t| !t.is_empty());
        let meminfo = text("proc/meminfo");
        let (limits, topology) = (Limits::read(root), Topology::read(root));
        let huge = text("sys/kernel/mm/transparent_hugepage/enabled");
        let reserved = meminfo.lines().find_map(|l| l.strip_prefix("HugePages_Total:")?.trim().parse().ok());
        Host {
            cpu: info("model name"),
            virtual_machine: flags
                .iter()
                .any(|f| f == "hypervisor")
                .then(|| vendor.unwrap_or_else(|| "its maker is not told".into())),
            flags,
            topology,
            limits,
            memory: Memory::parse(&meminfo).map(|m| m.within(limits)),
            swap: field(&meminfo, "SwapTotal").zip(field(&meminfo, "SwapFree")),
            huge_pages: huge.split_once('[').and_then(|(_, rest)| Some(rest.split_once(']')?.0.to_owned())),
            huge_reserved: reserved.zip(field(&meminfo, "Hugepagesize")),
            lockable: lockable(&text("proc/self/limits"), &text("proc/self/status")),
            nodes: nodes(root),
            numa: Some(NumaNodes::read(root)),
            governors: governors(root),
            load: text("proc/loadavg").split(' ').next().and_then(|t| t.parse().ok()),
            sticks: Some(sticks(root)),
            links: links(root),
        }
    }
}

impl Spent {
    /// What /proc/stat says now.
    pub fn now(root: &Path) -> Option<Spent> {
        Spent::parse(&std::fs::read_to_string(root.join("proc/stat")).ok()?)
    }

    /// The first line: `cpu user nice system idle iowait irq softirq steal guest guest_nice`, where the guests' time is
    /// counted as user's already.
    fn parse(stat: &str) -> Option<Spent> {
        let numbers = stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace().map(|t| t.parse::<u64>().ok());
        let n: Vec<u64> = numbers.take(8).collect::<Option<_>>()?;
        let [user, nice, system, idle, iowait, irq, softirq, stolen] = n[..] else { return None };
        let busy = user + nice + system + irq + softirq;
        Some(Spent { all: busy + idle + iowait + stolen, busy, stolen })
    }

    /// Shares of all CPUs' time since `before`: busy, and stolen.
    pub fn since(&self, before: &Spent) -> (f64, f64) {
        let all = self.all.saturating_sub(before.all).max(1) as f64;
        let share = |a: u64, b: u64| a.saturating_sub(b) as f64 / all;
        (share(self.busy, before.busy), share(self.stolen, before.stolen))
    }
}

/// The major page faults of this process: `majflt`, the tenth field after the name in /proc/self/stat.
pub fn major_faults(root: &Path) -> Option<usize> {
    let stat = std::fs::read_to_string(root.join("proc/self/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(9)?.parse().ok()
}

/// Bytes that a process with these limits and this status may lock.
fn lockable(limits: &str, status: &str) -> Option<usize> {
    const IPC_LOCK: u64 = 1 << 14; // the capability that lifts the limit
    let capable = status.lines().find_map(|l| u64::from_str_radix(l.strip_prefix("CapEff:")?.trim(), 16).ok());
    if capable.is_some_and(|c| c & IPC_LOCK != 0) {
        return Some(usize::MAX);
    }
    let line = limits.lines().find_map(|l| l.strip_prefix("Max locked memory"))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(usize::MAX),
        n => n.parse().ok(),
    }
}

fn nodes(root: &Path) -> Vec<NumaNode> {
    let node = |(id, dir): (usize, std::path::PathBuf)| {
        let meminfo = std::fs::read_to_string(dir.join("meminfo")).ok()?;
        // Lines are those of /proc/meminfo after "Node 0 ".
        let plain: Vec<&str> = meminfo.lines().filter_map(|l| l.splitn(3, ' ').nth(2)).collect();
        let plain = plain.join("\n");
        let cpus = parse_list(&std::fs::read_to_string(dir.join("cpulist")).ok()?).len();
        Some(NumaNode { id, cpus, total: field(&plain, "MemTotal")?, free: field(&plain, "MemFree")? })
    };
    numbered(&root.join("sys/devices/system/node"), "node").into_iter().filter_map(node).collect()
}

fn governors(root: &Path) -> Vec<Governor> {
    let mut list: Vec<Governor> = Vec::new();
    for (_, dir) in numbered(&root.join("sys/devices/system/cpu"), "cpu") {
        let text =
            |name: &str| std::fs::read_to_string(dir.join("cpufreq").join(name)).ok().map(|t| t.trim().to_owned());
        let (Some(name), Some(driver)) = (text("scaling_governor"), text("scaling_driver")) else { continue };
        let new = Governor { driver, name, preference: text("energy_performance_preference"), cpus: 1 };
        let same = |g: &&mut Governor| Governor { cpus: 1, ..(**g).clone() } == new;
        match list.iter_mut().find(same) {
            Some(known) => known.cpus += 1,
            None => list.push(new),
        }
    }
    list
}

/// NVIDIA's cards: vendor 0x10de, class 0x03.
fn links(root: &Path) -> Vec<Link> {
    let entries = std::fs::read_dir(root.join("sys/bus/pci/devices")).into_iter().flatten().flatten();
    let mut list: Vec<Link> = entries
        .filter_map(|e| {
            let text = |name: &str| std::fs::read_to_string(e.path().join(name)).ok().map(|t| t.trim().to_owned());
            let ours = text("vendor")? == "0x10de" && text("class")?.starts_with("0x03");
            let lanes = (text("current_link_width")?.parse().ok()?, text("max_link_width")?.parse().ok()?);
            ours.then(|| Link { address: e.file_name().to_string_lossy().into_owned(), lanes })
        })
        .collect();
    list.sort_by(|a, b| a.address.cmp(&b.address));
    list
}

#[cfg(test)]
mod tests {
    use super::super::topology::tests::machine;
    use super::*;

    #[test]
    fn two_sockets_in_a_container_are_read_whole() {
        let root = machine(&[
            (
                "proc/cpuinfo",
                "processor\t: 0\nmodel name\t: A CPU @ 2 GHz: fast\nflags\t\t: fpu avx2 avx512f\n\nprocessor\t: 1\n",
            ),
            (
                "proc/meminfo",
                "MemTotal: 2000 kB\nMemAvailable: 1500 kB\nSwapTotal: 100 kB\nSwapFree: 40 kB\n\
                 HugePages_Total: 7\nHugepagesize: 2048 kB\n",
            ),
            ("proc/self/mountinfo", "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"),
            ("proc/self/cgroup", "0::/\n"),
            ("sys/fs/cgroup/memory.max", "1024000\n"),
            ("sys/fs/cgroup/memory.current", "0\n"),
            ("sys/devices/system/node/node0/meminfo", "Node 0 MemTotal: 1000 kB\nNode 0 MemFree: 700 kB\n"),
            ("sys/devices/system/node/node0/cpulist", "0-7\n"),
            ("sys/devices/system/node/node1/meminfo", "Node 1 MemTotal: 1000 kB\nNode 1 MemFree: 100 kB\n"),
            ("sys/devices/system/node/node1/cpulist", "8-15\n"),
            ("sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]\n"),
            ("proc/loadavg", "3.25 1.0 0.5 2/300 12\n"),
        ]);
        let h = Host::read(root.path());
        assert_eq!(h.cpu.as_deref(), Some("A CPU @ 2 GHz: fast"));
        assert!(h.flags.contains(&"avx512f".to_owned()) && h.virtual_machine.is_none());
        assert_eq!(h.memory, Some(Memory { total: 1_024_000, free: 1_024_000 }));
        assert_eq!((h.swap, h.huge_reserved), (Some((102_400, 40_960)), Some((7, 2 << 20))));
        assert_eq!(h.nodes[1], NumaNode { id: 1, cpus: 8, total: 1_024_000, free: 102_400 });
        assert_eq!((h.huge_pages.as_deref(), h.load), (Some("never"), Some(3.25)));
    }

    #[test]
    fn a_machine_that_says_nothing_is_read_as_one() {
        let h = Host::read(machine(&[]).path());
        assert!(h.cpu.is_none() && h.memory.is_none() && h.nodes.is_empty() && h.lockable.is_none());
        assert!(h.sticks.unwrap().is_err() && h.load.is_none() && h.huge_pages.is_none());
    }

    #[test]
    fn a_hypervisor_is_told_by_its_flag() {
        let info = ("proc/cpuinfo", "flags : fpu hypervisor\n");
        assert_eq!(
            Host::read(machine(&[info, ("sys/class/dmi/id/sys_vendor", "QEMU\n")]).path()).virtual_machine.as_deref(),
            Some("QEMU")
        );
        assert!(Host::read(machine(&[info]).path()).virtual_machine.is_some());
    }

    #[test]
    fn locking_is_bounded_by_the_limit_unless_a_capability_lifts_it() {
        let limits = "Limit   Soft Limit  Hard Limit  Units\nMax locked memory         8388608   16777216   bytes\n";
        assert_eq!(lockable(limits, "CapEff:\t0000000000000000\n"), Some(8 << 20));
        assert_eq!(lockable(limits, "CapEff:\t000001fffeffffff\n"), Some(usize::MAX));
        assert_eq!(lockable("Max locked memory   unlimited  unlimited  bytes\n", ""), Some(usize::MAX));
        assert_eq!(lockable("", ""), None);
    }

    #[test]
    fn powersave_holds_the_clock_down_only_where_the_processor_does_not_choose_itself() {
        let of = |driver: &str, name: &str, preference: Option<&str>| {
            let mut files = vec![
                ("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", name),
                ("sys/devices/system/cpu/cpu0/cpufreq/scaling_driver", driver),
                ("sys/devices/system/cpu/cpu1/cpufreq/scaling_governor", name),
                ("sys/devices/system/cpu/cpu1/cpufreq/scaling_driver", driver),
            ];
            files.extend(preference.map(|p| ("sys/devices/system/cpu/cpu0/cpufreq/energy_performance_preference", p)));
            governors(machine(&files).path())
        };
        let plain = of("acpi-cpufreq", "powersave\n", None);
        assert!(plain.len() == 1 && plain[0].cpus == 2 && plain[0].saves_power(), "{plain:?}");
        let list = of("intel_pstate", "powersave\n", Some("balance_performance\n"));
        assert!(list.len() == 2 && !list[0].saves_power(), "{list:?}");
        assert!(of("amd-pstate-epp", "powersave\n", Some("power\n"))[0].saves_power());
        assert!(!of("acpi-cpufreq", "schedutil\n", None)[0].saves_power());
    }

    #[test]
    fn a_card_in_a_narrow_slot_is_seen_and_other_devices_are_not() {
        let device = |at: &str, vendor: &'static str, lanes: &'static str| {
            let dir = format!("sys/bus/pci/devices/{at}");
            [("vendor", vendor), ("class", "0x030000\n"), ("current_link_width", lanes), ("max_link_width", "16\n")]
                .map(|(name, text)| (format!("{dir}/{name}"), text))
        };
        let files = [device("0000:02:00.0", "0x1002\n", "8\n"), device("0000:01:00.0", "0x10de\n", "4\n")].concat();
        let files: Vec<(&str, &str)> = files.iter().map(|(p, t)| (p.as_str(), *t)).collect();
        let want = vec![Link { address: "0000:01:00.0".into(), lanes: (4, 16) }];
        assert_eq!(links(machine(&files).path()), want);
    }

    #[test]
    fn pages_from_disk_are_counted_whatever_the_program_is_called() {
        let stat = "12 (a) name) R 1 1 1 0 -1 4194304 500 0 37 0 1 2 0 0";
        assert_eq!(major_faults(machine(&[("proc/self/stat", stat)]).path()), Some(37));
        assert_eq!(major_faults(machine(&[("proc/self/stat", "12 (x) R 1")]).path()), None);
    }

    #[test]
    fn the_time_that_others_take_is_a_share_of_all_cpus() {
        let a = Spent::parse("cpu  100 0 50 800 10 0 0 40 0 0\ncpu0 1 2\n").unwrap();
        let b = Spent::parse("cpu  150 0 50 830 10 0 0 60 0 0\n").unwrap();
        assert_eq!(b.since(&a), (0.5, 0.2));
        assert_eq!(a.since(&b), (0.0, 0.0), "a clock that goes back is no load");
        assert!(Spent::parse("cpu  1 2\n").is_none() && Spent::parse("").is_none());
    }
}
