// One pass over rows each: norms, add, scales, soft cap, glu, rope, pack, chosen rows, scale and bias, activations as 8-bit
// codes, argmax; and `chain`, several of these one after the other.
#include "acts.cuh"

/// x / sqrt(mean(x^2) + eps) * scale * weight over runs of `n` values, with mean + eps counted as `least` at least; the
/// weights of `groups` runs follow each other, and begin again. A block per run.
extern "C" __global__ void __launch_bounds__(1024)
    rms_norm(const float *x, const float *weight, float *out, int n, int groups, float eps, float least, float scale) {
    __shared__ float scratch[32];
    if (weight) weight += (u64)(blockIdx.x % groups) * n;
    x += (u64)blockIdx.x * n;
    out += (u64)blockIdx.x * n;
    float sum = 0.f;
    for (int i = threadIdx.x; i < n; i += blockDim.x) sum += x[i] * x[i];
    float mean = block_sum(sum, scratch) / (float)n + eps;
    float by = scale / sqrtf(mean < least ? least : mean); // a maximum would hide a NaN
    for (int i = threadIdx.x; i < n; i += blockDim.x) out[i] = x[i] * by * (weight ? weight[i] : 1.f);
}

/// (x - mean) / sqrt(variance + eps) * weight + bias over runs of `n` values; `weight` and `bias` may be null, and all runs
/// share them. A block per run.
extern "C" __global__ void __launch_bounds__(1024)
    layer_norm(const float *x, const float *weight, const float *bias, float *out, int n, float eps) {
    __shared__ float scratch[32];
    x += (u64)blockIdx.x * n;
    out += (u64)blockIdx.x * n;
    float sum = 0.f;
    for (int i = threadIdx.x; i < n; i += blockDim.x) sum += x[i];
    float mean = block_sum(sum, scratch) / (float)n;
    // Where the mean is large, the mean of squares less its square would cancel, and its own rounding shows: a second pass
    // sums what is left of the values, too, and `rest` is what the mean lacks.
    float rest = 0.f, squares = 0.f;
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        float d = x[i] - mean;
        rest += d;
        squares += d * d;
    }
    rest = block_sum(rest, scratch) / (float)n;
    float variance = block_sum(squares, scratch) / (float)n - rest * rest, by = 1.f / sqrtf(variance + eps);
    for (int i = threadIdx.x; i < n; i += blockDim.x)
        out[i] = (x[i] - mean - rest) * by * (weight ? weight[i] : 1.f) + (bias ? bias[i] : 0.f);
}

/// The Walsh-Hadamard transform of runs of as many values as a block has threads, a power of two from 32 to 512; see
/// src/ops/rotate.rs. `out` may be `x`. A block per run.
extern "C" __global__ void __launch_bounds__(512) rotate(const float *x, float *out, float by) {
    __shared__ float values[512];
    int i = threadIdx.x;
    u64 at = (u64)blockIdx.x * blockDim.x + i;
    float v = x[at];
#pragma unroll
    for (int half = 1; half < 32; half <<= 1) {
        float other = __shfl_xor_sync(0xffffffffu, v, half);
        v = i & half ? other - v : v + other;
    }
    for (int half = 32; half < (int)blockDim.x; half <<= 1) {
        values[i] = v;
        __syncthreads();
        float other = values[i ^ half];
        v = i & half ? other - v : v + other;
        __syncthreads();
    }
    out[at] = v * by;
}

/// Words between the host's memory and the device's: up to three runs, each along x. Grid: (words / threads, runs).
extern "C" __global__ void bring(const u32 *from, u32 *to, u64 n, const u32 *from2, u32 *to2, u64 n2, const u32 *from3,
                                 u32 *to3, u64 n3) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (blockIdx.y == 1) from = from2, to = to2, n = n2;
    if (blockIdx.y == 2) from = from3, to = to3, n = n3;
    if (i < n) to[i] = from[i];
}

