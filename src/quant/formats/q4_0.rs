//! Q4_0: 32 weights of 4 bits with one f16 scale and a fixed offset of 8.
//!
//! ```text
//! byte 0..2   d: f16
//! byte 2..18  q: 32 x u4           low nibble of byte j: weight j; high nibble: weight j + 16
//!                                  w[i] = d * (q[i] - 8)
//! ```
//! Layout: ggml-common.h `block_q4_0`.

use crate::quant::activations::{Act, ActRow};
use crate::quant::panels::lanes::{Blocks16, Lanes};
use crate::quant::panels::panel::{PanelHalf, PanelSpec, fill_panels};
use crate::quant::rng::Rng;
#[cfg(target_arch = "x86_64")]
use crate::quant::rows::blocks::{blocks, by_four, small_acts};
use crate::quant::rows::blocks::{f16_at, put_f16, rows};
use crate::quant::rows::small_cache::*;
use crate::quant::types::{QuantType, kernels};

const BLOCK: usize = 32;
const BYTES: usize = 18;
const _: () = assert!(BYTES == 2 + BLOCK / 2);

/// The format's table entry.
pub static TYPE: QuantType = QuantType {
    id: 2,
    name: "Q4_0",
    block: BLOCK,
    bytes: BYTES,
    act: Act::Q8,
    panel: Some(PanelSpec { group: 32, most: 8, mins: false, fill: FILL }),
    dequant,
    kernels: kernels!(Avx512: dot_avx512, Avx2: dot_avx2; dot),
    random,
    kv: Some(CACHE),
};

/// The weights of a block, in units of its scale.
fn units(b: &[u8; BYTES]) -> [i32; BLOCK] {
    std::array::from_fn(|i| (b[2 + i % 16] >> (i / 16 * 4) & 15) as i32 - 8)
}

fn dequant(blocks: &[u8], out: &mut [f32]) {
    for (b, o) in blocks.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<BLOCK>().0) {
        let d = f16_at(b, 0);
        *o = units(b).map(|w| w as f32 * d);
    }
}

fn dot(w: &[u8], stride: usize, x: ActRow<'_>, out: &mut [f32]) {
    for (o, row) in out.iter_mut().zip(rows(w, stride, x.n / BLOCK * BYTES)) {
        let mut sum = 0f64;
        for (i, (b, q)) in row.as_chunks::<BYTES>().0.iter().zip(x.q.as_chunks::<BLOCK>().0).enumerate() {
            let dot: i32 = units(b).iter().zip(q).map(|(&w, &q)| w * q as i32).sum();
            sum += f16_at(b, 0) as f64 * x.d[i] as f64 * dot as f64;
        }
        *o = sum as f32;
    }
}

fill_panels!(FILL, decode, BLOCK, 32);

#[inline(always)]
fn decode<V: Lanes>(b: &Blocks16<'_, V, BYTES>, out: &mut PanelHalf<'_>) {
    out.scale(0, b.f16(0));
    let offset = b.splat(0x0808_0808);
    for (w, v) in b.words(2).into_iter().enumerate() {
        out.codes(w, v.mask(0x0f0f_0f0f).sub8(offset));
        out.codes(4 + w, v.shr(4).mask(0x0f0f_0f0f).sub8(offset));
    }
}

fn random(rng: &mut Rng, block: &mut [u8]) {
    rng.fill(&mut block[2..]);
    put_f16(block, 0, (0.5 + rng.unit()) / 4.6); // uniform nibbles less 8 have an RMS of 4.6
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot_avx2<const T: usize>(w: &[u8], stride: usize, x: [ActRow<'_>; T], out: [&mut [f32]; T]) {
    by_four(w, stride, out, |w| group(w, stride, &x), |w| group(w, stride, &x), |w| group(w, stride, &x));
}

/// As ggml's `quantize_row_q4_0_ref`.
#[inline(always)] // so that `encode_avx2` compiles it for AVX2
fn encode(x: &[f32], out: &mut [u8]) {
    for (x, b) in x.as_chunks::<BLOCK>().0.iter().zip(out.as_chunks_mut::<BYTES>().0) {
        let codes = signed_codes(x, 15, b);
        put_nibbles(&codes, &mut b[2..]);
    }
}

cache_format!(CACHE, BYTES, |b| {
    use crate::simd::x86::*;
    use std::arch::x86_64::*;
    let codes = _mm256_sub_epi8(nibbles(b[2..].as_array().unwrap()), _mm256_set1_epi8(8));
    (codes, splat_f16(u16::from_le_bytes([b[0], b[1]])), None)
});

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx2,fma,f16c")]
fn dot_avx512<const T: usize>(w: &[u8], stride: usize, x: [ActRow<'_>; T], out: [&mut [f32]; T]) {
    use crate::quant::rows::small_avx512::*;
    const U: usize = 4 * BYTES;
    if !takes(x[0].n) {
        return dot_avx2(w, stride, x, out);
    }
    static QS: [u8; 64] = sixteens::<U>(2);
    let codes = |b: &[u8; U]| nibbles(pick(b, &QS));
    let scales = |b: [&[u8; U]; 4]| Scales::new(f16_scales(b, [0, 9, 18, 27]));
    dot_rows::<U, 8, T>(w, stride, x, out, codes, scales);
}

/// The nibbles multiply without their offset; 8 times the activations, pair by pair, is then taken
/// off. That is one subtraction per row, and the product to subtract is shared by the rows. A pair
/// stays under 15 * 127 * 2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn group<const R: usize, const T: usize>(w: &[u8], stride: usize, x: &[ActRow<'_>; T]) -> [[f32; R]; T] {
    use crate::quant::rows::small_avx2::sum_all;
    use crate::simd::x86::*;
    use std::arch::x86_64::*;
    let n = x[0].n / BLOCK;
    let rows = blocks::<R, BYTES>(w, stride, n);
    let acts = small_acts(x, n);
    let mut acc = [[_mm256_setzero_ps(); R]; T];
    for i in 0..n {
        let (mut q, mut offset) = ([_mm256_setzero_si256(); T], [_mm256_setzero_si256(); T]);
        for t in 0..T {
            q[t] = load_i8x32(&acts[t].0[i]);
            offset[t] = _mm256_maddubs_epi16(_mm256_set1_epi8(8), q[t]);
        }
        for r in 0..R {
            let b = &rows[r][i];
            prefetch_l2(b, R * stride);
            let codes = nibbles(b[2..].as_array().unwrap());
            let scale = splat_f16(u16::from_le_bytes([b[0], b[1]]));
            for t in 0..T {
                let pairs = _mm256_sub_epi16(_mm256_maddubs_epi16(codes, q[t]), offset[t]);
                let dot = _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
                acc[t][r] = _mm256_fmadd_ps(_mm256_mul_ps(scale, _mm256_set1_ps(acts[t].1[i])), dot, acc[t][r]);
            }
        }
    }
    sum_all(acc)
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
    fn the_largest_weights_and_activations_overflow_nothing() {
        check::extremes(&TYPE, &[0]);
    }

    #[test]
    fn a_kv_row_keeps_its_values() {
        check::kv(&TYPE, 0.127);
    }

    #[test]
    fn rows_are_encoded_as_the_reference_encodes_them() {
        check::encode(&TYPE);
    }

    #[test]
    fn panels_equal_the_decoded_weights() {
        check::panels(&TYPE);
    }

    #[test]
    fn decoded_rows_are_bit_equal_to_the_reference() {
        check::dequant(&TYPE);
    }
}
