//! Which vector instructions this CPU has, found once at run time; and the few safe loads and folds that the kernels
//! share.
//!
//! A kernel is a safe `#[target_feature]` function kept in a table with the [`Isa`] it needs. Nothing above this
//! floor compiles for a particular CPU, so a plain `cargo build --release` uses what the machine has.
//! `TANDEM_ISA=scalar|avx2|avxvnni|avx512|avx512bf16|amx` lowers the choice (never raises it), which is how the tests
//! hold one path to another.

#[cfg(all(any(test, debug_assertions), target_arch = "x86_64", target_os = "linux"))]
pub(crate) mod emulated;
pub mod tiles;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

/// An instruction set that kernels are written for, in rising order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust; every CPU.
    Scalar,
    /// AVX2 with FMA and F16C (Intel since Haswell, AMD since Zen).
    Avx2,
    /// [`Isa::Avx2`] with dot products of bytes: AVX-VNNI (Intel since Alder Lake, AMD since Zen 5), or the same
    /// instruction of AVX512_VNNI.
    AvxVnni,
    /// AVX-512 F, BW, DQ, VL, VBMI, VNNI and BITALG (Intel since Ice Lake, AMD since Zen 4).
    Avx512,
    /// [`Isa::Avx512`] with AVX512_BF16 (AMD since Zen 4, Intel since Sapphire Rapids).
    Avx512Bf16,
    /// [`Isa::Avx512Bf16`] with matrix tiles for BF16 (Intel Xeons since Sapphire Rapids),
    /// see [`tiles`].
    Amx,
}

impl Isa {
    /// Every one, in rising order.
    pub const ALL: [Isa; 6] = [Isa::Scalar, Isa::Avx2, Isa::AvxVnni, Isa::Avx512, Isa::Avx512Bf16, Isa::Amx];

    /// The name that `TANDEM_ISA` and the reports use.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::AvxVnni => "avxvnni",
            Isa::Avx512 => "avx512",
            Isa::Avx512Bf16 => "avx512bf16",
            Isa::Amx => "amx",
        }
    }
}

/// What the CPU itself offers, whatever the environment says; of tiles, what the system gives this
/// process.
pub fn detected() -> Isa {
    #[cfg(target_arch = "x86_64")]
    {
        let avx2 =
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        let avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vbmi")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("avx512bitalg");
        match (avx2, avx512) {
            (true, true) if is_x86_feature_detected!("avx512bf16") => {
                return if tiles::usable().is_ok() { Isa::Amx } else { Isa::Avx512Bf16 };
            }
            (true, true) => return Isa::Avx512,
            (true, false) if vnni_is_vex() => return Isa::AvxVnni,
            (true, false) => return Isa::Avx2,
            _ => {}
        }
    }
    Isa::Scalar
}

/// Whether the CPU has AVX-VNNI. Otherwise [`Isa::AvxVnni`] is computed by AVX512_VNNI on vectors of 256 bits: the same
/// instruction in the longer encoding, so that every CPU that has either can run those kernels.
#[cfg(target_arch = "x86_64")]
pub fn vnni_is_vex() -> bool {
    is_x86_feature_detected!("avxvnni")
}

/// The number of the instruction set in use and one; 0 until it is known.
static IN_USE: AtomicU8 = AtomicU8::new(0);

/// The instruction set in use: the detected one, or a lower one asked for by `TANDEM_ISA`. An unknown or unavailable
/// value is reported on stderr once and the detected set is used.
pub fn isa() -> Isa {
    match IN_USE.load(Ordering::Relaxed) {
        0 => first(),
        n => Isa::ALL[n as usize - 1],
    }
}

