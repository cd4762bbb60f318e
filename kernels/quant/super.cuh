// Formats of 256 weights to a block, packed bits: Q2_K to Q6_K, IQ4_XS, TQ1_0, TQ2_0.
#pragma once
#include "small.cuh"

/// Scale and minimum `g` of 8: six bits each in 12 bytes, after the two f16 that multiply them.
__device__ __forceinline__ void scale_and_min(const u8 *block, int g, Group &o) {
    // Words of four scales, four minimums, and what the last four of each have below: of the first four 6 bits are used, of
    // the last four the upper 2 there, and 4 below.
    uint4 v = *(const uint4 *)block;
    int by = g % 4 * 8, more = g < 4 ? 0 : 2;
    u32 here = g < 4 ? 63 : 48, below = g < 4 ? 0 : 15;
    u32 scale = (v.y >> (by + more) & here) | (v.w >> by & below);
    u32 min = (v.z >> (by + more) & here) | (v.w >> (by + 4) & below);
    o.scale[0] = h2f((u16)v.x) * (float)scale;
    o.min[0] = h2f((u16)(v.x >> 16)) * (float)min;
}

struct Q2_K {
    enum { BLOCK = 256, BYTES = 84, HALVES = 1, MINS = 1, FLOATS = 0 };
    static __device__ __forceinline__ void group(Block b, int g, Group &o) {
        u32 both = load4(b.words + 80), scales = load2(b.words + 2 * g), mins = scales >> 4 & 0x0f0f;
        float d = h2f((u16)both), dmin = h2f((u16)(both >> 16));
        scales &= 0x0f0f;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            o.scale[h] = d * byte_float(scales, h);
            o.min[h] = dmin * byte_float(mins, h);
        }
#pragma unroll
        for (int w = 0; w < 8; w++) o.codes[w] = load4(b.words + 16 + g / 4 * 32 + 4 * w) >> g % 4 * 2 & 0x03030303;
    }
};

struct Q3_K {
    enum { BLOCK = 256, BYTES = 110, HALVES = 1, MINS = 0, FLOATS = 0 };
    static __device__ __forceinline__ void group(Block b, int g, Group &o) {
        float d = load_h(b.byte(108)) * (1.f / 32.f);
        // Scales 2 g and 2 g + 1: four bits each, and two.
        u32 scales = load2(b.byte(96 + 2 * g % 8)) >> g / 4 * 4 & 0x0f0f;
        scales |= (load2(b.byte(104 + 2 * g % 4)) >> g / 2 * 2 & 0x0303) << 4;
#pragma unroll
        for (int h = 0; h < 2; h++) o.scale[h] = d * byte_float(scales, h, -32);
        u32 low[8], high[8];
        load_words(b, 32 + g / 4 * 32, low, g % 4 * 2 - 5);
        load_words(b, 0, high, g - 7);
#pragma unroll
        for (int w = 0; w < 8; w++) o.codes[w] = (low[w] & 0x60606060) | (~high[w] & 0x80808080);
    }
};

struct Q4_K {
    enum { BLOCK = 256, BYTES = 144, HALVES = 0, MINS = 1, FLOATS = 0 };
    static __device__ __forceinline__ void group(Block b, int g, Group &o) {
        scale_and_min(b.words, g, o);
        load_32(b.words + 16 + g / 2 * 32, o.codes);
#pragma unroll
        for (int w = 0; w < 8; w++) o.codes[w] = o.codes[w] >> g % 2 * 4 & 0x0f0f0f0f;
    }
};

struct Q5_K {
    enum { BLOCK = 256, BYTES = 176, HALVES = 0, MINS = 1, FLOATS = 0 };
    static __device__ __forceinline__ void group(Block b, int g, Group &o) {
        scale_and_min(b.words, g, o);
        u32 low[8], high[8];
        load_32(b.words + 48 + g / 2 * 32, low);
        load_32(b.words + 16, high);
#pragma unroll
        for (int w = 0; w < 8; w++)
            o.codes[w] = (low[w] >> g % 2 * 4 & 0x0f0f0f0f) | (__funnelshift_r(high[w], high[w], g - 4) & 0x10101010);
    }
};

