//! How much memory this machine has.

/// Bytes of memory that this program can have at most: the machine's, or a container's limit where that is less. None
/// where the system does not say.
pub fn memory() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let machine = total(&text)?;
    let limit = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|t| t.trim().parse().ok());
    Some(limit.map_or(machine, |l| machine.min(l)))
}

fn total(meminfo: &str) -> Option<usize> {
    let kib = meminfo.lines().find_map(|l| l.strip_prefix("MemTotal:"))?.trim().strip_suffix("kB")?;
    kib.trim().parse::<usize>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_is_read_in_kib_and_nothing_is_made_up_where_it_is_not_said() {
        assert_eq!(total("MemFree: 1 kB\nMemTotal:       16384 kB\nSwapTotal: 5 kB\n"), Some(16 << 20));
        for text in ["", "MemTotal: 16384\n", "MemTotal: much kB\n", "MemTotal: 18446744073709551615 kB\n"] {
            assert_eq!(total(text), None, "{text}");
        }
    }
}
