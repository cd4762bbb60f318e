//! Data that was never written: what an unfinished download leaves in a file that already has its
//! whole length.
//!
//! ```text
//! holes      what the file system has no bytes for (SEEK_HOLE), wherever they are
//! zeros      from the file's end back, by samples of each tensor: where space was reserved by writing zeros
//! ```
//! Neither proves it: rows of a vocabulary's unused tokens may be zeros, and some programs make holes
//! of them when they copy. So a matrix of which an eighth is missing refuses the file, and less is
//! told. Vectors are left out, since a bias may well be zero. In a whole file this takes a few system
//! calls and reads one page.
//!
//! A file may name tensors that are meant to be holes ([`HOLES`]): a synthetic model's tables, which would fill a drive. No
//! published model has that key, so a download that stopped within a table is found as one within any other tensor.

use std::ops::Range;

use anyhow::{Result, bail};

use super::{Gguf, Tensor};

/// Metadata key: the names of tensors that are meant to be holes.
pub const HOLES: &str = "tandem.holes";

/// Parts of a tensor that are looked at, and the bytes that are read of each.
const PARTS: usize = 8;
const SAMPLE: usize = 4096;
/// Names that an error lists.
const NAMED: usize = 3;

impl Gguf {
    /// Looks for data that was never written. Returns, in words, what may be missing.
    ///
    /// # Errors
    /// If a matrix lacks so much that it cannot be meant; the message names the file and the tensors. If the file's list of
    /// holes is no list of names.
    pub fn check_written(&self) -> Result<Vec<String>> {
        let mut notices = Vec::new();
        let meant = self.meta.opt::<&[String]>(HOLES)?.unwrap_or_default();
        for (shard, file) in self.files.iter().enumerate() {
            let holes = file.bytes.holes();
            let mut tensors: Vec<&Tensor> = self.tensors.iter().filter(|t| t.shard == shard).collect();
            tensors.sort_by_key(|t| t.offset);
            let mut missing: Vec<(&Tensor, usize)> = Vec::new();
            let mut at_end = file.bytes.is_file();
            for t in tensors.into_iter().rev().filter(|t| is_matrix(t) && !meant.contains(&t.name)) {
                let holed = in_holes(&holes, &t.range());
                // A hole is not read: each of its pages would be made first.
                let zeros = match (at_end, holed == t.bytes) {
                    (true, false) => zeros_at_end(self.data(t)),
                    (true, true) => t.bytes,
                    (false, _) => 0,
                };
                at_end &= zeros == t.bytes;
                let lost = holed.max(zeros);
                missing.extend((lost > 0).then_some((t, lost)));
            }
            missing.reverse(); // as they are in the file
            let path = file.path.display();
            let lost: Vec<&Tensor> = missing.iter().filter(|(t, n)| n * PARTS >= t.bytes).map(|m| m.0).collect();
            if let [first, ..] = lost[..] {
                let names: Vec<String> = lost.iter().take(NAMED).map(|t| format!("{:?}", t.name)).collect();
                let more = match lost.len().saturating_sub(NAMED) {
                    0 => String::new(),
                    n => format!(" and {n} more"),
                };
                bail!(
                    "{path}: the data of {}{more} is zeros (from byte {} on), as in a file whose download is not finished: let \
                     it go on, or fetch the file again",
                    names.join(", "),
                    first.offset
                );
            }
            if let [(first, n), ..] = missing[..] {
                let (name, all) = (&first.name, first.bytes);
                let more =
                    if missing.len() > 1 { format!(", and some of {} more", missing.len() - 1) } else { "".into() };
                notices.push(format!(
                    "{path}: {n} of the {all} bytes of tensor {name:?}{more} are zeros: rows that the model does not use, \
                     or a download that is not finished"
                ));
            }
        }
        Ok(notices)
    }
}

/// Whether it has rows and columns, and is worth a sample.
fn is_matrix(t: &Tensor) -> bool {
    t.shape.iter().filter(|d| **d > 1).count() > 1 && t.bytes >= PARTS * SAMPLE
}

/// How many bytes at the end are zeros, by samples: the parts whose first bytes are, and those of the last part.
fn zeros_at_end(data: &[u8]) -> usize {
    let is_zero = |from: usize| data[from..data.len().min(from + SAMPLE)].iter().all(|b| *b == 0);
    if !is_zero(data.len() - SAMPLE) {
        return 0;
    }
    let starts = (0..PARTS).map(|part| data.len() * part / PARTS);
    let from = starts.rev().take_while(|from| is_zero(*from)).last();
    data.len() - from.unwrap_or(data.len() - SAMPLE)
}

/// How many bytes of a range are in holes, which are in order.
fn in_holes(holes: &[Range<u64>], range: &Range<usize>) -> usize {
    let (from, to) = (range.start as u64, range.end as u64);
    let first = holes.partition_point(|hole| hole.end <= from);
    let within = holes[first..].iter().take_while(|hole| hole.start < to);
    within.map(|hole| (hole.end.min(to) - hole.start.max(from)) as usize).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_counted_from_the_end_on_and_nowhere_else() {
        let mut data = vec![1u8; PARTS * 2 * SAMPLE];
        let n = data.len();
        assert_eq!(zeros_at_end(&data), 0);
        data[..n / 2].fill(0);
        assert_eq!(zeros_at_end(&data), 0, "zeros at the beginning end nothing");
        data.fill(1);
        data[n - SAMPLE..].fill(0);
        assert_eq!(zeros_at_end(&data), SAMPLE);
        data[n / 2 - 5..].fill(0);
        assert_eq!(zeros_at_end(&data), n / 2);
        data.fill(0);
        assert_eq!(zeros_at_end(&data), n);
    }

    #[test]
    fn of_holes_the_parts_within_a_tensor_count() {
        let holes = [0..10, 20..30, 40..100];
        assert_eq!(in_holes(&holes, &(5..45)), 5 + 10 + 5);
        assert_eq!((in_holes(&holes, &(10..20)), in_holes(&holes, &(50..60)), in_holes(&[], &(0..9))), (0, 10, 0));
    }
}
