//! Which model file to take for how much memory, and how fast it would decode on this machine.
//!
//! The files are data, in models.tsv in this folder.
//! ```text
//! expected decode   REACHED / (bytes per token / memory's rate), as measured just now
//! with a GPU        that has room for all but the experts:
//!                   REACHED / (experts' bytes / memory's rate + the rest's bytes / its memory's rate)
//! ```

use serde_json::{Value, json};

use crate::cli::human::{size, table, wrapped};

/// The table of files. Its head says where the figures come from.
const TABLE: &str = include_str!("models.tsv");

/// A file to recommend; sizes in bytes.
#[derive(Debug, PartialEq)]
struct ModelFile {
    name: &'static str,
    architecture: &'static str,
    format: &'static str,
    /// The file.
    file: usize,
    /// Memory for all but tables that stay in the file, with the KV cache and working buffers.
    needed: usize,
    /// Of it, the experts.
    experts: usize,
    /// What a token reads.
    per_token: usize,
    /// Of it, the experts.
    experts_per_token: usize,
}

/// The files of the table, the most capable first.
fn files() -> Vec<ModelFile> {
    let lines = TABLE.lines().filter(|l| !l.starts_with('#')).skip(1); // the names of the columns
    lines.filter_map(file).collect()
}

/// A line of the table.
fn file(line: &'static str) -> Option<ModelFile> {
    let cells: Vec<&'static str> = line.split('\t').collect();
    let [name, _, architecture, format, file, needed, experts, per_token, experts_per_token] = cells[..] else {
        return None;
    };
    let mb = |cell: &str| cell.parse::<usize>().ok().map(|n| n * 1_000_000);
    Some(ModelFile {
        name,
        architecture,
        format,
        file: mb(file)?,
        needed: mb(needed)?,
        experts: mb(experts)?,
        per_token: mb(per_token)?,
        experts_per_token: mb(experts_per_token)?,
    })
}

/// Memory as it is sold, in GiB.
const SOLD: [usize; 5] = [32, 64, 96, 128, 192];
/// Of the memory that is sold, the share that a model may take, the rest being for the system and a desktop.
const USABLE: f64 = 0.9;
/// Of the memory that is sold, the least that a system reports as its own: firmware and graphics
/// take some.
const REPORTED: f64 = 0.92;
/// Files that are named for each size.
const NAMED: usize = 4;
/// The share of memory's rate that decoding reaches: benches/record has 0.71 to 0.95.
const REACHED: f64 = 0.75;

/// What this machine has, for the speed of a model.
pub(super) struct Machine {
    /// Bytes of memory; None where the system does not say.
    pub(super) memory: Option<usize>,
    /// Bytes per second that are read from it.
    pub(super) rate: f64,
    /// A GPU's free memory in bytes, and bytes per second that are read from it.
    pub(super) gpu: Option<(usize, f64)>,
}

impl Machine {
    /// Tokens per second to expect of a file.
    fn decode(&self, f: &ModelFile) -> f64 {
        let (experts, token) = (f.experts_per_token as f64, f.per_token as f64);
        let seconds = match self.gpu {
            Some((free, rate)) if f.needed - f.experts < free => experts / self.rate + (token - experts) / rate,
            _ => token / self.rate,
        };
        REACHED / seconds
    }

    /// The sizes of memory to name files for, in bytes, rising, and which of them this machine has.
    fn sizes(&self) -> (Vec<usize>, Option<usize>) {
        let mut list: Vec<usize> = SOLD.iter().map(|gib| gib << 30).collect();
        let Some(own) = self.memory else { return (list, None) };
        let as_sold = |sold: &usize| (*sold as f64 * REPORTED..=*sold as f64).contains(&(own as f64));
        if let Some(at) = list.iter().position(as_sold) {
            return (list, Some(at));
        }
        let at = list.iter().filter(|n| **n < own).count();
        list.insert(at, own);
        (list, Some(at))
    }
}

/// The files that fit into this many bytes of memory, the most capable first, one for each model.
fn fitting(files: &[ModelFile], memory: usize) -> Vec<&ModelFile> {
    let room = memory as f64 * USABLE;
    let mut list: Vec<&ModelFile> = Vec::new();
    for f in files.iter().filter(|f| f.needed as f64 <= room) {
        if list.len() < NAMED && list.iter().all(|other| other.name != f.name) {
            list.push(f);
        }
    }
    list
}

