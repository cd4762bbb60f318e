// A stand-in for libcuda.so over the emulator: the driver calls that tandem makes.
//
// Queued work runs as late as the driver's rules allow: when something waits for it. A forgotten event, wait or
// synchronize then gives wrong results here too, and every time. Device memory starts as NaN; copies and parameters are
// checked against what was allocated; a kernel's PTX must have the parameters that its source has.
//
//   TANDEM_EMU_MEM_MB     device memory (default 2048); 0: there is no device
//   TANDEM_EMU_HIDDEN_MB  as much of it is said to be free and is not
//   TANDEM_EMU_SEED       the order of threads (default 1; 0: in order)
//   TANDEM_EMU_THREADS    threads of the system that blocks run on (default 2)
//   TANDEM_EMU_NO_REGISTER 1: memory of the program's own cannot be pinned
//   TANDEM_EMU_READ_ONLY  0: read-only memory cannot be pinned (device attribute 113)
//   TANDEM_EMU_FAULT_AT   N: the Nth launch fails with an illegal address, and everything after it
//   TANDEM_EMU_ALLOC_LIMIT N: allocations of device memory (a graph's is one) after the Nth fail
//   TANDEM_EMU_SM         compute capability (default 80)
//   TANDEM_EMU_COUNT      a file to which each launch, copy and replay of a graph is added as a line, with `recorded` before
//                         what goes into a graph: `launch NAME 64x1x1 256`, `copy up 4096` (down, within), `set 4096`, `replay`
//   TANDEM_EMU_DEAF       1: waits for events are left out, as if the program had forgotten them (for tests of tests)
#include "emu.hpp"

#include <climits>
#include <cstdarg>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

typedef int Result;
typedef u64 Ptr;
enum { OK = 0, INVALID = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_DEVICE = 101, INVALID_IMAGE = 200, NOT_FOUND = 500, NOT_READY = 600, ILLEGAL_ADDRESS = 700, LAUNCH_FAILED = 719, NOT_SUPPORTED = 801, CAPTURE_UNSUPPORTED = 900 };

static long setting(const char *name, long otherwise) {
    const char *v = getenv(name);
    return v ? atol(v) : otherwise;
}

struct Stream;
struct Event {
    Stream *stream = nullptr;
    u64 at = 0; // done when the stream has done so much
    double ms = 0;
    bool asked = false;
};
struct Graph {
    std::vector<std::function<void()>> work;
};
struct Work {
    std::function<void()> run;
    Stream *after = nullptr; // another stream's work up to `at` comes first
    u64 at = 0;
};
struct Stream {
    std::deque<Work> queue;
    u64 pushed = 0, done = 0;
    Graph *capture = nullptr;
    std::thread::id recorder;
};
struct Function {
    emu::Kernel *kernel;
    int most_shared = 48 << 10;
};
struct Module {
    std::map<std::string, std::unique_ptr<Function>> functions;
    std::string image;
};

static std::recursive_mutex mutex;
static Stream null_stream;
static std::set<Stream *> streams{&null_stream};
static std::map<u64, size_t> device, pinned;
static int sticky = OK; // after a failed launch everything fails, as on a device
static int context;
static size_t used = 0;
static long allocations = 0, launches = 0;
static size_t total() { static size_t n = (size_t)setting("TANDEM_EMU_MEM_MB", 2048) << 20; return n; }

static double now_ms() {
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
}
static Stream *stream_of(void *h) { return (uintptr_t)h <= 2 ? &null_stream : (Stream *)h; }

static void drain(Stream *s, u64 to) {
    while (s->done < to) {
        Work w = std::move(s->queue.front());
        s->queue.pop_front();
        if (w.after) drain(w.after, w.at);
        if (w.run && sticky == OK) w.run();
        s->done++;
    }
}

static void push(void *h, std::function<void()> run) {
    Stream *s = stream_of(h);
    if (s->capture) {
        s->capture->work.push_back(std::move(run));
        return;
    }
    s->queue.push_back({std::move(run)});
    s->pushed++;
}

/// Adds a line to the file of TANDEM_EMU_COUNT.
static void count(void *h, const char *format, ...) {
    static const char *path = getenv("TANDEM_EMU_COUNT");
    static FILE *file = path ? fopen(path, "a") : nullptr;
    if (!file) return;
    va_list args;
    va_start(args, format);
    if (stream_of(h)->capture) fputs("recorded ", file);
    vfprintf(file, format, args);
    fputc('\n', file);
    fflush(file);
    va_end(args);
}

