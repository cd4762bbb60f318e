//! Mapped files that are cut short while they are used. The system answers a read of a page that the
//! file no longer has with the signal SIGBUS, which ends a program.
//!
//! ```text
//! address in a guarded map    the pages from there to the map's end become zeros of our own (mmap, MAP_FIXED), the map
//!                             is marked, and the read that failed goes on
//! any other address           the handler that was there before
//! ```
//! So whatever reads a map goes on with zeros, and must look at the mark ([`Guard::is_lost`]) before it uses what came of
//! it. A disk that cannot be read, or a network that is gone, comes as the same signal and ends in the same way.

#![allow(unsafe_code)] // a signal handler, and pages put in the place of a map's

use std::sync::atomic::{AtomicBool, Ordering};

/// Whether pages of any map of this process were ever lost: then it is worth while to ask which.
static ANY: AtomicBool = AtomicBool::new(false);

/// Whether pages of any guarded map were lost since the program began.
pub(crate) fn any_lost() -> bool {
    ANY.load(Ordering::SeqCst)
}

/// A place in the table of maps that the handler knows, held as long as the map lives.
#[derive(Debug)]
pub(super) struct Guard(#[cfg(unix)] usize);

#[cfg(unix)]
mod unix {
    use std::ffi::c_void;
    use std::mem::MaybeUninit;
    use std::ops::Range;
    use std::ptr::null_mut;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
    use std::sync::{Mutex, Once, OnceLock, PoisonError};

    use super::{ANY, Guard};

    /// Maps that can be guarded at one time: more files than any published model is split into.
    const MOST: usize = 1024;

    /// A map of the table; its start is 0 where the place is free.
    struct Place {
        start: AtomicUsize,
        end: AtomicUsize,
        lost: AtomicBool,
    }

    static PLACES: [Place; MOST] =
        [const { Place { start: AtomicUsize::new(0), end: AtomicUsize::new(0), lost: AtomicBool::new(false) } }; MOST];
    /// Held while a place is taken or given back; the handler never waits for it.
    static CHANGING: Mutex<()> = Mutex::new(());
    static PAGE: AtomicUsize = AtomicUsize::new(0);
    static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

    impl Guard {
        /// Guards the pages of a map at these addresses. None if the table is full or the system
        /// refuses the handler.
        pub(in super::super) fn new(map: Range<usize>) -> Option<Guard> {
            if !listens() {
                return None;
            }
            let _alone = CHANGING.lock().unwrap_or_else(PoisonError::into_inner);
            let at = PLACES.iter().position(|p| p.start.load(SeqCst) == 0)?;
            let page = PAGE.load(SeqCst);
            PLACES[at].lost.store(false, SeqCst);
            PLACES[at].end.store(map.end.next_multiple_of(page), SeqCst);
            PLACES[at].start.store(map.start, SeqCst); // last: from here on the handler knows it
            Some(Guard(at))
        }

        /// Whether pages of the map were lost.
        pub(in super::super) fn is_lost(&self) -> bool {
            PLACES[self.0].lost.load(SeqCst)
        }
    }

    impl Drop for Guard {
        fn drop(&mut self) {
            let _alone = CHANGING.lock().unwrap_or_else(PoisonError::into_inner);
            PLACES[self.0].start.store(0, SeqCst);
        }
    }

    /// Whether the handler is there; the first call installs it.
    fn listens() -> bool {
        static INSTALLED: AtomicBool = AtomicBool::new(false);
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            // SAFETY: sysconf has no conditions. The first sigaction writes what is there into `before`, which has room
            // for it; the second installs a handler that does only what one may do: atomics, mmap, sigaction, and the
            // handler from before. With SA_ONSTACK it runs where Rust's own handler for stack overflows would.
            unsafe {
                let page = libc::sysconf(libc::_SC_PAGESIZE);
                let mut before = MaybeUninit::<libc::sigaction>::zeroed();
                if page < 1 || libc::sigaction(libc::SIGBUS, std::ptr::null(), before.as_mut_ptr()) != 0 {
                    return;
                }
                PAGE.store(page as usize, SeqCst);
                let _ = BEFORE.set(before.assume_init());
                let mut ours = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
                ours.sa_sigaction = on_fault as *const () as usize;
                ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
                libc::sigemptyset(&raw mut ours.sa_mask);
                INSTALLED.store(libc::sigaction(libc::SIGBUS, &raw const ours, null_mut()) == 0, SeqCst);
            }
        });
        INSTALLED.load(SeqCst)
    }

    extern "C" fn on_fault(signal: i32, info: *mut libc::siginfo_t, context: *mut c_void) {
        // SAFETY: the system passes a valid siginfo; it has an address where the code says that a read caused it, and
        // not another process.
        let address = unsafe { ((*info).si_code > 0).then(|| (*info).si_addr() as usize) };
        if !address.is_some_and(replace) {
            pass_on(signal, info, context);
        }
    }

    /// Puts zeros in the place of all pages of a guarded map from this address on. False if it is in
    /// none.
    fn replace(address: usize) -> bool {
        let page = PAGE.load(SeqCst);
        for place in &PLACES {
            let start = place.start.load(SeqCst);
            let end = place.end.load(SeqCst);
            // The start again: the end is that of another map where the place changed hands between.
            if start == 0 || !(start..end).contains(&address) || place.start.load(SeqCst) != start {
                continue;
            }
            let from = address - address % page;
            let (kind, access) = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE, libc::PROT_READ);
            // SAFETY: the pages belong to a read-only map that lives, since it was read just now; whoever reads them
            // meanwhile finds bytes of the file or zeros, and the guard's mark tells which of the two it may be.
            let new = unsafe { libc::mmap(from as *mut c_void, end - from, access, kind | libc::MAP_FIXED, -1, 0) };
            if new != libc::MAP_FAILED {
                place.lost.store(true, SeqCst);
                ANY.store(true, SeqCst);
                return true;
            }
        }
        false
    }

    /// Does what would have been done without the handler here.
    fn pass_on(signal: i32, info: *mut libc::siginfo_t, context: *mut c_void) {
        type Long = extern "C" fn(i32, *mut libc::siginfo_t, *mut c_void);
        type Short = extern "C" fn(i32);
        let Some(before) = BEFORE.get() else { return };
        match before.sa_sigaction {
            libc::SIG_DFL | libc::SIG_IGN => {
                // SAFETY: it was there before. The read is tried again, and ends the program.
                unsafe { libc::sigaction(signal, before, null_mut()) };
                // SAFETY: raise has no conditions. What another process sent does not come again by itself.
                unsafe { libc::raise(signal) };
            }
            // SAFETY: the system had this address as a handler of three arguments, as the flag says.
            f if before.sa_flags & libc::SA_SIGINFO != 0 => unsafe {
                std::mem::transmute::<usize, Long>(f)(signal, info, context);
            },
            // SAFETY: the system had this address as a handler of one argument.
            f => unsafe { std::mem::transmute::<usize, Short>(f)(signal) },
        }
    }
}

#[cfg(not(unix))]
impl Guard {
    /// There are no such signals here: files that are mapped cannot be cut short.
    pub(super) fn new(_: std::ops::Range<usize>) -> Option<Guard> {
        None
    }

    pub(super) fn is_lost(&self) -> bool {
        false
    }
}
