// Formats of plain floats: F32, F16, BF16. `four`: weights 4 i to 4 i + 4 of a row that begins
// where they can be loaded at once. Those of 16 bits: `mma`, the tensor cores' product; `rounded`,
// a value's nearest bits; SCALED, whether activations have to be scaled into their range.
#pragma once
#include "quant.cuh"

struct F32 {
    enum { BLOCK = 1, BYTES = 4, FLOATS = 1 };
    static __device__ __forceinline__ float value(const u8 *b, int i) { return ((const float *)b)[i]; }
    static __device__ __forceinline__ void four(const u8 *b, int i, float (&v)[4]) {
        float4 f = ((const float4 *)b)[i];
        v[0] = f.x, v[1] = f.y, v[2] = f.z, v[3] = f.w;
    }
};
struct F16 {
    enum { BLOCK = 1, BYTES = 2, FLOATS = 1, SCALED = 1 };
    static __device__ __forceinline__ float value(const u8 *b, int i) { return h2f(((const u16 *)b)[i]); }
    static __device__ __forceinline__ void four(const u8 *b, int i, float (&v)[4]) {
        uint2 f = ((const uint2 *)b)[i];
        v[0] = h2f((u16)f.x), v[1] = h2f((u16)(f.x >> 16)), v[2] = h2f((u16)f.y), v[3] = h2f((u16)(f.y >> 16));
    }
    static __device__ __forceinline__ u16 rounded(float f) { return f2h(f); }
    static __device__ __forceinline__ void mma(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) { mma_f16(d, a, b); }
};
struct BF16 {
    enum { BLOCK = 1, BYTES = 2, FLOATS = 1, SCALED = 0 };
    static __device__ __forceinline__ float value(const u8 *b, int i) { return b2f(((const u16 *)b)[i]); }
    static __device__ __forceinline__ void four(const u8 *b, int i, float (&v)[4]) {
        uint2 f = ((const uint2 *)b)[i];
        v[0] = b2f((u16)f.x), v[1] = b2f((u16)(f.x >> 16)), v[2] = b2f((u16)f.y), v[3] = b2f((u16)(f.y >> 16));
    }
    static __device__ __forceinline__ u16 rounded(float f) { return f2b(f); }
    static __device__ __forceinline__ void mma(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) { mma_bf16(d, a, b); }
};