static bool inside(const std::map<u64, size_t> &blocks, u64 p, size_t n) {
    auto i = blocks.upper_bound(p);
    if (i == blocks.begin()) return false;
    --i;
    return p + n <= i->first + i->second;
}

/// Whether a range lies in a block in part: no copy may begin in pinned memory and end in other.
static bool across(const std::map<u64, size_t> &blocks, u64 p, size_t n) {
    auto i = blocks.upper_bound(p);
    if (i != blocks.end() && i->first < p + n) return true; // one begins within
    if (i == blocks.begin()) return false;
    --i;
    return p < i->first + i->second && p + n > i->first + i->second;
}

static Result refuse(Result code, const char *format, ...) {
    va_list args;
    va_start(args, format);
    fprintf(stderr, "emulated driver: ");
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    return code;
}

#define API extern "C" __attribute__((visibility("default"))) Result
#define LOCK                                                                                                           \
    std::lock_guard<std::recursive_mutex> lock(mutex);                                                                 \
    if (sticky != OK) return sticky

// The device.
API cuInit(u32) { return setting("TANDEM_EMU_MEM_MB", 1) ? OK : NO_DEVICE; }
API cuDriverGetVersion(int *v) { *v = 13000; return OK; }
API cuDeviceGetCount(int *n) { *n = 1; return OK; }
API cuDeviceGet(int *d, int i) { *d = 0; return i ? INVALID_DEVICE : OK; }
API cuDeviceGetName(char *name, int n, int) { snprintf(name, n, "emulated device"); return OK; }
API cuDeviceTotalMem_v2(size_t *n, int) { *n = total(); return OK; }
API cuDeviceGetAttribute(int *v, int which, int) {
    long sm = setting("TANDEM_EMU_SM", 80);
    switch (which) {
    case 1: *v = 1024; break;       // threads of a block
    case 8: *v = 48 << 10; break;   // shared memory of a block
    case 10: *v = 32; break;        // warp
    case 13: *v = 1000000; break;   // clock, kHz
    case 16: *v = 4; break;         // multiprocessors
    case 36: *v = 1000000; break;   // memory clock, kHz
    case 37: *v = 64; break;        // bits of the memory's bus
    case 38: *v = 4 << 20; break;   // second-level cache
    case 75: *v = sm / 10; break;   // compute capability
    case 76: *v = sm % 10; break;
    case 97: *v = 96 << 10; break;  // shared memory that a block may ask for
    case 113: *v = setting("TANDEM_EMU_READ_ONLY", 1) != 0; break; // read-only memory can be pinned
    default: *v = 0;
    }
    return OK;
}
API cuDevicePrimaryCtxRetain(void **c, int) { *c = &context; return OK; }
API cuDevicePrimaryCtxRelease_v2(int) { return OK; }
API cuDevicePrimaryCtxSetFlags_v2(int, u32) { return OK; }
API cuCtxSetCurrent(void *) { return OK; }
API cuCtxGetCurrent(void **c) { *c = &context; return OK; }
API cuCtxSynchronize() {
    LOCK;
    for (auto *s : streams) drain(s, s->pushed);
    return sticky;
}
API cuGetErrorName(int e, const char **s) {
    switch (e) {
    case INVALID: *s = "CUDA_ERROR_INVALID_VALUE"; break;
    case OUT_OF_MEMORY: *s = "CUDA_ERROR_OUT_OF_MEMORY"; break;
    case NO_DEVICE: *s = "CUDA_ERROR_NO_DEVICE"; break;
    case INVALID_IMAGE: *s = "CUDA_ERROR_INVALID_IMAGE"; break;
    case NOT_FOUND: *s = "CUDA_ERROR_NOT_FOUND"; break;
    case ILLEGAL_ADDRESS: *s = "CUDA_ERROR_ILLEGAL_ADDRESS"; break;
    case NOT_SUPPORTED: *s = "CUDA_ERROR_NOT_SUPPORTED"; break;
    case LAUNCH_FAILED: *s = "CUDA_ERROR_LAUNCH_FAILED"; break;
    default: *s = "CUDA_ERROR_UNKNOWN";
    }
    return OK;
}
API cuGetErrorString(int, const char **s) { *s = "the emulated driver said why on stderr"; return OK; }

