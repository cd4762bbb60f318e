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
/// (rows / ROWS * lanes / threads, pairs / T, 1); 128 threads. For one pair it may be two deep: the second time for `w2`, as
/// many matrices of `n_out2` rows as long, and `out2`; blocks beyond the rows of one of them have nothing to do.
///
/// A lane that has two rows has the weights of both on their way at once, and brings the activations once for both.
/// Rejected: two rows with four pairs, too (registers of Q4_K, Q5_K, Q6_K, IQ2_S and IQ3_S spill, and the PTX grows by
/// 500 KB, for up to a tenth fewer instructions).
template <class F, int T>
__device__ __forceinline__ void matvec_body(const u8 *w, const u8 *w2, const i8 *x, const ActScale *scales,
                                            const float *ids, const int *slots, float *out, float *out2, int n_in,
                                            int n_out, int n_out2, int pairs, int share, int heads, int lanes,
                                            u64 row_bytes) {
    enum { IN_BLOCK = F::BLOCK / 32, ROWS = T == 1 ? 2 : 1, SUMS = ROWS * T };
    __shared__ float parts[4][SUMS];
    int lane = threadIdx.x & (lanes - 1), first = blockIdx.y * T;
    int begin = blockIdx.x * blockDim.x, by_lanes = 31 - __clz(lanes);
    int row = ROWS * ((begin + threadIdx.x) >> by_lanes), groups = n_in / 32;
    int rows_here = T == 1 && blockIdx.z ? n_out2 : n_out;
    if (T == 1 && ROWS * (begin >> by_lanes) >= rows_here) return;
    if (T == 1 && blockIdx.z) w = w2;
    int m = matrix_of(first, ids, slots, heads);
    if (m < 0) return;
    w += (u64)m * rows_here * row_bytes + (u64)(lane / IN_BLOCK) * F::BYTES;
    // A lane goes on by whole blocks that are a multiple of four bytes together: the place of its group in the
    // block and that of the block among words stay the same.
    Block block[ROWS];
    float sums[ROWS][T];
    int rows[T]; // of activations: where their groups begin
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        block[r] = Block(w + (u64)min(row + r, rows_here - 1) * row_bytes);
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
    if (T == 1 && opaque(blockIdx.z)) out = out2, n_out = n_out2; // chosen here, so that the loop has their registers
    if (lane == 0)
#pragma unroll
        for (int i = 0; i < SUMS; i++)
            if (row + i / T < n_out && first + i % T < pairs)
                out[(u64)(first + i % T) * n_out + row + i / T] = sums[i / T][i % T];
}

/// The sum of four products, each rounding in its place: of `a * b + c * d` the compiler fuses either product, another one in
/// another kernel, so that a row's bits depended on how many rows there were.
__device__ __forceinline__ float dot_four(const float (&v)[4], float4 y) {
    return fmaf(v[3], y.w, fmaf(v[2], y.z, fmaf(v[0], y.x, v[1] * y.y)));
}

