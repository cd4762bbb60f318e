// The router's choice, and the order in which experts take their tokens.
#include "matrix.cuh"

__device__ __forceinline__ float softplus(float x) { return x > 20.f ? x : log1pf(expf(x)); }

/// The best of `n` values in shared memory, the lower of equals: by one warp.
__device__ __forceinline__ int best_of(const float *v, int n, int lane) {
    float most = -__int_as_float(0x7f800000);
    int at = 0x7fffffff;
    for (int i = lane; i < n; i += 32)
        if (v[i] > most) most = v[i], at = i;
#pragma unroll
    for (int by = 16; by; by >>= 1) {
        float most2 = __shfl_xor_sync(0xffffffffu, most, by);
        int at2 = __shfl_xor_sync(0xffffffffu, at, by);
        if (most2 > most || (most2 == most && at2 < at)) most = most2, at = at2;
    }
    return min(at, n - 1); // values that are no numbers win nothing
}

/// A warp per row: (ids, weights), k each, best first. See src/ops/route.rs. `table`: rows of k experts by token; `which`:
/// the number of each row's token, null where every token has a row. The last `no_expert` of the n classes have the id -1.
extern "C" __global__ void __launch_bounds__(32)
    route(const float *logits, const float *bias, const int *table, const int *tokens, const int *which, float *ids,
          float *weights, int n, int k, RouterGate gate, int norm, float scale, int n_groups, int groups_used,
          int no_expert) {
    __shared__ float score[MOST_EXPERTS], biased[MOST_EXPERTS], group[MOST_GROUPS];
    __shared__ int chosen[MOST_CHOSEN];
    const float lowest = -__int_as_float(0x7f800000);
    int lane = threadIdx.x, t = blockIdx.x;
    logits += (u64)t * n;
    float most = lowest;
    for (int i = lane; i < n; i += 32) most = fmaxf(most, logits[i]);
    most = warp_max(most);
    float sum = 0.f;
    for (int i = lane; i < n; i += 32) {
        float v = logits[i];
        if (gate == GATE_SOFTMAX) v = expf(v - most), sum += v;
        else if (gate == GATE_SIGMOID) v = 1.f / (1.f + expf(-v));
        else if (gate == GATE_SQRT_SOFTPLUS) v = sqrtf(softplus(v));
        score[i] = v;
    }
    if (gate == GATE_SOFTMAX) {
        sum = 1.f / warp_sum(sum);
        for (int i = lane; i < n; i += 32) score[i] *= sum;
    }
    if (!table)
        for (int i = lane; i < n; i += 32) biased[i] = score[i] + (bias ? bias[i] : 0.f);
    __syncwarp();
    if (table) {
        for (int i = lane; i < k; i += 32) chosen[i] = table[(u64)tokens[which ? which[t] : t] * k + i];
    } else {
        if (n_groups > 1) {
            int size = n / n_groups;
            for (int g = lane; g < n_groups; g += 32) { // the sum of the two best
                float first = lowest, second = lowest;
                for (int i = 0; i < size; i++) {
                    float v = biased[g * size + i];
                    if (v > first) second = first, first = v;
                    else if (v > second) second = v;
                }
                group[g] = first + (size > 1 ? second : 0.f);
            }
            __syncwarp();
            u32 used = 0;
            for (int j = 0; j < groups_used; j++) {
                int g = best_of(group, n_groups, lane);
                used |= 1u << g;
                __syncwarp();
                if (lane == 0) group[g] = lowest;
                __syncwarp();
            }
            for (int i = lane; i < n; i += 32)
                if (!(used >> i / size & 1)) biased[i] = lowest;
            __syncwarp();
        }
        for (int j = 0; j < k; j++) {
            int e = best_of(biased, n, lane);
            __syncwarp();
            if (lane == 0) chosen[j] = e, biased[e] = lowest;
            __syncwarp();
        }
    }
    __syncwarp();
    // The weights of the chosen: a lane has two at most.
    float w[2] = {0.f, 0.f}, total = 0.f;
    for (int j = 0; j < 2; j++)
        if (lane + 32 * j < k) w[j] = score[chosen[lane + 32 * j]];
    if (gate == GATE_SOFTMAX_OF_CHOSEN) {
        float top = lowest;
        for (int j = 0; j < 2; j++)
            if (lane + 32 * j < k) top = fmaxf(top, w[j]);
        top = warp_max(top);
        for (int j = 0; j < 2; j++)
            if (lane + 32 * j < k) w[j] = expf(w[j] - top), total += w[j];
        total = warp_sum(total);
        w[0] /= total;
        w[1] /= total;
    }
    if (norm) {
        total = fmaxf(warp_sum(w[0] + w[1]), 6.103515625e-5f);
        w[0] /= total;
        w[1] /= total;
    }
    for (int j = 0; j < 2; j++) {
        int i = lane + 32 * j;
        if (i < k) {
            ids[(u64)t * k + i] = chosen[i] < n - no_expert ? (float)chosen[i] : -1.f;
            weights[(u64)t * k + i] = w[j] * scale;
        }
    }
}

