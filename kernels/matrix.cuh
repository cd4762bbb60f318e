// Products of a format's matrices with activations, and rows decoded: the kernels that every weight format has.
//
// One shape for all (as `grouped` on the CPU): a stack of matrices, and pairs of an activation row and an output row.
//   output row p = matrix m(p) times activation row p / share
//   m(p) = ids[p] where there are ids (experts), p mod heads otherwise; slots[m] where matrices lie in a cache, and
//          pairs whose slot is negative are left out
// Activations: rows of 8-bit codes, 32 to a scale (`quantize`), so that four products are one dp4a, or 32 by tensor cores.
#pragma once
#include "quant/quant.cuh"

/// What belongs to 32 activations: their scale, and the sums of the first and the last 16, times the scale.
struct __align__(16) ActScale {
    float d, low, high, unused;
};

/// The matrix of a pair; negative for none: an id of -1 is no expert.
__device__ __forceinline__ int matrix_of(int p, const float *ids, const int *slots, int heads) {
    int m = ids ? (int)ids[p] : p % heads;
    return slots && m >= 0 ? slots[m] : m;
}

/// out[i] = weight i of a group of 32.
template <class F> __device__ __forceinline__ float weight(const Group &o, int i) {
    u32 word = o.codes[i >> 2];
    float code = (float)(i8)(word >> (i & 3) * 8);
    int h = F::HALVES ? i >> 4 : 0;
    return o.scale[h] * code - (F::MINS ? o.min[h] : 0.f);
}

/// Rows `ids[t]` of a table: out (rows, n). A block per row.
template <class F>
__device__ __forceinline__ void rows_body(const u8 *w, const int *ids, float *out, int n, u64 row_bytes) {
    const u8 *row = w + (u64)ids[blockIdx.x] * row_bytes;
    out += (u64)blockIdx.x * n;
    if constexpr (F::FLOATS) {
        for (int i = threadIdx.x; i < n; i += blockDim.x) out[i] = F::value(row, i);
    } else {
        for (int g = threadIdx.x; g < n / 32; g += blockDim.x) {
            Group o;
            F::group(row + (u64)(g / (F::BLOCK / 32)) * F::BYTES, g % (F::BLOCK / 32), o);
#pragma unroll
            for (int i = 0; i < 32; i++) out[32 * g + i] = weight<F>(o, i);
        }
    }
}

/// The product of a group with 32 activations.
template <class F>
__device__ __forceinline__ float dot(const Group &o, const u32 *x, const ActScale &s) {
    int low = 0, high = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) low = __dp4a((int)o.codes[i], (int)x[i], low);
    if constexpr (!F::HALVES) high = low;
#pragma unroll
    for (int i = 4; i < 8; i++) high = __dp4a((int)o.codes[i], (int)x[i], high);
    float sum;
    if constexpr (F::HALVES) sum = s.d * (o.scale[0] * (float)low + o.scale[1] * (float)high);
    else sum = s.d * o.scale[0] * (float)high;
    if constexpr (F::MINS && F::HALVES) sum -= o.min[0] * s.low + o.min[1] * s.high;
    else if constexpr (F::MINS) sum -= o.min[0] * (s.low + s.high);
    return sum;
}