/// Few pairs of a format of floats, on activations as they are: a block per row, since such matrices have few rows
/// (routers, mixes), or else long ones. Grid: (rows, pairs / T, 1), for one pair up to two deep as in `matvec_body`; up to 512
/// threads.
template <class F, int T>
__device__ __forceinline__ void matvec_floats_body(const u8 *w, const u8 *w2, const float *x, const float *ids,
                                                   const int *slots, float *out, float *out2, int n_in, int n_out,
                                                   int n_out2, int pairs, int share, int heads, u64 row_bytes) {
    __shared__ float scratch[32];
    if (T == 1 && blockIdx.z) w = w2, out = out2, n_out = n_out2;
    if (T == 1 && (int)blockIdx.x >= n_out) return;
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
                sums[t] += dot_four(v, y);
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
// Shared memory of a tile: 64 codes of a row, in four chunks of 16 bytes that change places from
// one two rows to the next, so that neither the rows that `ldmatrix` reads together nor those that
// neighbouring threads write meet in a bank.
__device__ __forceinline__ int chunk_at(int row, int chunk) { return 64 * row + 16 * (chunk ^ (row >> 1 & 3)); }
/// The results of a warp of a tile, through 16 KB of shared memory, a strip at a time: 32 rows of a
/// pair are written together. `by`: what each activation row's are multiplied with; null: 1.
__device__ __forceinline__ void write_strips(const float (&sums)[2][8][4], float *memory, int strips, int row0, int pair0,
                                             const int *order, int n, const float *by, int share, float *out, int n_out) {
    int lane = threadIdx.x & 31, r = row0 + lane;
    memory += 512 * (threadIdx.x >> 5);
#pragma unroll
    for (int s = 0; s < 4; s++) {
        if (s >= strips) break;
        __syncwarp();
#pragma unroll
        for (int i = 0; i < 16; i++) {
            int row = (i >> 3) * 16 + (i >> 1 & 1) * 8 + (lane >> 2), p = (i >> 2 & 1) * 8 + 2 * (lane & 3) + (i & 1);
            memory[32 * p + (row ^ 8 * (lane & 3))] = sums[i >> 3][2 * s + (i >> 2 & 1)][i & 3];
        }
        __syncwarp();
#pragma unroll 1
        for (int p = 0; p < 16; p++) {
            int at = pair0 + 32 * s + p;
            if (at >= n || r >= n_out) continue;
            int pair = order[at];
            float v = memory[32 * p + (lane ^ (p >> 1 & 3) * 8)];
            out[(u64)pair * n_out + r] = by ? v * by[pair / share] : v;
        }
    }
}

/// Many pairs: 128 rows of a matrix times up to 128 pairs, 64 columns at a time: codes in shared
/// memory, products by tensor cores, sums in f32. Grid: (rows / 128, tiles); 256 threads. Of eight
/// warps each has 32 rows and every second strip of 16 pairs; strips beyond a tile's end are left
/// out, so that a tile of few pairs costs little more than its decoding, and no kernel for smaller
/// tiles is needed.
///
/// Sums of 32 products are below 2^20, so that their bits on top of those of 1.5 * 2^23 are a float
/// as they are: no conversion. A scale is an f16 times at most 8 bits: 1.5 * 2^23 times it is
/// exact, and one fused operation gives scale times sum, rounded once.
///
/// At most 128 registers and 48 KB of shared memory: two blocks on a multiprocessor of sm_86, of
/// which one multiplies while the other waits for its weights; one on sm_75, and of formats whose
/// groups have two scales and two minimums (Q2_K), which would spill on sm_120. So numbers of rows and
/// places are read again rather than kept where formats have many.
///
/// Rejected: a second kernel for tiles of 64 x 64 (PTX of 25 KB more for each format and tier);
/// weights kept in registers while the tile before them is multiplied (12 registers, which spill).
template <class F>
__device__ __forceinline__ void matmul_body(const u8 *w, const i8 *x, const ActScale *scales, const Tile *tiles,
                                            const int *order, float *out, int n_in, int n_out, int share,
                                            u64 row_bytes) {
    const int HALVES = 1 + F::HALVES, MINS = F::MINS ? HALVES : 0;
    const float big = 12582912.f; // 1.5 * 2^23
    // Two of each: one is multiplied, the next is filled.
    __shared__ __align__(16) u8 codes[2][TILE_ROWS * 64], acts[2][TILE_PAIRS * 64];
    // By group: of a row the scales, then the minimums below 0; of a pair the scale, and the sums
    // that minimums multiply.
    __shared__ __align__(16) float of_row[2][2][TILE_ROWS][HALVES + MINS];
    __shared__ __align__(16) float of_pair[2][2][TILE_PAIRS][1 + MINS];
    __shared__ int2 kept[256];
    Tile tile = tiles[blockIdx.y];
    if (tile.n <= 0) return;
    int row0 = blockIdx.x * TILE_ROWS, groups = n_in / 32;
    int id = threadIdx.x, warp = id >> 5; // a warp's rows begin at 32 (warp % 4), its pairs at 16 (warp / 4)
    int live = (tile.n + 15) / 16;              // strips
    int strips = row0 + warp % 4 * 32 < n_out ? (live + 1 - warp / 4) / 2 : 0;
    int start[4]; // in four registers for the whole loop
    unknown_zeros(start);
#pragma unroll
    for (int i = 0; i < 4; i++) start[i] += __float_as_int(big);
    float sums[2][8][4];
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int j = 0; j < 8; j++)
#pragma unroll
            for (int k = 0; k < 4; k++) sums[i][j][k] = 0.f;

    // A thread decodes one group and brings one row's 32 activations.
    int own = id >> 1, half = id & 1, to0 = chunk_at(own, 2 * half), to1 = chunk_at(own, 2 * half + 1);
    // The first group of the pair's activations, none of strips that are left out, and the row of
    // weights: kept in shared memory, since registers are short.
    kept[id].x = own < 16 * live ? order[tile.from + min(own, tile.n - 1)] / share * groups : -1;
    kept[id].y = tile.matrix * n_out + min(row0 + own, n_out - 1);
    // The first pass only fills: so there is one place that decodes, and not a second one before
    // the loop.
#pragma unroll 1
    for (int g0 = -2; g0 < groups; g0 += 2) {
        int stage = g0 >> 1 & 1, other = stage ^ 1, next = g0 + 2 + half;
        cp_async_wait<0>();
        __syncthreads(); // this stage is full, and all are done with the other
        if (next < groups) {
            ActScale s;
            int2 mine = kept[id];
            int first = mine.x;
            if (first >= 0) {
                const u8 *from = (const u8 *)(x + 32 * (u64)(first + next));
                cp_async16(acts[other] + to0, from);
                cp_async16(acts[other] + to1, from + 16);
                cp_async_commit();
                s = scales[first + next];
            }
            Group o;
            F::group(w + mine.y * row_bytes + next / (F::BLOCK / 32) * F::BYTES, next % (F::BLOCK / 32), o);
            *(uint4 *)(codes[other] + to0) = make_uint4(o.codes[0], o.codes[1], o.codes[2], o.codes[3]);
            *(uint4 *)(codes[other] + to1) = make_uint4(o.codes[4], o.codes[5], o.codes[6], o.codes[7]);
            float *to = of_row[other][half][own], *pair = of_pair[other][half][own];
#pragma unroll
            for (int i = 0; i < HALVES; i++) to[i] = o.scale[i];
#pragma unroll
            for (int i = 0; i < MINS; i++) to[HALVES + i] = -o.min[i];
            if (first >= 0) {
                pair[0] = s.d;
                if constexpr (MINS == 1) pair[1] = s.low + s.high;
                if constexpr (MINS == 2) pair[1] = s.low, pair[2] = s.high;
            }
        }
        if (g0 < 0) continue;
#pragma unroll 1
        for (int h = 0; h < 2; h++) {
            if (g0 + h >= groups) break;
            // Worked out anew where registers are short.
            int thread = F::HALVES ? thread_again() : id, lane = thread & 31;
            int wr = (thread >> 5) % 4 * 32, wp = (thread >> 7) * 16;
            // Of `ldmatrix`: the second group of 32 is two chunks further.
            const u8 *row_codes = codes[stage] + (chunk_at(wr + (lane & 15), lane >> 4) ^ 32 * h);
            const u8 *pair_codes =
                acts[stage] + (chunk_at(wp + (lane & 7) + (lane >> 4) * 8, lane >> 3 & 1) ^ 32 * h);
            const float(*pairs)[1 + MINS] = &of_pair[stage][h][wp + 2 * (lane & 3)];
            const float(*rows)[HALVES + MINS] = &of_row[stage][h][wr + (lane >> 2)];
            u32 a[2][4]; // of formats with scales for halves not kept: registers are short
#pragma unroll
            for (int i = 0; i < 2; i++)
                if constexpr (!F::HALVES) ldmatrix_x4(a[i], row_codes + 64 * 16 * i);
#pragma unroll
            for (int s = 0; s < 4; s++) {
                if (s >= strips) break;
                u32 b[4];
                ldmatrix_x4(b, pair_codes + 64 * 32 * s);
                float act[2][2][1 + MINS]; // of pairs 2 * (lane % 4) and the next, and 8 further
#pragma unroll
                for (int j = 0; j < 4; j++)
#pragma unroll
                    for (int n = 0; n < (MINS < 2 ? 1 + MINS : 0); n++)
                        act[j / 2][j % 2][n] = pairs[32 * s + j / 2 * 8 + j % 2][n];
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    if constexpr (F::HALVES) ldmatrix_x4(a[i], row_codes + 64 * 16 * i);
                    float of[2][HALVES + MINS], less_big[2][HALVES]; // of rows lane / 4 and + 8
#pragma unroll
                    for (int r = 0; r < 2; r++) {
                        const float *row = rows[16 * i + 8 * r];
                        if constexpr (HALVES + MINS == 1) of[r][0] = row[0];
                        else
#pragma unroll
                            for (int n = 0; n < HALVES + MINS; n += 2) shared_two(row + n, of[r][n], of[r][n + 1]);
                    }
#pragma unroll
                    for (int r = 0; r < 2; r++)
#pragma unroll
                        for (int n = 0; n < HALVES; n++) less_big[r][n] = -big * of[r][n];
#pragma unroll
                    for (int j = 0; j < 2; j++) {
                        if constexpr (MINS == 2) { // when they are needed: they are too many
                            const float *two = pairs[32 * s + 8 * j];
                            shared_two(two, act[j][0][0], act[j][0][1]);
                            shared_two(two + 2, act[j][0][2], act[j][1][0]);
                            shared_two(two + 4, act[j][1][1], act[j][1][2]);
                        }
                        int low[4], high[4];
                        if constexpr (F::HALVES) {
                            u32 a0[2] = {a[i][0], a[i][1]}, a1[2] = {a[i][2], a[i][3]};
                            u32 b0[1] = {b[2 * j]}, b1[1] = {b[2 * j + 1]};
                            mma_s8_k16(low, a0, b0, start);
                            mma_s8_k16(high, a1, b1, start);
                        } else {
                            u32 both[2] = {b[2 * j], b[2 * j + 1]};
                            mma_s8(low, a[i], both, start);
                        }
#pragma unroll
                        for (int k = 0; k < 4; k++) {
                            int r = k >> 1;
                            const float(&by)[1 + MINS] = act[j][k & 1];
                            float &sum = sums[i][2 * s + j][k];
                            sum += fmaf(__int_as_float(low[k]), of[r][0], less_big[r][0]) * by[0];
                            if constexpr (F::HALVES)
                                sum += fmaf(__int_as_float(high[k]), of[r][1], less_big[r][1]) * by[0];
#pragma unroll
                            for (int n = 0; n < MINS; n++) sum += of[r][HALVES + n] * by[1 + n];
                        }
                    }
                }
            }
        }
    }
    __syncthreads();
    tile = tiles[blockIdx.y]; // read again, not kept
    write_strips(sums, (float *)codes[0], strips, row0 + warp % 4 * 32, warp / 4 * 16, order + tile.from, tile.n, nullptr,
                 share, out, n_out);
}

