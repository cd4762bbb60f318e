// Rows of a KV cache in every format that it can have: values read, blocks written. Layouts: the formats' files under
// src/quant/formats. Of the formats with codes a head is whole blocks of 32 values.
#pragma once
#include "quant/small.cuh"

/// Whether rows are floats, each by itself, and not blocks of codes.
__device__ __forceinline__ bool is_float(CacheType type) {
    return type == CACHE_F16 || type == CACHE_F32 || type == CACHE_BRAIN;
}

/// Value `i` of a row of floats.
__device__ __forceinline__ float cached_float(const u8 *row, CacheType type, int i) {
    if (type == CACHE_F16) return h2f(((const u16 *)row)[i]);
    if (type == CACHE_F32) return ((const float *)row)[i];
    return b2f(((const u16 *)row)[i]);
}

/// What a block of codes has besides its scale: a minimum, fifth bits; and where its nibbles begin, 16 bytes up to its end.
struct BlockParts {
    bool min, fifth;
    int nibbles;
    __device__ __forceinline__ BlockParts(CacheType type) {
        min = type == CACHE_Q4_1 || type == CACHE_Q5_1;
        fifth = type == CACHE_Q5_0 || type == CACHE_Q5_1;
        nibbles = 2 + (min ? 2 : 0) + (fifth ? 4 : 0);
    }
};

/// What four codes of 4 or 5 bits, each in a byte of its own, stand for in units of the scale.
__device__ __forceinline__ u32 units4(u32 codes, CacheType type) {
    const u32 table[4] = IQ4_VALUES;
    if (type == CACHE_IQ4_NL) return look_up4(table, codes);
    return __vsub4(codes, type == CACHE_Q4_0 ? 0x08080808 : type == CACHE_Q5_0 ? 0x10101010 : 0);
}

/// Values `c` to `c + 8` of a row of codes; `c` is a multiple of eight.
__device__ __forceinline__ void cached_eight(const u8 *row, CacheType type, int c, float (&to)[8]) {
    u32 w[2];
    float d, m = 0.f;
    if (type == CACHE_Q8_0) {
        const u8 *block = row + c / 32 * 34, *codes = block + 2 + c % 32;
        d = load_h(block);
        w[0] = load4_2(codes);
        w[1] = load4_2(codes + 4);
    } else {
        BlockParts parts(type);
        const u8 *block = row + c / 32 * (parts.nibbles + 16), *codes = block + parts.nibbles + c % 16;
        int high = c % 32 / 16 * 4; // the second half's codes are the high nibbles
        d = load_h(block);
        if (parts.min) m = load_h(block + 2);
        u32 bits = parts.fifth ? block[parts.nibbles - 4 + c % 32 / 8] : 0;
        w[0] = units4((load4_2(codes) >> high & 0x0f0f0f0f) | spread4(bits & 15, 4), type);
        w[1] = units4((load4_2(codes + 4) >> high & 0x0f0f0f0f) | spread4(bits >> 4, 4), type);
    }
#pragma unroll
    for (int j = 0; j < 8; j++) to[j] = d * (float)(i8)(w[j / 4] >> 8 * (j % 4)) + m;
}

/// Value `i` of a row.
__device__ __forceinline__ float cached(const u8 *row, CacheType type, int i) {
    if (is_float(type)) return cached_float(row, type, i);
    if (type == CACHE_Q8_0) return load_h(row + i / 32 * 34) * (float)(i8)row[i / 32 * 34 + 2 + i % 32];
    BlockParts parts(type);
    const u8 *block = row + i / 32 * (parts.nibbles + 16);
    u32 code = block[parts.nibbles + i % 16] >> i % 32 / 16 * 4 & 15;
    if (parts.fifth) code |= (block[parts.nibbles - 4 + i % 32 / 8] >> i % 8 & 1) << 4;
    return load_h(block) * (float)(i8)units4(code, type) + (parts.min ? load_h(block + 2) : 0.f);
}

/// The first lane's value among those of the lanes that choose theirs.
__device__ __forceinline__ float first_chosen(float v, bool chosen) {
    return __shfl_sync(0xffffffffu, v, (u32)__ffs(__ballot_sync(0xffffffffu, chosen)) - 1);
}

