//! The terminal while an answer is written: what is typed is not shown, so that it does not land in
//! the answer, and is kept for the next line.
//!
//! The terminal stays in its line mode, with echo off. It is put back when the answer is done or
//! fails, before Ctrl-Z stops the program, and before a signal ends it.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use signal_hook::consts::{SIGQUIT, SIGTSTP};
use signal_hook::flag::register_conditional_default;
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

/// How the terminal was; None while its echo is on.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Whether the terminal is as it was, so that a signal's default action is right.
static AS_IT_WAS: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Keeps the echo off until it is dropped.
pub(super) struct Quiet(());

impl Quiet {
    /// Turns the echo off; None if stdin is not a terminal, or it cannot be done.
    pub(super) fn begin() -> Option<Quiet> {
        if !std::io::stdin().is_terminal() || !in_foreground() {
            return None;
        }
        let flag = AS_IT_WAS.get_or_init(watch);
        let before = tcgetattr(std::io::stdin()).ok()?;
        flag.store(false, Ordering::SeqCst);
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before.clone());
        hush(before);
        Some(Quiet(()))
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        restore();
    }
}

/// Puts the terminal back, if its echo is off.
pub(super) fn restore() {
    let before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(before) = before {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &before);
    }
    if let Some(flag) = AS_IT_WAS.get() {
        flag.store(true, Ordering::SeqCst);
    }
}

/// Turns the echo off. Ctrl-C is not to throw away what was typed before it.
fn hush(mut terminal: Termios) {
    terminal.local_modes.remove(LocalModes::ECHO | LocalModes::ECHONL);
    terminal.local_modes.insert(LocalModes::NOFLSH);
    let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &terminal);
}

/// Makes Ctrl-Z and Ctrl-\ put the terminal back before they do what they always do. Returns the
/// flag that leaves them alone.
fn watch() -> Arc<AtomicBool> {
    let flag = Arc::new(AtomicBool::new(true));
    let watched = [SIGTSTP, SIGQUIT];
    // The line editor counts on being stopped at once; so that happens in the handler.
    let registered = watched.iter().all(|s| register_conditional_default(*s, flag.clone()).is_ok());
    if let (true, Ok(mut signals)) = (registered, Signals::new(watched)) {
        std::thread::spawn(move || {
            for signal in signals.forever() {
                let quiet = || BEFORE.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let Some(before) = quiet() else { continue };
                let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &before);
                let _ = emulate_default_handler(signal); // stopped here, until it is to go on
                if let Some(before) = quiet().filter(|_| in_foreground()) {
                    hush(before);
                }
            }
        });
    }
    flag
}

/// Whether the terminal is this program's: one in the background that changed it would be stopped.
/// True where the system does not say.
fn in_foreground() -> bool {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // After the name in parentheses: state, parent, process group, session, terminal, its group.
    let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    fields.get(2) == fields.get(5)
}
