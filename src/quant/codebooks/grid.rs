//! How a codebook is stored, and how AVX-512 looks up 64 entries at once.

/// A codebook, stored twice: as entries of 8 (`u64`) or 4 (`u32`) values, one byte each, the first
/// value in the lowest byte; and for vector look-ups as two tables of bytes, in which a value is a
/// field of a few bits.
#[derive(Debug)]
#[repr(align(64))]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(crate) struct CodebookGrid<E, const N: usize> {
    /// The entries.
    pub entries: [E; N],
    /// Eights: values 0..4 and values 4..8, a field of 2 bits each. Fours: values 0..2 and values
    /// 2..4, 4 bits each.
    pub fields: [[u8; N]; 2],
    /// The value of a field. The table is indexed with six bits; those above the field do not
    /// matter.
    pub values: [u8; 64],
}

const fn values<const V: usize>(values: [u8; V]) -> [u8; 64] {
    let mut all = [0; 64];
    let mut i = 0;
    while i < 64 {
        let field = i % V.next_power_of_two();
        all[i] = if field < V { values[field] } else { 0 };
        i += 1;
    }
    all
}

/// Makes a codebook of 8 values per entry from codes of 2 bits per value.
pub(crate) const fn eights<const N: usize>(codes: &[u16; N], of: [u8; 3]) -> CodebookGrid<u64, N> {
    let mut grid = CodebookGrid { entries: [0; N], fields: [[0; N]; 2], values: values(of) };
    let mut i = 0;
    while i < N {
        let mut l = 0;
        while l < 8 {
            let code = codes[i] >> (2 * l) & 3;
            grid.entries[i] |= (of[code as usize] as u64) << (8 * l);
            grid.fields[l / 4][i] |= (code as u8) << (2 * (l % 4));
            l += 1;
        }
        i += 1;
    }
    grid
}

/// Makes a codebook of 4 values per entry from codes of 3 bits per value.
pub(crate) const fn fours<const N: usize>(codes: &[u16; N], of: [u8; 8]) -> CodebookGrid<u32, N> {
    let mut grid = CodebookGrid { entries: [0; N], fields: [[0; N]; 2], values: values(of) };
    let mut i = 0;
    while i < N {
        let mut l = 0;
        while l < 4 {
            let code = codes[i] >> (3 * l) & 7;
            grid.entries[i] |= (of[code as usize] as u32) << (8 * l);
            grid.fields[l / 2][i] |= (code as u8) << (4 * (l % 2));
            l += 1;
        }
        i += 1;
    }
    grid
}

#[cfg(target_arch = "x86_64")]
pub(crate) mod x86 {
    use crate::simd::x86::load_u8x64;
    use std::arch::x86_64::*;

    /// Looks up the fields of 64 entries in both tables. `i` has the low 8 bits of each index,
    /// `bits` those above.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
    pub(crate) fn look_up<const N: usize>(fields: &[[u8; N]; 2], i: __m512i, bits: [__mmask64; 3]) -> [__m512i; 2] {
        const { assert!(N.is_power_of_two() && N >= 256 && N <= 2048) }
        let bits = [_mm512_movepi8_mask(i), bits[0], bits[1], bits[2]];
        let [a, b] = fields;
        [look_up_part(a, i, &bits), look_up_part(b, i, &bits)]
    }

    /// Looks up 64 entries in one table. The cases are written out because the compiler keeps a
    /// loop's parts in memory.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
    fn look_up_part<const N: usize>(t: &[u8; N], i: __m512i, bits: &[__mmask64; 4]) -> __m512i {
        let (t, _) = t.as_chunks::<64>();
        let of_128 = |at: usize| _mm512_permutex2var_epi8(load_u8x64(&t[at]), i, load_u8x64(&t[at + 1]));
        let of_256 = |at: usize| _mm512_mask_mov_epi8(of_128(at), bits[0], of_128(at + 2));
        let of_512 = |at: usize| _mm512_mask_mov_epi8(of_256(at), bits[1], of_256(at + 4));
        let of_1024 = |at: usize| _mm512_mask_mov_epi8(of_512(at), bits[2], of_512(at + 8));
        match N {
            256 => of_256(0),
            512 => of_512(0),
            1024 => of_1024(0),
            _ => _mm512_mask_mov_epi8(of_1024(0), bits[3], of_1024(16)),
        }
    }
}
