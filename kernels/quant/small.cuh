// Formats with a scale per block of 32 weights or so: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL, MXFP4, NVFP4, Q1_0, Q2_0.
#pragma once
#include "quant.cuh"

struct Q4_0 {
    enum { BLOCK = 32, BYTES = 18, HALVES = 0, MINS = 0, FLOATS = 0 };
    static __device__ __forceinline__ void group(const u8 *b, int, Group &o) {
        o.scale[0] = load_h(b);
        u32 v[4];
        load_words(b + 2, v);
#pragma unroll
        for (int w = 0; w < 4; w++) {
            o.codes[w] = __vsub4(v[w] & 0x0f0f0f0f, 0x08080808);
            o.codes[4 + w] = __vsub4(v[w] >> 4 & 0x0f0f0f0f, 0x08080808);
        }
    }
};

struct Q4_1 {
    enum { BLOCK = 32, BYTES = 20, HALVES = 0, MINS = 1, FLOATS = 0 };
    static __device__ __forceinline__ void group(const u8 *b, int, Group &o) {
        o.scale[0] = load_h(b);
        o.min[0] = -load_h(b + 2);
#pragma unroll
        for (int w = 0; w < 4; w++) {
            u32 v = load4(b + 4 + 4 * w);
            o.codes[w] = v & 0x0f0f0f0f;
            o.codes[4 + w] = v >> 4 & 0x0f0f0f0f;
        }
    }
};

struct Q5_0 {
    enum { BLOCK = 32, BYTES = 22, HALVES = 0, MINS = 0, FLOATS = 0 };
    static __device__ __forceinline__ void group(const u8 *b, int, Group &o) {
        o.scale[0] = load_h(b);
        u32 all[5]; // the fifth bits, then the others
        load_words(b + 2, all);
        u32 high = all[0];
#pragma unroll
        for (int w = 0; w < 4; w++) {
            u32 v = all[1 + w];
            o.codes[w] = __vsub4((v & 0x0f0f0f0f) | spread4(high >> 4 * w & 15, 4), 0x10101010);
            o.codes[4 + w] = __vsub4((v >> 4 & 0x0f0f0f0f) | spread4(high >> (16 + 4 * w) & 15, 4), 0x10101010);
        }
    }
};

struct Q5_1 {
    enum { BLOCK = 32, BYTES = 24, HALVES = 0, MINS = 1, FLOATS = 0 };
    static __device__ __forceinline__ void group(const u8 *b, int, Group &o) {
        o.scale[0] = load_h(b);
        o.min[0] = -load_h(b + 2);
        u32 high = load4(b + 4);
#pragma unroll
        for (int w = 0; w < 4; w++) {
            u32 v = load4(b + 8 + 4 * w);
            o.codes[w] = (v & 0x0f0f0f0f) | spread4(high >> 4 * w & 15, 4);
            o.codes[4 + w] = (v >> 4 & 0x0f0f0f0f) | spread4(high >> (16 + 4 * w) & 15, 4);
        }
    }
};

struct Q8_0 {
    enum { BLOCK = 32, BYTES = 34, HALVES = 0, MINS = 0, FLOATS = 0 };
    static __device__ __forceinline__ void group(const u8 *b, int, Group &o) {
        o.scale[0] = load_h(b);
        load_words(b + 2, o.codes);
    }
};

/// ggml-common.h `kvalues_iq4nl`.
#define IQ4_VALUES {0xbfad9881, 0xf6eaddcf, 0x26190d01, 0x71594535}
/// The doubled values of E2M1: 0 1 2 3 4 6 8 12 and their negatives (ggml-common.h `kvalues_fp4`).
#define FP4_VALUES {0x03020100, 0x0c080604, 0xfdfeff00, 0xf4f8fafc}

struct IQ4_NL {
    enum { BLOCK = 32, BYTES = 18, HALVES = 0, MINS = 0, FLOATS = 0 };
    static __device__ __forceinline__ void group(const u8 *b, int, Group &o) {
        const u32 table[4] = IQ4_VALUES;
        o.scale[0] = load_h(b);
        u32 v[4];
        load_words(b + 2, v);
        put_nibbles(o, table, v);
    }
};

struct MXFP4 {
    enum { BLOCK = 32, BYTES = 17, HALVES = 0, MINS = 0, FLOATS = 0 };
    static __device__ __forceinline__ void group(const u8 *b, int, Group &o) {
        const u32 table[4] = FP4_VALUES;
        // 2^(e - 128): 0 and 1 are below the normal numbers.
        o.scale[0] = __uint_as_float(b[0] < 2 ? 0x00200000u << b[0] : (u32)(b[0] - 1) << 23);
        u32 v[4];
        load_words(b + 1, v);
        put_nibbles(o, table, v);
    }
};

struct NVFP4 {
    enum { BLOCK = 64, BYTES = 36, HALVES = 1, MINS = 0, FLOATS = 0 };
    static __device__ __forceinline__ void group(const u8 *b, int g, Group &o) {
        const u32 table[4] = FP4_VALUES;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            u32 s = b[2 * g + h] & 127;
            // E4M3's bits stand like an f16's seven places down; its exponent's bias differs by 8, and one for the half.
            o.scale[h] = s == 127 ? 0.f : h2f((u16)(s << 7)) * 128.f;
#pragma unroll
            for (int w = 0; w < 2; w++) {
                u32 v = load4(b + 4 + 16 * g + 8 * h + 4 * w);
                o.codes[4 * h + w] = look_up4(table, v & 0x0f0f0f0f);
                o.codes[4 * h + 2 + w] = look_up4(table, v >> 4 & 0x0f0f0f0f);
            }
        }
    }
};

struct Q1_0 {
    enum { BLOCK = 128, BYTES = 18, HALVES = 0, MINS = 0, FLOATS = 0 };
    static __device__ __forceinline__ void group(const u8 *b, int g, Group &o) {
        o.scale[0] = load_h(b);
        u32 bits = load4_2(b + 2 + 4 * g);
#pragma unroll
        for (int w = 0; w < 8; w++) o.codes[w] = negate4(0x01010101, ~bits >> 4 * w);
    }
};

struct Q2_0 {
    enum { BLOCK = 64, BYTES = 18, HALVES = 0, MINS = 0, FLOATS = 0 };
    static __device__ __forceinline__ void group(const u8 *b, int g, Group &o) {
        o.scale[0] = load_h(b);
#pragma unroll
        for (int w = 0; w < 8; w++) {
            u32 v = b[2 + 8 * g + w];
            o.codes[w] = __vsub4((v | v << 6 | v << 12 | v << 18) & 0x03030303, 0x01010101);
        }
    }
};
