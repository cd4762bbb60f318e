// Activations in 8 bits, made by whatever kernel has the floats in its registers.
#pragma once
#include "matrix.cuh"

/// Value i of a row as an 8-bit code, with the scale of its 32 and the sums of their codes. The lanes of a warp have 32 values
/// one after the other, from a multiple of 32 on.
__device__ __forceinline__ void store_code(float v, i8 *codes, ActScale *scales, u64 i) {
    float d = warp_max(fabsf(v)) / 127.f;
    int q = __float2int_rn(d > 0.f ? v / d : 0.f);
    codes[i] = (i8)q;
    float sum = (float)q;
#pragma unroll
    for (int by = 8; by; by >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, by);
    float high = __shfl_sync(0xffffffffu, sum, 16);
    if (threadIdx.x % 32) return;
    ActScale s;
    s.d = d;
    s.low = d * sum;
    s.high = d * high;
    s.unused = 0.f;
    scales[i / 32] = s;
}
