//! What a launch did that decides about speed, as a line in the file of `TANDEM_EMU_PROFILE`.
//!
//! ```text
//! matvec1_q4_k launches=1 blocks=16 instructions=5120 loads=640 load_bytes=81920 load_sectors=2560 ...
//! ```
//! All are counts of warps' instructions (`instructions`, `loads`, `stores`, `shared`: accesses to shared memory,
//! `mma`), bytes that lanes asked for, sectors of 32 bytes that an access touched, and `conflicts`: how often the banks of
//! shared memory were passed more often than the bytes of an access need.

use std::fmt::Write;

use super::lanes::Doubles;
use super::memory::{Space, lanes};

/// Counts of one launch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meter {
    /// Whether memory is counted: it costs time.
    on: bool,
    pub(super) blocks: u64,
    pub(super) instructions: u64,
    pub(super) mma: u64,
    loads: [u64; 3],
    stores: [u64; 3],
    shared: u64,
    conflicts: u64,
}

/// Sectors of 32 bytes that an access of a warp touches.
fn sectors(addresses: &Doubles, bytes: usize, mask: u32) -> u64 {
    let mut all: Vec<u64> = lanes(mask).map(|lane| addresses[lane] / 32).collect();
    all.sort_unstable();
    all.dedup();
    debug_assert!(bytes <= 16, "aligned accesses of up to 16 bytes lie in one sector each");
    all.len() as u64
}

/// How often the 32 banks are passed for an access, and how often its bytes need at least.
fn passes(addresses: &Doubles, bytes: usize, mask: u32) -> (u64, u64) {
    // 8 bytes of 16 lanes, or 16 of 8, go together.
    let together = 128 / bytes.max(4);
    let (mut passes, mut least) = (0, 0);
    for group in (0..32).step_by(together) {
        let mut words: Vec<u64> = lanes(mask)
            .filter(|lane| (group..group + together).contains(lane))
            .flat_map(|lane| (0..bytes.div_ceil(4) as u64).map(move |i| addresses[lane] / 4 + i))
            .collect();
        words.sort_unstable();
        words.dedup();
        let mut banks = [0u64; 32];
        words.iter().for_each(|w| banks[(w % 32) as usize] += 1);
        passes += banks.into_iter().max().unwrap_or(0);
        least += (words.len() as u64).div_ceil(32);
    }
    (passes, least)
}

impl Meter {
    pub(super) fn new(on: bool) -> Meter {
        Meter { on, ..Meter::default() }
    }

    pub(super) fn access(&mut self, space: Space, store: bool, addresses: &Doubles, bytes: usize, mask: u32) {
        if !self.on {
            return;
        }
        match space {
            Space::Global => {
                let to = if store { &mut self.stores } else { &mut self.loads };
                to[0] += 1;
                to[1] += (bytes * mask.count_ones() as usize) as u64;
                to[2] += sectors(addresses, bytes, mask);
            }
            Space::Shared => {
                let (passes, least) = passes(addresses, bytes, mask);
                self.shared += 1;
                self.conflicts += passes - least;
            }
            Space::Local => {}
        }
    }

    /// The line of a launch.
    pub(super) fn line(&self, name: &str) -> String {
        let mut line = name.to_owned();
        let [loads, load_bytes, load_sectors] = self.loads;
        let [stores, store_bytes, store_sectors] = self.stores;
        let all = [
            ("launches", 1),
            ("blocks", self.blocks),
            ("instructions", self.instructions),
            ("mma", self.mma),
            ("loads", loads),
            ("load_bytes", load_bytes),
            ("load_sectors", load_sectors),
            ("stores", stores),
            ("store_bytes", store_bytes),
            ("store_sectors", store_sectors),
            ("shared", self.shared),
            ("conflicts", self.conflicts),
        ];
        all.iter().for_each(|(key, n)| write!(line, " {key}={n}").expect("a string takes all"));
        line.push('\n');
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every(step: u64) -> Doubles {
        std::array::from_fn(|lane| 4096 + lane as u64 * step)
    }

    #[test]
    fn neighbours_share_sectors_and_strides_do_not() {
        assert_eq!(sectors(&every(4), 4, !0), 4);
        assert_eq!(sectors(&every(16), 16, !0), 16);
        assert_eq!(sectors(&every(128), 4, !0), 32);
        assert_eq!(sectors(&every(128), 4, 0xff), 8);
    }

    #[test]
    fn banks_are_passed_once_for_neighbours_and_once_for_each_lane_in_a_column() {
        assert_eq!(passes(&every(4), 4, !0), (1, 1));
        assert_eq!(passes(&every(0), 4, !0), (1, 1));
        assert_eq!(passes(&every(128), 4, !0), (32, 1));
        assert_eq!(passes(&every(16), 16, !0), (4, 4));
        assert_eq!(passes(&every(132), 4, !0), (1, 1));
        assert_eq!(passes(&every(8), 4, !0), (2, 1));
    }
}
