//! [`Lanes`] on AVX2: sixteen words in two registers.
//!
//! The compiler vectorises [`Plain`](super::lanes::Plain) for AVX2 well but for look-ups, bytes that
//! are picked or negated, and the transposition, which it computes byte by byte.

#![allow(unsafe_code)] // the intrinsics; a value of a vector type is the proof that the CPU has them
#![allow(clippy::missing_safety_doc)] // clippy takes a safe `target_feature` function for an unsafe one

use std::arch::x86_64::*;

use super::lanes::Lanes;
use crate::quant::codebooks::grid::CodebookGrid;

/// Sixteen words in two registers of AVX2. A value exists only where the CPU has the instructions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Paired([__m256i; 2]);

impl Paired {
    /// Returns zeros, which prove that the caller was compiled for the instructions that the
    /// methods use.
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    pub(crate) fn zero() -> Paired {
        Paired([_mm256_setzero_si256(); 2])
    }
}

/// Calls an intrinsic for both registers, on the registers of the values that are named. The text
/// is there twice: a closure would be compiled without AVX2 where it is not inlined.
macro_rules! op {
    ($($v:ident = $from:expr),* => $e:expr) => {
        Paired([op!(0; $($v = $from),* => $e), op!(1; $($v = $from),* => $e)])
    };
    ($half:literal; $($v:ident = $from:expr),* => $e:expr) => {{
        $(let $v = $from.0[$half];)*
        // SAFETY: a `Paired` exists only where the CPU has these instructions (see `zero`).
        unsafe { $e }
    }};
}

/// Returns the number of its lane's first byte in every byte.
#[inline(always)]
fn first_bytes() -> __m256i {
    // SAFETY: only methods of `Paired` call this.
    unsafe { _mm256_broadcastsi128_si256(_mm_setr_epi32(0, 0x0404_0404, 0x0808_0808, 0x0c0c_0c0c)) }
}

/// Two vectors of eight bytes in each lane of 64 bits, as one with the lower four and one with the
/// upper four of each.
#[inline(always)]
fn words_of(a: __m256i, b: __m256i) -> [__m256i; 2] {
    // SAFETY: only methods of `Paired` call this.
    unsafe {
        let (a, b) = (_mm256_castsi256_ps(a), _mm256_castsi256_ps(b));
        let low = _mm256_castps_si256(_mm256_shuffle_ps::<0x88>(a, b));
        let high = _mm256_castps_si256(_mm256_shuffle_ps::<0xdd>(a, b));
        [_mm256_permute4x64_epi64::<0xd8>(low), _mm256_permute4x64_epi64::<0xd8>(high)]
    }
}

/// Joins the bytes of `low` and, above them, those of `high` to indices: index `l` of row `r` is
/// `[l / 2][r][l % 2]`, in the order of bytes 0, 2, 1, 3.
#[inline(always)]
fn indices(low: Paired, high: Paired) -> [[[u16; 2]; 16]; 2] {
    let even =
        op!(low = low, high = high => _mm256_blendv_epi8(_mm256_slli_epi16::<8>(high), low, _mm256_set1_epi16(0xff)));
    let odd =
        op!(low = low, high = high => _mm256_blendv_epi8(high, _mm256_srli_epi16::<8>(low), _mm256_set1_epi16(0xff)));
    let mut out = [[[0; 2]; 16]; 2];
    even.store(bytemuck::cast_mut(&mut out[0]));
    odd.store(bytemuck::cast_mut(&mut out[1]));
    out
}