/// A row of activations as two values of 16 bits that add up to each, for tensor cores: (rows, 2,
/// wide), zeros from `n` on; `by`: what products with it are multiplied with. For F16 rows are
/// scaled by a power of two, so that the largest value is between 2^13 and 2^14: none overflows,
/// and what is lost of small ones is 2^-39 of the largest. A block per row.
template <class F>
__device__ __forceinline__ void split_body(const float *x, u16 *halves, float *by, int n, int wide) {
    __shared__ float scratch[32];
    x += (u64)blockIdx.x * n;
    halves += (u64)blockIdx.x * 2 * wide;
    float up = 1.f;
    if constexpr (F::SCALED) {
        float most = 0.f;
        for (int i = threadIdx.x; i < n; i += blockDim.x) most = fmaxf(most, fabsf(x[i]));
        int exponent = max((int)(__float_as_uint(block_max(most, scratch)) >> 23) - 127, -100);
        up = __uint_as_float((u32)(13 - exponent + 127) << 23);
        if (threadIdx.x == 0) by[blockIdx.x] = __uint_as_float((u32)(exponent - 13 + 127) << 23);
    } else if (threadIdx.x == 0) by[blockIdx.x] = 1.f;
    for (int i = threadIdx.x; i < wide; i += blockDim.x) {
        float v = i < n ? up * x[i] : 0.f;
        u16 high = F::rounded(v);
        halves[i] = high;
        halves[wide + i] = F::rounded(v - F::value((const u8 *)&high, 0));
    }
}

