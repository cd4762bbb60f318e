// Layers that remember: a short convolution, the gated delta rule with a decay for each head or for
// each key channel, and scans.
#include "compat.cuh"

__device__ __forceinline__ float sigmoid(float x) { return 1.f / (1.f + expf(-x)); }

/// out[t][c] = silu(sum_j w[c][j] x[pos - (taps - 1 - j) step][c] + bias[c]), from the batch's rows and, before them, rows of
/// f32 by position; `bias` may be null, and `silu` 0 for none. With `keep`, where the batch has one row, it is stored by its
/// position too: in the place of one that nothing reads any more. Grid: (columns / 128, rows).
extern "C" __global__ void conv(const float *x, u8 *past, const float *w, const float *bias, const int *seq,
                                const int *pos, float *out, int silu, int keep, int n, int taps, int step, int capacity,
                                u64 row_bytes, u64 seq_bytes) {
    int c = blockIdx.x * blockDim.x + threadIdx.x, t = blockIdx.y;
    if (c >= n) return;
    past += seq[t] * seq_bytes;
    float sum = 0.f;
    for (int j = 0; j < taps; j++) {
        int back = (taps - 1 - j) * step, p = pos[t] - back;
        if (p < 0) continue;
        bool own = back <= t && seq[t - back] == seq[t];
        const u8 *row = past + (u64)(p % capacity) * row_bytes;
        sum += w[c * taps + j] * (own ? x[(u64)(t - back) * n + c] : ((const float *)row)[c]);
    }
    if (bias) sum += bias[c];
    out[(u64)t * n + c] = silu ? sum * sigmoid(sum) : sum;
    if (keep) ((float *)(past + (u64)(pos[t] % capacity) * row_bytes))[c] = x[(u64)t * n + c];
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
    else if (x && back <= t && seq[t - back] == seq[t]) v = x[(u64)(t - back) * n + c];
    else v = ((const float *)(past + seq[t] * seq_bytes + (u64)(p % capacity) * row_bytes))[c];
    out[(u64)t * n + c] = v;
}

// A sequence has `blocks` states in what follows: its own, and after it with `keep` what it is after each token of the run but
// the last, which a sequence that verifies drafts can go back to.

/// What a state is multiplied by: exp(a softplus(x)), or with a bound below 0 exp(bound sigmoid(sign a x)).
__device__ __forceinline__ float decay_of(float x, float a, float bound, float sign) {
    if (bound < 0.f) return expf(bound * sigmoid(sign * a * x));
    return expf(a * (x > 20.f ? x : log1pf(expf(x))));
}

/// The gated delta rule; see src/ops/delta.rs. Four threads hold a row of a head's state (N x N) in
/// registers, four columns of every sixteen each. Rows do not meet, so that a head is shared out
/// among blocks. `bound` is 0 where the decay has none. Grid: (value heads, runs of tokens of one
/// sequence, parts of a head).
template <int N, bool CHANNELS>
__device__ __forceinline__ void delta_body(const float *q, const float *k, const float *v, const float *beta,
                                           const float *alpha, const float *dt, const float *a, float *state,
                                           float *out, const int *first, const int *count, const int *seq, int k_heads,
                                           int v_heads, int run, float bound, float sign, int blocks, int keep) {
    const int PER = N / 4;
    __shared__ __align__(16) float sk[N], sq[N], sd[CHANNELS ? N : 4];
    int h = blockIdx.x, row = blockIdx.z * (blockDim.x >> 2) + (threadIdx.x >> 2), part = threadIdx.x & 3;
    float4 *own = (float4 *)(state + ((u64)seq[blockIdx.y] * blocks * v_heads + h) * N * N + row * N) + part;
    float4 *copy = own;
    const float4 *ks = (const float4 *)sk + part, *qs = (const float4 *)sq + part,
                 *ds = (const float4 *)sd + part;
    float s[PER];
#pragma unroll
    for (int i = 0; i < PER; i += 4) {
        float4 v4 = own[i];
        s[i] = v4.x, s[i + 1] = v4.y, s[i + 2] = v4.z, s[i + 3] = v4.w;
    }
    for (int t = first[blockIdx.y]; t < first[blockIdx.y] + count[blockIdx.y]; t++) {
        u64 key = ((u64)t * k_heads + h / run % k_heads) * N, head = (u64)t * v_heads + h;
        float given = beta[head], value = v[head * N + row];
        __syncthreads();
        for (int i = threadIdx.x; i < N; i += blockDim.x) {
            sk[i] = k[key + i], sq[i] = q[key + i];
            if (CHANNELS) sd[i] = decay_of(alpha[head * N + i] + dt[h * N + i], a[h], bound, sign);
        }
        __syncthreads();
        float all = CHANNELS ? 0.f : decay_of(alpha[head] + dt[h], a[h], bound, sign), by = sigmoid(given), sum = 0.f;
#pragma unroll
        for (int i = 0; i < PER; i += 4) {
            float4 y = ks[i], d = CHANNELS ? ds[i] : make_float4(all, all, all, all);
            s[i] *= d.x, s[i + 1] *= d.y, s[i + 2] *= d.z, s[i + 3] *= d.w;
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
        if (!keep || t + 1 == first[blockIdx.y] + count[blockIdx.y]) continue;
        copy += (u64)v_heads * N * (N / 4);
#pragma unroll
        for (int i = 0; i < PER; i += 4) copy[i] = make_float4(s[i], s[i + 1], s[i + 2], s[i + 3]);
    }
#pragma unroll
    for (int i = 0; i < PER; i += 4) own[i] = make_float4(s[i], s[i + 1], s[i + 2], s[i + 3]);
}

#define DELTA(N)                                                                                                       \
    extern "C" __global__ void __launch_bounds__(128)                                                                  \
        delta_##N(const float *q, const float *k, const float *v, const float *beta, const float *alpha,               \
                  const float *dt, const float *a, float *state, float *out, const int *first, const int *count,       \
                  const int *seq, int k_heads, int v_heads, int run, float bound, float sign, int blocks,         \
                  int keep) {                                                                                          \
        delta_body<N, false>(q, k, v, beta, alpha, dt, a, state, out, first, count, seq, k_heads, v_heads, run, bound, \
                              sign, blocks, keep);                                                                     \
    }
