// Parallel residual streams: hyper-connections, attention to earlier residuals; compressed rows,
// and the choice among them.
#include "acts.cuh"
#include "cache.cuh"

__device__ __forceinline__ float sigmoid(float x) { return 1.f / (1.f + expf(-x)); }

/// What a block reads from the streams, and how it writes back; see src/ops/hyper.rs. A block per token; `back` is null at
/// the head of the model. Without `mixed` it is a weight for each stream and no matrix. Where `normed` is not null, it gets
/// what `rms_norm` makes of the whole row, and where `codes` is not null they get that in 8 bits. Where `next` is not null it
/// gets the weights that were made of `mixes`, and what is read are the streams by the weights `given`, or the first stream;
/// where `mixes` is null the streams by `given` and nothing else.
extern "C" __global__ void __launch_bounds__(1024)
    hyper_pre(const float *streams, const float *mixes, const float *scale, const float *base, float *out, float *back,
              const float *weight, float *normed, i8 *codes, ActScale *scales, const float *given, float *next, int n,
              int width, int mixed, int rounds, float magnitude, float eps, float post_eps, float norm_eps, float norm_least, float norm_scale) {
    __shared__ float scratch[32];
    __shared__ float pre[MOST_STREAMS], m[MOST_STREAMS * MOST_STREAMS];
    int t = blockIdx.x, nn = mixed ? n * n : 0, n_mix = back ? 2 * n + nn : n;
    if (mixes) mixes += (u64)t * n_mix;
    streams += (u64)t * n * width;
    if (threadIdx.x < 32) { // a warp: a lane for every two entries of the largest matrix
        int lane = threadIdx.x;
        for (int i = lane; i < n; i += 32) {
            float own = mixes ? sigmoid(mixes[i] * scale[0] + base[i]) + eps : 0.f;
            if (next) next[(u64)t * n + i] = own;
            pre[i] = given ? given[(u64)t * n + i] : next ? (i ? 0.f : 1.f) : own;
        }
        if (back) {
            float *to = back + (u64)t * (n + nn), v[2];
            for (int i = lane; i < n; i += 32) to[i] = magnitude * sigmoid(mixes[n + i] * scale[1] + base[n + i]) + post_eps;
            for (int i = lane; i < nn; i += 32) m[i] = mixes[2 * n + i] * scale[2] + base[2 * n + i];
            __syncwarp();
            // Every pass reads the whole row or column of an entry, and then all are replaced.
            for (int pass = 0; mixed && pass < 2 * max(rounds, 1); pass++) {
                for (int j = 0; j < 2; j++) {
                    int i = lane + 32 * j;
                    if (i >= nn) break;
                    int from = pass & 1 ? i % n : i / n * n, step = pass & 1 ? n : 1;
                    float sum = eps;
                    if (pass == 0) { // rows begin as a softmax
                        float most = m[from];
                        for (int c = 1; c < n; c++) most = fmaxf(most, m[from + c]);
                        sum = 0.f;
                        for (int c = 0; c < n; c++) sum += expf(m[from + c] - most);
                        v[j] = expf(m[i] - most) / sum + eps;
                        continue;
                    }
                    for (int c = 0; c < n; c++) sum += m[from + c * step];
                    v[j] = m[i] / sum;
                }
                __syncwarp();
                for (int j = 0; j < 2; j++)
                    if (lane + 32 * j < nn) m[lane + 32 * j] = v[j];
                __syncwarp();
            }
            for (int i = lane; i < nn; i += 32) to[n + i] = m[i];
        }
    }
    __syncthreads();
    float squares = 0.f;
    for (int c = threadIdx.x; c < width; c += blockDim.x) {
        float sum = 0.f;
        for (int i = 0; i < n; i++) sum += pre[i] * streams[(u64)i * width + c];
        out[(u64)t * width + c] = sum;
        squares += sum * sum;
    }
    if (!normed) return;
    float mean = block_sum(squares, scratch) / (float)width + norm_eps;
    float by = norm_scale / sqrtf(mean < norm_least ? norm_least : mean);
    for (int c = threadIdx.x; c < width; c += blockDim.x) {
        u64 i = (u64)t * width + c;
        float v = out[i] * by * (weight ? weight[c] : 1.f);
        normed[i] = v;
        if (codes) store_code(v, codes, scales, i);
    }
}

