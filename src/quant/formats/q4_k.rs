//! Q4_K: 256 weights of 4 bits; eight sub-blocks of 32 with a 6-bit scale and a 6-bit minimum each.
//!
//! ```text
//! byte 0..2      d: f16
//! byte 2..4      dmin: f16
//! byte 4..16     sc[8], m[8], 6 bits each (see rows/super_block.rs)
//! byte 16..144   4 times 32 bytes: byte l of part p has weight 64p + l in its low half, 64p + 32 +
//!                l in its high half
//!                w[i] = d * sc[i / 32] * q[i] - dmin * m[i / 32]
//! ```
//! Layout: ggml-common.h `block_q4_K`.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::__m256i;

use crate::quant::activations::{Act, ActRow};
use crate::quant::panels::lanes::{Blocks16, Lanes};
use crate::quant::panels::panel::{PanelHalf, PanelSpec, fill_panels};
use crate::quant::panels::super_block::scales_and_mins_16;
use crate::quant::rng::Rng;
use crate::quant::rows::blocks::{f16_at, put_f16, rows};
#[cfg(target_arch = "x86_64")]
use crate::quant::rows::super_avx2::lane_kernels;
use crate::quant::rows::super_block::{N, acts, scales_and_mins};
use crate::quant::types::{QuantType, kernels};

const BYTES: usize = 144;
const SCALES: usize = 4;
const QS: usize = 16;
const _: () = assert!(QS == SCALES + 12 && BYTES == QS + N / 2);

/// The format's table entry.
pub static TYPE: QuantType = QuantType {
    id: 12,
    name: "Q4_K",
    block: N,
    bytes: BYTES,
    act: Act::Q8K,
    panel: Some(PanelSpec { group: 32, most: 15, mins: true, fill: FILL }),
    dequant,
    kernels: kernels!(Avx512: dot_avx512, AvxVnni: dot_vnni, Avx2: dot_avx2; dot),
    random,
    kv: None,
};

/// Sub-block scales, sub-block minimums and weights of a block, as integers.
#[inline(always)]
fn unpack(b: &[u8; BYTES]) -> ([u8; 8], [u8; 8], [i8; N]) {
    let [scales, mins] = scales_and_mins(b[SCALES..QS].as_array().unwrap());
    let mut codes = [0; N];
    for (g, c) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        for (l, c) in c.iter_mut().enumerate() {
            *c = (b[QS + g / 2 * 32 + l] >> (g % 2 * 4) & 15) as i8;
        }
    }
    (scales.to_le_bytes(), mins.to_le_bytes(), codes)
}

fn dequant(blocks: &[u8], out: &mut [f32]) {
    for (b, o) in blocks.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<N>().0) {
        let (d, dmin) = (f16_at(b, 0), f16_at(b, 2));
        let (scales, mins, codes) = unpack(b);
        for (s, (o, c)) in o.as_chunks_mut::<32>().0.iter_mut().zip(codes.as_chunks::<32>().0).enumerate() {
            let (scale, min) = (d * scales[s] as f32, dmin * mins[s] as f32);
            for (o, &c) in o.iter_mut().zip(c) {
                *o = scale * c as f32 - min;
            }
        }
    }
}

fn dot(w: &[u8], stride: usize, x: ActRow<'_>, out: &mut [f32]) {
    for (o, row) in out.iter_mut().zip(rows(w, stride, x.n / N * BYTES)) {
        let mut sum = 0f64;
        for (b, (q, d, sums)) in row.as_chunks::<BYTES>().0.iter().zip(acts(x)) {
            let (scales, mins, codes) = unpack(b);
            let (mut dot, mut min) = (0, 0);
            for s in 0..8 {
                let at = s * 32..s * 32 + 32;
                let part: i32 = codes[at.clone()].iter().zip(&q[at]).map(|(&c, &q)| c as i32 * q as i32).sum();
                dot += scales[s] as i32 * part;
                min += mins[s] as i32 * (sums[2 * s] as i32 + sums[2 * s + 1] as i32);
            }
            sum += d as f64 * (f16_at(b, 0) as f64 * dot as f64 - f16_at(b, 2) as f64 * min as f64);
        }
        *o = sum as f32;
    }
}