DELTA(16)
DELTA(32)
DELTA(64)
DELTA(128)
DELTA(256)

#define DELTA_CHANNELS(N)                                                                                              \
    extern "C" __global__ void __launch_bounds__(128)                                                                  \
        delta_channels_##N(const float *q, const float *k, const float *v, const float *beta, const float *alpha,      \
                  const float *dt, const float *a, float *state, float *out, const int *first, const int *count,       \
                  const int *seq, int k_heads, int v_heads, int run, float bound, float sign, int blocks,         \
                  int keep) {                                                                                          \
        delta_body<N, true>(q, k, v, beta, alpha, dt, a, state, out, first, count, seq, k_heads, v_heads, run, bound,  \
                              sign, blocks, keep);                                                                     \
    }
DELTA_CHANNELS(16)
DELTA_CHANNELS(32)
DELTA_CHANNELS(64)
DELTA_CHANNELS(128)
DELTA_CHANNELS(256)

__device__ __forceinline__ float softplus(float x) { return x > 20.f ? x : log1pf(expf(x)); }

/// A scan whose state decays as a whole in each head (Mamba-2; without `dt` lightning attention,
/// where head h forgets at the rate scale base^(h + 1)); see src/ops/scan.rs. Four threads hold a
/// row of a head's state (dim x N) in registers, four columns of every sixteen each. `d` may be
/// null. Grid: (heads, runs of tokens of one sequence, parts of a head).
template <int N>
__device__ __forceinline__ void scan_body(const float *x, const float *b, const float *c, const float *dt,
                                          const float *bias, const float *a, const float *d, float *state, float *out,
                                          const int *first, const int *count, const int *seq, int heads, int dim,
                                          int groups, float base, float scale, int blocks, int keep) {
    const int PER = N / 4;
    __shared__ __align__(16) float sb[N], sc[N];
    int h = blockIdx.x, row = blockIdx.z * (blockDim.x >> 2) + (threadIdx.x >> 2), part = threadIdx.x & 3;
    bool is_row = row < dim; // the others help with loads
    u64 first_row = ((u64)seq[blockIdx.y] * blocks * heads + h) * dim;
    float4 *own = (float4 *)(state + (first_row + (is_row ? row : 0)) * N) + part, *copy = own;
    const float4 *bs = (const float4 *)sb + part, *cs = (const float4 *)sc + part;
    float s[PER];
#pragma unroll
    for (int i = 0; i < PER; i += 4) {
        float4 v4 = own[i];
        s[i] = v4.x, s[i + 1] = v4.y, s[i + 2] = v4.z, s[i + 3] = v4.w;
    }
    float kept = dt ? 0.f : expf(-scale * exp2f((float)(h + 1) * log2f(base))), skip = d ? d[h] : 0.f;
    for (int t = first[blockIdx.y]; t < first[blockIdx.y] + count[blockIdx.y]; t++) {
        u64 head = (u64)t * heads + h, shared = ((u64)t * groups + h / (heads / groups)) * N;
        float step = dt ? softplus(dt[head] + bias[h]) : 1.f, value = is_row ? x[head * dim + row] : 0.f;
        float decay = dt ? expf(step * a[h]) : kept, taken = step * value, got = 0.f;
        __syncthreads();
        for (int i = threadIdx.x; i < N; i += blockDim.x) sb[i] = b[shared + i], sc[i] = c[shared + i];
        __syncthreads();
#pragma unroll
        for (int i = 0; i < PER; i += 4) {
            float4 y = bs[i], z = cs[i];
            s[i] = s[i] * decay + taken * y.x, s[i + 1] = s[i + 1] * decay + taken * y.y;
            s[i + 2] = s[i + 2] * decay + taken * y.z, s[i + 3] = s[i + 3] * decay + taken * y.w;
            got += s[i] * z.x + s[i + 1] * z.y + s[i + 2] * z.z + s[i + 3] * z.w;
        }
        got += __shfl_xor_sync(0xffffffffu, got, 1);
        got += __shfl_xor_sync(0xffffffffu, got, 2);
        if (is_row && part == 0) out[head * dim + row] = got + skip * value;
        if (!keep || !is_row || t + 1 == first[blockIdx.y] + count[blockIdx.y]) continue;
        copy += (u64)heads * dim * (N / 4);
#pragma unroll
        for (int i = 0; i < PER; i += 4) copy[i] = make_float4(s[i], s[i + 1], s[i + 2], s[i + 3]);
    }
    if (!is_row) return;
#pragma unroll
    for (int i = 0; i < PER; i += 4) own[i] = make_float4(s[i], s[i + 1], s[i + 2], s[i + 3]);
}

