//! How much memory this machine has.

/// This machine's memory, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// All of it, or what a container's limit leaves of it.
    pub total: usize,
    /// What programs can have without anything being swapped out.
    pub free: usize,
}

impl Memory {
    /// From /proc/meminfo, less where a container's limit allows less. None where the system does not say.
    pub fn of_this_machine() -> Option<Memory> {
        let mut memory = Memory::parse(&std::fs::read_to_string("/proc/meminfo").ok()?)?;
        let number = |name: &str| -> Option<usize> {
            std::fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok()?.trim().parse().ok()
        };
        if let Some(limit) = number("memory.max").filter(|&n| n < memory.total) {
            let used = number("memory.current").unwrap_or(0);
            memory = Memory { total: limit, free: memory.free.min(limit.saturating_sub(used)) };
        }
        Some(memory)
    }

    fn parse(meminfo: &str) -> Option<Memory> {
        let line = |name: &str| -> Option<usize> {
            let rest = meminfo.lines().find_map(|l| l.strip_prefix(name))?;
            rest.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()?.checked_mul(1024)
        };
        Some(Memory { total: line("MemTotal:")?, free: line("MemAvailable:")? })
    }
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
}
