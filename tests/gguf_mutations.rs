//! Broken files by the ten thousand: none may crash the reader, make it reserve what the file could not hold, or get
//! tensors past it that do not lie inside the file. (Alone in its own program, so that memory can be measured.)

#[path = "gguf/sample.rs"]
mod sample;

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use tandem::gguf::{Gguf, Header, parse};
use tandem::quant::Rng;

/// Values that sit on an edge somewhere.
const EDGES: [u64; 22] = [
    0,
    1,
    2,
    4,
    5,
    7,
    8,
    9,
    13,
    31,
    255,
    256,
    65_535,
    (1 << 31) - 1,
    1 << 31,
    u32::MAX as u64,
    1 << 32,
    1 << 40,
    (1 << 63) - 1,
    1 << 63,
    u64::MAX - 31,
    u64::MAX,
];

/// A file, where its header ends, and where in it a length, a count, a type or an offset probably is.
struct Subject {
    bytes: Vec<u8>,
    header: usize,
    fields: Vec<usize>,
}

impl Subject {
    fn new(bytes: Vec<u8>) -> Subject {
        let header = parse(&bytes, bytes.len() as u64, Path::new("good.gguf")).unwrap().data as usize;
        // Numbers in a header are small, so a field looks like a low byte or two and then zeros.
        let fields = (0..header - 8).filter(|&i| bytes[i + 2] == 0 && bytes[i + 3] == 0).collect();
        Subject { bytes, header, fields }
    }

    /// Breaks `buf`, a copy of the file, in one way.
    fn mutate(&self, buf: &mut Vec<u8>, rng: &mut Rng) {
        // Mostly the header: nothing in the data is read here.
        let at = |rng: &mut Rng, len: usize| {
            let anywhere = rng.below(16) == 0;
            rng.below(if anywhere { len } else { len.min(self.header) })
        };
        let len = buf.len();
        match rng.below(9) {
            0 => buf[at(rng, len)] ^= 1 << rng.below(8),
            1 => buf[at(rng, len)] = rng.bits() as u8,
            2 => buf.truncate(at(rng, len)),
            3 => {
                let (from, n) = (at(rng, len), 1 + rng.below(64));
                buf.drain(from..(from + n).min(len));
            }
            4 => {
                let mut junk = vec![0; 1 + rng.below(64)];
                if rng.below(2) == 0 {
                    rng.fill(&mut junk);
                }
                let to = at(rng, len);
                buf.splice(to..to, junk);
            }
            5 => {
                let n = 1 + rng.below(64);
                let (a, b) = (at(rng, len - n), at(rng, len - n));
                let part = buf[a..a + n].to_vec();
                buf.copy_within(b..b + n, a);
                buf[b..b + n].copy_from_slice(&part);
            }
            6 => {
                let n = 1 + rng.below(128);
                let (a, b) = (at(rng, len - n), at(rng, len - n));
                buf.copy_within(a..a + n, b);
            }
            kind => {
                let field = self.fields[rng.below(self.fields.len())].min(len - 8);
                let width = if kind == 7 { 8 } else { 4 };
                let old = u64::from_le_bytes(buf[field..field + 8].try_into().unwrap());
                let new = match rng.below(4) {
                    0 => old.wrapping_add(rng.below(9) as u64).wrapping_sub(4),
                    1 => rng.bits() >> rng.below(64),
                    _ => EDGES[rng.below(EDGES.len())],
                };
                buf[field..field + width].copy_from_slice(&new.to_le_bytes()[..width]);
            }
        }
    }
}

/// Holds what the reader says of a broken file to its promises. True if it took the file.
fn check(buf: &[u8]) -> bool {
    let name = Path::new("broken.gguf");
    let Header { tensors, data, alignment, meta, .. } = match parse(buf, buf.len() as u64, name) {
        Ok(header) => header,
        Err(e) => {
            let said = e.to_string();
            assert!(said.contains("broken.gguf") && said.len() < 1000, "{said}");
            return false;
        }
    };
    let mut taken = HashSet::new();
    let mut ends = Vec::new();
    for t in &tensors {
        assert!(buf.get(t.range()).is_some() && t.offset >= data && t.offset % alignment == 0 && t.bytes > 0);
        assert!(t.bytes == t.ty.row_bytes(*t.shape.last().unwrap()) * (t.elements() / t.shape.last().unwrap()));
        assert!(taken.insert(&t.name));
        ends.push((t.range().start, t.range().end));
    }
    ends.sort_unstable();
    assert!(ends.windows(2).all(|w| w[0].1 <= w[1].0));
    for (key, value) in meta.iter() {
        assert!(meta.get(key).is_some() && value.describe().len() < 1000);
        let _ = (meta.usize(key), meta.f32(key), meta.bool(key), meta.str(key), meta.strs(key));
        let _ = (meta.usizes(key), meta.i32s(key), meta.f32s(key), meta.bools(key), meta.each::<u32>(key, 3));
    }
    true
}

/// The most address space that this program has had, where the system says.
fn peak_kib() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|l| l.strip_prefix("VmPeak:")?.trim().strip_suffix("kB")?.trim().parse().ok())
}

#[test]
fn no_broken_file_crashes_the_reader_or_makes_it_reserve_much() {
    let model = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models/qwen3moe.gguf")).unwrap();
    let split = {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("gguf_mutations");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::read(&sample::writer().write_split(&dir.join("m.gguf"), 2).unwrap()[1]).unwrap()
    };
    let subjects = [model, sample::writer().to_bytes().unwrap(), split].map(Subject::new);
    let before = peak_kib();
    let taken: Vec<usize> = std::thread::scope(|s| {
        let work: Vec<_> = [(0, 1, 6_000), (1, 2, 25_000), (1, 3, 25_000), (2, 4, 10_000)]
            .map(|(subject, seed, count)| {
                let subject: &Subject = &subjects[subject];
                s.spawn(move || (0..count).filter(|&i| broken_file_is_handled(subject, seed << 32 | i)).count())
            })
            .into_iter()
            .collect();
        work.into_iter().map(|w| w.join().expect("said above")).collect()
    });
    println!("of 66000 broken files, these many could still be taken: {taken:?}");
    // Both verdicts must come up often, or the mutations are too wild or too tame to show anything.
    assert!(taken.iter().zip([6_000, 25_000, 25_000, 10_000]).all(|(&n, of)| n > of / 100 && n < of * 99 / 100));
    if let (Some(before), Some(after)) = (before, peak_kib()) {
        // Threads reserve address space of their own; a length that is believed reserves a thousand times as much.
        assert!(after - before < 1 << 20, "the address space grew by {} KiB", after - before);
    }
}

/// Breaks the file once, or a few times, and has it read.
fn broken_file_is_handled(subject: &Subject, seed: u64) -> bool {
    let mut rng = Rng(seed);
    let mut buf = subject.bytes.clone();
    for _ in 0..1 + rng.below(3) {
        if buf.len() > 256 {
            subject.mutate(&mut buf, &mut rng);
        }
    }
    let verdict = catch_unwind(AssertUnwindSafe(|| {
        let taken = check(&buf);
        // The way in for tools must agree, and every tensor's bytes must be reachable.
        if taken
            && buf.len() < 1 << 16
            && let Ok(m) = Gguf::from_bytes(buf.clone(), Path::new("broken.gguf"))
        {
            assert!(m.tensors.iter().all(|t| m.data(t).len() == t.bytes && m.tensor(&t.name).is_some()));
        }
        taken
    }));
    verdict.unwrap_or_else(|_| panic!("the file broken with seed {seed:#x} is not handled"))
}