/// Few pairs: `lanes` threads (16 to 128, a power of two) for two rows of the matrix and one pair, or for one row and
/// `T` pairs, which share the matrix (only where there are no ids, one head and an activation row for each pair). Grid:
/// (rows / ROWS * lanes / threads, pairs / T); 128 threads.
///
/// A lane that has two rows has the weights of both on their way at once, and brings the activations once for both.
/// Rejected: two rows with four pairs, too (registers of Q4_K, Q5_K, Q6_K, IQ2_S and IQ3_S spill, and the PTX grows by
/// 500 KB, for up to a tenth fewer instructions).
template <class F, int T>
__device__ __forceinline__ void matvec_body(const u8 *w, const i8 *x, const ActScale *scales, const float *ids,
                                            const int *slots, float *out, int n_in, int n_out, int pairs, int share,
                                            int heads, int lanes, u64 row_bytes) {
    enum { IN_BLOCK = F::BLOCK / 32, ROWS = T == 1 ? 2 : 1, SUMS = ROWS * T };
    __shared__ float parts[4][SUMS];
    int lane = threadIdx.x & (lanes - 1), first = blockIdx.y * T;
    int row = ROWS * ((blockIdx.x * blockDim.x + threadIdx.x) >> (31 - __clz(lanes))), groups = n_in / 32;
    int m = matrix_of(first, ids, slots, heads);
    if (m < 0) return;
    w += (u64)m * n_out * row_bytes + (u64)(lane / IN_BLOCK) * F::BYTES;
    // A lane goes on by whole blocks that are a multiple of four bytes together: the place of its group in the
    // block and that of the block among words stay the same.
    Block block[ROWS];
    float sums[ROWS][T];
    int rows[T]; // of activations: where their groups begin
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        block[r] = Block(w + (u64)min(row + r, n_out - 1) * row_bytes);
#pragma unroll
        for (int t = 0; t < T; t++) sums[r][t] = 0.f;
    }
#pragma unroll
    for (int t = 0; t < T; t++) rows[t] = (T == 1 ? first / share : min(first + t, pairs - 1)) * groups;
    for (int g = lane; g < groups; g += lanes) {
        Group o[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            F::group(block[r], lane % IN_BLOCK, o[r]);
            block[r].words += lanes / IN_BLOCK * F::BYTES;
        }
#pragma unroll
        for (int t = 0; t < T; t++) {
            u64 at = (u32)(rows[t] + g);
            const uint4 *q = (const uint4 *)x + 2 * at;
            uint4 a = q[0], b = q[1];
            u32 words[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
            ActScale s = scales[at];
#pragma unroll
            for (int r = 0; r < ROWS; r++) sums[r][t] += dot<F>(o[r], words, s);
        }
    }
    for (int by = min(lanes, 32) / 2; by; by /= 2)
#pragma unroll
        for (int i = 0; i < SUMS; i++) sums[i / T][i % T] += __shfl_xor_sync(0xffffffffu, sums[i / T][i % T], by);
    if (lanes > 32) {
        int warp = threadIdx.x / 32;
        if (threadIdx.x % 32 == 0)
#pragma unroll
            for (int i = 0; i < SUMS; i++) parts[warp][i] = sums[i / T][i % T];
        __syncthreads();
        if (lane == 0)
            for (int other = 1; other < lanes / 32; other++)
#pragma unroll
                for (int i = 0; i < SUMS; i++) sums[i / T][i % T] += parts[warp + other][i];
    }
    if (lane == 0)
#pragma unroll
        for (int i = 0; i < SUMS; i++)
            if (row + i / T < n_out && first + i % T < pairs)
                out[(u64)(first + i % T) * n_out + row + i / T] = sums[i / T][i % T];
}

