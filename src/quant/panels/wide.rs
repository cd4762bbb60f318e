//! [`Lanes`] on AVX-512: sixteen words in one register.

#![allow(unsafe_code)] // the intrinsics; a value of a vector type is the proof that the CPU has them
#![allow(clippy::missing_safety_doc)] // clippy takes a safe `target_feature` function for an unsafe one

use std::arch::x86_64::*;

use super::lanes::Lanes;
use crate::quant::codebooks::grid::CodebookGrid;
use crate::quant::codebooks::grid::x86::look_up;
use crate::simd::x86::{load_u8x64, turn_words_16};

/// Sixteen words in a register of AVX-512. A value exists only where the CPU has the instructions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wide(__m512i);

impl Wide {
    /// Returns zeros, which prove that the caller was compiled for the instructions that the
    /// methods use.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512bitalg")]
    pub(crate) fn zero() -> Wide {
        Wide(_mm512_setzero_si512())
    }
}

/// Calls an intrinsic.
macro_rules! op {
    ($e:expr) => {
        // SAFETY: a `Wide` exists only where the CPU has these instructions (see `zero`); loads and
        // stores take references to as many bytes as they move.
        Wide(unsafe { $e })
    };
}

impl Lanes for Wide {
    #[inline(always)]
    fn splat(self, x: u32) -> Self {
        op!(_mm512_set1_epi32(x as i32))
    }
    #[inline(always)]
    fn load(self, from: &[u32; 16]) -> Self {
        op!(_mm512_loadu_si512(from.as_ptr().cast()))
    }
    #[inline(always)]
    fn store(self, to: &mut [u8; 64]) {
        // SAFETY: as for `op`.
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), self.0) }
    }
    #[inline(always)]
    fn turn(self, rows: [&[u8; 16]; 16]) -> [Self; 4] {
        // SAFETY: as for `op`.
        unsafe { turn_words_16(rows) }.map(Wide)
    }
    #[inline(always)]
    fn and(self, b: Self) -> Self {
        op!(_mm512_and_si512(self.0, b.0))
    }
    #[inline(always)]
    fn or(self, b: Self) -> Self {
        op!(_mm512_or_si512(self.0, b.0))
    }
    #[inline(always)]
    fn xor(self, b: Self) -> Self {
        op!(_mm512_xor_si512(self.0, b.0))
    }
    #[inline(always)]
    fn shl(self, n: u32) -> Self {
        op!(_mm512_sllv_epi32(self.0, _mm512_set1_epi32(n as i32)))
    }
    #[inline(always)]
    fn shr(self, n: u32) -> Self {
        op!(_mm512_srlv_epi32(self.0, _mm512_set1_epi32(n as i32)))
    }
    #[inline(always)]
    fn sar(self, n: u32) -> Self {
        op!(_mm512_srav_epi32(self.0, _mm512_set1_epi32(n as i32)))
    }
    #[inline(always)]
    fn sub8(self, b: Self) -> Self {
        op!(_mm512_sub_epi8(self.0, b.0))
    }
    #[inline(always)]
    fn add(self, b: Self) -> Self {
        op!(_mm512_add_epi32(self.0, b.0))
    }
    #[inline(always)]
    fn mul(self, b: Self) -> Self {
        op!(_mm512_mullo_epi32(self.0, b.0))
    }
    #[inline(always)]
    fn look_up8(self, table: &[i8; 16]) -> Self {
        op!(_mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast())), self.0))
    }
    #[inline(always)]
    fn spread4(self) -> Self {
        static SPREAD: [u32; 16] = {
            let mut t = [0; 16];
            let mut i = 0;
            while i < 64 {
                t[i / 4] |= if ((i / 4) >> (i % 4)) & 1 == 1 { 255 << (8 * (i % 4)) } else { 0 };
                i += 1;
            }
            t
        };
        op!(_mm512_permutexvar_epi32(self.0, _mm512_loadu_si512(SPREAD.as_ptr().cast())))
    }
    #[inline(always)]
    fn to_f32(self) -> Self {
        op!(_mm512_castps_si512(_mm512_cvtepi32_ps(self.0)))
    }
    #[inline(always)]
    fn f16_to_f32(self) -> Self {
        op!(_mm512_castps_si512(_mm512_cvtph_ps(_mm512_cvtepi32_epi16(self.0))))
    }
    #[inline(always)]
    fn mul_f32(self, b: Self) -> Self {
        op!(_mm512_castps_si512(_mm512_mul_ps(_mm512_castsi512_ps(self.0), _mm512_castsi512_ps(b.0))))
    }
    #[inline(always)]
    fn negate8_at(self, signs: Self, at: u32) -> Self {
        // Bits 0..4 of the lower lane of a pair for its bytes, 32..36 for those of the upper.
        op!({
            let bit = _mm512_add_epi8(_mm512_set1_epi64(0x2322_2120_0302_0100), _mm512_set1_epi8(at as i8));
            let minus = _mm512_bitshuffle_epi64_mask(signs.0, bit);
            _mm512_mask_sub_epi8(self.0, minus, _mm512_setzero_si512(), self.0)
        })
    }
    #[inline(always)]
    fn pick8(self, b: Self, from: [u8; 4]) -> Self {
        static LANE: [[u8; 4]; 16] = {
            let mut t = [[0; 4]; 16];
            let mut i = 0;
            while i < 16 {
                t[i] = [4 * i as u8; 4];
                i += 1;
            }
            t
        };
        let from = u32::from_le_bytes(from.map(|f| (f & 3) | (f & 4) << 4));
        op!({
            let from = _mm512_or_si512(_mm512_loadu_si512(LANE.as_ptr().cast()), _mm512_set1_epi32(from as i32));
            _mm512_permutex2var_epi8(self.0, from, b.0)
        })
    }
    #[inline(always)]
    fn eights<const N: usize>(self, high: Self, grid: &CodebookGrid<u64, N>) -> [[Self; 2]; 4] {
        // SAFETY: as for `op`.
        unsafe {
            let bit = |b: u32| _mm512_test_epi8_mask(high.0, _mm512_set1_epi8(1 << b));
            let fields = look_up(&grid.fields, self.0, [bit(0), bit(1), bit(2)]);
            let values = load_u8x64(&grid.values);
            // Four fields of byte l of each lane of a pair.
            let first = _mm512_set1_epi64(0x2624_2220_0604_0200);
            std::array::from_fn(|l| {
                let at = _mm512_add_epi8(first, _mm512_set1_epi8(8 * l as i8));
                fields.map(|f| Wide(_mm512_permutexvar_epi8(_mm512_multishift_epi64_epi8(at, f), values)))
            })
        }
    }
    #[inline(always)]
    fn fours<const N: usize>(self, high: Self, grid: &CodebookGrid<u32, N>) -> [Self; 4] {
        // SAFETY: as for `op`.
        unsafe {
            let bit = |b: u32| _mm512_test_epi8_mask(high.0, _mm512_set1_epi8(1 << b));
            let [a, b] = look_up(&grid.fields, self.0, [bit(0), bit(1), bit(2)]).map(Wide);
            let values = load_u8x64(&grid.values);
            // Two entries to a lane, of four fields of 4 bits each.
            let entries = [a.pick8(b, [0, 4, 1, 5]), a.pick8(b, [2, 6, 3, 7])];
            let first = _mm512_set1_epi64(0x2c28_2420_0c08_0400);
            std::array::from_fn(|l| {
                let at = _mm512_add_epi8(first, _mm512_set1_epi8(l as i8 % 2 * 16));
                let fields = _mm512_multishift_epi64_epi8(at, entries[l / 2].0);
                Wide(_mm512_permutexvar_epi8(fields, values))
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::codebooks::tables::{IQ1S, IQ2S, IQ2XXS, IQ3S, IQ3XXS};
    use crate::quant::panels::lanes::Plain;
    use crate::quant::panels::pair::Paired;
    use crate::quant::rng::Rng;

    /// Everything that a vector type can do, on random words, as the words that come out.
    fn all(zero: impl Lanes, seed: u64) -> Vec<[u8; 64]> {
        let mut rng = Rng(seed);
        let mut words = || -> [u32; 16] { std::array::from_fn(|_| rng.bits() as u32) };
        let (a, b) = (zero.load(&words()), zero.load(&words()));
        let halves = a.mask(0x7bff); // finite f16
        let bytes: [[u8; 16]; 16] = std::array::from_fn(|r| std::array::from_fn(|i| (r * 16 + i) as u8));
        let low = a.mask(0x0f0f_0f0f);
        let table = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
        let mut list = vec![
            a.splat(7),
            a.and(b),
            a.or(b),
            a.xor(b),
            a.shl(3),
            a.shr(5),
            a.sar(7),
            a.sub8(b),
            a.add(b),
            a.mul(b),
            low.look_up8(&table),
            a.to_f32(),
            halves.f16_to_f32(),
            halves.f16_to_f32().mul_f32(b.to_f32()),
            a.byte(2),
            a.signed_byte(1),
            a.negate8(b.mask(15)),
            a.negate8_at(b, 9),
            a.pick8(b, [6, 0, 3, 5]),
        ];
        list.extend(zero.turn(bytes.each_ref()));
        list.extend(a.eights(b, &IQ2XXS).as_flattened());
        list.extend(a.eights(b, &IQ2S).as_flattened());
        list.extend(a.eights(b, &IQ1S).as_flattened());
        list.extend(a.fours(b, &IQ3XXS));
        list.extend(a.fours(b, &IQ3S));
        let store = |v: &_| {
            let mut out = [0; 64];
            Lanes::store(*v, &mut out);
            out
        };
        list.iter().map(store).collect()
    }

    #[test]
    fn vectors_do_what_plain_words_do() {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512bitalg")]
        fn wide(seed: u64) -> Vec<[u8; 64]> {
            all(Wide::zero(), seed)
        }
        #[target_feature(enable = "avx2,f16c")]
        fn pair(seed: u64) -> Vec<[u8; 64]> {
            all(Paired::zero(), seed)
        }
        for seed in 0..200 {
            let plain = all(Plain([0; 16]), seed);
            if crate::simd::detected() >= crate::simd::Isa::Avx2 {
                // SAFETY: the CPU was just asked.
                assert_eq!(unsafe { pair(seed) }, plain, "two registers, seed {seed}");
            }
            if crate::simd::detected() >= crate::simd::Isa::Avx512 {
                // SAFETY: as above.
                assert_eq!(unsafe { wide(seed) }, plain, "one register, seed {seed}");
            }
        }
    }
}
