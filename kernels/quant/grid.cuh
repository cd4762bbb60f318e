// The codebook formats: IQ1_S, IQ1_M, IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S. Entries are kept as codes of 2 bits per value
// (8 values) or 3 bits (4 values), the first lowest; a permutation of bytes turns codes into values.
#pragma once
#include "grids.cuh"
#include "quant.cuh"

/// Four values by four codes of 2 bits.
__device__ __forceinline__ u32 by_twos(u32 values, u32 codes) {
    return __byte_perm(values, 0, (codes & 3) | (codes & 12) << 2 | (codes & 48) << 4 | (codes & 192) << 6);
}
/// Four values by four codes of 3 bits.
__device__ __forceinline__ u32 by_threes(u32 low, u32 high, u32 codes) {
    return __byte_perm(low, high, (codes & 7) | (codes & 56) << 1 | (codes & 448) << 2 | (codes & 3584) << 3);
}
/// Seven signs and the eighth that makes the minuses even.
__device__ __forceinline__ u32 even_signs(u32 seven) {
    seven &= 127;
    return seven | (__popc(seven) & 1) << 7;
}
/// Entry `e` (16 bits) with signs, as words `w` and `w + 1` of the group.
__device__ __forceinline__ void put_eight(Group &o, int w, u32 values, u32 e, u32 signs) {
    o.codes[w] = negate4(by_twos(values, e & 255), signs);
    o.codes[w + 1] = negate4(by_twos(values, e >> 8), signs >> 4);
}
/// The scales of both halves, of four bits each.
__device__ __forceinline__ void two_scales(Group &o, float d, u32 scales) {
    d *= 0.125f;
    o.scale[0] = d * (float)(2 * (scales & 15) + 1);
    o.scale[1] = d * (float)(2 * (scales >> 4) + 1);
}
#define IQ2_VALUES 0x002b1908u // 8, 25, 43

struct IQ2_XXS {
    enum { BLOCK = 256, BYTES = 66, HALVES = 0, MINS = 0, FLOATS = 0 };
    static __device__ __forceinline__ void group(const u8 *b, int g, Group &o) {
        u32 index = load4_2(b + 2 + 8 * g), word = load4_2(b + 6 + 8 * g);
        o.scale[0] = load_h(b) * 0.125f * (float)(2 * (word >> 28) + 1);
#pragma unroll
        for (int l = 0; l < 4; l++)
            put_eight(o, 2 * l, IQ2_VALUES, IQ2XXS_CODES[index >> 8 * l & 255], even_signs(word >> 7 * l));
    }
};

struct IQ2_XS {
    enum { BLOCK = 256, BYTES = 74, HALVES = 1, MINS = 0, FLOATS = 0 };
    static __device__ __forceinline__ void group(const u8 *b, int g, Group &o) {
        two_scales(o, load_h(b), b[66 + g]);
#pragma unroll
        for (int l = 0; l < 4; l++) {
            u32 v = load2(b + 2 + 8 * g + 2 * l);
            put_eight(o, 2 * l, IQ2_VALUES, IQ2XS_CODES[v & 511], even_signs(v >> 9));
        }
    }
};

struct IQ2_S {
    enum { BLOCK = 256, BYTES = 82, HALVES = 1, MINS = 0, FLOATS = 0 };
    static __device__ __forceinline__ void group(const u8 *b, int g, Group &o) {
        two_scales(o, load_h(b), b[74 + g]);
#pragma unroll
        for (int l = 0; l < 4; l++) {
            u32 index = b[2 + 4 * g + l] | (b[66 + g] >> 2 * l & 3) << 8;
            put_eight(o, 2 * l, IQ2_VALUES, IQ2S_CODES[index], b[34 + 4 * g + l]);
        }
    }
};

struct IQ3_XXS {
    enum { BLOCK = 256, BYTES = 98, HALVES = 0, MINS = 0, FLOATS = 0 };
    static __device__ __forceinline__ void group(const u8 *b, int g, Group &o) {
        u32 word = load4_2(b + 66 + 4 * g);
        o.scale[0] = load_h(b) * 0.25f * (float)(2 * (word >> 28) + 1);
#pragma unroll
        for (int w = 0; w < 8; w++) { // 4, 12, 20, 28, 36, 44, 52, 62
            u32 v = by_threes(0x1c140c04, 0x3e342c24, IQ3XXS_CODES[b[2 + 8 * g + w]]);
            o.codes[w] = negate4(v, even_signs(word >> 7 * (w / 2)) >> w % 2 * 4);
        }
    }
};

struct IQ3_S {
    enum { BLOCK = 256, BYTES = 110, HALVES = 0, MINS = 0, FLOATS = 0 };
    static __device__ __forceinline__ void group(const u8 *b, int g, Group &o) {
        o.scale[0] = load_h(b) * (float)(2 * (b[106 + g / 2] >> g % 2 * 4 & 15) + 1);
#pragma unroll
        for (int w = 0; w < 8; w++) { // 1, 3, 5, ... 15
            u32 index = b[2 + 8 * g + w] | (b[66 + g] >> w & 1) << 8;
            u32 v = by_threes(0x07050301, 0x0f0d0b09, IQ3S_CODES[index]);
            o.codes[w] = negate4(v, b[74 + 4 * g + w / 2] >> w % 2 * 4);
        }
    }
};

/// 8 (value +- 1/8) of an entry of -1, 0, 1.
__device__ __forceinline__ void put_shifted(Group &o, int w, u32 e, u32 minus) {
    u32 values = minus ? 0x0007fff7u : 0x000901f9u; // -9, -1, 7 or -7, 1, 9
    o.codes[w] = by_twos(values, e & 255);
    o.codes[w + 1] = by_twos(values, e >> 8);
}

struct IQ1_S {
    enum { BLOCK = 256, BYTES = 50, HALVES = 0, MINS = 0, FLOATS = 0 };
    static __device__ __forceinline__ void group(const u8 *b, int g, Group &o) {
        u32 word = load2(b + 34 + 2 * g);
        o.scale[0] = load_h(b) * 0.125f * (float)(2 * (word >> 12 & 7) + 1);
#pragma unroll
        for (int l = 0; l < 4; l++) {
            u32 index = b[2 + 4 * g + l] | (word >> 3 * l & 7) << 8;
            put_shifted(o, 2 * l, IQ1S_CODES[index], word >> 15);
        }
    }
};

struct IQ1_M {
    enum { BLOCK = 256, BYTES = 56, HALVES = 1, MINS = 0, FLOATS = 0 };
    static __device__ __forceinline__ void group(const u8 *b, int g, Group &o) {
        u32 bits = 0;
#pragma unroll
        for (int i = 0; i < 4; i++) bits |= (load2(b + 48 + 2 * i) >> 12) << 4 * i;
        float d = h2f((u16)bits) * 0.125f;
        u32 scales = load2(b + 48 + g / 2 * 2) >> g % 2 * 6;
        o.scale[0] = d * (float)(2 * (scales & 7) + 1);
        o.scale[1] = d * (float)(2 * (scales >> 3 & 7) + 1);
#pragma unroll
        for (int l = 0; l < 4; l++) {
            u32 nibble = b[32 + 2 * g + l / 2] >> l % 2 * 4;
            put_shifted(o, 2 * l, IQ1S_CODES[b[4 * g + l] | (nibble & 7) << 8], nibble >> 3 & 1);
        }
    }
};