struct Q6_K {
    enum { BLOCK = 256, BYTES = 210, HALVES = 1, MINS = 0, FLOATS = 0 };
    static __device__ __forceinline__ void group(Block b, int g, Group &o) {
        float d = load_h(b.byte(208)) * 0.25f;
        int half = g / 4, j = g % 4;
        u32 scales = load2(b.byte(192 + 2 * g)) ^ 0x8080;
        o.scale[0] = d * byte_float(scales, 0, -128);
        o.scale[1] = d * byte_float(scales, 1, -128);
        u32 low[8], high[8];
        load_words(b, 64 * half + j % 2 * 32, low, j / 2 * 4 - 2);
        load_words(b, 128 + 32 * half, high, 2 * j - 6);
#pragma unroll
        for (int w = 0; w < 8; w++) o.codes[w] = (low[w] & 0x3c3c3c3c) | ((high[w] ^ 0x80808080) & 0xc0c0c0c0);
    }
};

struct IQ4_XS {
    enum { BLOCK = 256, BYTES = 136, HALVES = 0, MINS = 0, FLOATS = 0 };
    static __device__ __forceinline__ void group(Block b, int g, Group &o) {
        const u32 table[4] = IQ4_VALUES;
        // The scale of all, two bits of each group's, then the other four.
        uint2 head = *(const uint2 *)b.words;
        u32 scale = (head.y >> 4 * g & 15) | (head.x >> (12 + 2 * g) & 48);
        o.scale[0] = h2f((u16)head.x) * byte_float(scale, 0, -32);
        uint2 x = *(const uint2 *)(b.words + 8 + 16 * g), y = *(const uint2 *)(b.words + 16 + 16 * g);
        u32 v[4] = {x.x, x.y, y.x, y.y};
        put_nibbles(o, table, v);
    }
};

struct TQ1_0 {
    enum { BLOCK = 256, BYTES = 54, HALVES = 0, MINS = 0, FLOATS = 0 };
    /// The digits of four bytes that a power of three brings on top, less 1.
    static __device__ __forceinline__ u32 digits(u32 v, u32 power) {
        u32 even = (v & 0x00ff00ff) * power & 0x00ff00ff, odd = (v >> 8 & 0x00ff00ff) * power & 0x00ff00ff;
        // A digit plus 127, less 128 by its highest bit.
        return permute(even * 3 + 0x7f007f00, odd * 3 + 0x7f007f00, 0x7351) ^ 0x80808080;
    }
    static __device__ __forceinline__ void group(Block b, int g, Group &o) {
        // 160 weights in 32 bytes, 80 in 16, 16 in 4: the first 16 of a group by one digit of 16 bytes, the others by one of
        // 16 again, or of the last group by four of 4.
        u32 n = g < 5 ? g : 2 * g - 10, more = g == 5 || g == 6, first[4];
        u32 powers[2] = {n < 4 ? permute(0x1b090301, 0, 0x4440 + n) : 81, 0};
        powers[1] = more ? powers[0] * 3 : powers[0];
        u32 at = g < 5 ? 16 : g < 7 ? 32 : 48, step = g < 7 ? 4 : 0;
        o.scale[0] = load_h(b.byte(52));
        load_words(b, g < 5 ? 0 : 32, first);
        const u32 last[4] = {1, 3, 9, 27};
#pragma unroll
        for (int w = 0; w < 4; w++) {
            o.codes[w] = digits(first[w], powers[0]);
            o.codes[4 + w] = digits(load4_2(b.byte(at + step * w)), g < 7 ? powers[1] : last[w]);
        }
    }
};

struct TQ2_0 {
    enum { BLOCK = 256, BYTES = 66, HALVES = 0, MINS = 0, FLOATS = 0 };
    static __device__ __forceinline__ void group(Block b, int g, Group &o) {
        o.scale[0] = load_h(b.byte(64));
        u32 v[8];
        load_words(b, g / 4 * 32, v, g % 4 * 2);
        // Less 1, by a bit above that takes the borrow.
#pragma unroll
        for (int w = 0; w < 8; w++) o.codes[w] = (((v[w] & 0x03030303) | 0x80808080) - 0x01010101) ^ 0x80808080;
    }
};
