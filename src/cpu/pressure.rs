//! Whether memory is short: programs that wait for it, as the kernel counts them.
//!
//! `/proc/pressure/memory`, and `memory.pressure` of this process's control group and those above it
//! (Documentation/accounting/psi.rst in Linux's sources):
//! ```text
//! some avg10=12.05 avg60=3.10 avg300=0.70 total=2479524     % of the last 10, 60 and 300 seconds in
//! full avg10=4.21 ..                                         which some, or all, programs waited
//! ```
//! Where there is no such file, memory is never said to be short.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::cgroup;

/// How often the files are read at most.
const EVERY: Duration = Duration::from_secs(1);
/// After memory was short the average still has it for so long.
const PAUSE: Duration = Duration::from_secs(10);
/// Percent of the time from which on waits for memory are felt.
const HIGH: f64 = 10.0;

/// A look at the waits for memory now and then.
#[derive(Debug)]
pub struct MemoryPressure {
    files: Vec<PathBuf>,
    next: Instant,
}

impl MemoryPressure {
    /// From the system's files below `root`, which is `/` but in tests.
    pub fn of(root: &Path) -> MemoryPressure {
        let groups = cgroup::memory_groups(root).into_iter().map(|dir| dir.join("memory.pressure"));
        let files = std::iter::once(root.join("proc/pressure/memory")).chain(groups).collect();
        MemoryPressure { files, next: Instant::now() }
    }

    /// Whether programs, of all or of a container, have waited for memory for a tenth of the last ten
    /// seconds. It is looked at once in a second, and not for ten seconds after it was so.
    pub fn is_high(&mut self, now: Instant) -> bool {
        if now < self.next {
            return false;
        }
        let is_high = self.files.iter().filter_map(|f| waits(&std::fs::read_to_string(f).ok()?)).any(|w| w >= HIGH);
        self.next = now + if is_high { PAUSE } else { EVERY };
        is_high
    }
}

/// Percent of the last ten seconds in which some program waited.
fn waits(text: &str) -> Option<f64> {
    let some = text.lines().find_map(|l| l.strip_prefix("some "))?;
    some.split(' ').find_map(|field| field.strip_prefix("avg10=")?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_short_when_programs_wait_for_it_and_then_not_asked_about_for_a_while() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("proc/pressure/memory");
        let mut p = MemoryPressure::of(dir.path());
        let start = Instant::now() + PAUSE;
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        assert!(!p.is_high(at(0)), "a kernel without these files");
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        let write = |avg: &str| {
            let full = "full avg10=99.00 avg60=99.00 avg300=99.00 total=1\n";
            std::fs::write(&file, format!("some avg10={avg} avg60=99.00 avg300=99.00 total=9\n{full}")).unwrap()
        };
        write("9.99");
        assert!(!p.is_high(at(1)));
        write("10.00");
        assert!(!p.is_high(start + Duration::from_millis(1500)), "it was looked at half a second ago");
        assert!(p.is_high(at(2)));
        assert!(!p.is_high(at(11)), "the average still has it");
        assert!(p.is_high(at(12)));
        std::fs::write(&file, "nonsense\n").unwrap();
        assert!(!p.is_high(at(30)));
    }
}