impl Lanes for Paired {
    #[inline(always)]
    fn splat(self, x: u32) -> Self {
        // SAFETY: as for `op`.
        Paired([unsafe { _mm256_set1_epi32(x as i32) }; 2])
    }
    #[inline(always)]
    fn load(self, from: &[u32; 16]) -> Self {
        let from = from.as_chunks::<8>().0;
        // SAFETY: as for `op`; the references cover the 32 bytes read of each.
        Paired(unsafe { [_mm256_loadu_si256(from[0].as_ptr().cast()), _mm256_loadu_si256(from[1].as_ptr().cast())] })
    }
    #[inline(always)]
    fn store(self, to: &mut [u8; 64]) {
        for (to, v) in to.as_chunks_mut::<32>().0.iter_mut().zip(self.0) {
            // SAFETY: as for `op`; the reference covers the 32 bytes written.
            unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), v) }
        }
    }
    #[inline(always)]
    fn turn(self, rows: [&[u8; 16]; 16]) -> [Self; 4] {
        let mut out = [self; 4];
        for half in 0..2 {
            // SAFETY: as for `op`; the references cover the 16 bytes read of each.
            unsafe {
                let mut four = [self.0[0]; 4];
                for (i, v) in four.iter_mut().enumerate() {
                    let row = 8 * half + i;
                    *v = _mm256_loadu2_m128i(rows[row + 4].as_ptr().cast(), rows[row].as_ptr().cast());
                }
                let four = crate::quant::rows::super_avx2::turn(four);
                for (out, v) in out.iter_mut().zip(four) {
                    out.0[half] = v;
                }
            }
        }
        out
    }
    #[inline(always)]
    fn and(self, b: Self) -> Self {
        op!(a = self, b = b => _mm256_and_si256(a, b))
    }
    #[inline(always)]
    fn or(self, b: Self) -> Self {
        op!(a = self, b = b => _mm256_or_si256(a, b))
    }
    #[inline(always)]
    fn xor(self, b: Self) -> Self {
        op!(a = self, b = b => _mm256_xor_si256(a, b))
    }
    #[inline(always)]
    fn shl(self, n: u32) -> Self {
        op!(a = self => _mm256_sll_epi32(a, _mm_cvtsi32_si128(n as i32)))
    }
    #[inline(always)]
    fn shr(self, n: u32) -> Self {
        op!(a = self => _mm256_srl_epi32(a, _mm_cvtsi32_si128(n as i32)))
    }
    #[inline(always)]
    fn sar(self, n: u32) -> Self {
        op!(a = self => _mm256_sra_epi32(a, _mm_cvtsi32_si128(n as i32)))
    }
    #[inline(always)]
    fn sub8(self, b: Self) -> Self {
        op!(a = self, b = b => _mm256_sub_epi8(a, b))
    }
    #[inline(always)]
    fn add(self, b: Self) -> Self {
        op!(a = self, b = b => _mm256_add_epi32(a, b))
    }
    #[inline(always)]
    fn mul(self, b: Self) -> Self {
        op!(a = self, b = b => _mm256_mullo_epi32(a, b))
    }
    #[inline(always)]
    fn look_up8(self, table: &[i8; 16]) -> Self {
        op!(a = self => _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast())), a))
    }
    #[inline(always)]
    fn spread4(self) -> Self {
        op!(a = self => {
            let first = first_bytes();
            let bit = _mm256_set1_epi32(0x0804_0201);
            _mm256_cmpeq_epi8(_mm256_and_si256(_mm256_shuffle_epi8(a, first), bit), bit)
        })
    }
    #[inline(always)]
    fn to_f32(self) -> Self {
        op!(a = self => _mm256_castps_si256(_mm256_cvtepi32_ps(a)))
    }
    #[inline(always)]
    fn f16_to_f32(self) -> Self {
        op!(a = self => {
            let low = _mm256_and_si256(a, _mm256_set1_epi32(0xffff));
            let low = _mm256_permute4x64_epi64::<0xd8>(_mm256_packus_epi32(low, low));
            _mm256_castps_si256(_mm256_cvtph_ps(_mm256_castsi256_si128(low)))
        })
    }
    #[inline(always)]
    fn mul_f32(self, b: Self) -> Self {
        op!(a = self, b = b => _mm256_castps_si256(_mm256_mul_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b))))
    }
    #[inline(always)]
    fn negate8_at(self, signs: Self, at: u32) -> Self {
        self.negate8(signs.shr(at)) // bits above the four do not matter here
    }
    #[inline(always)]
    fn pick8(self, b: Self, from: [u8; 4]) -> Self {
        // An index with its top bit set gives zero.
        let index = |other: u8| {
            let [w, x, y, z] = from;
            let one = |f: u8| if f & 4 == other { f & 3 } else { 0x80 };
            i32::from_le_bytes([one(w), one(x), one(y), one(z)])
        };
        op!(a = self, b = b => {
            let lane = first_bytes();
            let own = _mm256_shuffle_epi8(a, _mm256_or_si256(lane, _mm256_set1_epi32(index(0))));
            _mm256_or_si256(own, _mm256_shuffle_epi8(b, _mm256_or_si256(lane, _mm256_set1_epi32(index(4)))))
        })
    }
    #[inline(always)]
    fn eights<const N: usize>(self, high: Self, grid: &CodebookGrid<u64, N>) -> [[Self; 2]; 4] {
        const { assert!(N.is_power_of_two()) }
        let index = indices(self, high);
        let mut out = [[self; 2]; 4];
        for (l, out) in out.iter_mut().enumerate() {
            for half in 0..2 {
                let mut e = [0; 8];
                for (e, index) in e.iter_mut().zip(&index[l % 2][8 * half..]) {
                    *e = grid.entries[index[l / 2] as usize & (N - 1)] as i64;
                }
                // SAFETY: as for `op`.
                let four =
                    unsafe { [_mm256_setr_epi64x(e[0], e[1], e[2], e[3]), _mm256_setr_epi64x(e[4], e[5], e[6], e[7])] };
                let [low, high] = words_of(four[0], four[1]);
                (out[0].0[half], out[1].0[half]) = (low, high);
            }
        }
        out
    }
    #[inline(always)]
    fn fours<const N: usize>(self, high: Self, grid: &CodebookGrid<u32, N>) -> [Self; 4] {
        const { assert!(N.is_power_of_two()) }
        let index = indices(self, high);
        let mut out = [self; 4];
        for (l, out) in out.iter_mut().enumerate() {
            for half in 0..2 {
                let mut e = [0; 8];
                for (e, index) in e.iter_mut().zip(&index[l % 2][8 * half..]) {
                    *e = grid.entries[index[l / 2] as usize & (N - 1)] as i32;
                }
                // SAFETY: as for `op`.
                out.0[half] = unsafe { _mm256_setr_epi32(e[0], e[1], e[2], e[3], e[4], e[5], e[6], e[7]) };
            }
        }
        out
    }
}