#[cold]
fn first() -> Isa {
    static ISA: OnceLock<Isa> = OnceLock::new();
    let isa = *ISA.get_or_init(|| {
        let have = detected();
        let Ok(asked) = std::env::var("TANDEM_ISA") else { return have };
        if tiles::emulated() {
            if have < Isa::Amx {
                say!("TANDEM_ISA={asked} needs {}; using {}", Isa::Avx512Bf16.name(), have.name());
            }
            return have;
        }
        let Some(want) = Isa::ALL.into_iter().find(|i| i.name() == asked) else {
            let names = Isa::ALL.map(Isa::name).join(", ");
            say!("TANDEM_ISA={asked} is not one of {names}; using {}", have.name());
            return have;
        };
        if want > have {
            say!("TANDEM_ISA={asked} asks for more than this CPU has; using {}", have.name());
        }
        want.min(have)
    });
    IN_USE.store(isa as u8 + 1, Ordering::Relaxed);
    isa
}

/// Uses another instruction set from now on, as far as this CPU has it: for `tandem verify`, which holds one to another.
/// Nothing may be computing meanwhile.
pub fn set(isa: Isa) {
    IN_USE.store(isa.min(detected()) as u8 + 1, Ordering::Relaxed);
}

/// e^x to about two units in the last place, without branches, so that loops of it are vectorised. 0 below -87.3 (where
/// f32 ends but for subnormals), at most e^88.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // e^x = 2^n e^r, n = round(x / ln 2), |r| <= ln 2 / 2; ln 2 in two parts, the first with few bits (Cody and Waite).
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
    let x = if x > 88.0 { 88.0 } else { x }; // NaN stays NaN
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    // Polynomial: Cephes' expf (Moshier).
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_2e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let p = p * r * r + r + 1.0;
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1f32.to_bits()));
    if x < -87.3 { 0.0 } else { p * power }
}