/// The code of IQ4_NL whose value is nearest to x, of two equally near ones the greater.
__device__ __forceinline__ u32 nearest_iq4(float x) {
    const u32 table[4] = IQ4_VALUES;
    u32 code = 0;
#pragma unroll
    for (int i = 0; i < 15; i++) {
        float value = (float)(i8)(table[i / 4] >> 8 * (i % 4)), next = (float)(i8)(table[(i + 1) / 4] >> 8 * ((i + 1) % 4));
        code += x - value >= next - x;
    }
    return code;
}

/// Codes of 4 or 5 bits for a warp's 32 values, with the scale and the minimum that go with them. Every operation is that of
/// src/quant/rows/small_cache.rs and iq4_nl.rs, in their order, and none of them fused.
__device__ __forceinline__ u32 block_code(float v, CacheType type, int lane, float &d, float &low) {
    BlockParts parts(type);
    float top = parts.fifth ? 31.f : 15.f, scaled;
    if (parts.min) {
        low = first_chosen(v, v == -warp_max(-v));
        float high = first_chosen(v, v == warp_max(v));
        d = (high - low) / top;
        scaled = __fadd_rn(__fmul_rn(v - low, d == 0.f ? 0.f : 1.f / d), .5f);
        return (u32)max(min((int)scaled, (int)top), 0);
    }
    float size = warp_max(fabsf(v)), most = size == 0.f ? 0.f : first_chosen(v, fabsf(v) == size);
    if (type != CACHE_IQ4_NL) {
        float half = parts.fifth ? 16.f : 8.f;
        d = most / -half;
        scaled = __fadd_rn(__fmul_rn(v, d == 0.f ? 0.f : 1.f / d), half + .5f);
        return (u32)max(min((int)scaled, (int)top), 0);
    }
    d = 0.f;
    if (size < 1e-15f) return 8; // the value 1
    u32 code = nearest_iq4(__fmul_rn(1.f / (most / -127.f), v));
    float q = (float)(i8)units4(code, type), weighted = __fmul_rn(__fmul_rn(v, v), q);
    float own_along = __fmul_rn(weighted, v), own_square = __fmul_rn(weighted, q), along = 0.f, square = 0.f;
#pragma unroll 1
    for (int j = 0; j < 32; j++) {
        along = __fadd_rn(along, __shfl_sync(0xffffffffu, own_along, j));
        square = __fadd_rn(square, __shfl_sync(0xffffffffu, own_square, j));
    }
    if (square > 0.f) d = along / square;
    return code;
}

/// Writes block `b` of a row of codes: a warp's 32 values. It becomes what the CPU makes of them.
__device__ __forceinline__ void store_block(u8 *row, CacheType type, int b, float v, int lane) {
    if (type == CACHE_Q8_0) {
        u8 *block = row + 34 * b;
        float d = warp_max(fabsf(v)) / 127.f;
        float scaled = v * (d > 0.f ? 1.f / d : 0.f);
        float rounded = scaled < 0.f ? -floorf(0.5f - scaled) : floorf(scaled + 0.5f); // halves away from zero
        if (lane == 0) *(u16 *)block = f2h(d);
        block[2 + lane] = (u8)(int)rounded;
        return;
    }
    BlockParts parts(type);
    u8 *block = row + b * (parts.nibbles + 16);
    float d, low = 0.f;
    u32 code = block_code(v, type, lane, d, low), other = __shfl_xor_sync(0xffffffffu, code, 16);
    u32 fifth = __ballot_sync(0xffffffffu, code & 16);
    if (lane < 16) block[parts.nibbles + lane] = (u8)((code & 15) | other << 4);
    if (lane) return;
    *(u16 *)block = f2h(d);
    if (parts.min) *(u16 *)(block + 2) = f2h(low);
    if (parts.fifth) {
        u16 *to = (u16 *)(block + parts.nibbles - 4);
        to[0] = (u16)fifth;
        to[1] = (u16)(fifth >> 16);
    }
}

/// Writes value `i` of a row of any format, of which the lanes of a warp have 32 one after the other, from a multiple of 32 on.
__device__ __forceinline__ void store_value(u8 *row, CacheType type, int i, float v) {
    if (type == CACHE_F32) ((float *)row)[i] = v;
    else if (type == CACHE_F16) ((u16 *)row)[i] = f2h(v);
    else if (type == CACHE_BRAIN) ((u16 *)row)[i] = f2b(v);
    else store_block(row, type, i / 32, v, i % 32);
}
