// What a weight format is to the kernels of matrices: blocks of bytes, read in groups of 32 weights.
//
//   struct FORMAT {
//       enum { BLOCK, BYTES, HALVES, MINS };
//       static void group(Block block, int g, Group &out);
//   }
//   weight i of the group = scale[i / 16] * code[i] - min[i / 16]
//
// What decoding costs is instructions: kernels/sass.py counts them and holds their budgets. So codes that stand for
// c - 8 of 4 bits (or - 16 of 5, - 32 of 6, - 4 of 3) lie at the top of their bytes with the highest bit flipped,
// which is that number times a power of two, and the scale is divided by it: exact, and nothing is subtracted byte
// by byte. What follows from the place of the group in its block and the block's place among words (shifts, masks,
// offsets) is the same for all groups that a lane of a mat-vec takes, and the compiler moves it out of the loop.
//
// Rejected: offsets taken off by the activations' sums (8 more dp4a, or a difference of floats that cancels); signs
// put on by a mask and a byte-wise subtraction (64 instructions for 32 weights, where a third bit of the selectors
// takes 28); entries of codebooks as 8 bytes (32 lanes read a table of 2 KB at up to 16 lines of the cache, one of
// 512 bytes at 4).
//
// HALVES: the two halves of a group have scales (and minimums) of their own; otherwise only the first is set. Formats of
// floats have FLOATS set and `value(block, i)` instead. Layouts: the format's file under src/quant.
#pragma once
#include "../compat.cuh"

struct Group {
    u32 codes[8]; // 32 signed bytes
    float scale[2], min[2];
};

/// A block of a row: the multiple of four at or before its first byte, and how far before that is. Blocks whose
/// size is a multiple of four begin at one.
struct Block {
    const u8 *words;
    u32 off;
    __device__ __forceinline__ Block() {}
    __device__ __forceinline__ Block(const u8 *p) : words(p - ((u32)(u64)p & 3)), off((u32)(u64)p & 3) {}
    /// The byte `at`.
    __device__ __forceinline__ const u8 *byte(u32 at) const { return words + (off + at); }
};

__device__ __forceinline__ u32 load2(const u8 *p) { return *(const u16 *)p; }
/// Four bytes at an even address.
__device__ __forceinline__ u32 load4_2(const u8 *p) { return load2(p) | load2(p + 2) << 16; }
/// Four bytes at a multiple of four.
__device__ __forceinline__ u32 load4(const u8 *p) { return *(const u32 *)p; }
/// 4 N bytes of a block from its byte `at` on, by whole words: those that hold the bytes, so that nothing is read
/// beyond the last one's word. Each word is turned to the right by `right` bits (-7 to 7): of its bytes only those bits
/// are of use that stay in them.
template <int N> __device__ __forceinline__ void load_words(Block b, u32 at, u32 (&to)[N], int right = 0) {
    int by = (b.off + at) & 3, shift = 8 * by + right;
    bool back = shift < 0; // to the left: by 32 bits less, from the word before
    const u32 *from = (const u32 *)(b.words + (int)((b.off + at) & ~3u) - (back ? 4 : 0));
    u32 v = back ? 0 : from[0];
#pragma unroll
    for (int i = 0; i < N; i++) {
        u32 next = i + 1 < N || by || back ? from[i + 1] : 0;
        to[i] = __funnelshift_r(v, next, shift);
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
/// Byte `i` of a word, by the bits of a float: (float)byte + plus, exact.
__device__ __forceinline__ float byte_float(u32 v, int i, int plus = 0) {
    return __uint_as_float(permute(v, 0x4b000000, 0x7440 + i)) - (8388608.f - (float)plus);
}
/// Bit 4 w + i of each half of a word to bit 4 i + w.
__device__ __forceinline__ u32 transpose(u32 v) {
    u32 t = (v ^ v >> 3) & 0x0a0a0a0a;
    v ^= t * 9;
    t = (v ^ v >> 6) & 0x00cc00cc;
    return v ^ t * 65;
}
/// Byte i of to[w] = `yes` where bit 4 w + i of `bits` is set, else `no` (four times the byte each).
__device__ __forceinline__ void choose(u32 bits, u32 no, u32 yes, u32 (&to)[8]) {
    // A selector of bytes has three bits: those of words 0 to 2, or 1 to 3, of which a table looks at one.
    u32 first = permute(no, yes, 0x4040), second = permute(no, yes, 0x4400), t = transpose(bits);
    u32 a = t & 0x77777777, b = t >> 1 & 0x77777777;
#pragma unroll
    for (int w = 0; w < 8; w += 4) {
        to[w] = permute(first, first, a >> 4 * w);
        to[w + 1] = permute(second, second, a >> 4 * w);
        to[w + 2] = permute(no, yes, a >> 4 * w);
        to[w + 3] = permute(no, yes, b >> 4 * w);
    }
}
/// Entries of a table of 16 bytes by four nibbles, each in a byte of its own.
__device__ __forceinline__ u32 look_up4(const u32 (&table)[4], u32 nibbles) {
    // Each permutation takes three bits; the fourth chooses between the table's halves.
    u32 s = (nibbles & 7) | (nibbles >> 4 & 0x70) | (nibbles >> 8 & 0x700) | (nibbles >> 12 & 0x7000);
    u32 low = __byte_perm(table[0], table[1], s), high = __byte_perm(table[2], table[3], s);
    u32 top = (nibbles >> 3 & 0x01010101) * 255;
    return (low & ~top) | (high & top);
}
/// What a word's nibbles stand for by a table of 16 bytes: the low ones, then the high ones.
__device__ __forceinline__ void look_up8(const u32 (&table)[4], u32 v, u32 &low, u32 &high) {
    // In the order of the nibbles: by three bits in both halves of the table, of which the fourth chooses.
    u32 s = v & 0x77777777, which = (v >> 1 & 0x44444444) | 0x32103210, both[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        u32 first = permute(table[0], table[1], s >> 16 * h), second = permute(table[2], table[3], s >> 16 * h);
        both[h] = permute(first, second, which >> 16 * h);
    }
    low = permute(both[0], both[1], 0x6420);
    high = permute(both[0], both[1], 0x7531);
}
/// A group of 16 bytes: what their low nibbles stand for, then their high ones.
__device__ __forceinline__ void put_nibbles(Group &o, const u32 (&table)[4], const u32 (&v)[4]) {
#pragma unroll
    for (int w = 0; w < 4; w++) look_up8(table, v[w], o.codes[w], o.codes[4 + w]);
}