#define SCAN(N)                                                                                                        \
    extern "C" __global__ void __launch_bounds__(128)                                                                  \
        scan_##N(const float *x, const float *b, const float *c, const float *dt, const float *bias, const float *a,   \
                 const float *d, float *state, float *out, const int *first, const int *count, const int *seq,         \
                 int heads, int dim, int groups, float base, float scale, int blocks, int keep) {                      \
        scan_body<N>(x, b, c, dt, bias, a, d, state, out, first, count, seq, heads, dim, groups, base, scale, blocks,  \
                     keep);                                                                                            \
    }
SCAN(16)
SCAN(32)
SCAN(64)
SCAN(128)
SCAN(256)

/// A scan in which every channel has a step, and every value of its state (N) a rate, of its own
/// (Mamba); see src/ops/scan.rs. A thread holds a channel's state in registers. Grid: (channels /
/// 128, runs of tokens of one sequence).
template <int N>
__device__ __forceinline__ void channel_scan_body(const float *x, const float *b, const float *c, const float *dt,
                                                  const float *a, const float *d, float *state, float *out,
                                                  const int *first, const int *count, const int *seq, int channels,
                                                  int blocks, int keep) {
    int channel = blockIdx.x * blockDim.x + threadIdx.x;
    if (channel >= channels) return;
    float *own = state + ((u64)seq[blockIdx.y] * blocks * channels + channel) * N, *copy = own;
    float s[N], rate[N], skip = d[channel];
#pragma unroll
    for (int i = 0; i < N; i++) s[i] = own[i], rate[i] = a[(u64)channel * N + i];
    for (int t = first[blockIdx.y]; t < first[blockIdx.y] + count[blockIdx.y]; t++) {
        u64 at = (u64)t * channels + channel;
        float step = softplus(dt[at]), value = x[at], got = 0.f;
#pragma unroll
        for (int i = 0; i < N; i++) {
            s[i] = s[i] * expf(step * rate[i]) + step * value * b[(u64)t * N + i];
            got += s[i] * c[(u64)t * N + i];
        }
        out[at] = got + skip * value;
        if (!keep || t + 1 == first[blockIdx.y] + count[blockIdx.y]) continue;
        copy += (u64)channels * N;
#pragma unroll
        for (int i = 0; i < N; i++) copy[i] = s[i];
    }
#pragma unroll
    for (int i = 0; i < N; i++) own[i] = s[i];
}

#define CHANNEL_SCAN(N)                                                                                                \
    extern "C" __global__ void __launch_bounds__(128)                                                                  \
        channel_scan_##N(const float *x, const float *b, const float *c, const float *dt,           \
                         const float *a, const float *d, float *state, float *out, const int *first, const int *count, \
                         const int *seq, int width, int per, int keep) {                                               \
        channel_scan_body<N>(x, b, c, dt, a, d, state, out, first, count, seq, width, per, keep);                      \
    }
CHANNEL_SCAN(16)
CHANNEL_SCAN(32)