/// Many pairs of a format of 16 bits, 32 columns at a time, on activations that `split_body` made
/// two values of: two products by tensor cores for each, with the precision of f32 (one of
/// activations that are rounded to 16 bits would be off by more than all else in a model).
/// Otherwise as `matmul_body`: the same tiles, warps, strips and places in shared memory.
template <class F>
__device__ __forceinline__ void matmul16_body(const u8 *w, const u16 *halves, const float *by, const Tile *tiles,
                                              const int *order, float *out, int n_in, int n_out, int share,
                                              u64 row_bytes) {
    // 48 KB, two stages of the weights, and of the larger and the smaller parts of activations.
    __shared__ __align__(16) u8 memory[2][3][TILE_ROWS * 64];
    Tile tile = tiles[blockIdx.y];
    if (tile.n <= 0) return;
    int row0 = blockIdx.x * TILE_ROWS, wide = (n_in + 31) / 32 * 32;
    int id = threadIdx.x, lane = id & 31, warp = id >> 5;
    int wr = warp % 4 * 32, wp = warp / 4 * 16;
    int live = (tile.n + 15) / 16, strips = row0 + wr < n_out ? (live + 1 - warp / 4) / 2 : 0;
    float sums[2][8][4];
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int j = 0; j < 8; j++)
#pragma unroll
            for (int k = 0; k < 4; k++) sums[i][j][k] = 0.f;
    // Two threads bring a row of weights, and a pair's larger and smaller parts.
    int own = id >> 1, half = id & 1;
    const u8 *weights = w + ((u64)tile.matrix * n_out + min(row0 + own, n_out - 1)) * row_bytes;
    const u16 *acts = halves + (2 * (u64)(order[tile.from + min(own, tile.n - 1)] / share) + half) * wide;
    bool eights = row_bytes % 16 == 0; // rows begin where 16 bytes can be loaded at once, and are whole eights
    int a_at = chunk_at(wr + (lane & 15), lane >> 4);
    int b_at = chunk_at(wp + (lane & 7) + (lane >> 4) * 8, lane >> 3 & 1);
