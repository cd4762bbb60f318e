// What a weight format is to the kernels of matrices: blocks of bytes, read in groups of 32 weights.
//
//   struct FORMAT {
//       enum { BLOCK, BYTES, HALVES, MINS };
//       static void group(const u8 *block, int g, Group &out);
//   }
//   weight i of the group = scale[i / 16] * code[i] - min[i / 16]
//
// HALVES: the two halves of a group have scales (and minimums) of their own; otherwise only the first is set. Formats of
// floats have FLOATS set and `value(block, i)` instead. Layouts: the format's file under src/quant.
#pragma once
#include "../compat.cuh"

struct Group {
    u32 codes[8]; // 32 signed bytes
    float scale[2], min[2];
};

__device__ __forceinline__ u32 load2(const u8 *p) { return *(const u16 *)p; }
/// Four bytes at an even address.
__device__ __forceinline__ u32 load4_2(const u8 *p) { return load2(p) | load2(p + 2) << 16; }
/// Four bytes at a multiple of four.
__device__ __forceinline__ u32 load4(const u8 *p) { return *(const u32 *)p; }
/// 4 N bytes anywhere, by whole words: those that hold the bytes, so that nothing is read beyond the last one's word.
template <int N> __device__ __forceinline__ void load_words(const u8 *p, u32 (&to)[N]) {
    u32 by = (u32)(u64)p & 3;
    const u32 *from = (const u32 *)(p - by);
    u32 v = from[0];
#pragma unroll
    for (int i = 0; i < N; i++) {
        u32 next = i + 1 < N || by ? from[i + 1] : 0;
        to[i] = __funnelshift_r(v, next, 8 * by);
        v = next;
    }
}
/// 32 bytes at a multiple of 16.
__device__ __forceinline__ void load_32(const u8 *p, u32 (&to)[8]) {
    uint4 a = ((const uint4 *)p)[0], b = ((const uint4 *)p)[1];
    to[0] = a.x, to[1] = a.y, to[2] = a.z, to[3] = a.w, to[4] = b.x, to[5] = b.y, to[6] = b.z, to[7] = b.w;
}
__device__ __forceinline__ float load_h(const u8 *p) { return h2f((u16)load2(p)); }

/// Bits 0..4 of `bits` to bit `to` of a byte each.
__device__ __forceinline__ u32 spread4(u32 bits, int to) {
    return ((bits & 1) | (bits & 2) << 7 | (bits & 4) << 14 | (bits & 8) << 21) << to;
}
/// -v in the bytes whose bit of `signs` (0..16) is set.
__device__ __forceinline__ u32 negate4(u32 v, u32 signs) {
    u32 all = spread4(signs & 15, 0) * 255;
    return __vsub4(v ^ all, all);
}
/// Entries of a table of 16 bytes by four nibbles, each in a byte of its own.
__device__ __forceinline__ u32 look_up4(const u32 (&table)[4], u32 nibbles) {
    // Each permutation takes three bits; the fourth chooses between the table's halves.
    u32 s = (nibbles & 7) | (nibbles >> 4 & 0x70) | (nibbles >> 8 & 0x700) | (nibbles >> 12 & 0x7000);
    u32 low = __byte_perm(table[0], table[1], s), high = __byte_perm(table[2], table[3], s);
    u32 top = (nibbles >> 3 & 0x01010101) * 255;
    return (low & ~top) | (high & top);
}
/// A group of 16 bytes: what their low nibbles stand for, then their high ones.
__device__ __forceinline__ void put_nibbles(Group &o, const u32 (&table)[4], const u32 (&v)[4]) {
#pragma unroll
    for (int w = 0; w < 4; w++) {
        o.codes[w] = look_up4(table, v[w] & 0x0f0f0f0f);
        o.codes[4 + w] = look_up4(table, v[w] >> 4 & 0x0f0f0f0f);
    }
}
