// Runs CUDA C++ kernels on the host: every thread of a block is a fiber on one thread of the system, so that a .cu file
// compiles as plain C++17 with -DEMU, and its shared memory, barriers and warp operations work.
//
//   __shared__ x       static thread_local: blocks run one after the other on a thread of the system
//   warp operations    every lane of the mask hands in its value and waits for the others (exchange)
//   __syncthreads      every thread that has not ended waits for the others
//   cp.async           copies when it is waited for, no earlier, so that a missing wait shows
//   dynamic shared     starts as bytes 0xff, which are NaN in every float format
//
// Threads go in an order that a seed decides: lanes of a warp, warps of a block and blocks of a grid. What a kernel gets
// wrong (lanes that part ways, a lane outside its mask, barriers that not all reach) ends the launch with a message.
// What cannot be seen here: speed, coalescing, loads that are not aligned, and whether the device half of compat.cuh is
// right, which the interpreter of PTX (kernels/standin) sees; and weak memory order.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#ifdef __F16C__
#include <immintrin.h>
#endif

typedef uint8_t u8;
typedef int8_t i8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

#ifdef EMU_SCAN // the preprocessor's output is searched for kernels' names
#define __global__ EMU_GLOBAL
#else
#define __global__
#endif
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static thread_local
#define __CUDA_ARCH__ EMU_ARCH
#ifndef EMU_ARCH
#define EMU_ARCH 800
#endif
#define DYN_SHARED(T, name) T *name = reinterpret_cast<T *>(emu::dyn_shared())

struct uint3 { u32 x, y, z; };
struct dim3 { u32 x = 1, y = 1, z = 1; };
template <class T, int A> struct alignas(A) Two { T x, y; };
template <class T, int A> struct alignas(A) Four { T x, y, z, w; };
typedef Two<float, 8> float2;
typedef Four<float, 16> float4;
typedef Two<u32, 8> uint2;
typedef Four<u32, 16> uint4;
typedef Two<int, 8> int2;
typedef Four<int, 16> int4;
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(u32 x, u32 y) { return {x, y}; }
inline uint4 make_uint4(u32 x, u32 y, u32 z, u32 w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }

// The emulator's own state is no kernel's business: sanitizers leave it alone.
#define EMU_RT __attribute__((noinline, no_sanitize("thread"), no_sanitize("address")))

namespace emu {

struct Meeting;

/// A CUDA thread.
struct Fiber {
    void *sp;
    uint3 tid;
    u32 lane, warp;
    int state;         // what it waits for
    u32 generation;    // of that barrier or meeting, when it began to wait
    Meeting *meeting;
    struct Pending { void *to; const void *from; int group; } pending[64]; // cp.async under way
    int n_pending, n_groups;
    u32 n_sync;
    void *tsan = nullptr;
};

extern thread_local Fiber *cur;
extern thread_local uint3 block_idx;
extern thread_local dim3 block_dim, grid_dim;

void *dyn_shared();
[[noreturn]] void fail(const char *format, ...);
void block_barrier();
/// All lanes of `mask` hand in `n` bytes; returns every lane's.
u8 (*exchange(u32 mask, const void *v, int n, const char *op))[64];
/// __syncwarp: a meeting that also orders memory, for the race checker.
void warp_barrier(u32 mask);

typedef void (*Entry)(void **);

/// A kernel by name, with the sizes of its parameters.
struct Kernel {
    const char *name;
    Entry entry;
    int n_params;
    u32 size[40];
    Kernel *next;
    static Kernel *first;
    Kernel(const char *name, Entry entry) : name(name), entry(entry), next(first) { first = this; }
};

/// Runs a grid; null, or what went wrong. Seed 0: everything in order.
const char *launch(Entry entry, void **params, dim3 grid, dim3 block, u32 shared_bytes, u64 seed, int threads);

template <class... A, size_t... I> void call(void (*k)(A...), void **p, std::index_sequence<I...>) {
    k(*(std::remove_reference_t<A> *)p[I]...);
}
template <class... A> void call(void (*k)(A...), void **p) { call(k, p, std::index_sequence_for<A...>{}); }
template <class... A> int sizes(void (*)(A...), u32 *to) {
    u32 s[] = {(u32)sizeof(A)..., 0};
    for (size_t i = 0; i < sizeof...(A); i++) to[i] = s[i];
    return sizeof...(A);
}

template <class T> EMU_RT T shuffle(u32 mask, T v, u32 from, const char *op) {
    auto all = exchange(mask, &v, sizeof v, op);
    if (!(mask >> (from & 31) & 1)) fail("%s reads lane %u, which is not in the mask %08x", op, from & 31, mask);
    T out;
    __builtin_memcpy(&out, all[from & 31], sizeof out);
    return out;
}

} // namespace emu