/// Asks for the cache lines of `p`, into the second-level cache.
#[inline(always)]
#[allow(unsafe_code, unused_unsafe)] // the intrinsic was declared unsafe before it was declared safe
pub fn prefetch(p: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    for line in p.chunks(64) {
        // SAFETY: nothing is read, and no address faults.
        unsafe { std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(line.as_ptr().cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

/// Loads and horizontal sums for AVX2 kernels. All safe: a load takes an array reference of the full width.
#[cfg(target_arch = "x86_64")]
pub mod x86 {
    #![allow(unsafe_code)] // SIMD loads: each takes a reference to as many bytes as it reads
    #![allow(clippy::missing_safety_doc)] // clippy takes a safe `target_feature` function for an unsafe one
    use std::arch::x86_64::*;

    /// 32 bytes, any alignment.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn load_u8x32(p: &[u8; 32]) -> __m256i {
        // SAFETY: the reference covers the 32 bytes read.
        unsafe { _mm256_loadu_si256(p.as_ptr().cast()) }
    }

    /// 32 signed bytes, any alignment.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn load_i8x32(p: &[i8; 32]) -> __m256i {
        // SAFETY: the reference covers the 32 bytes read.
        unsafe { _mm256_loadu_si256(p.as_ptr().cast()) }
    }

    /// 16 bytes, any alignment.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn load_u8x16(p: &[u8; 16]) -> __m128i {
        // SAFETY: the reference covers the 16 bytes read.
        unsafe { _mm_loadu_si128(p.as_ptr().cast()) }
    }

    /// 8 floats, any alignment.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn load_f32x8(p: &[f32; 8]) -> __m256 {
        // SAFETY: the reference covers the 32 bytes read.
        unsafe { _mm256_loadu_ps(p.as_ptr()) }
    }

    /// Writes 8 floats, any alignment.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn store_f32x8(p: &mut [f32; 8], v: __m256) {
        // SAFETY: the reference covers the 32 bytes written.
        unsafe { _mm256_storeu_ps(p.as_mut_ptr(), v) }
    }

    /// Writes 32 bytes, any alignment.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn store_u8x32(p: &mut [u8; 32], v: __m256i) {
        // SAFETY: the reference covers the 32 bytes written.
        unsafe { _mm256_storeu_si256(p.as_mut_ptr().cast(), v) }
    }

    /// Writes 32 signed bytes, any alignment.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn store_i8x32(p: &mut [i8; 32], v: __m256i) {
        // SAFETY: the reference covers the 32 bytes written.
        unsafe { _mm256_storeu_si256(p.as_mut_ptr().cast(), v) }
    }

    /// 16 two-byte values, any alignment.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn load_i16x16(p: &[i16; 16]) -> __m256i {
        // SAFETY: the reference covers the 32 bytes read.
        unsafe { _mm256_loadu_si256(p.as_ptr().cast()) }
    }

    /// 8 half-precision floats (their bits, little-endian bytes) widened to f32.
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    pub fn load_f16x8(p: &[u8; 16]) -> __m256 {
        _mm256_cvtph_ps(load_u8x16(p))
    }

    /// 8 upper halves of floats (little-endian bytes) widened to f32.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn load_bf16x8(p: &[u8; 16]) -> __m256 {
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(load_u8x16(p))))
    }

    /// One half-precision float (its bits) widened to f32.
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    pub fn f16_bits(bits: u16) -> f32 {
        _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(bits as i32)))
    }

    /// The sum of 8 floats.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn sum_f32x8(v: __m256) -> f32 {
        let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
        _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
    }

    /// 4 floats, any alignment, in both halves.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn load_f32x4_twice(p: &[f32; 4]) -> __m256 {
        // SAFETY: the reference covers the 16 bytes read.
        let v = unsafe { _mm_loadu_ps(p.as_ptr()) };
        _mm256_set_m128(v, v)
    }

    /// 16 bytes, any alignment, in both halves.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn load_u8x16_twice(p: &[u8; 16]) -> __m256i {
        _mm256_broadcastsi128_si256(load_u8x16(p))
    }

    /// One half-precision float (its bits) widened to f32, in all lanes. Copying before widening saves a shuffle.
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    pub fn splat_f16(bits: u16) -> __m256 {
        _mm256_cvtph_ps(_mm_set1_epi16(bits as i16))
    }

    /// The 32 nibbles of 16 bytes: all the low ones, then all the high ones.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn nibbles(p: &[u8; 16]) -> __m256i {
        let v = _mm256_srlv_epi32(load_u8x16_twice(p), _mm256_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4));
        _mm256_and_si256(v, _mm256_set1_epi8(15))
    }

    /// 32 bits as 32 bytes: all ones where the bit is set, zero where it is not.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn bit_bytes(p: &[u8; 4]) -> __m256i {
        let which = _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
        let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
        let v = _mm256_shuffle_epi8(_mm256_set1_epi32(i32::from_le_bytes(*p)), which);
        _mm256_cmpeq_epi8(_mm256_and_si256(v, bit), bit)
    }

    /// Sums of four products each: unsigned bytes `u` times signed bytes `q`. A pair of products must fit an i16.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn dot_u8_i8(u: __m256i, q: __m256i) -> __m256i {
        _mm256_madd_epi16(_mm256_maddubs_epi16(u, q), _mm256_set1_epi16(1))
    }

    /// Sums of four products each: signed bytes `w` times signed bytes `q`, of which `abs` is the magnitude; neither
    /// is -128. The sign of `q` moves to `w`, because the multiply wants one side unsigned.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn dot_i8_i8(w: __m256i, q: __m256i, abs: __m256i) -> __m256i {
        dot_u8_i8(abs, _mm256_sign_epi8(w, q))
    }

    /// Prefetches the cache line that is `ahead` bytes after the start of `p`, wherever that is: a hint never faults.
    #[inline]
    #[target_feature(enable = "avx2")]
    #[allow(unused_unsafe)] // the intrinsic was declared unsafe before it was declared safe
    pub fn prefetch(p: &[u8], ahead: usize) {
        // SAFETY: nothing is read, and no address faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.as_ptr().wrapping_add(ahead).cast()) }
    }

    /// As [`prefetch`], into the second-level cache only.
    #[inline]
    #[target_feature(enable = "avx2")]
    #[allow(unused_unsafe)] // as above
    pub fn prefetch_l2(p: &[u8], ahead: usize) {
        // SAFETY: nothing is read, and no address faults.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.as_ptr().wrapping_add(ahead).cast()) }
    }

    /// As [`prefetch_l2`], as many lines as `p` has.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn prefetch_lines_l2(p: &[u8], ahead: usize) {
        for line in 0..p.len().div_ceil(64) {
            prefetch_l2(p, ahead + 64 * line);
        }
    }

    /// Bytes from what a row kernel multiplies to what it prefetches into the second-level cache, in formats whose
    /// stream a Zen 4 follows better by itself: none there, 6 KB on Intel's CPUs. Without and with, of a plain read of
    /// the same memory on two cores of a Sapphire Rapids: Q8_0 69 and 98%, MXFP4 62 and 73%, Q4_0 63 and 76%, IQ3_XXS
    /// 41 and 47%, F16 75 and 92%; 4 to 12 KB are alike, 1 KB gains nothing.
    pub fn ahead_where_wanted() -> Option<usize> {
        static AHEAD: std::sync::OnceLock<Option<usize>> = std::sync::OnceLock::new();
        *AHEAD.get_or_init(|| is_intel().then_some(6144))
    }

    /// Whether the CPU says that it is Intel's.
    #[allow(unused_unsafe)] // the intrinsic was declared unsafe before it was declared safe
    fn is_intel() -> bool {
        // SAFETY: every CPU of 64 bits has the instruction.
        let id = unsafe { __cpuid(0) };
        [id.ebx, id.edx, id.ecx].map(u32::to_le_bytes).as_flattened() == b"GenuineIntel"
    }

    /// 16 signed bytes in the lower lane, 16 others in the upper, any alignment.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn load_i8x16_pair(lower: &[i8; 16], upper: &[i8; 16]) -> __m256i {
        // SAFETY: each reference covers the 16 bytes read.
        unsafe { _mm256_loadu2_m128i(upper.as_ptr().cast(), lower.as_ptr().cast()) }
    }

    /// 8 floats as little-endian bytes, any alignment.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn load_f32x8_bytes(p: &[u8; 32]) -> __m256 {
        // SAFETY: the reference covers the 32 bytes read.
        unsafe { _mm256_loadu_ps(p.as_ptr().cast()) }
    }

    /// Writes 16 two-byte values, any alignment.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn store_u16x16(p: &mut [u16; 16], v: __m256i) {
        // SAFETY: the reference covers the 32 bytes written.
        unsafe { _mm256_storeu_si256(p.as_mut_ptr().cast(), v) }
    }

    /// Writes 16 signed two-byte values, any alignment.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn store_i16x16(p: &mut [i16; 16], v: __m256i) {
        // SAFETY: the reference covers the 32 bytes written.
        unsafe { _mm256_storeu_si256(p.as_mut_ptr().cast(), v) }
    }

    /// Writes 8 four-byte values, any alignment.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn store_u32x8(p: &mut [u32; 8], v: __m256i) {
        // SAFETY: the reference covers the 32 bytes written.
        unsafe { _mm256_storeu_si256(p.as_mut_ptr().cast(), v) }
    }

    /// Reads one value from memory by a load of its own, which the optimiser may not widen, merge or leave out.
    #[inline]
    pub fn read_once<T: Copy>(p: &T) -> T {
        // SAFETY: a reference is valid for reads.
        unsafe { std::ptr::read_volatile(p) }
    }

    /// 64 signed bytes, any alignment.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn load_i8x64(p: &[i8; 64]) -> __m512i {
        // SAFETY: the reference covers the 64 bytes read.
        unsafe { _mm512_loadu_si512(p.as_ptr().cast()) }
    }

    /// 64 bytes, any alignment.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn load_u8x64(p: &[u8; 64]) -> __m512i {
        // SAFETY: the reference covers the 64 bytes read.
        unsafe { _mm512_loadu_si512(p.as_ptr().cast()) }
    }

    /// 128 bytes, any alignment.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn load_u8x128(p: &[u8; 128]) -> [__m512i; 2] {
        let (h, _) = p.as_chunks::<64>();
        // SAFETY: each reference covers the 64 bytes read.
        unsafe { [_mm512_loadu_si512(h[0].as_ptr().cast()), _mm512_loadu_si512(h[1].as_ptr().cast())] }
    }

    /// 32 integers, any alignment.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn load_i32x32(p: &[i32; 32]) -> [__m512i; 2] {
        let (h, _) = p.as_chunks::<16>();
        // SAFETY: each reference covers the 64 bytes read.
        unsafe { [_mm512_loadu_si512(h[0].as_ptr().cast()), _mm512_loadu_si512(h[1].as_ptr().cast())] }
    }

    /// 32 floats, any alignment.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn load_f32x32(p: &[f32; 32]) -> [__m512; 2] {
        let (h, _) = p.as_chunks::<16>();
        // SAFETY: each reference covers the 64 bytes read.
        unsafe { [_mm512_loadu_ps(h[0].as_ptr()), _mm512_loadu_ps(h[1].as_ptr())] }
    }

    /// Writes 32 floats, any alignment.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn store_f32x32(p: &mut [f32; 32], v: [__m512; 2]) {
        let (h, _) = p.as_chunks_mut::<16>();
        // SAFETY: each reference covers the 64 bytes written.
        unsafe {
            _mm512_storeu_ps(h[0].as_mut_ptr(), v[0]);
            _mm512_storeu_ps(h[1].as_mut_ptr(), v[1]);
        }
    }

    /// 4 words of 16 rows, turned: word `r` of vector `w` is word `w` of row `r`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn turn_words_16(rows: [&[u8; 16]; 16]) -> [__m512i; 4] {
        // SAFETY: the references cover the 16 bytes read of each.
        let row = |r: usize| unsafe { _mm_loadu_si128(rows[r].as_ptr().cast()) };
        // Rows i, 4 + i, 8 + i, 12 + i, a lane of 128 bits each; then a turn of 4 by 4 within the lanes.
        let mut four = [_mm512_setzero_si512(); 4];
        for (i, v) in four.iter_mut().enumerate() {
            let low = _mm512_inserti32x4::<1>(_mm512_castsi128_si512(row(i)), row(4 + i));
            *v = _mm512_inserti32x4::<3>(_mm512_inserti32x4::<2>(low, row(8 + i)), row(12 + i));
        }
        let [a, b, c, d] = four;
        let (ab0, ab1) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let (cd0, cd1) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
        [
            _mm512_unpacklo_epi64(ab0, cd0),
            _mm512_unpackhi_epi64(ab0, cd0),
            _mm512_unpacklo_epi64(ab1, cd1),
            _mm512_unpackhi_epi64(ab1, cd1),
        ]
    }

    /// Numbers of 16 rows, turned: row `w` has number `w` of every row.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn turned_16(rows: &[[f32; 16]; 16]) -> [[f32; 16]; 16] {
        let mut to = [[0.0; 16]; 16];
        for (quarter, to) in to.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            let bytes: [&[u8; 16]; 16] =
                std::array::from_fn(|r| bytemuck::cast_ref::<[f32; 4], [u8; 16]>(&rows[r].as_chunks::<4>().0[quarter]));
            for (to, v) in to.iter_mut().zip(turn_words_16(bytes)) {
                store_f32x16(to, _mm512_castsi512_ps(v));
            }
        }
        to
    }

    /// 16 half-precision floats (their bits, little-endian bytes) widened to f32.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn load_f16x16(p: &[u8; 32]) -> __m512 {
        // SAFETY: the reference covers the 32 bytes read.
        _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(p.as_ptr().cast()) })
    }

    /// Writes 16 floats, any alignment.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn store_f32x16(p: &mut [f32; 16], v: __m512) {
        // SAFETY: the reference covers the 64 bytes written.
        unsafe { _mm512_storeu_ps(p.as_mut_ptr(), v) }
    }

    /// Writes 64 bytes, any alignment.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn store_u8x64(p: &mut [u8; 64], v: __m512i) {
        // SAFETY: the reference covers the 64 bytes written.
        unsafe { _mm512_storeu_si512(p.as_mut_ptr().cast(), v) }
    }

    /// Writes 16 words, any alignment.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn store_u32x16(p: &mut [u32; 16], v: __m512i) {
        // SAFETY: the reference covers the 64 bytes written.
        unsafe { _mm512_storeu_si512(p.as_mut_ptr().cast(), v) }
    }

    /// 32 floats rounded to BF16, ties to even, the first 16 in the lower half. Subnormal results are zero.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub fn round_bf16x32(first: __m512, second: __m512) -> __m512i {
        // SAFETY: both types are 64 bytes of any bits.
        unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(second, first)) }
    }

    /// Writes 32 integers, any alignment.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn store_i32x32(p: &mut [i32; 32], v: [__m512i; 2]) {
        let (h, _) = p.as_chunks_mut::<16>();
        // SAFETY: each reference covers the 64 bytes written.
        unsafe {
            _mm512_storeu_si512(h[0].as_mut_ptr().cast(), v[0]);
            _mm512_storeu_si512(h[1].as_mut_ptr().cast(), v[1]);
        }
    }

    /// 16 floats, any alignment.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn load_f32x16(p: &[f32; 16]) -> __m512 {
        // SAFETY: the reference covers the 64 bytes read.
        unsafe { _mm512_loadu_ps(p.as_ptr()) }
    }

    /// 16 floats as little-endian bytes, any alignment.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn load_f32x16_bytes(p: &[u8; 64]) -> __m512 {
        _mm512_castsi512_ps(load_u8x64(p))
    }

    /// 16 upper halves of floats (little-endian bytes) widened to f32.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn load_bf16x16(p: &[u8; 32]) -> __m512 {
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(load_u8x32(p))))
    }

    /// `sum + a0 * b0 + a1 * b1` in every lane, where `a` and `b` hold two upper halves of floats to a lane.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub fn dot_bf16(sum: __m512, a: __m512i, b: __m512i) -> __m512 {
        // SAFETY: both types are 64 bytes that may be anything.
        let (a, b) =
            unsafe { (std::mem::transmute::<__m512i, __m512bh>(a), std::mem::transmute::<__m512i, __m512bh>(b)) };
        _mm512_dpbf16_ps(sum, a, b)
    }

    /// The sum of each of four vectors of 16 floats.
    #[inline]
    #[target_feature(enable = "avx512f,avx2")]
    pub fn fold4(v: [__m512; 4]) -> [f32; 4] {
        let ab = _mm512_add_ps(_mm512_unpacklo_ps(v[0], v[1]), _mm512_unpackhi_ps(v[0], v[1]));
        let cd = _mm512_add_ps(_mm512_unpacklo_ps(v[2], v[3]), _mm512_unpackhi_ps(v[2], v[3]));
        let (ab, cd) = (_mm512_castps_pd(ab), _mm512_castps_pd(cd));
        let low = _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd));
        let sums = _mm512_add_ps(low, _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)));
        // Each lane of 128 bits now has a part of all four sums.
        let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(sums)));
        let sums = _mm256_add_ps(_mm512_castps512_ps256(sums), high);
        let sums = _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps::<1>(sums));
        let mut out = [0.0; 4];
        // SAFETY: the array has the 16 bytes written.
        unsafe { _mm_storeu_ps(out.as_mut_ptr(), sums) };
        out
    }

    /// The sum of each of 16 vectors of 16 floats, all added in the same order.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn fold16(v: &[__m512; 16]) -> [f32; 16] {
        // First lanes of 128 bits are added until each has one vector's four sums left, then those are turned 4 by 4.
        let two = |a: __m512, b: __m512| {
            _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xee>(a, b))
        };
        let four = |v: [__m512; 4]| {
            let (ab, cd) = (two(v[0], v[1]), two(v[2], v[3]));
            _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(ab, cd), _mm512_shuffle_f32x4::<0xdd>(ab, cd))
        };
        let [a, b, c, d] = std::array::from_fn(|j| four(std::array::from_fn(|i| v[4 * i + j])));
        let ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
        let cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
        let (ab, cd) = (_mm512_castps_pd(ab), _mm512_castps_pd(cd));
        let low = _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd));
        let mut out = [0.0; 16];
        store_f32x16(&mut out, _mm512_add_ps(low, _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd))));
        out
    }

    /// The sum of each of 8 vectors of 8 floats, all added in the same order.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn fold8(v: &[__m256; 8]) -> [f32; 8] {
        let four = |v: &[__m256]| _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
        let (a, b) = (four(&v[..4]), four(&v[4..]));
        let mut out = [0.0; 8];
        let low = _mm256_permute2f128_ps::<0x20>(a, b);
        store_f32x8(&mut out, _mm256_add_ps(low, _mm256_permute2f128_ps::<0x31>(a, b)));
        out
    }

    /// Writes 64 signed bytes, any alignment.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn store_i8x64(p: &mut [i8; 64], v: __m512i) {
        // SAFETY: the reference covers the 64 bytes written.
        unsafe { _mm512_storeu_si512(p.as_mut_ptr().cast(), v) }
    }

    /// 64 integers as bytes, in order; those that do not fit become the nearest that does.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub fn pack_i32x64(v: [__m512i; 4]) -> __m512i {
        // Packing works within lanes of 128 bits: each comes out with four bytes of each vector.
        let turned = _mm512_packs_epi16(_mm512_packs_epi32(v[0], v[1]), _mm512_packs_epi32(v[2], v[3]));
        let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        _mm512_permutexvar_epi32(order, turned)
    }

    /// The sums of every 16 of 256 signed bytes.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    pub fn sum_by_16(v: [__m512i; 4], to: &mut [i16; 16]) {
        let ones = _mm512_set1_epi8(1);
        let [a, b, c, d] = v.map(|v| _mm512_dpbusd_epi32(_mm512_setzero_si512(), ones, v));
        let ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
        let sums = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
        // Lane l has the sums of lane l of each vector.
        let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        store_i16x16(to, _mm512_cvtepi32_epi16(_mm512_permutexvar_epi32(order, sums)));
    }

    /// 4 floats, any alignment, in all four lanes of 128 bits.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn load_f32x4_four_times(p: &[f32; 4]) -> __m512 {
        // SAFETY: the reference covers the 16 bytes read.
        _mm512_broadcast_f32x4(unsafe { _mm_loadu_ps(p.as_ptr()) })
    }

    /// 16 integers, any alignment.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn load_i32x16(p: &[i32; 16]) -> __m512i {
        // SAFETY: the reference covers the 64 bytes read.
        unsafe { _mm512_loadu_si512(p.as_ptr().cast()) }
    }

    /// 4 integers, any alignment, in all four lanes of 128 bits.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn load_i32x4_four_times(p: &[i32; 4]) -> __m512i {
        // SAFETY: the reference covers the 16 bytes read.
        _mm512_broadcast_i32x4(unsafe { _mm_loadu_si128(p.as_ptr().cast()) })
    }

    /// Writes 4 floats, any alignment.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn store_f32x4(p: &mut [f32; 4], v: __m128) {
        // SAFETY: the reference covers the 16 bytes written.
        unsafe { _mm_storeu_ps(p.as_mut_ptr(), v) }
    }

    /// 16 pairs of two-byte values, any alignment.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn load_i16x2x16(p: &[[i16; 2]; 16]) -> __m512i {
        // SAFETY: the reference covers the 64 bytes read.
        unsafe { _mm512_loadu_si512(p.as_ptr().cast()) }
    }

    /// 32 two-byte values, any alignment.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn load_i16x32(p: &[i16; 32]) -> __m512i {
        // SAFETY: the reference covers the 64 bytes read.
        unsafe { _mm512_loadu_si512(p.as_ptr().cast()) }
    }
}

#[cfg(test)]
mod tests {
    use super::exp;

    #[test]
    fn exp_is_exact_to_two_units_over_its_whole_range() {
        let mut worst = 0f64;
        for i in -872_900..879_000 {
            let x = i as f32 * 1e-4;
            let want = (x as f64).exp();
            worst = worst.max((exp(x) as f64 - want).abs() / want);
        }
        assert!(worst < 2.4e-7, "worst relative error {worst:e}");
        assert_eq!(exp(0.0), 1.0);
        assert_eq!([exp(-100.0), exp(f32::NEG_INFINITY), exp(-1e30)], [0.0; 3]);
        assert!(exp(1000.0).is_finite());
    }
}
