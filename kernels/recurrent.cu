// Layers that remember: a short convolution, and the gated delta rule.
#include "compat.cuh"

__device__ __forceinline__ float sigmoid(float x) { return 1.f / (1.f + expf(-x)); }

/// out[t][c] = bias[c] + sum_j w[c][j] x[pos - taps + 1 + j][c], through SiLU where `silu` asks for it, from the batch's rows
/// and, before them, rows of f32 by position; `bias` may be null. Grid: (columns / 128, rows).
extern "C" __global__ void conv(const float *x, const u8 *past, const float *w, const float *bias, const int *seq,
                                const int *pos, float *out, int n, int taps, int silu, int capacity, u64 row_bytes,
                                u64 seq_bytes) {
    int c = blockIdx.x * blockDim.x + threadIdx.x, t = blockIdx.y;
    if (c >= n) return;
    float sum = bias ? bias[c] : 0.f;
    for (int j = 0; j < taps; j++) {
        int back = taps - 1 - j, p = pos[t] - back;
        if (p < 0) continue;
        bool own = back <= t && seq[t - back] == seq[t];
        const u8 *row = past + seq[t] * seq_bytes + (u64)(p % capacity) * row_bytes;
        sum += w[c * taps + j] * (own ? x[(u64)(t - back) * n + c] : ((const float *)row)[c]);
    }
    out[(u64)t * n + c] = silu ? sum * sigmoid(sum) : sum;
}

/// out[t][c] = x[pos - back][c], from the batch's rows and, before them, rows of f32 by position; before the sequence's
/// start `before[c]`, or 0 where that is null. Grid: (columns / 128, rows).
extern "C" __global__ void shift(const float *x, const u8 *past, const float *before, const int *seq, const int *pos,
                                 float *out, int n, int back, int capacity, u64 row_bytes, u64 seq_bytes) {
    int c = blockIdx.x * blockDim.x + threadIdx.x, t = blockIdx.y;
    if (c >= n) return;
    int p = pos[t] - back;
    float v;
    if (p < 0) v = before ? before[c] : 0.f;
    else if (back <= t && seq[t - back] == seq[t]) v = x[(u64)(t - back) * n + c];
    else v = ((const float *)(past + seq[t] * seq_bytes + (u64)(p % capacity) * row_bytes))[c];
    out[(u64)t * n + c] = v;
}

/// The gated delta rule; see src/ops/delta.rs. Four threads hold a row of a head's state (N x N) in registers, four columns
/// of every sixteen each. Rows do not meet, so that a head is shared out among blocks. Grid: (value heads, runs of tokens of
/// one sequence, parts of a head).
template <int N>
__device__ __forceinline__ void delta_body(const float *q, const float *k, const float *v, const float *beta,
                                           const float *alpha, const float *dt, const float *a, float *state,
                                           float *out, const int *first, const int *count, const int *seq, int k_heads,
                                           int v_heads) {
    const int PER = N / 4;
    __shared__ __align__(16) float sk[N], sq[N];
    int h = blockIdx.x, row = blockIdx.z * (blockDim.x >> 2) + (threadIdx.x >> 2), part = threadIdx.x & 3;
    float4 *own = (float4 *)(state + ((u64)seq[blockIdx.y] * v_heads + h) * N * N + row * N) + part;
    const float4 *ks = (const float4 *)sk + part, *qs = (const float4 *)sq + part;
    float s[PER];
#pragma unroll
    for (int i = 0; i < PER; i += 4) {
        float4 v4 = own[i];
        s[i] = v4.x, s[i + 1] = v4.y, s[i + 2] = v4.z, s[i + 3] = v4.w;
    }
    for (int t = first[blockIdx.y]; t < first[blockIdx.y] + count[blockIdx.y]; t++) {
        u64 key = ((u64)t * k_heads + h % k_heads) * N, head = (u64)t * v_heads + h;
        float x = alpha[head] + dt[h], given = beta[head], value = v[head * N + row];
        __syncthreads();
        for (int i = threadIdx.x; i < N; i += blockDim.x) sk[i] = k[key + i], sq[i] = q[key + i];
        __syncthreads();
        float soft = x > 20.f ? x : log1pf(expf(x));
        float decay = expf(a[h] * soft), by = sigmoid(given), sum = 0.f;
#pragma unroll
        for (int i = 0; i < PER; i += 4) {
            float4 y = ks[i];
            s[i] *= decay, s[i + 1] *= decay, s[i + 2] *= decay, s[i + 3] *= decay;
            sum += s[i] * y.x + s[i + 1] * y.y + s[i + 2] * y.z + s[i + 3] * y.w;
        }
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        float change = (value - sum) * by, got = 0.f;
#pragma unroll
        for (int i = 0; i < PER; i += 4) {
            float4 y = ks[i], z = qs[i];
            s[i] += y.x * change, s[i + 1] += y.y * change, s[i + 2] += y.z * change, s[i + 3] += y.w * change;
            got += s[i] * z.x + s[i + 1] * z.y + s[i + 2] * z.z + s[i + 3] * z.w;
        }
        got += __shfl_xor_sync(0xffffffffu, got, 1);
        got += __shfl_xor_sync(0xffffffffu, got, 2);
        if (part == 0) out[head * N + row] = got * rsqrtf((float)N);
    }
#pragma unroll
    for (int i = 0; i < PER; i += 4) own[i] = make_float4(s[i], s[i + 1], s[i + 2], s[i + 3]);
}

#define DELTA(N)                                                                                                       \
    extern "C" __global__ void __launch_bounds__(128)                                                                  \
        delta_##N(const float *q, const float *k, const float *v, const float *beta, const float *alpha,               \
                  const float *dt, const float *a, float *state, float *out, const int *first, const int *count,       \
                  const int *seq, int k_heads, int v_heads) {                                                          \
        delta_body<N>(q, k, v, beta, alpha, dt, a, state, out, first, count, seq, k_heads, v_heads);                   \
    }
DELTA(16)
DELTA(32)
DELTA(64)
DELTA(128)
DELTA(256)
