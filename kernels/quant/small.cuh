// Formats with a scale per block of 32 weights or so: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL, MXFP4, NVFP4, Q1_0, Q2_0.
#pragma once
#include "quant.cuh"

struct Q4_0 {
    enum { BLOCK = 32, BYTES = 18, HALVES = 0, MINS = 0, FLOATS = 0 };
    static __device__ __forceinline__ void group(Block b, int, Group &o) {
        o.scale[0] = load_h(b.byte(0)) * (1.f / 16.f);
        u32 v[4];
        load_words(b, 2, v);
#pragma unroll
        for (int w = 0; w < 4; w++) {
            o.codes[w] = (v[w] << 4 & 0xf0f0f0f0) ^ 0x80808080;
            o.codes[4 + w] = (v[w] & 0xf0f0f0f0) ^ 0x80808080;
        }
    }
};

struct Q4_1 {
    enum { BLOCK = 32, BYTES = 20, HALVES = 0, MINS = 1, FLOATS = 0 };
    static __device__ __forceinline__ void group(Block b, int, Group &o) {
        u32 both = load4(b.words);
        o.scale[0] = h2f((u16)both);
        o.min[0] = -h2f((u16)(both >> 16));
#pragma unroll
        for (int w = 0; w < 4; w++) {
            u32 v = load4(b.words + 4 + 4 * w);
            o.codes[w] = v & 0x0f0f0f0f;
            o.codes[4 + w] = v >> 4 & 0x0f0f0f0f;
        }
    }
};

/// Bit 4 w + i of `bits` to the highest of byte i, for a word that nothing else is in.
__device__ __forceinline__ u32 to_top(u32 bits, int w) { return (bits >> 4 * w & 15) * 0x10204080; }

struct Q5_0 {
    enum { BLOCK = 32, BYTES = 22, HALVES = 0, MINS = 0, FLOATS = 0 };
    static __device__ __forceinline__ void group(Block b, int, Group &o) {
        o.scale[0] = load_h(b.byte(0)) * 0.125f;
        u32 all[5]; // the fifth bits, then the others
        load_words(b, 2, all);
        u32 high = ~all[0];
#pragma unroll
        for (int w = 0; w < 4; w++) {
            u32 v = all[1 + w];
            o.codes[w] = (v << 3 & 0x78787878) | (to_top(high, w) & 0x80808080);
            o.codes[4 + w] = (v >> 1 & 0x78787878) | (to_top(high, 4 + w) & 0x80808080);
        }
    }
};

struct Q5_1 {
    enum { BLOCK = 32, BYTES = 24, HALVES = 0, MINS = 1, FLOATS = 0 };
    static __device__ __forceinline__ void group(Block b, int, Group &o) {
        u32 both = load4(b.words), high = load4(b.words + 4);
        o.scale[0] = h2f((u16)both);
        o.min[0] = -h2f((u16)(both >> 16));
#pragma unroll
        for (int w = 0; w < 4; w++) {
            u32 v = load4(b.words + 8 + 4 * w);
            o.codes[w] = (v & 0x0f0f0f0f) | (to_top(high, w) >> 3 & 0x10101010);
            o.codes[4 + w] = (v >> 4 & 0x0f0f0f0f) | (to_top(high, 4 + w) >> 3 & 0x10101010);
        }
    }
};

struct Q8_0 {
    enum { BLOCK = 32, BYTES = 34, HALVES = 0, MINS = 0, FLOATS = 0 };
    static __device__ __forceinline__ void group(Block b, int, Group &o) {
        o.scale[0] = load_h(b.byte(0));
        load_words(b, 2, o.codes);
    }
};

/// ggml-common.h `kvalues_iq4nl`.
#define IQ4_VALUES {0xbfad9881, 0xf6eaddcf, 0x26190d01, 0x71594535}
/// The doubled values of E2M1: 0 1 2 3 4 6 8 12 and their negatives (ggml-common.h `kvalues_fp4`).
#define FP4_VALUES {0x03020100, 0x0c080604, 0xfdfeff00, 0xf4f8fafc}

struct IQ4_NL {
    enum { BLOCK = 32, BYTES = 18, HALVES = 0, MINS = 0, FLOATS = 0 };
    static __device__ __forceinline__ void group(Block b, int, Group &o) {
        const u32 table[4] = IQ4_VALUES;
        o.scale[0] = load_h(b.byte(0));
        u32 v[4];
        load_words(b, 2, v);
        put_nibbles(o, table, v);
    }
};

struct MXFP4 {
    enum { BLOCK = 32, BYTES = 17, HALVES = 0, MINS = 0, FLOATS = 0 };
    static __device__ __forceinline__ void group(Block b, int, Group &o) {
        const u32 table[4] = FP4_VALUES;
        // 2^(e - 128): 0 and 1 are below the normal numbers.
        u32 e = *b.byte(0), v[4];
        o.scale[0] = __uint_as_float(e < 2 ? 0x00200000u << e : (e - 1) << 23);
        load_words(b, 1, v);
        put_nibbles(o, table, v);
    }
};

struct NVFP4 {
    enum { BLOCK = 64, BYTES = 36, HALVES = 1, MINS = 0, FLOATS = 0 };
    static __device__ __forceinline__ void group(Block b, int g, Group &o) {
        const u32 table[4] = FP4_VALUES;
        u32 scales = load2(b.words + 2 * g);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            u32 s = scales >> 8 * h & 127;
            // E4M3's bits stand like an f16's seven places down; its exponent's bias differs by 8, and one for the half.
            o.scale[h] = s == 127 ? 0.f : h2f((u16)(s << 7)) * 128.f;
#pragma unroll
            for (int w = 0; w < 2; w++)
                look_up8(table, load4(b.words + 4 + 16 * g + 8 * h + 4 * w), o.codes[4 * h + w], o.codes[4 * h + 2 + w]);
        }
    }
};

struct Q1_0 {
    enum { BLOCK = 128, BYTES = 18, HALVES = 0, MINS = 0, FLOATS = 0 };
    static __device__ __forceinline__ void group(Block b, int g, Group &o) {
        o.scale[0] = load_h(b.byte(0));
        u32 bits[1];
        load_words(b, 2 + 4 * g, bits);
        choose(bits[0], 0xffffffff, 0x01010101, o.codes);
    }
};

struct Q2_0 {
    enum { BLOCK = 64, BYTES = 18, HALVES = 0, MINS = 0, FLOATS = 0 };
    static __device__ __forceinline__ void group(Block b, int g, Group &o) {
        o.scale[0] = load_h(b.byte(0));
        u32 v[2];
        load_words(b, 2 + 8 * g, v);
#pragma unroll
        for (int w = 0; w < 8; w += 2) { // two bytes of four codes each, to nibbles
            u32 s = permute(v[w / 4], 0, w % 4 ? 0x4342 : 0x4140);
            s = (s | s << 4) & 0x0f0f0f0f;
            s = (s | s << 2) & 0x33333333;
            o.codes[w] = permute(0x020100ff, 0, s);
            o.codes[w + 1] = permute(0x020100ff, 0, s >> 16);
        }
    }
};
