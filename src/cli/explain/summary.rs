//! The verdict: three lines at the head of every report. Does it fit, where does it go, how fast is
//! it.

use super::file::FileFacts;
use super::speed::Speed;
use super::verdict::{MemoryFit, Verdict};
use crate::cli::human::count;

/// Of a model that can run; `placement`: where it goes, in words.
pub(super) fn lines(fit: &MemoryFit, placement: &str, speed: &Speed) -> [String; 3] {
    let (p, prompt) = (&speed.prediction, &speed.prompt);
    let in_memory = 1.0 / p.expected.unwrap_or(p.ceiling);
    let drive = fit.drive.as_ref();
    // Experts that have no room are read from the drive: for a token those that it chooses, for a batch
    // all of them.
    let (waits, batch_waits) =
        drive.map_or((0.0, 0.0), |d| (d.per_token / d.speed.rate, d.on_drive as f64 / d.speed.rate));
    let (decode, n) = (1.0 / (in_memory + waits), prompt.n_batch as f64);
    let read = n / (n / prompt.tokens_per_s + batch_waits);
    let words = if p.expected.is_none() { "at most" } else { "about" };
    let slow_drive = drive.map_or(String::new(), |d| d.speed.words());
    let limit = if waits > in_memory { slow_drive.clone() } else { p.limit_in_short(speed.steps) };
    let by = if batch_waits > n / prompt.tokens_per_s { &slow_drive } else { prompt.limit.name() };
    let fitted = if fit.verdict == Verdict::No && drive.is_none() { "if it fitted, " } else { "" };
    let (decode, read) = (rounded(decode), rounded(read));
    let text = format!("{fitted}decode {words} {decode} tokens/s (limited by {limit}), prompt about {read} (by {by})");
    [line("Fits", &fit.line), line("Placement", placement), line("Speed", &text)]
}

/// Of a file that this version cannot run; `why` in a few words; `gbps`: what memory gives.
pub(super) fn lines_of_refused(f: &FileFacts, fit: &MemoryFit, why: &str, gbps: f64) -> [String; 3] {
    let speed = match f.active_bytes {
        Some(bytes) if bytes > 0 => format!(
            "unknown; memory ({gbps:.1} GB/s) would allow a decode of at most {} tokens/s",
            rounded(gbps * 1e9 / bytes as f64)
        ),
        _ => "unknown; the file does not say what a token reads".into(),
    };
    [
        line("Fits", &fit.line),
        line("Placement", &format!("none, this version cannot run it: {why}")),
        line("Speed", &speed),
    ]
}

fn line(what: &str, text: &str) -> String {
    format!("{what}: {text}.")
}

/// A rate to the precision that a prediction has.
fn rounded(rate: f64) -> String {
    match rate {
        r if r >= 1e5 => count(r as usize),
        r if r >= 100.0 => format!("{r:.0}"),
        r => format!("{r:.1}"),
    }
}