/// Counts the pairs of each expert and cuts them into tiles of 128: `first` is where an expert's pairs begin in the order of
/// experts, negative for experts whose slot is; `tiles` has room for pairs / 128 + n of them, the rest get n = 0. One block.
extern "C" __global__ void __launch_bounds__(1024)
    count_pairs(const float *ids, const int *slots, int *first, Tile *tiles, int pairs, int n, int n_tiles) {
    __shared__ int count[MOST_EXPERTS], at[MOST_EXPERTS], tile_at[MOST_EXPERTS];
    int id = threadIdx.x;
    for (int e = id; e < n; e += blockDim.x) count[e] = 0;
    __syncthreads();
    for (int p = id; p < pairs; p += blockDim.x)
        if (ids[p] >= 0.f) atomicAdd(&count[(int)ids[p]], 1);
    __syncthreads();
    if (id == 0) {
        int sum = 0, tile = 0;
        for (int e = 0; e < n; e++) {
            if (slots && slots[e] < 0) count[e] = 0;
            at[e] = sum;
            tile_at[e] = tile;
            sum += count[e];
            tile += (count[e] + TILE_PAIRS - 1) / TILE_PAIRS;
        }
        for (int i = tile; i < n_tiles; i++) tiles[i].n = 0;
    }
    __syncthreads();
    for (int e = id; e < n; e += blockDim.x) {
        first[e] = slots && slots[e] < 0 ? -1 : at[e];
        for (int from = 0; from < count[e]; from += TILE_PAIRS) {
            Tile tile;
            tile.matrix = slots ? slots[e] : e;
            tile.from = at[e] + from;
            tile.n = min(count[e] - from, (int)TILE_PAIRS);
            tile.unused = 0;
            tiles[tile_at[e] + from / TILE_PAIRS] = tile;
        }
    }
}

/// `order`: the pairs of expert 0, then of 1, rising, so that sums come out the same from run to run. A block per expert.
extern "C" __global__ void __launch_bounds__(256) sort_pairs(const float *ids, const int *first, int *order, int pairs) {
    __shared__ int of_warp[8];
    int e = blockIdx.x, lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    int at = first[e];
    if (at < 0) return;
    for (int from = 0; from < pairs; from += 256) {
        int p = from + threadIdx.x;
        bool mine = p < pairs && (int)ids[p] == e;
        u32 all = __ballot_sync(0xffffffffu, mine);
        if (lane == 0) of_warp[warp] = __popc(all);
        __syncthreads();
        int before = 0, sum = 0;
        for (int w = 0; w < 8; w++) {
            if (w < warp) before += of_warp[w];
            sum += of_warp[w];
        }
        if (mine) order[at + before + __popc(all & ((1u << lane) - 1))] = p;
        at += sum;
        __syncthreads();
    }
}

/// out[t] = sum over the token's k pairs of weight (null: 1) times row, leaving out pairs without an expert and those whose
/// slot is negative; added to what is there if `add`.
extern "C" __global__ void mix_pairs(const float *rows, const float *ids, const float *weights, const int *slots,
                                     float *out, int width, int k, int add, u64 total) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= total) return;
    u64 t = i / width;
    int c = (int)(i % width);
    float sum = add ? out[i] : 0.f;
    for (int j = 0; j < k; j++) {
        u64 p = t * k + j;
        if (ids[p] < 0.f || (slots && slots[(int)ids[p]] < 0)) continue;
        sum += (weights ? weights[p] : 1.f) * rows[p * width + c];
    }
    out[i] = sum;
}

/// The order and the tiles of pairs that are known: pair p meets matrix p mod heads. A block per tile.
extern "C" __global__ void even_pairs(int *order, Tile *tiles, int pairs, int heads, int n_tiles) {
    int per_head = n_tiles / heads, head = blockIdx.x / per_head, i = blockIdx.x % per_head;
    int rows = pairs / heads, from = i * TILE_PAIRS, n = min(rows - from, (int)TILE_PAIRS);
    int at = head * rows + from;
    if ((int)threadIdx.x < n) order[at + threadIdx.x] = (from + threadIdx.x) * heads + head;
    if (threadIdx.x == 0) {
        Tile tile;
        tile.matrix = head;
        tile.from = at;
        tile.n = n;
        tile.unused = 0;
        tiles[blockIdx.x] = tile;
    }
}
