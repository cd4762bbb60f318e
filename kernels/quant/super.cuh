// Formats of 256 weights to a block, packed bits: Q2_K to Q6_K, IQ4_XS, TQ1_0, TQ2_0.
#pragma once
#include "small.cuh"

/// Scale and minimum `g` of 8: six bits each in 12 bytes, after the two f16 that multiply them.
__device__ __forceinline__ void scale_and_min(const u8 *block, int g, Group &o) {
    const u8 *b = block + 4;
    u32 scale, min;
    if (g < 4) {
        scale = b[g] & 63;
        min = b[4 + g] & 63;
    } else {
        scale = (b[4 + g] & 15) | (b[g - 4] >> 6) << 4;
        min = b[4 + g] >> 4 | (b[g] >> 6) << 4;
    }
    o.scale[0] = load_h(block) * (float)scale;
    o.min[0] = load_h(block + 2) * (float)min;
}

struct Q2_K {
    enum { BLOCK = 256, BYTES = 84, HALVES = 1, MINS = 1, FLOATS = 0 };
    static __device__ __forceinline__ void group(const u8 *b, int g, Group &o) {
        float d = load_h(b + 80), dmin = load_h(b + 82);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            u32 both = b[2 * g + h];
            o.scale[h] = d * (float)(both & 15);
            o.min[h] = dmin * (float)(both >> 4);
        }
#pragma unroll
        for (int w = 0; w < 8; w++) o.codes[w] = load4(b + 16 + g / 4 * 32 + 4 * w) >> g % 4 * 2 & 0x03030303;
    }
};

struct Q3_K {
    enum { BLOCK = 256, BYTES = 110, HALVES = 1, MINS = 0, FLOATS = 0 };
    static __device__ __forceinline__ void group(const u8 *b, int g, Group &o) {
        float d = load_h(b + 108);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int s = 2 * g + h;
            int low = b[96 + s % 8] >> s / 8 * 4 & 15, high = b[104 + s % 4] >> s / 4 * 2 & 3;
            o.scale[h] = d * (float)((low | high << 4) - 32);
        }
        u32 low[8], high[8];
        load_words(b + 32 + g / 4 * 32, low);
        load_words(b, high);
#pragma unroll
        for (int w = 0; w < 8; w++) {
            u32 code = (low[w] >> g % 4 * 2 & 0x03030303) | (high[w] >> g & 0x01010101) << 2;
            o.codes[w] = __vsub4(code, 0x04040404);
        }
    }
};

struct Q4_K {
    enum { BLOCK = 256, BYTES = 144, HALVES = 0, MINS = 1, FLOATS = 0 };
    static __device__ __forceinline__ void group(const u8 *b, int g, Group &o) {
        scale_and_min(b, g, o);
        load_32(b + 16 + g / 2 * 32, o.codes);
#pragma unroll
        for (int w = 0; w < 8; w++) o.codes[w] = o.codes[w] >> g % 2 * 4 & 0x0f0f0f0f;
    }
};

struct Q5_K {
    enum { BLOCK = 256, BYTES = 176, HALVES = 0, MINS = 1, FLOATS = 0 };
    static __device__ __forceinline__ void group(const u8 *b, int g, Group &o) {
        scale_and_min(b, g, o);
        u32 low[8], high[8];
        load_32(b + 48 + g / 2 * 32, low);
        load_32(b + 16, high);
#pragma unroll
        for (int w = 0; w < 8; w++)
            o.codes[w] = (low[w] >> g % 2 * 4 & 0x0f0f0f0f) | (high[w] >> g & 0x01010101) << 4;
    }
};

struct Q6_K {
    enum { BLOCK = 256, BYTES = 210, HALVES = 1, MINS = 0, FLOATS = 0 };
    static __device__ __forceinline__ void group(const u8 *b, int g, Group &o) {
        float d = load_h(b + 208);
        int half = g / 4, j = g % 4;
        o.scale[0] = d * (float)(i8)b[192 + 2 * g];
        o.scale[1] = d * (float)(i8)b[192 + 2 * g + 1];
        u32 low[8], high[8];
        load_words(b + 64 * half + j % 2 * 32, low);
        load_words(b + 128 + 32 * half, high);
#pragma unroll
        for (int w = 0; w < 8; w++) {
            u32 code = (low[w] >> j / 2 * 4 & 0x0f0f0f0f) | (high[w] >> 2 * j & 0x03030303) << 4;
            o.codes[w] = __vsub4(code, 0x20202020);
        }
    }
};

struct IQ4_XS {
    enum { BLOCK = 256, BYTES = 136, HALVES = 0, MINS = 0, FLOATS = 0 };
    static __device__ __forceinline__ void group(const u8 *b, int g, Group &o) {
        const u32 table[4] = IQ4_VALUES;
        int scale = (b[4 + g / 2] >> g % 2 * 4 & 15) | (int)(load2(b + 2) >> 2 * g & 3) << 4;
        o.scale[0] = load_h(b) * (float)(scale - 32);
#pragma unroll
        for (int w = 0; w < 4; w++) {
            u32 v = load4(b + 8 + 16 * g + 4 * w);
            o.codes[w] = look_up4(table, v & 0x0f0f0f0f);
            o.codes[4 + w] = look_up4(table, v >> 4 & 0x0f0f0f0f);
        }
    }
};

struct TQ1_0 {
    enum { BLOCK = 256, BYTES = 54, HALVES = 0, MINS = 0, FLOATS = 0 };
    /// Digit `n` of the four bytes.
    static __device__ __forceinline__ u32 digit(u32 v, int n) {
        u32 even = v & 0x00ff00ff, odd = v >> 8 & 0x00ff00ff;
        for (int i = 0; i < n; i++) even = even * 3 & 0x00ff00ff, odd = odd * 3 & 0x00ff00ff;
        return (even * 3 >> 8 & 0x00030003) | (odd * 3 & 0x03000300);
    }
    static __device__ __forceinline__ void group(const u8 *b, int g, Group &o) {
        o.scale[0] = load_h(b + 52);
#pragma unroll
        for (int w = 0; w < 8; w++) {
            int i = 32 * g + 4 * w; // 160 weights in 32 bytes, 80 in 16, 16 in 4
            int at = i < 160 ? i % 32 : i < 240 ? 32 + i % 16 : 48, n = i < 160 ? i / 32 : i < 240 ? (i - 160) / 16 : (i - 240) / 4;
            o.codes[w] = __vsub4(digit(load4_2(b + at), n), 0x01010101);
        }
    }
};

struct TQ2_0 {
    enum { BLOCK = 256, BYTES = 66, HALVES = 0, MINS = 0, FLOATS = 0 };
    static __device__ __forceinline__ void group(const u8 *b, int g, Group &o) {
        o.scale[0] = load_h(b + 64);
        u32 v[8];
        load_words(b + g / 4 * 32, v);
#pragma unroll
        for (int w = 0; w < 8; w++) o.codes[w] = __vsub4(v[w] >> g % 4 * 2 & 0x03030303, 0x01010101);
    }
};