/// x + y.
extern "C" __global__ void add(const float *x, const float *y, float *out, u64 n) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = x[i] + y[i];
}

/// x times a number.
extern "C" __global__ void scale(const float *x, float *out, float by, u64 total) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < total) out[i] = x[i] * by;
}

/// x[r][i] * v[i % n / run]: `run` of `n` columns share a value of `v`, and a row of x is a multiple of `n`.
extern "C" __global__ void scale_by(const float *x, const float *v, float *out, int n, int run, u64 total) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < total) out[i] = x[i] * v[i % n / run];
}

/// (x[r][i] + bias[i]) * by[i] of rows of `n` values.
extern "C" __global__ void affine(const float *x, const float *by, const float *bias, float *out, int n, u64 total) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < total) out[i] = (x[i] + bias[i % n]) * by[i % n];
}

/// Queries and keys averaged with each other; see src/ops/heads_mean.rs. `group` heads of q share a head of k. A thread per
/// value of k.
extern "C" __global__ void heads_mean(const float *q, const float *k, float *to_q, float *to_k, int dim, int group,
                                      u64 total) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= total) return;
    u64 first = i / dim * group * dim + i % dim;
    float sum = 0.f;
    for (int j = 0; j < group; j++) {
        float mean = (q[first + j * dim] + k[i]) * .5f;
        to_q[first + j * dim] = mean;
        sum += mean;
    }
    to_k[i] = sum / (float)group;
}

/// x[r][i] * by[r], in rows of `n`.
extern "C" __global__ void scale_rows(const float *x, const float *by, float *out, int n, u64 total) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < total) out[i] = x[i] * by[i / n];
}

/// cap * tanh(x / cap).
extern "C" __global__ void soft_cap(const float *x, float *out, float cap, u64 total) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < total) out[i] = cap * tanhf(x[i] / cap);
}

__device__ __forceinline__ float sigmoid(float x) { return 1.f / (1.f + __expf(-x)); }

/// A gate times the other half, as `kind` has it. Row r takes its gates from `g + r * g_stride`, its other half from
/// `u + r * u_stride`, or 1 where there is no u; `run` values of u share a gate. Where `codes` is not null, the result is
/// stored in 8 bits too; `total` is a multiple of 32 then.
extern "C" __global__ void glu(const float *g, const float *u, float *out, i8 *codes, ActScale *scales, GluKind kind,
                               float limit, float limit_u, int n, int run, u64 g_stride, u64 u_stride, u64 total) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= total) return;
    u64 r = i / n;
    int c = (int)(i % n);
    float a = kind == GLU_RELU_SQ ? 0.f : g[r * g_stride + c / run], b = u ? u[r * u_stride + c] : 1.f, v = 0.f;
    if (kind == GLU_SILU_CLAMP || kind == GLU_OAI) {
        a = fminf(a, limit);
        b = fminf(fmaxf(b, -limit), limit);
    }
    switch (kind) {
    case GLU_SILU:
    case GLU_SILU_CLAMP: v = a * sigmoid(a) * b; break;
    case GLU_OAI: v = a * sigmoid(1.702f * a) * (b + 1.f); break;
    case GLU_SIGMOID: v = sigmoid(a) * b; break;
    case GLU_GELU: v = .5f * a * (1.f + tanhf(.79788456f * (a + .044715f * a * a * a))) * b; break;
    case GLU_GELU_ERF: v = .5f * a * (1.f + erff(.70710678f * a)) * b; break;
    case GLU_RELU_SQ: b = fmaxf(b, 0.f), v = b * b; break;
    case GLU_RELU: v = fmaxf(a, 0.f) * b; break;
    case GLU_SILU_CAP: v = fminf(a * sigmoid(a), limit) * fminf(fmaxf(b, -limit), limit); break;
    case GLU_SOFTPLUS: v = (a > 20.f ? a : log1pf(expf(a))) * b; break;
    case GLU_MULTIPLY: v = a * b; break;
    case GLU_SITU:
        if (limit_u != 0.f) b = limit_u * tanhf(b / limit_u);
        v = limit * tanhf(a / limit) * sigmoid(a) * b;
        break;
    }
    out[i] = v;
    if (codes) store_code(v, codes, scales, i);
}