/// Few pairs of a format of floats, on activations as they are: a block per row, since such matrices have few rows
/// (routers, mixes), or else long ones. Grid: (rows, pairs / T); up to 512 threads.
template <class F, int T>
__device__ __forceinline__ void matvec_floats_body(const u8 *w, const float *x, const float *ids, const int *slots,
                                                   float *out, int n_in, int n_out, int pairs, int share, int heads,
                                                   u64 row_bytes) {
    __shared__ float scratch[32];
    int row = blockIdx.x, first = blockIdx.y * T;
    int m = matrix_of(first, ids, slots, heads);
    if (m < 0) return;
    w += ((u64)m * n_out + row) * row_bytes;
    float sums[T];
    const float *rows[T]; // of activations
#pragma unroll
    for (int t = 0; t < T; t++) {
        sums[t] = 0.f;
        rows[t] = x + (u64)(min(first + t, pairs - 1) / share) * n_in;
    }
    if (row_bytes % (4 * F::BYTES) == 0 && n_in % 4 == 0) { // rows begin where four weights can be loaded at once
        // Loads of weights first, then what needs them: a loop that is only unrolled looks for its end after each.
        enum { AT_ONCE = T == 1 ? 4 : 2 };
        int i = threadIdx.x, by = blockDim.x, n = n_in / 4;
        auto add = [&](int i, const float (&v)[4]) {
#pragma unroll
            for (int t = 0; t < T; t++) {
                float4 y = ((const float4 *)rows[t])[i];
                sums[t] += v[0] * y.x + v[1] * y.y + v[2] * y.z + v[3] * y.w;
            }
        };
        for (; i + (AT_ONCE - 1) * by < n; i += AT_ONCE * by) {
            float v[AT_ONCE][4];
#pragma unroll
            for (int k = 0; k < AT_ONCE; k++) F::four(w, i + k * by, v[k]);
#pragma unroll
            for (int k = 0; k < AT_ONCE; k++) add(i + k * by, v[k]);
        }
#pragma unroll 1
        for (; i < n; i += by) {
            float v[4];
            F::four(w, i, v);
            add(i, v);
        }
    } else {
        for (int i = threadIdx.x; i < n_in; i += blockDim.x) {
            float v = F::value(w, i);
#pragma unroll
            for (int t = 0; t < T; t++) sums[t] += v * rows[t][i];
        }
    }
#pragma unroll
    for (int t = 0; t < T; t++) {
        float sum = block_sum(sums[t], scratch);
        if (threadIdx.x == 0 && first + t < pairs) out[(u64)(first + t) * n_out + row] = sum;
    }
}

/// Pairs of one matrix that are multiplied together: `order[from..from + n]`.
struct Tile {
    int matrix, from, n, unused;
};
enum { TILE_STRIDE = 80 };

/// Many pairs: 64 rows of a matrix times 64 pairs, 64 columns at a time: codes in shared memory, products by tensor
/// cores, sums in f32. Grid: (rows / 64, tiles); 128 threads, four warps of 32 rows and 32 pairs each.
template <class F>
__device__ __forceinline__ void matmul_body(const u8 *w, const i8 *x, const ActScale *scales, const Tile *tiles,
                                            const int *order, float *out, int n_in, int n_out, int share,
                                            u64 row_bytes) {
    __shared__ __align__(16) u8 codes[TILE_ROWS * TILE_STRIDE], acts[TILE_PAIRS * TILE_STRIDE];
    __shared__ float scale[2][TILE_ROWS][2], less[2][TILE_ROWS][2];
    __shared__ ActScale act_scale[2][TILE_PAIRS];
    __shared__ int pair[TILE_PAIRS];
    Tile tile = tiles[blockIdx.y];
    if (tile.n <= 0) return;
    int row0 = blockIdx.x * TILE_ROWS, groups = n_in / 32;
    int id = threadIdx.x, lane = id & 31, warp = id >> 5;
    int wr = warp % 2 * 32, wp = warp / 2 * 32; // the warp's rows and pairs
    if (id < TILE_PAIRS) {
        int i = min(id, tile.n - 1);
        pair[id] = order ? order[tile.from + i] : tile.from + i;
    }
    float sums[2][4][4];
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
#pragma unroll
            for (int k = 0; k < 4; k++) sums[i][j][k] = 0.f;
    const u8 *matrix = w + (u64)tile.matrix * n_out * row_bytes;
    __syncthreads();

    // A thread decodes one group and brings one row's 32 activations; the next ones while these are multiplied.
    int own = id >> 1, half = id & 1;
    const u8 *weights = matrix + (u64)min(row0 + own, n_out - 1) * row_bytes;
    u64 first = (u64)(pair[own] / share) * groups;
    Group o;
    uint4 x0, x1;
    ActScale xs;
    auto fetch = [&](int g) {
        if (g >= groups) return;
        F::group(weights + (u64)(g / (F::BLOCK / 32)) * F::BYTES, g % (F::BLOCK / 32), o);
        const uint4 *from = (const uint4 *)(x + 32 * (first + g));
        x0 = from[0];
        x1 = from[1];
        xs = scales[first + g];
    };
    fetch(half);
    for (int g0 = 0; g0 < groups; g0 += 2) {
        if (g0 + half < groups) {
            uint4 *to = (uint4 *)(codes + own * TILE_STRIDE + 32 * half);
            to[0] = make_uint4(o.codes[0], o.codes[1], o.codes[2], o.codes[3]);
            to[1] = make_uint4(o.codes[4], o.codes[5], o.codes[6], o.codes[7]);
            scale[half][own][0] = o.scale[0];
            if constexpr (F::HALVES) scale[half][own][1] = o.scale[1];
            if constexpr (F::MINS) less[half][own][0] = o.min[0];
            if constexpr (F::MINS && F::HALVES) less[half][own][1] = o.min[1];
            to = (uint4 *)(acts + own * TILE_STRIDE + 32 * half);
            to[0] = x0;
            to[1] = x1;
            act_scale[half][own] = xs;
        }
        __syncthreads();
        fetch(g0 + 2 + half);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            if (g0 + h >= groups) break;
            int row = lane >> 2, word = lane & 3;
            u32 a[2][4], b[4][2];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const u32 *c = (const u32 *)(codes + (wr + 16 * i + row) * TILE_STRIDE + 32 * h) + word;
                a[i][0] = c[0];
                a[i][1] = c[8 * TILE_STRIDE / 4];
                a[i][2] = c[4];
                a[i][3] = c[8 * TILE_STRIDE / 4 + 4];
            }
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const u32 *c = (const u32 *)(acts + (wp + 8 * j + row) * TILE_STRIDE + 32 * h) + word;
                b[j][0] = c[0];
                b[j][1] = c[4];
            }
