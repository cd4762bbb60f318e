//! A memory control group for programs that a test starts.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The group, for as long as this lives; what is in it then is killed.
pub(crate) struct MemoryGroup {
    dir: PathBuf,
    is_v2: bool,
}

impl MemoryGroup {
    /// A group of `limit` bytes. None, with the reason said, where none can be made, or where the kernel does not
    /// count waits for memory.
    pub(crate) fn new(limit: usize) -> Option<MemoryGroup> {
        if let Err(e) = std::fs::read_to_string("/proc/pressure/memory") {
            eprintln!("skipped: /proc/pressure/memory: {e}");
            return None;
        }
        let root = Path::new("/sys/fs/cgroup");
        let is_v2 = !root.join("memory").exists();
        let dir = if is_v2 { root.to_owned() } else { root.join("memory") };
        let dir = dir.join(format!("tandem-test-{}", std::process::id()));
        let make = || -> io::Result<()> {
            std::fs::create_dir(&dir)?;
            let file = if is_v2 { "memory.max" } else { "memory.limit_in_bytes" };
            if !dir.join(file).exists() {
                return Err(io::Error::new(ErrorKind::Unsupported, "the group has no memory controller"));
            }
            std::fs::write(dir.join(file), limit.to_string())
        };
        if let Err(e) = make() {
            let _ = std::fs::remove_dir(&dir);
            eprintln!("skipped: no memory control group can be made: {}: {e}", dir.display());
            return None;
        }
        Some(MemoryGroup { dir, is_v2 })
    }

    /// A program that starts in the group.
    pub(crate) fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut c = Command::new("sh");
        let procs = self.dir.join("cgroup.procs");
        c.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]).arg(procs).arg(program).args(args).stderr(Stdio::null());
        c
    }

    /// Whether the kernel counts that programs have waited for memory for more than a tenth of the last ten seconds: of
    /// all programs or of the group, as the engine looks at it.
    pub(crate) fn waits(&self) -> bool {
        let files = [PathBuf::from("/proc/pressure/memory"), self.dir.join("memory.pressure")];
        let some = files.iter().filter_map(|f| std::fs::read_to_string(f).ok());
        let average = |text: String| text.split("avg10=").nth(1)?.split(' ').next()?.parse::<f64>().ok();
        some.filter_map(average).any(|percent| percent > 10.0)
    }

    /// Bytes that are taken and cannot be had back.
    pub(crate) fn taken(&self) -> usize {
        let read = |file: &str| std::fs::read_to_string(self.dir.join(file)).unwrap();
        let (file, cache) =
            if self.is_v2 { ("memory.current", "file ") } else { ("memory.usage_in_bytes", "total_cache ") };
        let stat = read("memory.stat");
        let cached: usize = stat.lines().find_map(|l| l.strip_prefix(cache)?.parse().ok()).unwrap();
        read(file).trim().parse::<usize>().unwrap().saturating_sub(cached)
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        let start = Instant::now();
        while std::fs::remove_dir(&self.dir).is_err_and(|e| e.kind() != ErrorKind::NotFound)
            && start.elapsed() < Duration::from_secs(10)
        {
            for pid in std::fs::read_to_string(self.dir.join("cgroup.procs")).unwrap_or_default().lines() {
                let _ = Command::new("kill").args(["-9", pid]).status();
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}