/// Value `i` of a head at `x` after the rotation of the `n_rot` values from `offset` on by the row's angles.
__device__ __forceinline__ float turned(const float *x, int i, const float *angles, int n_rot, int offset, RopePairs pairs,
                                        int inverse) {
    float v = x[i];
    int c = i - offset;
    if (c < 0 || c >= n_rot) return v;
    bool adjacent = pairs == ROPE_ADJACENT;
    int half = n_rot / 2, pair = adjacent ? c / 2 : c % half;
    bool second = adjacent ? c & 1 : c >= half;
    int to_other = adjacent ? 1 : half;
    float other = second ? x[i - to_other] : x[i + to_other];
    float cs = angles[2 * pair], sn = angles[2 * pair + 1];
    if (inverse) sn = -sn;
    return second ? other * sn + v * cs : v * cs - other * sn;
}

/// Rotates pairs in every head of `head` values; `angles`: cos, sin of every pair, for every row. A thread per value.
extern "C" __global__ void rope(const float *x, const float *angles, float *out, int width, int head, int n_rot,
                                int offset, RopePairs pairs, int inverse, u64 total) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= total) return;
    int c = (int)(i % width) % head;
    out[i] = turned(x + i - c, c, angles + i / width * n_rot, n_rot, offset, pairs, inverse);
}

/// One part of every head: columns `at..at + len` of `heads` heads of `head` values come from
/// `x[t][h * stride + offset ..]`.
extern "C" __global__ void pack(const float *x, float *out, int x_width, int heads, int head, int at, int stride,
                                int offset, int len, u64 total) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= total) return;
    u64 t = i / ((u64)heads * len);
    int h = (int)(i / len % heads), c = (int)(i % len);
    out[(t * heads + h) * head + at + c] = x[t * x_width + h * stride + offset + c];
}

/// Rows `which[r]` of x.
extern "C" __global__ void take_rows(const float *x, const int *which, float *out, int width, u64 total) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < total) out[i] = x[(u64)which[i / width] * width + i % width];
}

/// out = out * scale[m] + bias[m][c] of the row's matrix m: its expert, or 0. Either may be absent; a row without an expert
/// stays as it is.
extern "C" __global__ void scale_bias(float *out, const float *scale, const float *bias, const float *ids, int width,
                                      u64 total) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= total) return;
    if (ids && ids[i / width] < 0.f) return;
    u64 m = ids ? (u64)ids[i / width] : 0;
    float v = out[i];
    if (scale) v *= scale[m];
    if (bias) v += bias[m * width + i % width];
    out[i] = v;
}

/// Rows of f32 as 8-bit codes with a scale per 32, and the sums of codes. A warp per 32 values.
extern "C" __global__ void quantize(const float *x, i8 *codes, ActScale *scales, u64 groups) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i / 32 < groups) store_code(x[i], codes, scales, i);
}