/// The streams after a block gave `x`, or `x` + `y` where `y` is not null, which is stored as `sum`; and the same with `y2`.
/// Without `mixed` each keeps what it has. A thread per value.
extern "C" __global__ void hyper_post(const float *x, const float *y, float *sum, const float *y2, float *sum2,
                                      const float *streams, const float *back, float *out, int n, int width, int mixed,
                                      u64 total) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= total) return;
    u64 t = i / ((u64)n * width);
    int to = (int)(i / width % n), c = (int)(i % width);
    back += t * (n + (mixed ? n * n : 0));
    u64 at = t * width + c;
    float given = x[at];
    if (y) {
        given += y[at];
        if (to == 0) sum[at] = given;
    }
    if (y2) {
        given += y2[at];
        if (to == 0) sum2[at] = given;
    }
    float v = given * back[to];
    if (!mixed) v += streams[i];
    for (int from = 0; mixed && from < n; from++) v += back[n + from * n + to] * streams[(t * n + from) * width + c];
    out[i] = v;
}

/// silu(by * x).
extern "C" __global__ void silu_of(const float *x, float *out, float by, u64 total) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < total) out[i] = by * x[i] * sigmoid(by * x[i]);
}

/// 2 sigmoid(by * x).
extern "C" __global__ void twice_sigmoid(const float *x, float *out, float by, u64 total) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < total) out[i] = 2.f * sigmoid(by * x[i]);
}

/// The mean over a row's `n` streams of values times the sigmoids of their gates, or without gates of the values. A thread
/// per value of the result.
extern "C" __global__ void gated_mean(const float *x, const float *gate, float *out, int n, int width, u64 total) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= total) return;
    u64 at = i / width * n * width + i % width;
    float sum = 0.f;
    for (int s = 0; s < n; s++, at += width) sum += gate ? x[at] * sigmoid(gate[at]) : x[at];
    out[i] = sum / (float)n;
}

/// A value times a gate for each stream, made of a key and the stream, and that normed; see src/ops/ngram.rs. Where `normed` is
/// null the stream with that added. A block per row and stream.
extern "C" __global__ void __launch_bounds__(256)
    stream_gate(const float *key, const float *value, const float *streams, const float *norm_key,
                const float *norm_query, const float *norm_out, float *gated, float *normed, int n, int width, float eps) {
    __shared__ float scratch[32];
    u64 at = (u64)blockIdx.x * width;
    int w = blockIdx.x % n * width;
    key += at, streams += at, gated += at;
    norm_key += w, norm_query += w;
    if (normed) normed += at, norm_out += w;
    value += (u64)(blockIdx.x / n) * width;
    float keys = 0.f, queries = 0.f, dot = 0.f, values = 0.f;
    for (int c = threadIdx.x; c < width; c += blockDim.x) {
        float k = key[c], q = streams[c];
        keys += k * k, queries += q * q, dot += k * norm_key[c] * (q * norm_query[c]), values += value[c] * value[c];
    }
    keys = block_sum(keys, scratch), queries = block_sum(queries, scratch);
    dot = block_sum(dot, scratch), values = block_sum(values, scratch);
    float s = dot / sqrtf(keys / (float)width + eps) / sqrtf(queries / (float)width + eps) / sqrtf((float)width);
    float root = sqrtf(fmaxf(fabsf(s), 1e-6f)), gate = sigmoid(s > 0.f ? root : s < 0.f ? -root : normed ? 0.f : root);
    float by = 1.f / sqrtf(gate * gate * values / (float)width + eps);
    for (int c = threadIdx.x; c < width; c += blockDim.x) {
        gated[c] = gate * value[c] + (normed ? 0.f : streams[c]);
        if (normed) normed[c] = gate * value[c] * by * norm_out[c];
    }
}

