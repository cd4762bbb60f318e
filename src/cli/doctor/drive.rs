//! How fast the drive is that a model lies on: what a model that is larger than memory reads at.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::cli::human::{table, wrapped};
use crate::exec::{DriveTrial, drive_rate};
use crate::hub::HubCache;

/// For how long each kind of read is timed.
const TRIAL: Duration = Duration::from_millis(250);

/// What is timed: a file from front to back, and reads of a small and a large matrix anywhere, so many at
/// a time.
const TRIALS: [DriveTrial; 7] = [
    DriveTrial { bytes: 8 << 20, depth: 1, in_order: true },
    DriveTrial { bytes: 1 << 20, depth: 1, in_order: false },
    DriveTrial { bytes: 1 << 20, depth: 8, in_order: false },
    DriveTrial { bytes: 1 << 20, depth: 32, in_order: false },
    DriveTrial { bytes: 8 << 20, depth: 1, in_order: false },
    DriveTrial { bytes: 8 << 20, depth: 8, in_order: false },
    DriveTrial { bytes: 8 << 20, depth: 32, in_order: false },
];

/// The drive that a file is on, or why its rate is unknown.
pub(super) enum DriveReport {
    Unknown(String),
    Measured {
        file: PathBuf,
        /// Bytes per second of each trial.
        rates: Vec<(DriveTrial, f64)>,
    },
}

/// The largest file of the models in the cache.
fn largest_in_cache() -> Option<PathBuf> {
    let cache = HubCache::of(&|name| std::env::var_os(name)).ok()?;
    let files = cache.repos().into_iter().flat_map(|r| {
        let at = r.snapshot.clone();
        r.files.into_iter().map(move |f| (f.size, at.join(f.path)))
    });
    files.max().map(|(_, path)| path)
}

impl DriveReport {
    /// Measures the drive that `file` is on, or that the largest model in the cache is on.
    pub(super) fn measure(file: Option<&Path>) -> DriveReport {
        let Some(file) = file.map(Path::to_owned).or_else(largest_in_cache) else {
            return DriveReport::Unknown("name a model file that lies on it (tandem doctor FILE)".into());
        };
        let rate = |trial: DriveTrial| Ok((trial, drive_rate(&file, trial, TRIAL)?));
        match TRIALS.into_iter().map(rate).collect::<anyhow::Result<Vec<_>>>() {
            Ok(rates) => DriveReport::Measured { file, rates },
            Err(why) => DriveReport::Unknown(format!("{why:#}")),
        }
    }

    /// The part of the report.
    pub(super) fn words(&self) -> String {
        let (file, rates) = match self {
            DriveReport::Unknown(why) => {
                return format!("\nReading the drive\n{}", wrapped(&format!("Unknown: {why}.")));
            }
            DriveReport::Measured { file, rates } => (file, rates),
        };
        let most = rates.iter().map(|r| r.1).fold(1e-9, f64::max);
        let row = |(trial, rate): &(DriveTrial, f64)| {
            let mib = trial.bytes >> 20;
            let how = match (trial.in_order, trial.depth) {
                (true, _) => format!("{mib} MiB, one after the other"),
                (false, 1) => format!("{mib} MiB anywhere"),
                (false, n) => format!("{mib} MiB anywhere, {n} at a time"),
            };
            vec![how, format!("{:.2} GB/s", rate / 1e9), "#".repeat((rate / most * 40.0).round() as usize)]
        };
        let rows: Vec<Vec<String>> = rates.iter().map(row).collect();
        format!(
            "\nReading the drive\n{}{}",
            table(&rows, &[false, true, false]),
            wrapped(&format!(
                "Measured on {}. Of a model that is larger than memory, experts are read in this way: tandem explain MODEL \
                 says how many bytes that is per token.",
                file.display()
            ))
        )
    }

    /// The part of the object.
    pub(super) fn object(&self) -> Value {
        match self {
            DriveReport::Unknown(why) => json!({ "file": null, "reads": [], "unknown": why }),
            DriveReport::Measured { file, rates } => {
                let read = |(t, rate): &(DriveTrial, f64)| -> Value {
                    json!({ "bytes": t.bytes, "depth": t.depth, "in_order": t.in_order, "gbps": rate / 1e9 })
                };
                json!({ "file": file, "reads": rates.iter().map(read).collect::<Vec<_>>(), "unknown": null })
            }
        }
    }
}