/// What launches of `pack`, `add` (up to three), `rms_norm`, `rope` and `quantize` do one after the other, each with what the
/// one before gave, as far as they are there; a null pointer is one that is not. All results are stored, since others may read
/// them. A block per run of `n` values in rows of `width`: what is normed together, and a head of the rotation; with codes a
/// multiple of 32. `packed` is made of heads of `head` values, `stride` apart in rows of `x_width` from `from` on, and a head
/// is a multiple of a run.
extern "C" __global__ void __launch_bounds__(1024)
    chain(const float *x, float *packed, int x_width, int head, int stride, int from, const float *y, float *sum,
          const float *y2, float *sum2, const float *y3, float *sum3, const float *weight, float *normed, int groups,
          float eps, float least, float scale, const float *angles, float *out, int n_rot, int offset, RopePairs pairs,
          int inverse, i8 *codes, ActScale *scales, int n, int width) {
    __shared__ float scratch[32];
    u64 at = (u64)blockIdx.x * n, t = at / width;
    const float *last = x + at;
    if (packed) {
        int c = (int)(at % width);
        last = x + t * x_width + c / head * stride + from + c % head;
    }
    float squares = 0.f;
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        float v = last[i];
        if (packed) packed[at + i] = v;
        if (y) v += y[at + i], sum[at + i] = v;
        if (y2) v += y2[at + i], sum2[at + i] = v;
        if (y3) v += y3[at + i], sum3[at + i] = v;
        if (normed) squares += v * v;
        else if (codes && !out) store_code(v, codes, scales, at + i);
    }
    if (y) last = (y3 ? sum3 : y2 ? sum2 : sum) + at;
    if (normed) {
        float mean = block_sum(squares, scratch) / (float)n + eps;
        float by = scale / sqrtf(mean < least ? least : mean); // a maximum would hide a NaN
        if (weight) weight += (u64)(blockIdx.x % groups) * n;
        for (int i = threadIdx.x; i < n; i += blockDim.x) {
            float v = last[i] * by * (weight ? weight[i] : 1.f);
            normed[at + i] = v;
            if (codes && !out) store_code(v, codes, scales, at + i);
        }
        last = normed + at;
    }
    if (!out) return;
    __syncthreads(); // a value's partner is another thread's
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        float v = turned(last, i, angles + t * n_rot, n_rot, offset, pairs, inverse);
        out[at + i] = v;
        if (codes) store_code(v, codes, scales, at + i);
    }
}

/// Whether (a, i) comes before (b, j): a NaN before all, then the larger, of equals the first.
__device__ __forceinline__ bool is_before(float a, int i, float b, int j) {
    bool no_a = a != a, no_b = b != b;
    if (no_a != no_b) return no_a;
    return no_a || a == b ? i < j : a > b;
}

/// The first by `is_before` over a warp; every lane gets it.
__device__ __forceinline__ void warp_first(float &v, int &i) {
#pragma unroll
    for (int by = 16; by; by >>= 1) {
        float w = __shfl_xor_sync(0xffffffffu, v, by);
        int j = __shfl_xor_sync(0xffffffffu, i, by);
        if (is_before(w, j, v, i)) v = w, i = j;
    }
}

/// The largest value of part blockIdx.x of row blockIdx.y, of `n` values: out[row][part] = number, value.
extern "C" __global__ void __launch_bounds__(256) argmax_of_part(const float *x, float *out, int n) {
    __shared__ float values[8];
    __shared__ int numbers[8];
    x += (u64)blockIdx.y * n;
    float best = -__uint_as_float(0x7f800000);
    int at = 0x7fffffff;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
        if (is_before(x[i], i, best, at)) best = x[i], at = i;
    warp_first(best, at);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    if (lane == 0) values[warp] = best, numbers[warp] = at;
    __syncthreads();
    if (warp) return;
    best = lane < 8 ? values[lane] : -__uint_as_float(0x7f800000);
    at = lane < 8 ? numbers[lane] : 0x7fffffff;
    warp_first(best, at);
    if (lane) return;
    out += ((u64)blockIdx.y * gridDim.x + blockIdx.x) * 2;
    ((int *)out)[0] = at;
    out[1] = best;
}

/// The first of `ARGMAX_PARTS` parts of row blockIdx.x: out[row] = number, value. A warp per row.
extern "C" __global__ void __launch_bounds__(ARGMAX_PARTS) argmax(const float *parts, float *out) {
    parts += ((u64)blockIdx.x * ARGMAX_PARTS + threadIdx.x) * 2;
    float best = parts[1];
    int at = ((const int *)parts)[0];
    warp_first(best, at);
    if (threadIdx.x) return;
    out[2 * (u64)blockIdx.x] = (float)at;
    out[2 * (u64)blockIdx.x + 1] = best;
}
