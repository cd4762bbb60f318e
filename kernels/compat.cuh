// What kernels need beyond the language, and the one place that knows a device from the emulator. No header is included
// on the device, so that no compiler's include path matters and PTX stays small.
#pragma once
#include "codes.cuh"
#ifdef EMU
#include "emu/emu.hpp"
#else

typedef unsigned char u8;
typedef signed char i8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define DYN_SHARED(T, name)                                                                                            \
    extern __shared__ __align__(16) unsigned char dyn_shared_[];                                                       \
    T *name = reinterpret_cast<T *>(dyn_shared_)

__device__ __forceinline__ float h2f(u16 h) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
    return f;
}
__device__ __forceinline__ u16 f2h(float f) {
    u16 h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
}
__device__ __forceinline__ float b2f(u16 b) { return __uint_as_float((u32)b << 16); }
__device__ __forceinline__ u16 f2b(float f) {
    u32 u = __float_as_uint(f);
    if ((u & 0x7fffffff) > 0x7f800000) return u >> 16 | 64;
    return (u + 0x7fff + (u >> 16 & 1)) >> 16;
}
/// Two halves in a word, the first one below.
__device__ __forceinline__ u32 two_halves(float a, float b) {
#if __CUDA_ARCH__ >= 800
    u32 both;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(b), "f"(a));
    return both;
#else
    return f2h(a) | (u32)f2h(b) << 16;
#endif
}
/// 2^x to about 22 bits; what is below the normal numbers is 0.
__device__ __forceinline__ float fast_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Bytes by the nibbles of a selector, 0 to 3 of a and 4 to 7 of b, where the fourth bit of none is set.
// (`__byte_perm` takes any, which costs an instruction that clears these bits.)
__device__ __forceinline__ u32 permute(u32 a, u32 b, u32 s) {
    u32 d;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(s));
    return d;
}

// A value of which the compiler does not know how it was made.
__device__ __forceinline__ u32 opaque(u32 v) {
    asm("" : "+r"(v));
    return v;
}

// Copies of 16 bytes from device to shared memory that run beside the code; before sm_80 they run at once.
__device__ __forceinline__ void cp_async16(void *to, const void *from) {
#if __CUDA_ARCH__ >= 800
    u32 s = (u32)__cvta_generic_to_shared(to);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(s), "l"(from) : "memory");
#else
    *(uint4 *)to = *(const uint4 *)from;
#endif
}
__device__ __forceinline__ void cp_async_commit() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int N> __device__ __forceinline__ void cp_async_wait() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}

// Four 8x8 matrices of 16-bit values; lane i hands in the address of row i % 8 of matrix i / 8.
__device__ __forceinline__ void ldmatrix_x4(u32 (&r)[4], const void *row) {
    u32 s = (u32)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(s)
                 : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(u32 (&r)[4], const void *row) {
    u32 s = (u32)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(s)
                 : "memory");
}

/// Zeros that neither compiler nor assembler knows, as blocks and grids have one layer: constants
/// that tensor cores start from then stay in registers, and are not made again before every
/// product.
__device__ __forceinline__ void unknown_zeros(int (&v)[4]) {
    asm volatile("mov.u32 %0, %%tid.y;" : "=r"(v[0]));
    asm volatile("mov.u32 %0, %%tid.z;" : "=r"(v[1]));
    asm volatile("mov.u32 %0, %%ctaid.z;" : "=r"(v[2]));
    asm volatile("mov.u32 %0, %%nctaid.z;" : "=r"(v[3]));
    v[3]--;
}

/// `threadIdx.x`, read here and now: what follows from it is not kept in registers.
__device__ __forceinline__ int thread_again() {
    int v;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(v));
    return v;
}
/// Two floats of shared memory, read here and now: never kept in registers from an earlier reading.
__device__ __forceinline__ void shared_two(const float *from, float &a, float &b) {
    u32 s = (u32)__cvta_generic_to_shared(from);
    asm volatile("ld.volatile.shared.v2.f32 {%0,%1}, [%2];" : "=f"(a), "=f"(b) : "r"(s));
}

// d += a b of 16 x 8 results: 16 values of f16 along k, or 32 of 8 bits. sm_75 has smaller shapes with the same layout.
__device__ __forceinline__ void mma_f16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    for (int h = 0; h < 2; h++)
        asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5},{%6},{%0,%1,%2,%3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[2 * h]), "r"(a[2 * h + 1]), "r"(b[h]));
#endif
}
/// Of bfloat16 values; sm_75 has none, and no kernel of it comes here.
__device__ __forceinline__ void mma_bf16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}
// d = start + a b.
__device__ __forceinline__ void mma_s8(int (&d)[4], const u32 (&a)[4], const u32 (&b)[2], const int (&start)[4]) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%10,%11,%12,%13};"
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(start[0]), "r"(start[1]),
          "r"(start[2]), "r"(start[3]));
#else
    for (int i = 0; i < 2; i++) { // rows 0..8 or 8..16
        asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1},{%2},{%3},{%4,%5};"
            : "=r"(d[2 * i]), "=r"(d[2 * i + 1])
            : "r"(a[i]), "r"(b[0]), "r"(start[2 * i]), "r"(start[2 * i + 1]));
        asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1},{%2},{%3},{%0,%1};"
            : "+r"(d[2 * i]), "+r"(d[2 * i + 1])
            : "r"(a[2 + i]), "r"(b[1]));
    }
#endif
}
__device__ __forceinline__ void mma_s8_k16(int (&d)[4], const u32 (&a)[2], const u32 (&b)[1], const int (&start)[4]) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0,%1,%2,%3},{%4,%5},{%6},{%7,%8,%9,%10};"
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(b[0]), "r"(start[0]), "r"(start[1]), "r"(start[2]), "r"(start[3]));
#else
    for (int i = 0; i < 2; i++)
        asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1},{%2},{%3},{%4,%5};"
            : "=r"(d[2 * i]), "=r"(d[2 * i + 1])
            : "r"(a[i]), "r"(b[0]), "r"(start[2 * i]), "r"(start[2 * i + 1]));
#endif
}
#endif

// Sums and maxima over a warp and over a block; every thread gets the result.
__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
    for (int by = 16; by; by >>= 1) v += __shfl_xor_sync(0xffffffffu, v, by);
    return v;
}
__device__ __forceinline__ float warp_max(float v) {
#pragma unroll
    for (int by = 16; by; by >>= 1) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, by));
    return v;
}
/// `scratch`: 32 values of shared memory. A block of whole warps.
__device__ __forceinline__ float block_sum(float v, float *scratch) {
    v = warp_sum(v);
    int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, n = (blockDim.x + 31) >> 5;
    if (n == 1) return v;
    __syncthreads();
    if (lane == 0) scratch[warp] = v;
    __syncthreads();
    v = lane < n ? scratch[lane] : 0.f;
    return warp_sum(v);
}
__device__ __forceinline__ float block_max(float v, float *scratch) {
    v = warp_max(v);
    int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, n = (blockDim.x + 31) >> 5;
    if (n == 1) return v;
    __syncthreads();
    if (lane == 0) scratch[warp] = v;
    __syncthreads();
    v = lane < n ? scratch[lane] : -__int_as_float(0x7f800000);
    return warp_max(v);
}
