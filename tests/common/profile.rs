//! What interpreted kernels did, by the file of `TANDEM_EMU_PROFILE` (kernels/standin/src/ptx/meter.rs).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The two tiers of PTX, as compute capabilities.
pub const TIERS: [&str; 2] = ["75", "80"];

/// Counts by name, of each kernel.
pub type Profile = BTreeMap<String, BTreeMap<String, u64>>;

/// This program with interpreted kernels of a tier, and the file that it adds each launch to.
pub fn interpreted(tier: &str, name: &str) -> (Command, PathBuf) {
    let file = format!("{name}-{tier}.{}", std::process::id());
    let profile = Path::new(env!("CARGO_TARGET_TMPDIR")).join(file);
    let mut c = Command::new(std::env::current_exe().unwrap());
    c.env("TANDEM_EMU_PTX", "1").env("TANDEM_EMU_SM", tier).env("TANDEM_EMU_PROFILE", &profile);
    (c, profile)
}

/// Sums of what launches did, by kernel; the file is removed.
pub fn read(path: &Path) -> Profile {
    let mut all = Profile::new();
    for line in std::fs::read_to_string(path).unwrap().lines() {
        let mut words = line.split(' ');
        let kernel = all.entry(words.next().unwrap().to_owned()).or_default();
        for (key, n) in words.map(|w| w.split_once('=').unwrap()) {
            *kernel.entry(key.to_owned()).or_default() += n.parse::<u64>().unwrap();
        }
    }
    let _ = std::fs::remove_file(path);
    all
}

/// Prints a table of all kernels: of a launch the instructions of warps; of a load of global memory the sectors of 32 bytes
/// and the bytes that lanes ask for; of 1000 accesses to shared memory how often its banks are passed more often than needed;
/// instructions of warps for each product by tensor cores.
pub fn print(profile: &Profile, what: &str) {
    crate::say!(
        "{what:24} {:>8} {:>12} {:>8} {:>8} {:>10} {:>8}",
        "launches",
        "instructions",
        "sectors",
        "bytes",
        "conflicts",
        "per mma"
    );
    for (kernel, n) in profile {
        let per = |a: &str, b: &str| if n[b] == 0 { 0.0 } else { n[a] as f64 / n[b] as f64 };
        crate::say!(
            "{kernel:24} {:8} {:12.0} {:8.2} {:8.1} {:10.0} {:8.1}",
            n["launches"],
            per("instructions", "launches"),
            per("load_sectors", "loads"),
            per("load_bytes", "loads"),
            1000.0 * per("conflicts", "shared"),
            per("instructions", "mma")
        );
    }
}

/// Kernels that whole models start (tests/gpu.rs) and no test of tests/kernels.rs does.
#[rustfmt::skip]
pub const OF_MODELS: &[&str] = &[
    "rms_norm", "bring", "add", "heads_mean", "scale_rows", "rope", "pack", "take_rows", "scale_bias", "conv", "shift",
    "route", "mix_pairs", "hyper_pre", "hyper_post", "silu_of", "twice_sigmoid", "gated_mean", "stream_gate", "add_place",
    "compress", "best_of_blocks", "index_top",
];

/// Kernels that no device of a tier is asked for: its PTX has them, since the other tier's does.
pub const OF_THE_OTHER_TIER: [&[&str]; 2] = [&["split_bf16", "matmul16_bf16"], &["matmul_bf16"]];