// Memory.
API cuMemGetInfo_v2(size_t *free, size_t *all) {
    LOCK;
    *free = total() - used;
    *all = total();
    return OK;
}
static bool may_allocate() { return ++allocations <= setting("TANDEM_EMU_ALLOC_LIMIT", LONG_MAX); }
API cuMemAlloc_v2(Ptr *p, size_t n) {
    LOCK;
    void *m = nullptr;
    if (!may_allocate()) return OUT_OF_MEMORY;
    static size_t hidden = (size_t)setting("TANDEM_EMU_HIDDEN_MB", 0) << 20;
    if (used + n + hidden > total() || posix_memalign(&m, 256, n + (n == 0))) return OUT_OF_MEMORY;
    memset(m, 0xff, n);
    *p = (u64)m;
    device[*p] = n;
    used += n;
    return OK;
}
API cuMemFree_v2(Ptr p) {
    LOCK;
    if (!p) return OK;
    for (auto *s : streams) drain(s, s->pushed);
    auto i = device.find(p);
    if (i == device.end()) return refuse(INVALID, "%llx was freed, but not allocated", (unsigned long long)p);
    used -= i->second;
    device.erase(i);
    free((void *)p);
    return sticky;
}
API cuMemHostAlloc(void **p, size_t n, u32) {
    LOCK;
    if (posix_memalign(p, 4096, n + 1)) return OUT_OF_MEMORY;
    memset(*p, 0xff, n);
    pinned[(u64)*p] = n;
    return OK;
}
API cuMemFreeHost(void *p) {
    LOCK;
    for (auto *s : streams) drain(s, s->pushed);
    if (!pinned.erase((u64)p)) return INVALID;
    free(p);
    return sticky;
}
/// Whether the program may write to a page: others are pinned for reading alone.
static bool writable(void *p) {
    std::ifstream maps("/proc/self/maps");
    for (std::string line; std::getline(maps, line);) {
        unsigned long from, to;
        char mode[5];
        if (sscanf(line.c_str(), "%lx-%lx %4s", &from, &to, mode) == 3 && from <= (u64)p && (u64)p < to)
            return mode[1] == 'w';
    }
    return false;
}
API cuMemHostRegister_v2(void *p, size_t n, u32 flags) {
    LOCK;
    if ((flags & 8) && !setting("TANDEM_EMU_READ_ONLY", 1)) return NOT_SUPPORTED;
    if (!(flags & 8) && !writable(p)) return INVALID;
    if (setting("TANDEM_EMU_NO_REGISTER", 0)) return OUT_OF_MEMORY;
    pinned[(u64)p] = n;
    return OK;
}
API cuMemHostUnregister(void *p) {
    LOCK;
    return pinned.erase((u64)p) ? OK : INVALID;
}
API cuMemHostGetDevicePointer_v2(Ptr *d, void *p, u32) { *d = (u64)p; return OK; }

/// Copies run when their turn comes. Memory that is not pinned is read at once and written before the call returns, as
/// the driver promises.
static Result copy(Ptr to, u64 from, size_t n, void *h, bool up, bool down) {
    LOCK;
    Stream *s = stream_of(h);
    bool own_from = up ? inside(pinned, from, n) : inside(device, from, n) || inside(pinned, from, n);
    bool own_to = down ? inside(pinned, to, n) : inside(device, to, n) || inside(pinned, to, n);
    if ((up && !own_from && across(pinned, from, n)) || (down && !own_to && across(pinned, to, n)))
        return refuse(INVALID, "a copy of %zu bytes lies in pinned memory in part", n);
    if ((!up && !own_from) || (!down && !own_to)) return refuse(INVALID, "a copy of %zu bytes leaves its memory", n);
    if (s->capture && (!own_from || !own_to)) return refuse(CAPTURE_UNSUPPORTED, "a copy of pageable memory in a graph");
    count(h, "copy %s %zu", up ? "up" : down ? "down" : "within", n);
    if (!own_from) {
        auto kept = std::make_shared<std::vector<u8>>((u8 *)from, (u8 *)from + n);
        push(h, [=] { memcpy((void *)to, kept->data(), n); });
        return OK;
    }
    push(h, [=] { memmove((void *)to, (void *)from, n); });
    if (!own_to) drain(s, s->pushed);
    return sticky;
}
API cuMemcpyHtoDAsync_v2(Ptr to, const void *from, size_t n, void *h) { return copy(to, (u64)from, n, h, true, false); }
API cuMemcpyDtoHAsync_v2(void *to, Ptr from, size_t n, void *h) { return copy((u64)to, from, n, h, false, true); }
API cuMemcpyDtoDAsync_v2(Ptr to, Ptr from, size_t n, void *h) { return copy(to, from, n, h, false, false); }
API cuMemcpyHtoD_v2(Ptr to, const void *from, size_t n) {
    Result r = copy(to, (u64)from, n, nullptr, true, false);
    return r ? r : cuCtxSynchronize();
}
API cuMemcpyDtoH_v2(void *to, Ptr from, size_t n) {
    cuCtxSynchronize();
    Result r = copy((u64)to, from, n, nullptr, false, true);
    return r ? r : cuCtxSynchronize();
}
API cuMemsetD8Async(Ptr to, u8 v, size_t n, void *h) {
    LOCK;
    if (!inside(device, to, n)) return refuse(INVALID, "a memset of %zu bytes leaves its memory", n);
    count(h, "set %zu", n);
    push(h, [=] { memset((void *)to, v, n); });
    return OK;
}

