//! What Ctrl-C does, and the signals that end a program (a closed terminal, kill, a shutdown): the
//! current work stops, what was generated so far is kept, and the line editor is interrupted.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::raise;

use super::echo;
use crate::session::Session;

/// The signal that asked the program to end; 0: none did.
static LEAVING: AtomicI32 = AtomicI32::new(0);

/// Whether a line is waited for.
static WAITING: AtomicBool = AtomicBool::new(false);

/// The flags to raise: that of who waits for an answer, and that of the session.
type Flags = (Arc<AtomicBool>, Arc<AtomicBool>);

/// The flags of the session that is open; a chat may open one after another.
static FLAGS: Mutex<Option<Flags>> = Mutex::new(None);

/// How often the line editor is called, which may not listen yet.
const AGAIN: Duration = Duration::from_millis(10);

/// Whether [`listen`] has taken over from [`while_fetching`].
static LISTENED: AtomicBool = AtomicBool::new(false);

/// Makes the signals raise the flag returned here, which stops a fetch. One that comes when it is raised already ends the
/// program, so that the caller raises it when the fetch is done.
pub(super) fn while_fetching() -> Result<Arc<AtomicBool>> {
    let asked = Arc::new(AtomicBool::new(false));
    let flag = asked.clone();
    let mut signals = heard()?;
    let listener = move || {
        for signal in signals.forever() {
            if LISTENED.load(Ordering::SeqCst) {
                return;
            }
            if flag.swap(true, Ordering::SeqCst) {
                std::process::exit(128 + signal);
            }
            if signal != SIGINT {
                LEAVING.store(signal, Ordering::SeqCst);
            }
        }
    };
    start_thread("signals", listener)?;
    Ok(asked)
}

/// Makes the signals raise the session's stop flag and the one returned here; `leaves`: a second
/// Ctrl-C ends the program at once. What ends programs does so the second time, too. Called again,
/// they raise those of the new session instead.
pub(super) fn listen(session: &Session, leaves: bool) -> Result<Arc<AtomicBool>> {
    let asked = Arc::new(AtomicBool::new(false));
    let flags = FLAGS.lock().unwrap_or_else(PoisonError::into_inner).replace((asked.clone(), session.stop_flag()));
    if flags.is_some() {
        return Ok(asked); // the thread is there
    }
    let mut signals = heard()?;
    LISTENED.store(true, Ordering::SeqCst);
    let listener = move || {
        for signal in signals.forever() {
            let flags = FLAGS.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let Some((flag, stop)) = flags else { continue };
            // This comes first: whoever lowers the flags below checks `leaving` after that.
            let again = match signal {
                SIGINT => flag.load(Ordering::SeqCst) && leaves && !leaving(),
                _ => LEAVING.swap(signal, Ordering::SeqCst) != 0,
            };
            if again {
                echo::restore();
                std::process::exit(128 + signal);
            }
            flag.store(true, Ordering::SeqCst);
            stop.store(true, Ordering::SeqCst);
            while leaving() && WAITING.load(Ordering::SeqCst) {
                if !std::io::stdin().is_terminal() {
                    echo::restore();
                    std::process::exit(status()); // every answer was saved when it was done
                }
                let _ = raise(SIGINT); // the line editor takes it while it reads
                std::thread::sleep(AGAIN);
            }
        }
    };
    start_thread("signals", listener)?;
    Ok(asked)
}

/// The signals that end a program, but those that it is to ignore: under nohup, or in the background
/// of a script.
fn heard() -> Result<Signals> {
    let ignored = ignored(&std::fs::read_to_string("/proc/self/status").unwrap_or_default());
    let heard = [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|s| ignored >> (s - 1) & 1 == 0);
    Signals::new(heard).context("cannot listen for Ctrl-C")
}

/// Starts a thread that lives as long as the program, or as its work.
///
/// # Errors
/// If the system starts no more threads.
pub(super) fn start_thread(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    let started = std::thread::Builder::new().name(name.into()).spawn(work);
    started.map(drop).with_context(|| format!("cannot start the thread {name}: raise the limit (`ulimit -u` shows it)"))
}

/// Makes a file that reaches the limit of its size (`ulimit -f`) an error like that of a full disk; by itself the signal
/// ends the program, and what was generated so far is lost.
///
/// # Errors
/// If the system refuses.
pub(super) fn outlive_full_files() -> Result<()> {
    #[cfg(unix)]
    signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::default()).context("cannot listen for SIGXFSZ")?;
    Ok(())
}

/// The signals that a process ignores, by the system's words on it, as bits.
fn ignored(status: &str) -> u64 {
    let line = status.lines().find_map(|l| l.strip_prefix("SigIgn:"));
    line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

/// Whether the program was asked to end.
pub(super) fn leaving() -> bool {
    LEAVING.load(Ordering::SeqCst) != 0
}

/// The status of a program that a signal ended, as shells count it.
pub(super) fn status() -> i32 {
    128 + if leaving() { LEAVING.load(Ordering::SeqCst) } else { SIGINT }
}

/// Waits for a line; None when the program is to end instead.
pub(super) fn wait<R>(read: impl FnOnce() -> R) -> Option<R> {
    WAITING.store(true, Ordering::SeqCst);
    let line = (!leaving()).then(read);
    WAITING.store(false, Ordering::SeqCst);
    line.filter(|_| !leaving())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_ignores_is_read_from_the_systems_words() {
        let bit = |s: i32| 1 << (s - 1);
        assert_eq!(
            ignored("Name:\ttandem\nSigIgn:\t0000000000001001\nSigCgt:\t0000000000000002\n"),
            bit(SIGHUP) | 1 << 12
        );
        assert_eq!(ignored(""), 0);
    }
}