/// The part of the report.
pub(super) fn report(m: &Machine) -> String {
    let all = files();
    let head = ["memory", "model", "format", "file", "read per token", "decode"];
    let mut rows = vec![head.map(String::from).to_vec()];
    let (sizes, own) = m.sizes();
    for (i, &memory) in sizes.iter().enumerate() {
        let here = own == Some(i);
        let gib = memory as f64 / (1u64 << 30) as f64;
        let mut name = format!("{gib:.0} GB{}", if here { ", as here" } else { "" });
        let files = fitting(&all, memory);
        if files.is_empty() {
            rows.push(vec![name.clone(), "none of these".into()]);
        }
        for f in files {
            let rate = format!("{:.1} tokens/s", m.decode(f));
            let first = std::mem::take(&mut name);
            rows.push(vec![first, f.name.into(), f.format.into(), size(f.file), size(f.per_token), rate]);
        }
    }
    let mut out = format!("\nWhich file to take\n{}", table(&rows, &[false, false, false, true, true, true]));
    let with_gpu = match m.gpu {
        Some((_, rate)) => format!(", and {:.0} GB/s of the GPU where all but the experts has room there", rate / 1e9),
        None => String::new(),
    };
    let percent = REACHED * 100.0;
    out += &wrapped(&format!(
        "The most capable files first that fit with 8192 tokens of context. Decode is what to expect with this machine's {:.1} \
         GB/s{with_gpu}, of which {percent:.0}% are usually reached; faster memory gives more in proportion. Where a file is \
         larger than the memory, a lookup table stays in it on disk. tandem explain says it exactly of any file.",
        m.rate / 1e9
    ));
    out
}

/// The part of the JSON object.
pub(super) fn object(m: &Machine) -> Value {
    let (sizes, own) = m.sizes();
    let (all, mut list) = (files(), Vec::new());
    for (i, &memory) in sizes.iter().enumerate() {
        list.extend(fitting(&all, memory).into_iter().map(|f| {
            json!({
                "memory_bytes": memory,
                "this_machine": own == Some(i),
                "model": f.name,
                "architecture": f.architecture,
                "format": f.format,
                "file_bytes": f.file,
                "needed_bytes": f.needed,
                "experts_bytes": f.experts,
                "bytes_per_token": f.per_token,
                "experts_bytes_per_token": f.experts_per_token,
                "tokens_per_s": m.decode(f),
            })
        }));
    }
    list.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(gib: f64) -> Machine {
        Machine { memory: Some((gib * (1u64 << 30) as f64) as usize), rate: 60e9, gpu: None }
    }

    #[test]
    fn there_is_a_file_for_every_size_of_memory_and_more_memory_has_a_better_one() {
        let all = files();
        let lines = TABLE.lines().filter(|l| !l.starts_with('#')).count();
        assert!(all.len() == lines - 1 && all.len() > 10, "every line was read");
        let place = |f: &ModelFile| all.iter().position(|x| x == f).unwrap();
        let mut before = all.len();
        for gib in SOLD {
            let list = fitting(&all, gib << 30);
            assert!((3..=NAMED).contains(&list.len()), "{gib} GB");
            assert!(list.iter().all(|f| f.needed as f64 <= (gib << 30) as f64 * USABLE), "{gib} GB");
            let best = list.iter().map(|f| place(f)).min().unwrap();
            assert!(best < before, "{gib} GB has nothing that less memory has not");
            before = best;
        }
        assert!(fitting(&all, 8 << 30).is_empty());
        // Nothing of a file is larger than what it is a part of.
        for f in &all {
            assert!(f.experts < f.needed && f.per_token < f.needed && f.experts_per_token < f.per_token, "{f:?}");
        }
    }

    #[test]
    fn this_machine_is_marked_among_the_sizes_that_are_sold_or_put_between_them() {
        for (gib, sizes, at) in [(125.6, 5, 3), (31.2, 5, 0), (23.4, 6, 0), (48.0, 6, 1), (500.0, 6, 5)] {
            let (list, own) = machine(gib).sizes();
            assert!(list.len() == sizes && own == Some(at) && list.is_sorted(), "{gib}: {list:?} {own:?}");
        }
        let text = report(&machine(8.0));
        assert!(text.contains("8 GB, as here") && text.contains("none of these"), "{text}");
    }

    #[test]
    fn a_gpu_with_room_for_all_but_the_experts_takes_that_part_of_the_time() {
        let all = files();
        let f = all.iter().find(|f| f.experts_per_token * 10 < f.per_token * 9).unwrap();
        let (experts, token) = (f.experts_per_token as f64, f.per_token as f64);
        let alone = machine(128.0).decode(f);
        assert!((alone * token / 60e9 / REACHED - 1.0).abs() < 1e-9);
        let with = |free| Machine { gpu: Some((free, 600e9)), ..machine(128.0) }.decode(f);
        let seconds = experts / 60e9 + (token - experts) / 600e9;
        assert!((with(f.needed) * seconds / REACHED - 1.0).abs() < 1e-9);
        assert_eq!(with(1 << 20), alone);
    }
}
