//! Whether the program was started with a closed stdout (`>&-`).
//!
//! Before `main`, Rust's runtime opens /dev/null where stdin, stdout or stderr is closed, so that no
//! file gets its number by chance; from then on what is written there is lost without an error. So a
//! function looks before that: one of those that the loader calls when it has loaded a program.

#![allow(unsafe_code)] // a function in the loader's list, and a system call on a bare number

use anyhow::{Result, bail};

/// Fails if stdout was closed when the program was started.
///
/// # Errors
/// If it was.
pub(super) fn check_stdout() -> Result<()> {
    if start::was_closed() {
        bail!("stdout is closed: there is nowhere to write to; leave it open, or use > /dev/null");
    }
    Ok(())
}

#[cfg(target_os = "linux")]
mod start {
    use std::sync::atomic::{AtomicBool, Ordering};

    static CLOSED: AtomicBool = AtomicBool::new(false);

    // SAFETY: the loader calls what is in this section before `main`, with one thread. `look` uses nothing that the
    // runtime sets up: it makes one system call and stores one atomic.
    #[used]
    #[unsafe(link_section = ".init_array")]
    static LOOK: extern "C" fn() = look;

    extern "C" fn look() {
        // SAFETY: F_GETFD takes any number, and fails for one that is no open file.
        let flags = unsafe { libc::fcntl(1, libc::F_GETFD) };
        CLOSED.store(flags == -1, Ordering::Relaxed);
    }

    pub(super) fn was_closed() -> bool {
        CLOSED.load(Ordering::Relaxed)
    }
}

#[cfg(not(target_os = "linux"))]
mod start {
    /// Nothing is known of it here.
    pub(super) fn was_closed() -> bool {
        false
    }
}