/// Scores with their place's offset: `out[t] = score[t] + ape[pos[t] mod ratio]`.
extern "C" __global__ void add_place(const float *score, const float *ape, const int *pos, float *out, int width,
                                     int ratio, u64 total) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < total) out[i] = score[i] + ape[(u64)(pos[i / width] % ratio) * width + i % width];
}

/// The row of every token that completes a block of `ratio`; those of others are 0. See src/ops/compress.rs: a softmax over the
/// block's tokens (and with `overlap` the block's before) in each column, or without `scores` the mean; a norm where there
/// is a weight of one, rotation; stored as f32 in `rows`, from where `store_rows` takes them. A block of threads per token.
///
/// With `kv`, of a batch of one row, that row of `kvs` and `scores` is stored first: `score` with the offset of its place
/// (`add_place`). With `cache`, the row that is made is stored there, as `store_rows` would.
extern "C" __global__ void __launch_bounds__(512, 2)
    compress(u8 *kvs, u8 *scores, const float *kv, const float *score, const float *ape, const float *norm,
             const float *angles, const int *seq, const int *pos, float *rows, int dim, int ratio, int overlap, float eps,
             int n_rot, int offset, RopePairs pairs, int inverse, int capacity, u64 row_bytes, u64 seq_bytes, u8 *cache,
             CacheType cache_type, int cache_capacity, u64 cache_row_bytes, u64 cache_seq_bytes) {
    __shared__ float scratch[32];
    DYN_SHARED(float, row); // dim
    int t = blockIdx.x, p = pos[t];
    kvs += seq[t] * seq_bytes;
    if (scores) scores += seq[t] * seq_bytes;
    if (kv) {
        int wide = dim * (1 + overlap);
        u64 at = (u64)(p % capacity) * row_bytes;
        for (int i = threadIdx.x; i < wide; i += blockDim.x) {
            ((float *)(kvs + at))[i] = kv[i];
            if (scores) ((float *)(scores + at))[i] = score[i] + (ape ? ape[(u64)(p % ratio) * wide + i] : 0.f);
        }
        __syncthreads();
    }
    rows += (u64)t * dim;
    if ((p + 1) % ratio) {
        for (int c = threadIdx.x; !cache && c < dim; c += blockDim.x) rows[c] = 0.f;
        return;
    }
    int block = p / ratio, first = max((block + 1) * ratio - ratio * (1 + overlap), 0);
    float squares = 0.f;
    for (int c = threadIdx.x; c < dim; c += blockDim.x) {
        float most = -__int_as_float(0x7f800000), sum = 0.f, total = 0.f;
        for (int pass = 0; pass < 2; pass++)
            for (int i = first; i <= p; i++) {
                int column = c + (overlap && i >= block * ratio ? dim : 0);
                float s = scores ? ((const float *)(scores + (u64)(i % capacity) * row_bytes))[column] : 0.f;
                if (pass == 0) {
                    most = fmaxf(most, s);
                } else {
                    float e = expf(s - most);
                    sum += e * ((const float *)(kvs + (u64)(i % capacity) * row_bytes))[column];
                    total += e;
                }
            }
        row[c] = sum / total;
        squares += row[c] * row[c];
    }
    squares = block_sum(squares, scratch);
    float by = 1.f / sqrtf(squares / (float)dim + eps);
    for (int c = threadIdx.x; norm && c < dim; c += blockDim.x) row[c] *= by * norm[c];
    __syncthreads();
    if (cache) cache += seq[t] * cache_seq_bytes + (u64)(block % cache_capacity) * cache_row_bytes;
    for (int c = threadIdx.x; c < dim; c += blockDim.x) {
        int r = c - offset, half = n_rot / 2;
        float v = row[c];
        if (r >= 0 && r < n_rot) {
            bool adjacent = pairs == ROPE_ADJACENT;
            int pair = adjacent ? r / 2 : r % half;
            bool second = adjacent ? r & 1 : r >= half;
            float other = second ? row[c - (adjacent ? 1 : half)] : row[c + (adjacent ? 1 : half)];
            float cs = angles[(u64)t * n_rot + 2 * pair], sn = angles[(u64)t * n_rot + 2 * pair + 1];
            if (inverse) sn = -sn;
            v = second ? other * sn + v * cs : v * cs - other * sn;
        }
        if (cache) store_value(cache, cache_type, c, v);
        else rows[c] = v;
    }
}