#pragma unroll 1
    for (int k0 = -32; k0 < wide; k0 += 32) {
        int stage = k0 >> 5 & 1, next = k0 + 32;
        cp_async_wait<0>();
        __syncthreads(); // the stage is full, and all are done with the other
        if (next < wide) {
            u8 *to = memory[stage ^ 1][0];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                int chunk = 2 * half + i, c = next + 8 * chunk;
                if (eights && c < n_in) {
                    cp_async16(to + chunk_at(own, chunk), weights + 2 * c);
                    continue;
                }
                for (int j = 0; j < 8; j++)
                    ((u16 *)(to + chunk_at(own, chunk)))[j] = c + j < n_in ? ((const u16 *)weights)[c + j] : 0;
            }
            to = memory[stage ^ 1][1 + half];
            if (own < 16 * live)
#pragma unroll
                for (int i = 0; i < 4; i++) cp_async16(to + chunk_at(own, i), acts + next + 8 * i);
            cp_async_commit();
        }
        if (k0 < 0) continue;
        const u8 *from = memory[stage][0];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            u32 a[2][4];
#pragma unroll
            for (int i = 0; i < 2; i++) ldmatrix_x4(a[i], from + (a_at ^ 32 * h) + 64 * 16 * i);
#pragma unroll
            for (int s = 0; s < 4; s++) {
                if (s >= strips) break;
#pragma unroll
                for (int part = 0; part < 2; part++) {
                    u32 b[4];
                    ldmatrix_x4(b, from + (1 + part) * TILE_ROWS * 64 + (b_at ^ 32 * h) + 64 * 32 * s);
                    u32 b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        F::mma(sums[i][2 * s], a[i], b0);
                        F::mma(sums[i][2 * s + 1], a[i], b1);
                    }
                }
            }
        }
    }
    __syncthreads();
    write_strips(sums, (float *)memory[0][0], strips, row0 + wr, wp, order + tile.from, tile.n, by, share, out, n_out);
}

