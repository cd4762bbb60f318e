//! What only a terminal is shown: colours, and how far a prompt has been read.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressState, ProgressStyle};

use crate::session::Session;
use crate::talk::Progress;

/// Whether to write in colours; `terminal`: whether the output is one.
pub(super) fn colour(terminal: bool) -> bool {
    let set = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|t| t == "dumb");
    terminal && !set && !dumb
}

/// How often the bar is moved while a batch is computed.
const LOOK: Duration = Duration::from_millis(100);

/// Shows on stderr how far a prompt has been read, and only where that is a terminal: a batch may
/// take a minute, so it is also shown how far it has come through the steps of the model.
pub(super) struct PromptBar {
    bar: ProgressBar,
    /// Tokens in finished batches of this text, and of those before it.
    read: Arc<AtomicUsize>,
    earlier: usize,
    /// Steps of the current batch that are done, of `steps`, and its largest number of tokens.
    walked: Arc<AtomicUsize>,
    steps: usize,
    n_batch: usize,
    over: Arc<AtomicBool>,
}

impl PromptBar {
    pub(super) fn new(session: &Session) -> PromptBar {
        let engine = session.engine();
        PromptBar {
            bar: ProgressBar::hidden(),
            read: Arc::default(),
            earlier: 0,
            walked: engine.walked.clone(),
            steps: engine.tape.steps.len(),
            n_batch: session.n_batch(),
            over: Arc::default(),
        }
    }

    pub(super) fn progress(&mut self, p: Progress) {
        match p {
            Progress::Begins(n) => {
                self.earlier = self.finish(); // a prefix is read before the rest
                (self.read, self.over) = Default::default();
                // Short prompts are over before the first drawing.
                self.bar = ProgressBar::new(n as u64);
                let form = "reading the prompt {bar:30} {pos}/{len} tokens, {rate} tokens/s, {eta} left";
                let style = ProgressStyle::with_template(form).expect("a template that is right");
                let rate = |s: &ProgressState, out: &mut dyn std::fmt::Write| {
                    let _ = write!(out, "{:.0}", s.per_sec());
                };
                self.bar.set_style(style.with_key("rate", rate));
                if !tracing::enabled!(tracing::Level::INFO) {
                    self.bar.set_draw_target(indicatif::ProgressDrawTarget::hidden()); // -q
                }
                if !self.bar.is_hidden() {
                    let (bar, read, walked, over) =
                        (self.bar.clone(), self.read.clone(), self.walked.clone(), self.over.clone());
                    let (steps, n_batch) = (self.steps, self.n_batch);
                    std::thread::spawn(move || {
                        while !over.load(Ordering::Relaxed) {
                            std::thread::sleep(LOOK);
                            let (read, walked) = (read.load(Ordering::Relaxed), walked.load(Ordering::Relaxed));
                            bar.set_position((read + n_batch.min(n.saturating_sub(read)) * walked / steps) as u64);
                        }
                    });
                }
            }
            Progress::Read(n) => {
                let read = self.read.fetch_add(n, Ordering::Relaxed) + n;
                self.bar.set_position(read as u64);
            }
        }
    }

    /// Takes the bar away; how many tokens were read.
    pub(super) fn finish(&self) -> usize {
        self.over.store(true, Ordering::Relaxed);
        self.bar.finish_and_clear();
        self.earlier + self.read.load(Ordering::Relaxed)
    }
}

impl Drop for PromptBar {
    /// An error leaves no bar on the screen.
    fn drop(&mut self) {
        self.finish();
    }
}