#pragma unroll
            for (int j = 0; j < 4; j++) {
                // Results: rows lane / 4 and + 8, pairs 2 * (lane % 4) and the next.
                const ActScale *s = &act_scale[h][wp + 8 * j + 2 * word];
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    int low[4] = {0, 0, 0, 0}, high[4] = {0, 0, 0, 0};
                    if constexpr (F::HALVES) {
                        u32 a0[2] = {a[i][0], a[i][1]}, a1[2] = {a[i][2], a[i][3]};
                        u32 b0[1] = {b[j][0]}, b1[1] = {b[j][1]};
                        mma_s8_k16(low, a0, b0);
                        mma_s8_k16(high, a1, b1);
                    } else {
                        mma_s8(low, a[i], b[j]);
                    }
#pragma unroll
                    for (int k = 0; k < 4; k++) {
                        int r = wr + 16 * i + row + (k >> 1) * 8;
                        float sum = scale[h][r][0] * (float)low[k];
                        if constexpr (F::HALVES) sum += scale[h][r][1] * (float)high[k];
                        sum *= s[k & 1].d;
                        if constexpr (F::MINS && F::HALVES)
                            sum -= less[h][r][0] * s[k & 1].low + less[h][r][1] * s[k & 1].high;
                        else if constexpr (F::MINS) sum -= less[h][r][0] * (s[k & 1].low + s[k & 1].high);
                        sums[i][j][k] += sum;
                    }
                }
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
#pragma unroll
            for (int k = 0; k < 4; k++) {
                int r = row0 + wr + 16 * i + (lane >> 2) + (k >> 1) * 8, p = wp + 8 * j + 2 * (lane & 3) + (k & 1);
                if (r < n_out && p < tile.n) out[(u64)pair[p] * n_out + r] = sums[i][j][k];
            }
}