/// Many pairs of a format of floats: f32, 32 columns at a time. A thread sums 8 rows times 8 pairs;
/// warps without pairs only bring values. Grid: (rows / 128, tiles); 256 threads.
template <class F>
__device__ __forceinline__ void matmul_floats_body(const u8 *w, const float *x, const Tile *tiles, const int *order,
                                                   float *out, int n_in, int n_out, int share, u64 row_bytes) {
    __shared__ __align__(16) float a[32][TILE_ROWS + 4], b[32][TILE_PAIRS + 4];
    __shared__ int pair[TILE_PAIRS];
    Tile tile = tiles[blockIdx.y];
    if (tile.n <= 0) return;
    int row0 = blockIdx.x * TILE_ROWS, id = threadIdx.x;
    if (id < TILE_PAIRS) {
        int i = min(id, tile.n - 1);
        pair[id] = order ? order[tile.from + i] : tile.from + i;
    }
    const u8 *matrix = w + (u64)tile.matrix * n_out * row_bytes;
    int tr = id % 16 * 8, tp = id / 16 * 8;
    bool used = id / 32 * 16 < tile.n;
    float sums[8][8];
#pragma unroll
    for (int i = 0; i < 8; i++)
#pragma unroll
        for (int j = 0; j < 8; j++) sums[i][j] = 0.f;
    __syncthreads();
    for (int k0 = 0; k0 < n_in; k0 += 32) {
        int k = id & 31;
        bool in = k0 + k < n_in;
#pragma unroll 4
        for (int r = id >> 5; r < TILE_ROWS; r += 8) {
            a[k][r] = in ? F::value(matrix + (u64)min(row0 + r, n_out - 1) * row_bytes, k0 + k) : 0.f;
            b[k][r] = in ? x[(u64)(pair[r] / share) * n_in + k0 + k] : 0.f;
        }
        __syncthreads();
#pragma unroll 2
        for (int k = 0; k < 32 && used; k++)
#pragma unroll
            for (int i = 0; i < 8; i++)
#pragma unroll
                for (int j = 0; j < 8; j++) sums[i][j] += a[k][tr + i] * b[k][tp + j];
        __syncthreads();
    }
#pragma unroll
    for (int j = 0; j < 8; j++) {
        if (tp + j >= tile.n) break;
        float *to = out + (u64)pair[tp + j] * n_out + row0 + tr;
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (row0 + tr + i < n_out) to[i] = sums[i][j];
    }
}

/// Rows of activations, T to a block, that are normed first, without a weight: x / sqrt(mean(x^2) + eps). Every block sums the
/// squares too, so that the normed rows need not exist; large blocks, since few rows of a matrix (mixes of streams) are long.
/// Out: (rows, n_out). Grid: (n_out, rows / T).
template <class F, int T>
__device__ __forceinline__ void normed_body(const u8 *w, const float *x, float *out, int n_in, int n_out, int rows, float eps,
                                            u64 row_bytes) {
    __shared__ float scratch[32];
    int first = T * blockIdx.y;
    w += (u64)blockIdx.x * row_bytes;
    float sums[T], squares[T];
    const float *xs[T];
#pragma unroll
    for (int t = 0; t < T; t++) {
        sums[t] = squares[t] = 0.f;
        xs[t] = x + (u64)min(first + t, rows - 1) * n_in;
    }
    if (row_bytes % (4 * F::BYTES) == 0 && n_in % 4 == 0) {
        for (int i = threadIdx.x; i < n_in / 4; i += blockDim.x) {
            float v[4];
            F::four(w, i, v);
#pragma unroll
            for (int t = 0; t < T; t++) {
                float4 y = ((const float4 *)xs[t])[i];
                const float same[4] = {y.x, y.y, y.z, y.w};
                sums[t] += dot_four(v, y);
                squares[t] += dot_four(same, y);
            }
        }
    } else {
        for (int i = threadIdx.x; i < n_in; i += blockDim.x) {
            float v = F::value(w, i);
#pragma unroll
            for (int t = 0; t < T; t++) {
                float y = xs[t][i];
                sums[t] += v * y;
                squares[t] += y * y;
            }
        }
    }
#pragma unroll
    for (int t = 0; t < T; t++) {
        float sum = block_sum(sums[t], scratch), square = block_sum(squares[t], scratch);
        if (threadIdx.x == 0 && first + t < rows)
            out[(u64)(first + t) * n_out + blockIdx.x] = sum / sqrtf(square / (float)n_in + eps);
    }
}