#define EMU_KERNEL(k)                                                                                                  \
    static struct Kernel_##k : emu::Kernel {                                                                           \
        Kernel_##k() : emu::Kernel(#k, [](void **p) { emu::call(&k, p); }) { n_params = emu::sizes(&k, size); }        \
    } kernel_##k;

#define threadIdx (emu::cur->tid)
#define blockIdx (emu::block_idx)
#define blockDim (emu::block_dim)
#define gridDim (emu::grid_dim)

// Barriers and warp operations.
inline void __syncthreads() { emu::block_barrier(); }
inline void __syncwarp(u32 mask = ~0u) { emu::warp_barrier(mask); }
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
template <class T> T __shfl_xor_sync(u32 mask, T v, int x, int width = 32) {
    u32 lane = emu::cur->lane, from = lane ^ x;
    return emu::shuffle(mask, v, from / width > lane / width ? lane : from, "shfl_xor");
}
template <class T> T __shfl_down_sync(u32 mask, T v, u32 by, int width = 32) {
    u32 lane = emu::cur->lane;
    return emu::shuffle(mask, v, lane % width + by < (u32)width ? lane + by : lane, "shfl_down");
}
template <class T> T __shfl_up_sync(u32 mask, T v, u32 by, int width = 32) {
    u32 lane = emu::cur->lane;
    return emu::shuffle(mask, v, lane % width >= by ? lane - by : lane, "shfl_up");
}
template <class T> T __shfl_sync(u32 mask, T v, int from, int width = 32) {
    u32 lane = emu::cur->lane;
    return emu::shuffle(mask, v, lane / width * width + (u32)from % width, "shfl");
}
static EMU_RT u32 __ballot_sync(u32 mask, int p) {
    u8 mine = p != 0;
    auto all = emu::exchange(mask, &mine, 1, "ballot");
    u32 out = 0;
    for (int i = 0; i < 32; i++)
        if (mask >> i & 1) out |= (u32)all[i][0] << i;
    return out;
}
inline int __any_sync(u32 mask, int p) { return __ballot_sync(mask, p) != 0; }
inline int __all_sync(u32 mask, int p) { return __ballot_sync(mask, p) == mask; }