/// Many pairs of a format of floats: f32, 32 columns at a time. A thread sums 8 rows times 4 pairs. Grid: (rows / 64,
/// tiles); 128 threads.
template <class F>
__device__ __forceinline__ void matmul_floats_body(const u8 *w, const float *x, const Tile *tiles, const int *order,
                                                   float *out, int n_in, int n_out, int share, u64 row_bytes) {
    __shared__ float a[32][TILE_ROWS + 4], b[32][TILE_PAIRS + 4];
    __shared__ int pair[TILE_PAIRS];
    Tile tile = tiles[blockIdx.y];
    if (tile.n <= 0) return;
    int row0 = blockIdx.x * TILE_ROWS, id = threadIdx.x;
    if (id < TILE_PAIRS) {
        int i = min(id, tile.n - 1);
        pair[id] = order ? order[tile.from + i] : tile.from + i;
    }
    const u8 *matrix = w + (u64)tile.matrix * n_out * row_bytes;
    int tr = id % 8 * 8, tp = id / 8 * 4;
    float sums[8][4];
#pragma unroll
    for (int i = 0; i < 8; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) sums[i][j] = 0.f;
    __syncthreads();
    for (int k0 = 0; k0 < n_in; k0 += 32) {
        for (int i = id; i < 32 * TILE_ROWS; i += 128) {
            int k = i & 31, r = i >> 5;
            bool in = k0 + k < n_in;
            a[k][r] = in ? F::value(matrix + (u64)min(row0 + r, n_out - 1) * row_bytes, k0 + k) : 0.f;
            b[k][r] = in ? x[(u64)(pair[r] / share) * n_in + k0 + k] : 0.f;
        }
        __syncthreads();
#pragma unroll 8
        for (int k = 0; k < 32; k++)
#pragma unroll
            for (int i = 0; i < 8; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) sums[i][j] += a[k][tr + i] * b[k][tp + j];
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 8; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
            if (row0 + tr + i < n_out && tp + j < tile.n) out[(u64)pair[tp + j] * n_out + row0 + tr + i] = sums[i][j];
}

/// The kernels of a format of codes, with its name at the end of theirs.
#define MATRIX_KERNELS(name, F)                                                                                        \
    extern "C" __global__ void rows_##name(const u8 *w, const int *ids, float *out, int n, u64 row_bytes) {            \
        rows_body<F>(w, ids, out, n, row_bytes);                                                                       \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(128, 6)                                                               \
        matvec1_##name(const u8 *w, const i8 *x, const ActScale *scales, const float *ids, const int *slots,           \
                       float *out, int n_in, int n_out, int pairs, int share, int heads, int lanes, u64 row_bytes) {   \
        matvec_body<F, 1>(w, x, scales, ids, slots, out, n_in, n_out, pairs, share, heads, lanes, row_bytes);          \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(128, 6)                                                               \
        matvec4_##name(const u8 *w, const i8 *x, const ActScale *scales, const float *ids, const int *slots,           \
                       float *out, int n_in, int n_out, int pairs, int share, int heads, int lanes, u64 row_bytes) {   \
        matvec_body<F, 4>(w, x, scales, ids, slots, out, n_in, n_out, pairs, share, heads, lanes, row_bytes);          \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(128)                                                                  \
        matmul_##name(const u8 *w, const i8 *x, const ActScale *scales, const Tile *tiles, const int *order,           \
                      float *out, int n_in, int n_out, int share, u64 row_bytes) {                                     \
        matmul_body<F>(w, x, scales, tiles, order, out, n_in, n_out, share, row_bytes);                                \
    }

/// And of a format of floats.
#define FLOAT_KERNELS(name, F)                                                                                         \
    extern "C" __global__ void rows_##name(const u8 *w, const int *ids, float *out, int n, u64 row_bytes) {            \
        rows_body<F>(w, ids, out, n, row_bytes);                                                                       \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(512)                                                                  \
        matvec1_##name(const u8 *w, const float *x, const float *ids, const int *slots, float *out, int n_in,          \
                       int n_out, int pairs, int share, int heads, u64 row_bytes) {                                    \
        matvec_floats_body<F, 1>(w, x, ids, slots, out, n_in, n_out, pairs, share, heads, row_bytes);                  \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(512)                                                                  \
        matvec4_##name(const u8 *w, const float *x, const float *ids, const int *slots, float *out, int n_in,          \
                       int n_out, int pairs, int share, int heads, u64 row_bytes) {                                    \
        matvec_floats_body<F, 4>(w, x, ids, slots, out, n_in, n_out, pairs, share, heads, row_bytes);                  \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(128)                                                                  \
        matmul_##name(const u8 *w, const float *x, const Tile *tiles, const int *order, float *out, int n_in,          \
                      int n_out, int share, u64 row_bytes) {                                                           \
        matmul_floats_body<F>(w, x, tiles, order, out, n_in, n_out, share, row_bytes);                                 \
    }