/// The kernels of a format of codes, with its name at the end of theirs.
#define MATRIX_KERNELS(name, F)                                                                                        \
    extern "C" __global__ void rows_##name(const u8 *w, const int *ids, float *out, int n, u64 row_bytes) {            \
        rows_body<F>(w, ids, out, n, row_bytes);                                                                       \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(128, 6)                                                               \
        matvec1_##name(const u8 *w, const u8 *w2, const i8 *x, const ActScale *scales, const float *ids,               \
                       const int *slots, float *out, float *out2, int n_in, int n_out, int n_out2, int pairs,          \
                       int share, int heads, int lanes, u64 row_bytes) {                                               \
        matvec_body<F, 1>(w, w2, x, scales, ids, slots, out, out2, n_in, n_out, n_out2, pairs, share, heads, lanes,    \
                          row_bytes);                                                                                  \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(128, 6)                                                               \
        matvec4_##name(const u8 *w, const i8 *x, const ActScale *scales, const float *ids, const int *slots,           \
                       float *out, int n_in, int n_out, int pairs, int share, int heads, int lanes, u64 row_bytes) {   \
        matvec_body<F, 4>(w, nullptr, x, scales, ids, slots, out, nullptr, n_in, n_out, 0, pairs, share, heads, lanes, \
                          row_bytes);                                                                                  \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256, F::HALVES && F::MINS ? 1 : 2)                                    \
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
        matvec1_##name(const u8 *w, const u8 *w2, const float *x, const float *ids, const int *slots, float *out,      \
                       float *out2, int n_in, int n_out, int n_out2, int pairs, int share, int heads,                  \
                       u64 row_bytes) {                                                                                \
        matvec_floats_body<F, 1>(w, w2, x, ids, slots, out, out2, n_in, n_out, n_out2, pairs, share, heads,            \
                                 row_bytes);                                                                           \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(1024)                                                                 \
        normed1_##name(const u8 *w, const float *x, float *out, int n_in, int n_out, int rows, float eps,              \
                       u64 row_bytes) {                                                                                \
        normed_body<F, 1>(w, x, out, n_in, n_out, rows, eps, row_bytes);                                               \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(1024)                                                                 \
        normed4_##name(const u8 *w, const float *x, float *out, int n_in, int n_out, int rows, float eps,              \
                       u64 row_bytes) {                                                                                \
        normed_body<F, 4>(w, x, out, n_in, n_out, rows, eps, row_bytes);                                               \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(512, 1)                                                               \
        matvec4_##name(const u8 *w, const float *x, const float *ids, const int *slots, float *out, int n_in,          \
                       int n_out, int pairs, int share, int heads, u64 row_bytes) {                                    \
        matvec_floats_body<F, 4>(w, nullptr, x, ids, slots, out, nullptr, n_in, n_out, 0, pairs, share, heads,         \
                                 row_bytes);                                                                           \
    }

/// Products of many pairs for a format of floats by plain arithmetic.
#define FLOAT_MATMUL(name, F)                                                                                          \
    extern "C" __global__ void __launch_bounds__(256, 2)                                                               \
        matmul_##name(const u8 *w, const float *x, const Tile *tiles, const int *order, float *out, int n_in,          \
                      int n_out, int share, u64 row_bytes) {                                                           \
        matmul_floats_body<F>(w, x, tiles, order, out, n_in, n_out, share, row_bytes);                                 \
    }

/// Products of many pairs for a format of floats of 16 bits by tensor cores, and what makes their
/// activations.
#define HALF_MATMUL(name, F)                                                                                           \
    extern "C" __global__ void split_##name(const float *x, u16 *halves, float *by, int n, int wide) {                 \
        split_body<F>(x, halves, by, n, wide);                                                                         \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256, 2)                                                               \
        matmul16_##name(const u8 *w, const u16 *halves, const float *by, const Tile *tiles, const int *order,          \
                        float *out, int n_in, int n_out, int share, u64 row_bytes) {                                   \
        matmul16_body<F>(w, halves, by, tiles, order, out, n_in, n_out, share, row_bytes);                             \
    }
