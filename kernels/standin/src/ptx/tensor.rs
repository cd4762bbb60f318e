//! Products of small matrices, whose parts the lanes hold as the PTX manual's tables say; and ldmatrix, which brings them.

use super::lanes::{Class, Reg, Regs, Words, half_to_f32};
use super::memory::{Place, Result, Space, lanes, unordered};

/// What the elements of A and B are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Element {
    /// Of 8 bits with a sign; sums are 32-bit integers.
    S8,
    /// Halves; sums are floats.
    F16,
    /// The upper halves of floats; sums are floats.
    Bf16,
}

/// D = A B + C with A of (m, k) by rows, B of (k, 8) by columns.
#[derive(Debug)]
pub(super) struct Mma {
    pub(super) element: Element,
    /// 8 or 16.
    pub(super) m: usize,
    pub(super) k: usize,
    pub(super) d: Vec<u16>,
    pub(super) a: Vec<u16>,
    pub(super) b: Vec<u16>,
    pub(super) c: Vec<u16>,
}

impl Mma {
    /// Elements in a register.
    fn per_word(&self) -> usize {
        if self.element == Element::S8 { 4 } else { 2 }
    }

    /// How many registers of A, B and of C and D the shape takes.
    pub(super) fn registers(&self) -> (usize, usize, usize) {
        let b = self.k / 4 / self.per_word();
        (b * self.m / 8, b, self.m / 4)
    }

    /// The elements of a word, as integers or as bits of floats.
    fn elements(&self, word: u32) -> impl Iterator<Item = u32> {
        let element = self.element;
        (0..self.per_word()).map(move |i| match element {
            Element::S8 => (word >> (8 * i)) as i8 as i32 as u32,
            Element::F16 => half_to_f32((word >> (16 * i)) as u16).to_bits(),
            Element::Bf16 => word >> (16 * i) << 16,
        })
    }

    /// D for the whole warp.
    pub(super) fn run(&self, regs: &mut Regs) {
        let per = self.per_word();
        // Registers of A go by rows 0..8 and 8..16 first, then along k. Four lanes have a row; of those that follow each
        // other along k, a register has the first, then the next lane's.
        let (mut a, mut b) = ([[0u32; 32]; 16], [[0u32; 8]; 32]);
        // Rows of A and columns of B with a value that was never written.
        let (mut bad_rows, mut bad_columns) = (0u32, 0u32);
        let unwritten = |regs: &Regs, number: u16, lane: usize| !regs.written[0][number as usize] >> lane & 1;
        for lane in 0..32 {
            let (line, k0) = (lane / 4, lane % 4 * per);
            for (i, register) in self.a.iter().enumerate() {
                let (row, k0) = (i % (self.m / 8) * 8 + line, i / (self.m / 8) * 4 * per + k0);
                let word = regs.words[*register as usize][lane];
                self.elements(word).enumerate().for_each(|(j, v)| a[row][k0 + j] = v);
                bad_rows |= unwritten(regs, *register, lane) << row;
            }
            for (i, register) in self.b.iter().enumerate() {
                let word = regs.words[*register as usize][lane];
                self.elements(word).enumerate().for_each(|(j, v)| b[i * 4 * per + k0 + j][line] = v);
                bad_columns |= unwritten(regs, *register, lane) << line;
            }
        }
        let (mut d, mut undefined) = ([[0u32; 32]; 4], [0u32; 4]);
        for row in 0..self.m {
            let at = |column: usize| (row % 8 * 4 + column / 2, row / 8 * 2 + column % 2);
            let start: [u32; 8] = std::array::from_fn(|column| {
                let (lane, register) = at(column);
                regs.words[self.c[register] as usize][lane]
            });
            let (a, b) = (&a[row][..self.k], &b[..self.k]);
            let sums = match self.element {
                Element::S8 => sum(start, a, b, |s, a, b| s.wrapping_add(a.wrapping_mul(b))),
                _ => sum(start, a, b, |s, a, b| (f32::from_bits(s) + f32::from_bits(a) * f32::from_bits(b)).to_bits()),
            };
            for (column, sum) in sums.into_iter().enumerate() {
                let (lane, register) = at(column);
                d[register][lane] = sum;
                let bad = bad_rows >> row | bad_columns >> column | unwritten(regs, self.c[register], lane);
                undefined[register] |= (bad & 1) << lane;
            }
        }
        for (i, to) in self.d.iter().enumerate() {
            regs.set_words(*to, &d[i], !0);
            regs.undefine(Reg { class: Class::Word, number: *to }, undefined[i]);
        }
    }
}

/// A row of D.
#[inline(always)]
fn sum(mut sums: [u32; 8], a: &[u32], b: &[[u32; 8]], add: impl Fn(u32, u32, u32) -> u32) -> [u32; 8] {
    for (a, b) in a.iter().zip(b) {
        (0..8).for_each(|column| sums[column] = add(sums[column], *a, b[column]));
    }
    sums
}

/// ldmatrix: `n` matrices of 8 x 8 halves; lane i has the address of row i % 8 of matrix i / 8. The words of each lane, and
/// the lanes whose word was never written.
pub(super) fn load_matrix(
    place: &mut Place<'_>,
    addresses: &[u64; 32],
    n: usize,
    transposed: bool,
) -> Result<[(Words, u32); 4]> {
    let mut rows = [[0u16; 8]; 32];
    let mut written = [[true; 4]; 32];
    let mask = if n == 4 { !0 } else { (1u32 << (8 * n)) - 1 };
    place.meter.access(Space::Shared, false, addresses, 16, mask);
    for lane in lanes(mask) {
        let at = place.own.shared_at(lane, addresses[lane], 16)?;
        for (i, written) in written[lane].iter_mut().enumerate() {
            *written = unordered(lane, place.own.shadow.read(at + 4 * i, 4, place.who(lane)))?;
            if !*written {
                place.unwritten = Some((lane, Space::Shared.describe((at + 4 * i) as u64)));
            }
        }
        let bytes = &place.own.shared[at..at + 16];
        rows[lane] = std::array::from_fn(|i| u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]));
    }
    let mut out = [([0; 32], 0); 4];
    for (matrix, (words, undefined)) in out.iter_mut().enumerate().take(n) {
        for (lane, word) in words.iter_mut().enumerate() {
            let (row, column) = (lane / 4, lane % 4 * 2);
            for i in 0..2 {
                let (r, c) = if transposed { (column + i, row) } else { (row, column + i) };
                *word |= (rows[matrix * 8 + r][c] as u32) << (16 * i);
                *undefined |= (!written[matrix * 8 + r][c / 2] as u32) << lane;
            }
        }
    }
    Ok(out)
}
