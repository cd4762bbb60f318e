//! MXFP4: 32 weights in 4-bit floating point (E2M1) with one scale that is a power of two (E8M0).
//!
//! ```text
//! byte 0      e: u8                the scale is 2^(e - 127)
//! byte 1..17  q: 32 x e2m1         low nibble of byte j: weight j; high nibble: weight j + 16
//!                                  w[i] = 2^(e - 128) * VALUES[q[i]]
//! ```
//! E2M1 counts 0, 0.5, 1, 1.5, 2, 3, 4, 6 and a sign. The values are kept doubled, as integers, and
//! the scale halved. e = 0 and e = 1 are below the normal f32 range when halved; e = 255, NaN in
//! the OCP standard, counts as a power of two in ggml, and so here. Layout and values:
//! ggml-common.h `block_mxfp4`, `kvalues_fp4`.

use crate::quant::activations::{Act, ActRow};
use crate::quant::panels::lanes::{Blocks16, Lanes};
use crate::quant::panels::panel::{PanelHalf, PanelSpec, fill_panels};
use crate::quant::rng::Rng;
use crate::quant::rows::blocks::rows;
use crate::quant::types::{QuantType, kernels};

const BLOCK: usize = 32;
const BYTES: usize = 17;
const _: () = assert!(BYTES == 1 + BLOCK / 2);

/// Twice the value of each E2M1 code.
pub(crate) const VALUES: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// `2^(e - 128)` for every `e`: a load is cheaper than the two cases.
static SCALES: [f32; 256] = {
    let mut scales = [0f32; 256];
    let mut e = 0;
    while e < 256 {
        scales[e] = f32::from_bits(if e < 2 { 1 << (21 + e) } else { (e as u32 - 1) << 23 });
        e += 1;
    }
    scales
};

/// The format's table entry.
pub static TYPE: QuantType = QuantType {
    id: 39,
    name: "MXFP4",
    block: BLOCK,
    bytes: BYTES,
    act: Act::Q8,
    panel: Some(PanelSpec { group: 32, most: 12, mins: false, fill: FILL }),
    dequant,
    kernels: kernels!(Avx512: dot_avx512, Avx2: dot_avx2; dot),
    random,
    kv: None,
};

/// The weights of a block, in units of its halved scale.
fn units(b: &[u8; BYTES]) -> [i32; BLOCK] {
    std::array::from_fn(|i| VALUES[(b[1 + i % 16] >> (i / 16 * 4) & 15) as usize] as i32)
}

fn dequant(blocks: &[u8], out: &mut [f32]) {
    for (b, o) in blocks.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<BLOCK>().0) {
        let d = SCALES[b[0] as usize];
        *o = units(b).map(|w| w as f32 * d);
    }
}

fn dot(w: &[u8], stride: usize, x: ActRow<'_>, out: &mut [f32]) {
    for (o, row) in out.iter_mut().zip(rows(w, stride, x.n / BLOCK * BYTES)) {
        let mut sum = 0f64;
        for (i, (b, q)) in row.as_chunks::<BYTES>().0.iter().zip(x.q.as_chunks::<BLOCK>().0).enumerate() {
            let dot: i32 = units(b).iter().zip(q).map(|(&w, &q)| w * q as i32).sum();
            sum += SCALES[b[0] as usize] as f64 * x.d[i] as f64 * dot as f64;
        }
        *o = sum as f32;
    }
}

fill_panels!(FILL, decode, BLOCK, 32);

#[inline(always)]
fn decode<V: Lanes>(b: &Blocks16<'_, V, BYTES>, out: &mut PanelHalf<'_>) {
    out.scale(0, b.each(|b| SCALES[b[0] as usize].to_bits()));
    for (w, v) in b.words(1).into_iter().enumerate() {
        out.codes(w, v.mask(0x0f0f_0f0f).look_up8(&VALUES));
        out.codes(4 + w, v.shr(4).mask(0x0f0f_0f0f).look_up8(&VALUES));
    }
}

fn random(rng: &mut Rng, block: &mut [u8]) {
    rng.fill(&mut block[1..]);
    block[0] = 125 + rng.below(2) as u8; // 1/8 or 1/4: the 16 doubled values have an RMS of 5.9
}

/// `vscalef` multiplies by a power of two, subnormal results included.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx2,fma,f16c")]
fn dot_avx512<const T: usize>(w: &[u8], stride: usize, x: [ActRow<'_>; T], out: [&mut [f32]; T]) {
    use crate::quant::rows::small_avx512::*;
    use crate::simd::x86::load_u8x64;
    use std::arch::x86_64::*;
    const U: usize = 4 * BYTES;
    if !takes(x[0].n) {
        return dot_avx2(w, stride, x, out);
    }
    static QS: [u8; 64] = sixteens::<U>(1);
    static TABLE: [u8; 64] = values::<12>(&VALUES);
    static EXPONENTS: [u8; 64] = {
        let mut index = [0; 64];
        let mut i = 0;
        while i < 16 {
            index[4 * i] = (i % 4 * BYTES) as u8;
            i += 1;
        }
        index
    };
    let codes = |b: &[u8; U]| look_up(pick(b, &QS), &TABLE);
    let scales = |b: [&[u8; U]; 4]| {
        let mut e = _mm512_setzero_si512();
        for (r, b) in b.into_iter().enumerate() {
            let first = load_u8x64(b.first_chunk().unwrap());
            e = _mm512_mask_permutexvar_epi8(e, 0x1111 << (16 * r), load_u8x64(&EXPONENTS), first);
        }
        let e = _mm512_cvtepi32_ps(_mm512_sub_epi32(e, _mm512_set1_epi32(128)));
        Scales::new(_mm512_scalef_ps(_mm512_set1_ps(1.0), e))
    };
    dot_rows::<U, 12, T>(w, stride, x, out, codes, scales);
}

/// The values come from a byte shuffle, the scale from a table.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot_avx2<const T: usize>(w: &[u8], stride: usize, x: [ActRow<'_>; T], out: [&mut [f32]; T]) {
    use crate::simd::x86::*;
    use std::arch::x86_64::*;
    let values = load_u8x16_twice(&VALUES.map(|v| v as u8));
    crate::quant::rows::small_avx2::dot_signed::<BYTES, T>(w, stride, x, out, |b| {
        let codes = _mm256_shuffle_epi8(values, nibbles(b[1..].as_array().unwrap()));
        (codes, _mm256_set1_ps(SCALES[b[0] as usize]))
    });
}

#[cfg(test)]
mod tests {
    use super::{SCALES, TYPE};
    use crate::quant::formats::check;
    use crate::quant::types::QuantType;

    #[test]
    fn every_kernel_equals_the_scalar_truth() {
        check::kernels(&TYPE);
    }

    #[test]
    fn panels_equal_the_decoded_weights() {
        check::panels(&TYPE);
    }

    #[test]
    fn decoded_rows_are_bit_equal_to_the_reference() {
        check::dequant(&TYPE);
    }

    #[test]
    fn every_exponent_byte_is_its_power_of_two_down_to_the_subnormal_ones() {
        for (e, scale) in SCALES.iter().enumerate() {
            assert_eq!(*scale as f64, 2f64.powi(e as i32 - 128), "exponent byte {e}");
        }
    }

    #[test]
    fn scales_far_from_one_keep_every_kernel_exact() {
        let wide = QuantType {
            random: |rng, block| {
                rng.fill(block);
                block[0] = 28 + rng.below(200) as u8; // sums of these stay inside f32
            },
            kv: None,
            ..TYPE
        };
        check::kernels(Box::leak(Box::new(wide)));
    }
}