/// score[t][h][b] = the largest q . key over the rows of block b that token t sees, for each head; the newest `local` blocks
/// come before all. A warp per block of rows. Grid: (most blocks / 4, tokens, heads).
extern "C" __global__ void __launch_bounds__(128)
    block_scores(const float *q, const u8 *keys, const int *seq, const int *pos, float *scores, int dim, int size,
                 int local, CacheType cache_type, int most, int capacity, u64 row_bytes, u64 seq_bytes) {
    int t = blockIdx.y, h = blockIdx.z, heads = gridDim.z, lane = threadIdx.x & 31;
    int b = blockIdx.x * 4 + (threadIdx.x >> 5), last = pos[t] / size;
    if (b > last) return;
    q += ((u64)t * heads + h) * dim;
    keys += seq[t] * seq_bytes;
    float best = -__int_as_float(0x7f800000);
    for (int r = b * size; r < min((b + 1) * size, pos[t] + 1); r++) {
        const u8 *row = keys + (u64)(r % capacity) * row_bytes;
        float sum = 0.f;
        for (int i = lane; i < dim; i += 32) sum += q[i] * cached(row, cache_type, i);
        best = fmaxf(best, warp_sum(sum));
    }
    if (b > last - local) best = __int_as_float(0x7f800000);
    if (lane == 0) scores[((u64)t * heads + h) * most + b] = best;
}

/// score[t][b] = the best of the scores of block b's rows, of `size` rows for `every` tokens each; the newest block that token t
/// sees comes before all. A thread per block of rows. Grid: (most blocks / 128, tokens).
extern "C" __global__ void __launch_bounds__(128)
    best_of_blocks(const float *scores, const int *pos, float *best, int every, int size, int most, int most_blocks) {
    int t = blockIdx.y, b = blockIdx.x * 128 + threadIdx.x, seen = (pos[t] + 1) / every, n = (seen + size - 1) / size;
    if (b >= n) return;
    float v = -__int_as_float(0x7f800000);
    for (int r = b * size; r < min((b + 1) * size, seen); r++) v = fmaxf(v, scores[(u64)t * most + r]);
    best[(u64)t * most_blocks + b] = b == n - 1 ? __int_as_float(0x7f800000) : v;
}

/// How many of the `n` rows that a token sees its candidates have: `n_blocks` blocks of `size` rows, the newest among them.
__device__ __forceinline__ int candidate_rows(int n, int n_blocks, int size) {
    return n - max((n + size - 1) / size - n_blocks, 0) * size;
}

/// The row at place i of those of a token's candidates.
__device__ __forceinline__ int candidate_row(const float *blocks, int i, int size) {
    return (int)blocks[i / size] * size + i % size;
}

/// A power of two that brings values up to `most` below 2^14, and what undoes it.
__device__ __forceinline__ float scale_for(float most, float &back) {
    int exponent = max((int)(__float_as_uint(most) >> 23) - 127, -100);
    back = __uint_as_float((u32)(exponent - 13 + 127) << 23);
    return __uint_as_float((u32)(13 - exponent + 127) << 23);
}

