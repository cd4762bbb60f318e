//! How fast a drive reads matrices of a model, in the way that experts are read from it.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::drive::{DriveFile, PAGE, ReadBuffer, read_at};

/// A smaller file may lie in the memory of a drive's controller.
const SMALLEST: u64 = 64 << 20;

/// Reads that are timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DriveTrial {
    /// Bytes of a read.
    pub bytes: usize,
    /// Reads in flight.
    pub depth: usize,
    /// Whether they are one after the other in the file, and not anywhere.
    pub in_order: bool,
}

impl DriveTrial {
    /// Reads as those of experts are: of their matrices' size, anywhere, eight at a time.
    pub fn of_experts(bytes: usize) -> DriveTrial {
        DriveTrial { bytes: bytes.clamp(256 << 10, 8 << 20), depth: super::drive::READERS, in_order: false }
    }
}

/// Reads a file for `time`, past the page cache, and returns the bytes per second.
///
/// # Errors
/// If the file is too small, has holes, or cannot be read, or if the file system has no direct reads: then
/// memory would be measured.
pub fn drive_rate(path: &Path, trial: DriveTrial, time: Duration) -> Result<f64> {
    let shown = || format!("cannot read {}", path.display());
    let file = File::open(path).with_context(shown)?;
    let len = file.metadata().with_context(shown)?.len();
    if len < SMALLEST {
        bail!("{}: {len} bytes, expected at least {SMALLEST} to measure a drive by", path.display());
    }
    if has_holes(&file, len) {
        bail!("{}: the file has holes, which no drive is asked for", path.display());
    }
    let file = DriveFile::open(path, &file)?;
    file.fill(read_at, (0, PAGE), &mut ReadBuffer::new(PAGE)?)?;
    if !file.reads_directly() {
        bail!("{}: its file system has no direct reads", path.display());
    }
    let places = (len - trial.bytes as u64) / PAGE as u64 + 1;
    let (next, start) = (AtomicU64::new(0), Instant::now());
    let read = || -> Result<usize> {
        let (mut buffer, mut sum) = (ReadBuffer::new(trial.bytes)?, 0);
        while start.elapsed() < time {
            let i = next.fetch_add(1, Relaxed);
            let page = match trial.in_order {
                true => i * (trial.bytes / PAGE) as u64,
                false => i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16, // scattered evenly
            };
            file.fill(read_at, (page % places * PAGE as u64, trial.bytes), &mut buffer)?;
            sum += trial.bytes;
        }
        Ok(sum)
    };
    let sum = std::thread::scope(|s| -> Result<usize> {
        let start = |_| std::thread::Builder::new().spawn_scoped(s, read).context("cannot start a thread");
        let threads = (0..trial.depth).map(start).collect::<Result<Vec<_>>>()?;
        threads.into_iter().map(|t| t.join().expect("reads report errors")).sum()
    })?;
    Ok(sum as f64 / start.elapsed().as_secs_f64())
}

/// Whether parts of a file are on no drive.
fn has_holes(file: &File, len: u64) -> bool {
    #[cfg(unix)]
    return std::os::unix::fs::MetadataExt::blocks(&file.metadata().expect("it was just read")) * 512 < len / 100 * 99;
    #[cfg(not(unix))]
    {
        let _ = (file, len);
        false
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_drive_is_measured_by_a_large_file_without_holes_only() {
        let file = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let trial = DriveTrial { bytes: 1 << 20, depth: 2, in_order: false };
        let said = |time| drive_rate(file.path(), trial, time).map_err(|e| format!("{e:#}"));
        std::fs::write(file.path(), [7; 1000]).unwrap();
        assert!(said(Duration::ZERO).unwrap_err().contains("1000 bytes, expected at least"));
        file.as_file().set_len(SMALLEST).unwrap();
        assert!(said(Duration::ZERO).unwrap_err().contains("holes"));
        std::fs::write(file.path(), vec![7; SMALLEST as usize]).unwrap();
        file.as_file().sync_all().unwrap();
        match said(Duration::from_millis(50)) {
            Ok(rate) => assert!(rate > 0.0),
            Err(why) => assert!(why.contains("no direct reads") || why.contains("holes"), "{why}"), // a file system that packs
        }
    }
}