// Streams and events.
API cuStreamCreate(void **s, u32) {
    LOCK;
    auto *n = new Stream;
    streams.insert(n);
    *s = n;
    return OK;
}
API cuStreamCreateWithPriority(void **s, u32 flags, int) { return cuStreamCreate(s, flags); }
API cuStreamDestroy_v2(void *h) { // stays allocated: events may name it
    LOCK;
    Stream *s = stream_of(h);
    drain(s, s->pushed);
    if (s != &null_stream) streams.erase(s);
    return sticky;
}
API cuStreamSynchronize(void *h) {
    LOCK;
    drain(stream_of(h), stream_of(h)->pushed);
    return sticky;
}
API cuStreamQuery(void *h) {
    LOCK;
    return stream_of(h)->done == stream_of(h)->pushed ? OK : NOT_READY;
}
API cuStreamWaitEvent(void *h, void *e, u32) {
    LOCK;
    Stream *s = stream_of(h);
    Event *event = (Event *)e;
    if (!event->stream) return OK;
    if (s->capture) return refuse(CAPTURE_UNSUPPORTED, "a wait for an event of outside in a graph");
    if (setting("TANDEM_EMU_DEAF", 0)) return OK;
    s->queue.push_back({nullptr, event->stream, event->at});
    s->pushed++;
    return OK;
}
API cuEventCreate(void **e, u32) { *e = new Event; return OK; }
API cuEventDestroy_v2(void *) { return OK; } // stays allocated: queued work may name it
API cuEventRecord(void *e, void *h) {
    LOCK;
    Event *event = (Event *)e;
    if (stream_of(h)->capture) return refuse(CAPTURE_UNSUPPORTED, "an event recorded in a graph");
    push(h, [=] { event->ms = now_ms(); });
    event->stream = stream_of(h);
    event->at = event->stream->pushed;
    event->asked = false;
    return OK;
}
/// Not yet, the first time; work that nobody waits for is done in the end.
API cuEventQuery(void *e) {
    LOCK;
    Event *event = (Event *)e;
    if (!event->stream || event->stream->done >= event->at) return OK;
    if (!event->asked) {
        event->asked = true;
        return NOT_READY;
    }
    drain(event->stream, event->at);
    return sticky;
}
API cuEventSynchronize(void *e) {
    LOCK;
    Event *event = (Event *)e;
    if (event->stream && !setting("TANDEM_EMU_DEAF", 0)) drain(event->stream, event->at);
    return sticky;
}
API cuEventElapsedTime(float *ms, void *a, void *b) {
    *ms = (float)(((Event *)b)->ms - ((Event *)a)->ms);
    return OK;
}

// Modules and launches. Loading waits for the device, which the thread of a recording may not.
static bool capturing() {
    for (auto *s : streams)
        if (s->capture && s->recorder == std::this_thread::get_id()) return true;
    return false;
}
API cuModuleLoadData(void **m, const void *image) {
    LOCK;
    if (capturing()) return refuse(CAPTURE_UNSUPPORTED, "a module is loaded while a graph is recorded");
    auto *module = new Module;
    module->image = (const char *)image;
    if (module->image.find(".entry") == std::string::npos) {
        delete module;
        return INVALID_IMAGE;
    }
    *m = module;
    return OK;
}
API cuModuleLoadDataEx(void **m, const void *image, u32, int *, void **) { return cuModuleLoadData(m, image); }
API cuModuleUnload(void *) { return OK; }

