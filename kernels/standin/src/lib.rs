//! A stand-in for libcuda.so: the driver calls that tandem makes, on host memory, for tests.
//!
//! Queued work runs as late as the driver's rules allow: when something waits for it. A forgotten event, wait or
//! synchronize then gives wrong results here too, and every time. Device memory starts as NaN; copies and parameters are
//! checked against what was allocated. A kernel runs as C++ (`native`), where the library of compiled kernels lies beside
//! this one, else its PTX is interpreted (`ptx`), which is slower and checks every access.
//!
//! | environment variable | meaning |
//! |---|---|
//! | `TANDEM_EMU_MEM_MB` | device memory (default 2048), 0: there is no device; `2048,1024` are two devices |
//! | `TANDEM_EMU_HIDDEN_MB` | as much of it is said to be free and is not |
//! | `TANDEM_EMU_SM` | compute capability (default 80) |
//! | `TANDEM_EMU_PTX` | 1: the PTX is interpreted even where compiled kernels are |
//! | `TANDEM_EMU_SEED` | the order of threads and blocks (default 1; 0: in order) |
//! | `TANDEM_EMU_THREADS` | threads of the system that blocks of compiled kernels run on (default 2) |
//! | `TANDEM_EMU_PEER` | 0: no device reaches another's memory |
//! | `TANDEM_EMU_NO_REGISTER` | 1: memory of the program's own cannot be pinned |
//! | `TANDEM_EMU_READ_ONLY` | 0: memory cannot be pinned for reading alone (attribute 113 is 0) |
//! | `TANDEM_EMU_ALLOC_LIMIT` | after so many allocations of device memory (a graph is one, too) there is none left |
//! | `TANDEM_EMU_FAULT_AT` | the launch of this number (from 1) ends with an illegal address, and everything after it fails |
//! | `TANDEM_EMU_DEAF` | 1: waits for events are left out, as if the program had forgotten them (for tests of tests) |
//! | `TANDEM_EMU_COUNT` | a file to which each launch, copy and replay of a graph is added as a line (`driver::Log`) |
//! | `TANDEM_EMU_PROFILE` | a file to which the end of the program adds what interpreted kernels did (`ptx::meter`) |

mod api;
mod driver;
mod native;
pub mod ptx;

/// The value of an environment variable that is a number, or `otherwise`.
fn setting(name: &str, otherwise: i64) -> i64 {
    std::env::var(name).ok().and_then(|v| v.trim().parse().ok()).unwrap_or(otherwise)
}
