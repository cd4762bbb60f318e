//! How much memory this machine has.

use std::path::Path;

use super::Limits;

/// This machine's memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// All of it, or what a container's limit leaves of it.
    pub total: usize,
    /// What programs can have without anything being swapped out.
    pub free: usize,
}

impl Memory {
    /// From /proc/meminfo, less where a container's limit allows less. None where the system does not say.
    pub fn of_this_machine() -> Option<Memory> {
        let root = Path::new("/");
        let memory = Memory::parse(&std::fs::read_to_string(root.join("proc/meminfo")).ok()?)?;
        Some(memory.within(Limits::read(root)))
    }

    /// What a container's limits leave of it.
    pub fn within(self, limits: Limits) -> Memory {
        match limits.memory {
            Some((limit, left)) if limit < self.total => Memory { total: limit, free: self.free.min(left) },
            _ => self,
        }
    }

    /// From the contents of /proc/meminfo.
    pub fn parse(meminfo: &str) -> Option<Memory> {
        Some(Memory { total: field(meminfo, "MemTotal")?, free: field(meminfo, "MemAvailable")? })
    }
}

/// A line of /proc/meminfo, in bytes: `MemTotal:  16384 kB`.
pub(super) fn field(meminfo: &str, name: &str) -> Option<usize> {
    let rest = meminfo.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))?;
    rest.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machines_memory_is_what_the_system_says() {
        let text =
            "MemTotal:       24576000 kB\nMemFree:          100 kB\nMemAvailable:   20480000 kB\nBuffers: 1 kB\n";
        let m = Memory::parse(text).unwrap();
        assert_eq!((m.total, m.free), (24_576_000 * 1024, 20_480_000 * 1024));
        assert!(Memory::parse("MemTotal: 5 kB\n").is_none(), "a kernel without MemAvailable says nothing");
        for text in
            ["", "MemTotal: 16384\nMemAvailable: 1 kB\n", "MemTotal: 18446744073709551615 kB\nMemAvailable: 1 kB\n"]
        {
            assert!(Memory::parse(text).is_none(), "{text}");
        }
    }

    #[test]
    fn a_container_s_limit_counts_where_it_is_the_smaller() {
        let m = Memory { total: 1000, free: 700 };
        let within = |limit, left| m.within(Limits { cpus: None, memory: Some((limit, left)) });
        assert_eq!(within(500, 300), Memory { total: 500, free: 300 });
        assert_eq!(within(500, 900), Memory { total: 500, free: 700 });
        assert_eq!(within(usize::MAX / 2, 5), m, "version 1 writes no limit as a huge one");
    }
}