fill_panels!(FILL, decode, N, 32);

#[inline(always)]
fn decode<V: Lanes>(b: &Blocks16<'_, V, BYTES>, out: &mut PanelHalf<'_>) {
    scales_and_mins_16(b.words(0), out);
    for i in 0..8 {
        for (w, v) in b.words(QS + 16 * i).into_iter().enumerate() {
            let step = i / 2 * 16 + i % 2 * 4 + w;
            out.codes(step, v.mask(0x0f0f_0f0f));
            out.codes(step + 8, v.shr(4).mask(0x0f0f_0f0f));
        }
    }
}

fn random(rng: &mut Rng, block: &mut [u8]) {
    rng.fill(&mut block[SCALES..]);
    let d = (0.5 + rng.unit()) / 258.0; // sc * q - 7.5 * m has an RMS of 258 for uniform bits
    put_f16(block, 0, d);
    put_f16(block, 2, d * 7.5); // the mean of q, so that weights have a mean of zero
}

#[cfg(target_arch = "x86_64")]
lane_kernels!(dot_lanes);

/// A pair of products is at most 2 * 15 * 127 = 3810: the sum of four fits i16 well.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot_lanes<const VNNI: bool, const T: usize>(
    call: crate::quant::rows::super_avx2::RowArgs<'_, T>,
    add: impl Fn(__m256i, __m256i, __m256i) -> __m256i,
) {
    use crate::quant::rows::super_avx2::*;
    use std::arch::x86_64::*;
    let low = _mm256_set1_epi8(15);
    dot_rows::<BYTES, VNNI, T>(call, &LaneOrder { min: 32, ..NATURAL }, |b, x| {
        let codes = |v: __m256i, _: usize, _: usize| {
            [_mm256_and_si256(v, low), _mm256_and_si256(_mm256_srli_epi16::<4>(v), low)]
        };
        multiply_with_mins::<BYTES, VNNI, T>(b, QS, x, codes, &add)
    });
}

/// The codes in the upper half of a byte are not shifted down: they count 16 times, see
/// `CodeOrder::times_16`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx2,fma,f16c")]
fn dot_avx512<const T: usize>(w: &[u8], stride: usize, x: [ActRow<'_>; T], out: [&mut [f32]; T]) {
    use crate::quant::rows::super_avx512::{CodeOrder, SuperFormat, dot_rows};
    use crate::quant::rows::super_avx512::{ORDER_4, scales_and_mins_16x16};
    use crate::simd::x86::*;
    use std::arch::x86_64::*;
    struct Q4K;
    impl SuperFormat for Q4K {
        const ORDER: CodeOrder = CodeOrder { times_16: true, ..ORDER_4 };
    }
    let (low, high) = (_mm512_set1_epi8(15), _mm512_set1_epi8(0xf0u8 as i8));
    let factors = |b: &[u8; BYTES]| u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    let scales = |b: &[u8; BYTES]| scales_and_mins_16x16(b[..QS].as_array().expect("16 bytes"));
    dot_rows::<Q4K, BYTES, T>((w, stride, x, out), factors, scales, |b: &[u8; BYTES]| {
        let [a, b] = load_u8x128(b[QS..].as_array().expect("the codes"));
        [_mm512_and_si512(a, low), _mm512_and_si512(a, high), _mm512_and_si512(b, low), _mm512_and_si512(b, high)]
    });
}

#[cfg(test)]
mod tests {
    use super::TYPE;
    use crate::quant::formats::check;

    #[test]
    fn every_kernel_equals_the_scalar_truth() {
        check::kernels(&TYPE);
    }

    #[test]
    fn decoded_rows_are_bit_equal_to_the_reference() {
        check::dequant(&TYPE);
    }

    #[test]
    fn the_largest_weights_and_activations_overflow_nothing() {
        check::extremes(&TYPE, &[0, 2]);
    }

    #[test]
    fn panels_equal_the_decoded_weights() {
        check::panels(&TYPE);
    }
}
