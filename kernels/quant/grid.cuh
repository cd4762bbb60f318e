// The codebook formats: IQ1_S, IQ1_M, IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S. An entry of a codebook is a selector
// of bytes (see grids.cuh), so that one permutation of bytes makes four values of it.
#pragma once
#include "grids.cuh"
#include "quant.cuh"

/// Entry `i` of a codebook. The compiler is not to know how `i` came about: it would shift and mask for an offset
/// in bytes, and add that in two steps, where one multiplication makes the address.
__device__ __forceinline__ u32 entry(const u16 *codes, u32 i) { return codes[opaque(i)]; }
/// Four bytes, each with seven signs, and above them the eighth that makes the minuses even.
__device__ __forceinline__ u32 even_signs(u32 v) {
    u32 odd = v ^ v >> 4;
    odd ^= odd >> 2;
    return v | ((odd ^ odd >> 1) << 7 & 0x80808080);
}
/// Four times seven bits, to a byte each.
__device__ __forceinline__ u32 four_sevens(u32 v) {
    return (v & 0x7f) | (v << 1 & 0x7f00) | (v << 2 & 0x7f0000) | (v << 3 & 0x7f000000);
}
/// Four entries of eight values 8, 25 or 43, minus where the bit of `signs` (0..32) is set.
__device__ __forceinline__ void put_eights(Group &o, const u32 (&e)[4], u32 signs) {
    u32 t = transpose(signs); // of words 0 to 3 and 4 to 7, which are made together: a selector's third bit
#pragma unroll
    for (int w = 0; w < 4; w++) {
        u32 both = (e[w / 2] | e[w / 2 + 2] << 16) >> w % 2 * 2 & 0x33333333;
        both |= (w < 2 ? t << (2 - w) : t >> (w - 2)) & 0x44444444;
        o.codes[w] = permute(0x002b1908, 0x00d5e7f8, both);
        o.codes[4 + w] = permute(0x002b1908, 0x00d5e7f8, both >> 16);
    }
}
/// The scales of both halves, of four bits each.
__device__ __forceinline__ void two_scales(Group &o, float d, u32 scales) {
    d *= 0.125f;
    o.scale[0] = d * (float)(2 * (scales & 15) + 1);
    o.scale[1] = d * (float)(2 * (scales >> 4) + 1);
}

struct IQ2_XXS {
    enum { BLOCK = 256, BYTES = 66, HALVES = 0, MINS = 0, FLOATS = 0 };
    static __device__ __forceinline__ void group(Block b, int g, Group &o) {
        u32 v[2], e[4];
        load_words(b, 2 + 8 * g, v);
        o.scale[0] = load_h(b.byte(0)) * 0.125f * (float)(2 * (v[1] >> 28) + 1);
#pragma unroll
        for (int l = 0; l < 4; l++) e[l] = entry(IQ2XXS_CODES, v[0] >> 8 * l & 255);
        put_eights(o, e, even_signs(four_sevens(v[1])));
    }
};

struct IQ2_XS {
    enum { BLOCK = 256, BYTES = 74, HALVES = 1, MINS = 0, FLOATS = 0 };
    static __device__ __forceinline__ void group(Block b, int g, Group &o) {
        two_scales(o, load_h(b.byte(0)), *b.byte(66 + g));
        u32 v[2], e[4];
        load_words(b, 2 + 8 * g, v);
#pragma unroll
        for (int l = 0; l < 4; l++) e[l] = entry(IQ2XS_CODES, v[l / 2] >> 16 * (l % 2) & 511);
        put_eights(o, e, even_signs(permute(v[0], v[1], 0x7531) >> 1 & 0x7f7f7f7f));
    }
};

struct IQ2_S {
    enum { BLOCK = 256, BYTES = 82, HALVES = 1, MINS = 0, FLOATS = 0 };
    static __device__ __forceinline__ void group(Block b, int g, Group &o) {
        two_scales(o, load_h(b.byte(0)), *b.byte(74 + g));
        u32 v[1], signs[1], high = *b.byte(66 + g), e[4];
        load_words(b, 2 + 4 * g, v);
        load_words(b, 34 + 4 * g, signs);
#pragma unroll
        for (int l = 0; l < 4; l++) e[l] = entry(IQ2S_CODES, (v[0] >> 8 * l & 255) | (high << (8 - 2 * l) & 768));
        put_eights(o, e, signs[0]);
    }
};