// Integers and floats.
inline int __dp4a(int a, int b, int c) {
    for (int i = 0; i < 32; i += 8) c += (int)(i8)(a >> i) * (int)(i8)(b >> i);
    return c;
}
inline u32 __dp4a(u32 a, u32 b, u32 c) {
    for (int i = 0; i < 32; i += 8) c += (a >> i & 255) * (b >> i & 255);
    return c;
}
inline u32 __byte_perm(u32 a, u32 b, u32 s) {
    u64 both = (u64)b << 32 | a;
    u32 out = 0;
    for (int i = 0; i < 4; i++) {
        u32 which = s >> 4 * i & 15;
        u32 byte = both >> 8 * (which & 7) & 255;
        if (which & 8) byte = byte & 128 ? 255 : 0;
        out |= byte << 8 * i;
    }
    return out;
}
inline u32 opaque(u32 v) { return v; }
inline u32 permute(u32 a, u32 b, u32 s) {
    if (s & 0x8888) emu::fail("permute by %04x: a selector of bytes has three bits", s & 0xffff);
    return __byte_perm(a, b, s);
}
inline u32 __funnelshift_r(u32 low, u32 high, u32 by) { return (u32)(((u64)high << 32 | low) >> (by & 31)); }
inline u32 each_byte(u32 a, u32 b, int (*f)(int, int)) {
    u32 out = 0;
    for (int i = 0; i < 32; i += 8) out |= (u32)(u8)f((i8)(a >> i), (i8)(b >> i)) << i;
    return out;
}
inline u32 __vsub4(u32 a, u32 b) { return each_byte(a, b, [](int a, int b) { return a - b; }); }
inline int __popc(u32 x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline u32 __float_as_uint(float f) { u32 u; memcpy(&u, &f, 4); return u; }
inline float __uint_as_float(u32 u) { float f; memcpy(&f, &u, 4); return f; }
inline int __float_as_int(float f) { return (int)__float_as_uint(f); }
inline float __int_as_float(int u) { return __uint_as_float((u32)u); }
inline float __fmul_rn(float a, float b) { volatile float out = a * b; return out; } // never fused
inline float __fadd_rn(float a, float b) { volatile float out = a + b; return out; }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float rsqrtf(float x) { return 1.f / sqrtf(x); }
inline int __float2int_rn(float x) { return (int)nearbyintf(x); }
inline void sincosf(float x, float *s, float *c, int) { *s = sinf(x); *c = cosf(x); }
template <class T> T min(T a, T b) { return a < b ? a : b; }
template <class T> T max(T a, T b) { return a < b ? b : a; }
template <class T> T atomicAdd(T *p, std::common_type_t<T> v) {
    if constexpr (std::is_integral_v<T>) {
        return __atomic_fetch_add(p, v, __ATOMIC_RELAXED);
    } else {
        u32 *bits = (u32 *)p, old = __atomic_load_n(bits, __ATOMIC_RELAXED), next;
        do next = __float_as_uint(__uint_as_float(old) + v);
        while (!__atomic_compare_exchange_n(bits, &old, next, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
        return __uint_as_float(old);
    }
}
template <class T> T atomicMax(T *p, std::common_type_t<T> v) {
    T old = __atomic_load_n(p, __ATOMIC_RELAXED);
    while (old < v && !__atomic_compare_exchange_n(p, &old, v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
    return old;
}

// Halves, as bits.
inline float h2f(u16 h) {
#ifdef __F16C__
    return _cvtsh_ss(h);
#endif
    u32 sign = (u32)(h & 0x8000) << 16, e = h >> 10 & 31, m = h & 1023;
    if (e == 31) return __uint_as_float(sign | 0x7f800000u | m << 13);
    if (e == 0) return __uint_as_float(sign | __float_as_uint((float)m * 0x1p-24f));
    return __uint_as_float(sign | (e + 112) << 23 | m << 13);
}
inline u16 f2h(float f) { // to the nearest, ties to even
    u32 u = __float_as_uint(f), sign = u >> 16 & 0x8000, a = u & 0x7fffffff;
    if (a > 0x7f800000) return sign | 0x7fff;
    if (a >= 0x477ff000) return sign | 0x7c00;
    if (a < 0x38800000) return sign | (u16)(__float_as_uint(__uint_as_float(a) + 0.5f) - 0x3f000000u);
    a += 0xfff + (a >> 13 & 1);
    return sign | (u16)((a - 0x38000000) >> 13);
}
inline float b2f(u16 b) { return __uint_as_float((u32)b << 16); }
inline u16 f2b(float f) {
    u32 u = __float_as_uint(f);
    if ((u & 0x7fffffff) > 0x7f800000) return u >> 16 | 64;
    return (u + 0x7fff + (u >> 16 & 1)) >> 16;
}
inline u32 two_halves(float a, float b) { return f2h(a) | (u32)f2h(b) << 16; }
inline float fast_exp2(float x) { return exp2f(x); }

// Asynchronous copies.
static EMU_RT void cp_async16(void *to, const void *from) {
    auto *f = emu::cur;
    if (((uintptr_t)to | (uintptr_t)from) & 15) emu::fail("cp.async of memory that is not aligned to 16 bytes");
    if (f->n_pending == 64) emu::fail("more than 64 cp.async under way");
    f->pending[f->n_pending++] = {to, from, f->n_groups};
}
static EMU_RT void cp_async_commit() { emu::cur->n_groups++; }
template <int N> EMU_RT void cp_async_wait() {
    auto *f = emu::cur;
    int left = 0;
    for (int i = 0; i < f->n_pending; i++) {
        auto p = f->pending[i];
        if (p.group < f->n_groups - N) memcpy(p.to, p.from, 16);
        else f->pending[left++] = p;
    }
    f->n_pending = left;
}

// Tensor cores: each lane hands in its fragments and works out its own results, by the layouts of the PTX manual.
inline void ldmatrix_x4(u32 (&r)[4], const void *row) {
    auto all = emu::exchange(~0u, &row, sizeof row, "ldmatrix");
    u32 lane = emu::cur->lane;
    for (int j = 0; j < 4; j++) {
        const u8 *p;
        memcpy(&p, all[8 * j + lane / 4], sizeof p);
        memcpy(&r[j], p + 4 * (lane % 4), 4);
    }
}
inline void ldmatrix_x4_trans(u32 (&r)[4], const void *row) {
    auto all = emu::exchange(~0u, &row, sizeof row, "ldmatrix.trans");
    u32 lane = emu::cur->lane;
    for (int j = 0; j < 4; j++) {
        u16 v[2];
        for (int i = 0; i < 2; i++) {
            const u8 *p;
            memcpy(&p, all[8 * j + lane % 4 * 2 + i], sizeof p);
            memcpy(&v[i], p + 2 * (lane / 4), 2);
        }
        r[j] = v[0] | (u32)v[1] << 16;
    }
}
/// A is 16 x K in K/8-register fragments, B 8 columns; `H` halves of K, each 4 words to a row.
template <int H, class D, class F>
EMU_RT void mma_16x8(D (&d)[4], const u32 (&a)[2 * H], const u32 (&b)[H], const char *op, F mul) {
    u32 mine[3 * H];
    memcpy(mine, a, sizeof a);
    memcpy(mine + 2 * H, b, sizeof b);
    auto all = emu::exchange(~0u, mine, sizeof mine, op);
    u32 lane = emu::cur->lane, row = lane / 4, col = lane % 4 * 2;
    auto word = [&](u32 lane, int i) { u32 w; memcpy(&w, all[lane] + 4 * i, 4); return w; };
    for (int i = 0; i < 4; i++)
        for (int h = 0; h < H; h++)
            for (u32 k = 0; k < 4; k++)
                d[i] = mul(d[i], word(row * 4 + k, (i >> 1) + 2 * h), word((col + (i & 1)) * 4 + k, 2 * H + h));
}
inline void unknown_zeros(int (&v)[4]) { v[0] = v[1] = v[2] = v[3] = 0; }
inline int thread_again() { return (int)threadIdx.x; }
inline void shared_two(const float *from, float &a, float &b) { a = from[0], b = from[1]; }
inline void mma_f16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    auto dot = [](float c, u32 x, u32 y) { return c + h2f((u16)x) * h2f((u16)y) + h2f(x >> 16) * h2f(y >> 16); };
    mma_16x8<2>(d, a, b, "mma.f16", dot);
}
inline void mma_bf16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    auto dot = [](float c, u32 x, u32 y) { return c + b2f((u16)x) * b2f((u16)y) + b2f(x >> 16) * b2f(y >> 16); };
    mma_16x8<2>(d, a, b, "mma.bf16", dot);
}
constexpr auto dot_i = [](int c, u32 x, u32 y) { return __dp4a((int)x, (int)y, c); };
inline void mma_s8(int (&d)[4], const u32 (&a)[4], const u32 (&b)[2], const int (&start)[4]) {
    memcpy(d, start, sizeof d);
    mma_16x8<2>(d, a, b, "mma.s8", dot_i);
}
inline void mma_s8_k16(int (&d)[4], const u32 (&a)[2], const u32 (&b)[1], const int (&start)[4]) {
    memcpy(d, start, sizeof d);
    mma_16x8<1>(d, a, b, "mma.s8.k16", dot_i);
}