/// The sizes of an entry's parameters, as the PTX declares them.
static std::vector<u32> declared(const std::string &text) {
    std::vector<u32> sizes;
    for (size_t at = 0; (at = text.find(".param ", at)) != std::string::npos; at++) {
        size_t end = text.find_first_of(",\n", at), bracket = text.find('[', at);
        if (bracket < end) {
            sizes.push_back(atoi(text.c_str() + bracket + 1));
        } else {
            size_t digits = text.find_first_of("0123456789", at); // .u64, .f32
            sizes.push_back(atoi(text.c_str() + digits) / 8);
        }
    }
    return sizes;
}

API cuModuleGetFunction(void **f, void *m, const char *name) {
    LOCK;
    if (capturing()) return refuse(CAPTURE_UNSUPPORTED, "%s is looked up while a graph is recorded", name);
    auto *module = (Module *)m;
    size_t at = module->image.find(std::string(".entry ") + name + "(");
    emu::Kernel *kernel = emu::Kernel::first;
    while (kernel && strcmp(kernel->name, name)) kernel = kernel->next;
    if (at == std::string::npos) return refuse(NOT_FOUND, "%s is not in the PTX", name);
    if (!kernel) return refuse(NOT_FOUND, "%s is in the PTX, but in no kernel's source", name);
    auto sizes = declared(module->image.substr(at, module->image.find(')', at) - at));
    if (sizes != std::vector<u32>(kernel->size, kernel->size + kernel->n_params))
        return refuse(INVALID_IMAGE, "%s: the PTX has other parameters than the source: it is stale", name);
    auto &function = module->functions[name];
    if (!function) {
        function.reset(new Function);
        function->kernel = kernel;
    }
    *f = function.get();
    return OK;
}
API cuFuncGetAttribute(int *v, int, void *) { *v = 0; return OK; }
API cuFuncSetAttribute(void *f, int which, int v) {
    if (which == 8) ((Function *)f)->most_shared = v;
    return OK;
}
API cuLaunchKernel(void *f, u32 gx, u32 gy, u32 gz, u32 bx, u32 by, u32 bz, u32 shared, void *h, void **params, void **) {
    LOCK;
    auto *function = (Function *)f;
    emu::Kernel *k = function->kernel;
    if (gy > 65535 || gz > 65535 || bx * by * bz > 1024)
        return refuse(INVALID, "%s: a grid of %u x %u x %u blocks of %u threads", k->name, gx, gy, gz, bx * by * bz);
    if ((int)shared > function->most_shared)
        return refuse(INVALID, "%s: %u bytes of dynamic shared memory, allowed are %d", k->name, shared, function->most_shared);
    count(h, "launch %s %ux%ux%u %u", k->name, gx, gy, gz, bx);
    auto kept = std::make_shared<std::vector<std::vector<u8>>>();
    for (int i = 0; i < k->n_params; i++) kept->emplace_back((u8 *)params[i], (u8 *)params[i] + k->size[i]);
    push(h, [=] {
        if (++launches == setting("TANDEM_EMU_FAULT_AT", 0)) {
            sticky = ILLEGAL_ADDRESS;
            return;
        }
        std::vector<void *> p;
        for (auto &v : *kept) p.push_back(v.data());
        static u64 seed = setting("TANDEM_EMU_SEED", 1);
        static int threads = setting("TANDEM_EMU_THREADS", 2);
        const char *e = emu::launch(k->entry, p.data(), {gx, gy, gz}, {bx, by, bz}, shared, seed, threads);
        if (e) sticky = refuse(LAUNCH_FAILED, "%s: %s", k->name, e);
    });
    return OK;
}

// Graphs.
API cuStreamBeginCapture_v2(void *h, int) {
    LOCK;
    if (stream_of(h)->capture) return INVALID;
    stream_of(h)->capture = new Graph;
    stream_of(h)->recorder = std::this_thread::get_id();
    return OK;
}
API cuStreamEndCapture(void *h, void **graph) {
    LOCK;
    *graph = stream_of(h)->capture;
    stream_of(h)->capture = nullptr;
    return OK;
}
API cuGraphInstantiateWithFlags(void **exec, void *graph, u64) {
    LOCK;
    if (!may_allocate()) return OUT_OF_MEMORY;
    *exec = new Graph(*(Graph *)graph);
    return OK;
}
API cuGraphLaunch(void *exec, void *h) {
    LOCK;
    count(h, "replay");
    for (auto &work : ((Graph *)exec)->work) push(h, work);
    return OK;
}
API cuGraphUpload(void *, void *) { return OK; }
API cuGraphExecDestroy(void *exec) {
    LOCK;
    delete (Graph *)exec;
    return OK;
}
API cuGraphDestroy(void *graph) {
    LOCK;
    delete (Graph *)graph;
    return OK;
}
