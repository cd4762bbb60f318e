// The emulator's scheduler: fibers of a block, meetings of warps, orders from a seed.
#include "emu.hpp"

#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <mutex>
#include <numeric>
#include <string>
#include <sys/mman.h>
#include <thread>
#include <vector>

#if defined(__SANITIZE_THREAD__)
extern "C" {
void *__tsan_create_fiber(unsigned);
void __tsan_switch_to_fiber(void *, unsigned);
void *__tsan_get_current_fiber();
void __tsan_acquire(void *);
void __tsan_release(void *);
}
#define TSAN(x) x
#else
#define TSAN(x)
#endif
#if defined(__SANITIZE_ADDRESS__)
extern "C" {
void __sanitizer_start_switch_fiber(void **, const void *, size_t);
void __sanitizer_finish_switch_fiber(void *, const void **, size_t *);
}
#define ASAN(x) x
#else
#define ASAN(x)
#endif

namespace emu {

enum { RUNS, AT_MEETING, AT_BARRIER, ENDED };
constexpr size_t STACK = 64 << 10;
constexpr int MEETINGS = 8;

/// Where the lanes of a mask exchange values: two buffers in turn, so that a fast lane's next value does not overwrite
/// one that a slow lane still reads.
struct Meeting {
    u32 mask, arrived, generation;
    const char *op;
    alignas(16) u8 values[2][32][64];
};

struct Warp {
    Meeting meetings[MEETINGS];
    int n;
    u64 sync[2]; // addresses for the race checker
};

/// A block under way on a thread of the system.
struct Block {
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    std::vector<u8> dyn;
    char *stacks = nullptr;
    size_t n_stacks = 0;
    u32 n = 0, alive = 0, arrived = 0, generation = 0;
    void *main_sp = nullptr, *tsan_main = nullptr;
    Entry entry;
    void **params;
    std::string error;
    u64 sync[2];
    const void *main_stack;
    size_t main_size;
};

thread_local Fiber *cur;
thread_local uint3 block_idx;
thread_local dim3 block_dim, grid_dim;
static thread_local Block *block;
Kernel *Kernel::first = nullptr;

extern "C" void emu_switch(void **save_sp, void *to_sp);
#if defined(__x86_64__)
constexpr int SAVED = 6; // words that emu_switch keeps below the return address
asm(R"(.text
.globl emu_switch
.type emu_switch,@function
emu_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp,(%rdi); movq %rsi,%rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
.size emu_switch,.-emu_switch)");
#else
#error "emu_switch is written for x86-64 only"
#endif

/// From a fiber back to the scheduler.
EMU_RT static void leave(int state) {
    Fiber *f = cur;
    f->state = state;
    ASAN(void *fake; __sanitizer_start_switch_fiber(state == ENDED ? nullptr : &fake, block->main_stack, block->main_size);)
    TSAN(__tsan_switch_to_fiber(block->tsan_main, 1);)
    emu_switch(&f->sp, block->main_sp);
    ASAN(__sanitizer_finish_switch_fiber(fake, nullptr, nullptr);)
}

EMU_RT void fail(const char *format, ...) {
    char what[256], all[400];
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    snprintf(all, sizeof all, "block (%u,%u,%u) thread (%u,%u,%u): %s", block_idx.x, block_idx.y, block_idx.z,
             cur->tid.x, cur->tid.y, cur->tid.z, what);
    if (block->error.empty()) block->error = all;
    leave(ENDED);
    __builtin_unreachable();
}

EMU_RT void *dyn_shared() { return (void *)(((uintptr_t)block->dyn.data() + 127) & ~(uintptr_t)127); }

EMU_RT void block_barrier() {
    Block *b = block;
    void *key = &b->sync[b->generation & 1]; // two in turn: no order from the next barrier back to this one
    (void)key;
    TSAN(__tsan_release(key);)
    if (++b->arrived == b->alive) {
        b->arrived = 0;
        b->generation++;
    } else {
        cur->generation = b->generation;
        leave(AT_BARRIER);
    }
    TSAN(__tsan_acquire(key);)
}

EMU_RT u8 (*exchange(u32 mask, const void *v, int n, const char *op))[64] {
    Warp &w = block->warps[cur->warp];
    u32 lane = cur->lane;
    if (!(mask >> lane & 1)) fail("%s: lane %u is not in its own mask %08x", op, lane, mask);
    Meeting *m = nullptr;
    for (int i = 0; i < w.n; i++)
        if (w.meetings[i].mask == mask) m = &w.meetings[i];
    if (!m) {
        if (w.n == MEETINGS) fail("more than %d masks in one warp", MEETINGS);
        m = &w.meetings[w.n++];
        m->mask = mask;
        m->arrived = m->generation = 0;
        m->op = nullptr;
    }
    if (!m->arrived) m->op = op;
    else if (m->op != op && strcmp(m->op, op)) fail("the warp parted: this lane is at %s, another at %s", op, m->op);
    u32 generation = m->generation;
    u8 *to = m->values[generation & 1][lane];
    for (int i = 0; i < n; i++) to[i] = ((const u8 *)v)[i];
    m->arrived |= 1u << lane;
    if (m->arrived == mask) {
        m->arrived = 0;
        m->generation++;
    } else {
        cur->generation = generation;
        cur->meeting = m;
        leave(AT_MEETING);
    }
    return m->values[generation & 1];
}

EMU_RT void warp_barrier(u32 mask) {
    void *key = &block->warps[cur->warp].sync[cur->n_sync++ & 1];
    (void)key;
    TSAN(__tsan_release(key);)
    exchange(mask, &mask, sizeof mask, "syncwarp");
    TSAN(__tsan_acquire(key);)
}

EMU_RT static void run_kernel() { block->entry(block->params); }

EMU_RT static void begin() {
    ASAN(__sanitizer_finish_switch_fiber(nullptr, &block->main_stack, &block->main_size);)
    TSAN(__tsan_acquire(&block->entry);)
    run_kernel();
    TSAN(__tsan_release(&block->params);)
    if (cur->n_pending) fail("%d cp.async were never waited for", cur->n_pending);
    leave(ENDED);
}

EMU_RT static u32 random(u64 &s) {
    s ^= s << 13;
    s ^= s >> 7;
    s ^= s << 17;
    return (u32)(s >> 16);
}

EMU_RT static void reorder(std::vector<u32> &v, u64 &s) {
    if (s)
        for (size_t i = v.size(); i > 1; i--) std::swap(v[i - 1], v[random(s) % i]);
}

EMU_RT static void prepare(Block &b) {
    b.alive = b.n;
    b.arrived = b.generation = 0;
    for (auto &w : b.warps) w.n = 0;
    memset(b.dyn.data(), 0xff, b.dyn.size());
    for (u32 i = 0; i < b.n; i++) {
        Fiber &f = b.fibers[i];
        f.tid = {i % block_dim.x, i / block_dim.x % block_dim.y, i / (block_dim.x * block_dim.y)};
        f.lane = i & 31;
        f.warp = i / 32;
        f.state = RUNS;
        f.n_pending = f.n_groups = 0;
        f.n_sync = 0;
        // Staggered, so that stacks do not share the sets of a cache. The first switch returns into `begin`.
        void **top = (void **)(b.stacks + (i + 1) * STACK - 256 * (i & 15)) - 2;
        *top = (void *)begin;
        f.sp = top - SAVED;
        TSAN(if (!f.tsan) f.tsan = __tsan_create_fiber(0);)
    }
}

EMU_RT static std::string stuck(Block &b) {
    u32 at_barrier = 0, at_meeting = 0;
    const char *op = "-";
    for (u32 i = 0; i < b.n; i++) {
        Fiber &f = b.fibers[i];
        at_barrier += f.state == AT_BARRIER;
        if (f.state == AT_MEETING) at_meeting++, op = f.meeting->op;
    }
    char text[240];
    snprintf(text, sizeof text,
             "block (%u,%u,%u) is stuck: %u threads at __syncthreads, %u at a warp operation (%s), %u ended", block_idx.x,
             block_idx.y, block_idx.z, at_barrier, at_meeting, op, b.n - at_barrier - at_meeting);
    return text;
}

EMU_RT static void run(Block &b, u64 seed) {
    prepare(b);
    u32 n_warps = (b.n + 31) / 32, left = b.n;
    std::vector<u32> warps(n_warps), lanes(32);
    std::iota(warps.begin(), warps.end(), 0);
    std::iota(lanes.begin(), lanes.end(), 0);
    TSAN(__tsan_release(&b.entry);) // a block's beginning and end are ordered on its thread, blocks elsewhere are not
    while (left && b.error.empty()) {
        bool moved = false;
        reorder(warps, seed);
        for (u32 w : warps) {
            for (bool again = true; again && b.error.empty();) {
                again = false;
                reorder(lanes, seed);
                for (u32 lane : lanes) {
                    u32 i = w * 32 + lane;
                    if (i >= b.n) continue;
                    Fiber &f = b.fibers[i];
                    bool waits = f.state == ENDED || (f.state == AT_BARRIER && f.generation == b.generation) ||
                                 (f.state == AT_MEETING && f.generation == f.meeting->generation);
                    if (waits) continue;
                    f.state = RUNS;
                    cur = &f;
                    again = moved = true;
                    ASAN(void *fake; __sanitizer_start_switch_fiber(&fake, b.stacks + i * STACK, STACK);)
                    TSAN(__tsan_switch_to_fiber(f.tsan, 1);)
                    emu_switch(&b.main_sp, f.sp);
                    ASAN(__sanitizer_finish_switch_fiber(fake, nullptr, nullptr);)
                    if (!b.error.empty()) break;
                    if (f.state == ENDED) {
                        left--;
                        b.alive--;
                        if (b.alive && b.arrived == b.alive) {
                            b.arrived = 0;
                            b.generation++;
                        }
                    }
                }
            }
        }
        if (!moved && left && b.error.empty()) b.error = stuck(b);
    }
    TSAN(__tsan_acquire(&b.params);)
}

const char *launch(Entry entry, void **params, dim3 grid, dim3 shape, u32 shared_bytes, u64 seed, int threads) {
    static thread_local std::string error;
    u32 n = shape.x * shape.y * shape.z;
    u64 blocks = (u64)grid.x * grid.y * grid.z;
    if (!n || n > 1024 || !blocks || grid.y > 65535 || grid.z > 65535) return "a launch of no threads, or of too many";
    // Blocks go by steps that have no divisor in common with their number.
    u64 step = 1, s = seed;
    if (seed)
        for (step = random(s) % blocks | 1; std::gcd(step, blocks) != 1; step += 2) {}
    std::atomic<u64> next{0};
    std::atomic<bool> bad{false};
    std::vector<std::string> errors(threads);
    // One launch at a time: the driver holds its lock. Stacks are kept from launch to launch.
    static std::deque<Block> blocks_of;
    while (blocks_of.size() < (size_t)threads) blocks_of.emplace_back();
    auto work = [&](int t) __attribute__((no_sanitize("thread"))) {
        Block &b = blocks_of[t];
        block = &b;
        b.entry = entry;
        b.params = params;
        b.n = n;
        b.error.clear();
        if (b.fibers.size() < n) b.fibers.resize(n);
        b.warps.resize((n + 31) / 32);
        b.dyn.resize(shared_bytes + 256);
        TSAN(b.tsan_main = __tsan_get_current_fiber();)
        if (b.n_stacks < n) {
            if (b.stacks) munmap(b.stacks, b.n_stacks * STACK);
            int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
            b.stacks = (char *)mmap(nullptr, n * STACK, PROT_READ | PROT_WRITE, flags, -1, 0);
            b.n_stacks = n;
        }
        block_dim = shape;
        grid_dim = grid;
        for (u64 k; !bad && (k = next++) < blocks;) {
            u64 i = k * step % blocks;
            block_idx = {(u32)(i % grid.x), (u32)(i / grid.x % grid.y), (u32)(i / grid.x / grid.y)};
            run(b, seed ? seed * 0x9e3779b97f4a7c15ull + i + 1 : 0);
            if (!b.error.empty()) {
                errors[t] = b.error;
                bad = true;
            }
        }
    };
    if (threads <= 1 || blocks == 1) {
        work(0);
    } else {
        std::vector<std::thread> all;
        for (int t = 0; t < threads; t++) all.emplace_back(work, t);
        for (auto &t : all) t.join();
    }
    for (auto &e : errors) {
        if (!e.empty()) {
            error = e;
            return error.c_str();
        }
    }
    return nullptr;
}

} // namespace emu

// What the stand-in driver calls: kernels/standin/src/native.rs.
#define API extern "C" __attribute__((visibility("default")))

/// A kernel by name, or null.
API const emu::Kernel *emu_find(const char *name) {
    const emu::Kernel *kernel = emu::Kernel::first;
    while (kernel && strcmp(kernel->name, name)) kernel = kernel->next;
    return kernel;
}

/// The number of a kernel's parameters, and their sizes.
API int emu_params(const emu::Kernel *kernel, const u32 **sizes) {
    *sizes = kernel->size;
    return kernel->n_params;
}

/// Runs a kernel; null, or what went wrong.
API const char *emu_launch(const emu::Kernel *kernel, void **params, const u32 *grid, const u32 *block, u32 shared_bytes,
                           u64 seed, int threads) {
    // The driver has a lock of its own, which a race checker does not see.
    static std::mutex one;
    std::lock_guard<std::mutex> lock(one);
    return emu::launch(kernel->entry, params, {grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]}, shared_bytes,
                       seed, threads);
}