struct IQ3_XXS {
    enum { BLOCK = 256, BYTES = 98, HALVES = 0, MINS = 0, FLOATS = 0 };
    static __device__ __forceinline__ void group(Block b, int g, Group &o) {
        u32 v[2], word[1], minus[8];
        load_words(b, 2 + 8 * g, v);
        load_words(b, 66 + 4 * g, word);
        o.scale[0] = load_h(b.byte(0)) * 0.25f * (float)(2 * (word[0] >> 28) + 1);
        choose(even_signs(four_sevens(word[0])), 0, 0xffffffff, minus);
#pragma unroll
        for (int w = 0; w < 8; w++) { // 4, 12, 20, 28, 36, 44, 52, 62
            u32 e = entry(IQ3XXS_CODES, v[w / 4] >> 8 * (w % 4) & 255);
            // A number becomes negative when all bits above its lowest one are flipped: bit 2 of these, bit 1 of 62.
            u32 flips = permute(0xf8f8f8f8, 0xfcf8f8f8, e);
            o.codes[w] = permute(0x1c140c04, 0x3e342c24, e) ^ (flips & minus[w]);
        }
    }
};

struct IQ3_S {
    enum { BLOCK = 256, BYTES = 110, HALVES = 0, MINS = 0, FLOATS = 0 };
    static __device__ __forceinline__ void group(Block b, int g, Group &o) {
        u32 v[2], signs[1], high = *b.byte(66 + g), flips[8];
        o.scale[0] = load_h(b.byte(0)) * (float)(2 * (*b.byte(106 + g / 2) >> g % 2 * 4 & 15) + 1);
        load_words(b, 2 + 8 * g, v);
        load_words(b, 74 + 4 * g, signs);
        choose(signs[0], 0, 0xfefefefe, flips);
#pragma unroll
        for (int w = 0; w < 8; w++) { // 1, 3, 5, ... 15: odd numbers, of which the lowest bit stays
            u32 e = entry(IQ3S_CODES, (v[w / 4] >> 8 * (w % 4) & 255) | (high << (8 - w) & 256));
            o.codes[w] = permute(0x07050301, 0x0f0d0b09, e) ^ flips[w];
        }
    }
};

/// 8 (value +- 1/8) of an entry of -1, 0, 1.
__device__ __forceinline__ void put_shifted(Group &o, int w, u32 e, u32 minus) {
    u32 values = minus ? 0x0007fff7u : 0x000901f9u; // -9, -1, 7 or -7, 1, 9
    o.codes[w] = permute(values, 0, e & 0x3333);
    o.codes[w + 1] = permute(values, 0, e >> 2 & 0x3333);
}

struct IQ1_S {
    enum { BLOCK = 256, BYTES = 50, HALVES = 0, MINS = 0, FLOATS = 0 };
    static __device__ __forceinline__ void group(Block b, int g, Group &o) {
        u32 v[1], word = load2(b.byte(34 + 2 * g));
        load_words(b, 2 + 4 * g, v);
        o.scale[0] = load_h(b.byte(0)) * 0.125f * (float)(2 * (word >> 12 & 7) + 1);
#pragma unroll
        for (int l = 0; l < 4; l++) {
            u32 high = l < 3 ? word << (8 - 3 * l) : word >> 1;
            put_shifted(o, 2 * l, entry(IQ1S_CODES, (v[0] >> 8 * l & 255) | (high & 0x700)), word >> 15);
        }
    }
};

struct IQ1_M {
    enum { BLOCK = 256, BYTES = 56, HALVES = 1, MINS = 0, FLOATS = 0 };
    static __device__ __forceinline__ void group(Block b, int g, Group &o) {
        // Four times 12 bits of scales and four of the f16 that multiplies them.
        uint2 all = *(const uint2 *)(b.words + 48);
        u32 bits = (all.x >> 12 & 15) | (all.x >> 24 & 0xf0) | (all.y >> 4 & 0xf00) | (all.y >> 16 & 0xf000);
        float d = h2f((u16)bits) * 0.125f;
        u32 scales = (g < 4 ? all.x : all.y) >> (g / 2 % 2 * 16 + g % 2 * 6);
        o.scale[0] = d * (float)(2 * (scales & 7) + 1);
        o.scale[1] = d * (float)(2 * (scales >> 3 & 7) + 1);
        u32 v = load4(b.words + 4 * g), nibbles = load2(b.words + 32 + 2 * g);
#pragma unroll
        for (int l = 0; l < 4; l++) {
            u32 high = l < 3 ? nibbles << (8 - 4 * l) : nibbles >> 4;
            put_shifted(o, 2 * l, entry(IQ1S_CODES, (v >> 8 * l & 255) | (high & 0x700)), nibbles >> (4 * l + 3) & 1);
        }
    }
};