/// score[t][r] = sum over heads of weight times max(q . key r, 0), for the rows that token t sees;
/// without weights all are 1. Tensor cores, on queries (and keys that are not f16) as the sums of
/// two f16 each, scaled by a power of two: as exact as f32, since a choice of rows hangs on the
/// last bits. A block has 64 rows, each of its four warps 16 heads at a time; at most 128 columns.
/// With `blocks`, `n_blocks` for each token, the rows are those of these blocks of `size`, one
/// after the other. Grid: (most rows / 64, tokens).
extern "C" __global__ void __launch_bounds__(128)
    index_scores(const float *q, const float *weights, const u8 *keys, const int *seq, const int *pos, float *scores,
                 int heads, int dim, int every, CacheType cache_type, int most, int capacity, u64 row_bytes,
                 u64 seq_bytes, const float *blocks, int n_blocks, int size) {
    enum { ROWS = 64, STRIDE = 128 + 8 };
    __shared__ __align__(16) u16 high[ROWS * STRIDE], low[ROWS * STRIDE];
    __shared__ float back[ROWS], sums[4][ROWS];
    int t = blockIdx.y, row0 = blockIdx.x * ROWS, seen = (pos[t] + 1) / every;
    if (blocks) seen = candidate_rows(seen, n_blocks, size);
    if (row0 >= seen) return;
    int id = threadIdx.x, lane = id & 31, warp = id >> 5, quad = lane & 3;
    bool exact = cache_type == CACHE_F16;
    for (int h0 = 0; h0 < heads; h0 += ROWS) {
        u32 a_high[8][4], a_low[8][4]; // the warp's queries, as A
        float w[2];                    // of heads lane / 4 and 8 further
        // First the queries through shared memory into registers, then the keys: two threads have a
        // row, and go over it once for the largest value and once to write.
#pragma unroll 1
        for (int of_keys = 0; of_keys < 2; of_keys++) {
            __syncthreads(); // all are done with what was there
            int r = id >> 1, at = row0 + r, h = h0 + r;
            bool there = of_keys ? at < seen : h < heads, whole = of_keys && exact;
            CacheType type = of_keys ? cache_type : CACHE_F32;
            // The pointer is made here, so that it takes no registers where products are made.
            if (blocks && of_keys && there) at = candidate_row(blocks + (u64)t * n_blocks, at, size);
            const u8 *row = of_keys ? keys + seq[t] * seq_bytes + (u64)(at % capacity) * row_bytes
                                    : (const u8 *)(q + ((u64)t * heads + h) * dim);
            float largest = 0.f, up = 1.f, down = 1.f;
#pragma unroll 1
            for (int pass = whole ? 1 : 0; pass < 2; pass++) {
#pragma unroll 1
                for (int c = 64 * (id & 1); c < 64 + 64 * (id & 1); c += 8) {
                    float f[8] = {0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f};
                    if (there && c < dim) {
                        if (is_float(type)) {
                            for (int j = 0; j < 8; j++) f[j] = c + j < dim ? cached_float(row, type, c + j) : 0.f;
                        } else cached_eight(row, type, c, f);
                    }
#pragma unroll
                    for (int j = 0; j < 8; j += 2) {
                        largest = fmaxf(largest, fmaxf(fabsf(f[j]), fabsf(f[j + 1])));
                        u16 a = f2h(up * f[j]), b = f2h(up * f[j + 1]);
                        *(u32 *)(high + r * STRIDE + c + j) = a | (u32)b << 16;
                        *(u32 *)(low + r * STRIDE + c + j) = two_halves(up * f[j] - h2f(a), up * f[j + 1] - h2f(b));
                    }
                }
                largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
                if (pass == 0) up = scale_for(largest, down);
            }
            if (!(id & 1)) back[r] = down;
            __syncthreads();
            if (of_keys) continue;
            int from = (16 * warp + (lane & 15)) * STRIDE + (lane >> 4) * 8;
#pragma unroll
            for (int k = 0; k < 8; k++) {
                ldmatrix_x4(a_high[k], high + from + 16 * k);
                ldmatrix_x4(a_low[k], low + from + 16 * k);
            }
#pragma unroll
            for (int i = 0; i < 2; i++) {
                int own = 16 * warp + (lane >> 2) + 8 * i, head = h0 + own;
                w[i] = head < heads ? back[own] * (weights ? weights[(u64)t * heads + head] : 1.f) : 0.f;
            }
        }
#pragma unroll 1
        for (int n = 0; n < ROWS; n += 8) {
            float c[4] = {0.f, 0.f, 0.f, 0.f};
            int from = (n + (lane & 7)) * STRIDE + (lane >> 3) * 8;
#pragma unroll
            for (int k = 0; k < 4; k++) {
                u32 b[4];
                ldmatrix_x4(b, high + from + 32 * k);
                u32 b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
                mma_f16(c, a_low[2 * k], b0);
                mma_f16(c, a_low[2 * k + 1], b1);
                mma_f16(c, a_high[2 * k], b0);
                mma_f16(c, a_high[2 * k + 1], b1);
                if (exact) continue;
                ldmatrix_x4(b, low + from + 32 * k);
                u32 l0[2] = {b[0], b[1]}, l1[2] = {b[2], b[3]};
                mma_f16(c, a_high[2 * k], l0);
                mma_f16(c, a_high[2 * k + 1], l1);
            }
#pragma unroll
            for (int i = 0; i < 2; i++) { // rows 2 * quad and the next
                float sum = w[0] * fmaxf(c[i], 0.f) + w[1] * fmaxf(c[2 + i], 0.f);
#pragma unroll
                for (int by = 4; by < 32; by <<= 1) sum += __shfl_xor_sync(0xffffffffu, sum, by);
                if (lane < 4) sums[warp][n + 2 * quad + i] = h0 ? sums[warp][n + 2 * quad + i] + sum : sum;
            }
        }
    }
    __syncthreads();
    if (id < ROWS && row0 + id < seen)
        scores[(u64)t * most + row0 + id] = back[id] * (sums[0][id] + sums[1][id] + sums[2][id] + sums[3][id]);
}

/// A float as an integer of the same order.
__device__ __forceinline__ u32 ordered(float f) {
    u32 u = __float_as_uint(f);
    return u & 0x80000000u ? ~u : u | 0x80000000u;
}

/// The `k` best rows of each of a token's `lists`, rising, then -1; the lower of equals. Of rows of `every` tokens those
/// count that have their first `every - from` + 1 tokens: from 1 those that are complete, from `every` those that are begun. `open`
/// adds the one that is not complete. With `blocks`, `n_blocks` for each token, scores are those of the rows of these blocks of
/// `size`. A block of 256 per list: the k-th largest is found eight bits at a time.
extern "C" __global__ void __launch_bounds__(256)
    index_top(const float *scores, const int *pos, float *out, int k, int every, int most, int lists, int from,
              int open, const float *blocks, int n_blocks, int size) {
    __shared__ int count[256], sums[8], chosen, left;
    int t = blockIdx.x / lists, id = threadIdx.x, lane = id & 31, warp = id >> 5;
    int n = (pos[t] + from) / every;
    float last = (pos[t] + 1) % every ? (float)n : -1.f; // the open one
    scores += (u64)blockIdx.x * most;
    out += (u64)blockIdx.x * (k + open);
    if (n <= k) {
        for (int i = id; i < k + open; i += 256) out[i] = i < n ? (float)i : open && i == n ? last : -1.f;
        return;
    }
    if (open && id == 0) out[k] = last;
    if (blocks) {
        n = candidate_rows(n, n_blocks, size);
        blocks += (u64)t * n_blocks;
    }
    u32 high = 0, mask = 0; // the bits of the k-th largest that are known
    if (id == 0) left = k;
    __syncthreads();
    for (int shift = 24; shift >= 0; shift -= 8) {
        count[id] = 0;
        __syncthreads();
        for (int i = id; i < n; i += 256) {
            u32 v = ordered(scores[i]);
            if ((v & mask) == high) atomicAdd(&count[v >> shift & 255], 1);
        }
        __syncthreads();
        if (warp == 0) { // from the top down, eight counters to a lane
            int need = left, sum = 0, own[8];
#pragma unroll
            for (int j = 0; j < 8; j++) sum += own[j] = count[255 - 8 * lane - j];
            int before = sum;
#pragma unroll
            for (int by = 1; by < 32; by <<= 1) {
                int other = __shfl_up_sync(0xffffffffu, before, by);
                if (lane >= by) before += other;
            }
            before -= sum;
            __syncwarp(); // all have read `left`
            if (before < need && before + sum >= need) {
                int j = 0;
                while (before + own[j] < need) before += own[j++];
                chosen = 255 - 8 * lane - j;
                left = need - before;
            }
        }
        __syncthreads();
        high |= (u32)chosen << shift;
        mask |= 255u << shift;
        __syncthreads();
    }
    // All above the k-th, and of its equals the first `left`, in rising order.
    int equals = 0, written = 0;
    for (int first = 0; first < n; first += 256) {
        int i = first + id;
        u32 v = i < n ? ordered(scores[i]) : 0;
        int same = i < n && v == high, above = i < n && v > high;
        for (int pass = 0; pass < 2; pass++) { // first how many equals stand before, then how many are taken before
            int mine = pass == 0 ? same : above;
            u32 ballot = __ballot_sync(0xffffffffu, mine);
            if (lane == 0) sums[warp] = __popc(ballot);
            __syncthreads();
            int before = __popc(ballot & ((1u << lane) - 1)), all = 0;
            for (int w = 0; w < 8; w++) {
                if (w < warp) before += sums[w];
                all += sums[w];
            }
            __syncthreads();
            if (pass == 0) {
                above |= same && equals + before < left;
                equals += all;
            } else {
                if (above) out[written + before] = (float)(blocks ? candidate_row(blocks, i, size) : i);
                written += all;
            }
        }
    }
}

/// Attention of a row's sources to one another: out = sum_i softmax_i(weight . rms_norm(x_i)) x_i,
/// where the sources x_i are the `parts` rows of `n` values that `stack` has for the row, and then
/// `last`. A block per row.
extern "C" __global__ void __launch_bounds__(256)
    mix_sources(const float *stack, const float *last, const float *weight, float *out, int parts, int n, float eps) {
    __shared__ float scratch[32], scores[MOST_SOURCES];
    u64 t = blockIdx.x;
    const float *own = last + t * n;
    stack += t * parts * n;
    float most = -__uint_as_float(0x7f800000), total = 0.f;
    for (int j = 0; j <= parts; j++) {
        const float *x = j < parts ? stack + (u64)j * n : own;
        float squares = 0.f, dot = 0.f;
        for (int i = threadIdx.x; i < n; i += blockDim.x) squares += x[i] * x[i], dot += x[i] * weight[i];
        squares = block_sum(squares, scratch);
        dot = block_sum(dot, scratch);
        float score = dot / sqrtf(squares / (float)n + eps);
        if (threadIdx.x == 0) scores[j] = score;
        most = fmaxf(most, score);
    }
    __syncthreads();
    for (int j = 0; j <= parts; j++) total += expf(scores[j] - most);
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        float sum = 0.f;
        for (int j = 0; j <= parts; j++) {
            float x = j < parts ? stack[(u64)j * n + i] : own[i];
            sum += expf(scores[j] - most) / total * x;
        }
        out[t * n + i] = sum;
    }
}
