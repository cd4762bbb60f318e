//! The clipboard: through a program of the desktop, or through the terminal.
//!
//! A program is asked on a desktop of this machine; over ssh, or where there is none, the terminal
//! is: `ESC ] 52 ; c ; base64 BEL` (xterm's control sequences, OSC 52), which terminals take that
//! allow it.

use std::ffi::OsStr;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::cli::human::grouped;

/// What is needed for a program: the variable that says its desktop is there (none: always), the
/// program, its arguments.
const PROGRAMS: [(Option<&str>, &str, &[&str]); 4] = [
    (Some("WAYLAND_DISPLAY"), "wl-copy", &[]),
    (Some("DISPLAY"), "xclip", &["-selection", "clipboard"]),
    (Some("DISPLAY"), "xsel", &["--clipboard", "--input"]),
    (None, "pbcopy", &[]),
];

/// Bytes of base64 that xterm takes by default.
const MOST_BASE64: usize = 100_000;

/// Puts a text into the clipboard. Returns what happened, in words.
///
/// # Errors
/// If a program fails, or there is neither a program nor a terminal.
pub(super) fn copy(text: &str) -> Result<String> {
    let n = grouped(text.chars().count());
    let set = |name: &str| std::env::var_os(name).is_some_and(|v| !v.is_empty());
    if !set("SSH_TTY") && !set("SSH_CONNECTION") {
        for (needs, program, args) in PROGRAMS {
            if needs.is_none_or(set) && find(program).is_some() {
                give(program, args, text)?;
                return Ok(format!("copied {n} characters with {program}"));
            }
        }
    }
    if !std::io::stderr().is_terminal() {
        bail!("/copy: no clipboard: none of wl-copy, xclip, xsel and pbcopy can be used, and stderr is not a terminal");
    }
    let encoded = base64(text.as_bytes());
    let mut out = std::io::stderr();
    write!(out, "\x1b]52;c;{encoded}\x07")?;
    out.flush()?;
    let long = if encoded.len() > MOST_BASE64 { "; that is more than many terminals take" } else { "" };
    Ok(format!(
        "sent {n} characters to the terminal's clipboard (OSC 52), which terminals may ignore{long}; with wl-copy or \
         xclip installed, a desktop gets them directly"
    ))
}

/// A program in PATH.
fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// Runs a program with the text on its stdin.
fn give(program: &str, args: &[&str], text: &str) -> Result<()> {
    let args = args.iter().map(OsStr::new);
    // These go on in the background, to answer who pastes, so nothing of theirs is waited for but
    // their beginning.
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("/copy: cannot run {program}"))?;
    let mut stdin = child.stdin.take().context("no stdin")?;
    stdin.write_all(text.as_bytes()).with_context(|| format!("/copy: {program} did not take the text"))?;
    drop(stdin);
    let status = child.wait().with_context(|| format!("/copy: {program}"))?;
    if !status.success() {
        bail!("/copy: {program} failed ({status})");
    }
    Ok(())
}

/// Base64 (RFC 4648, section 4).
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let bits = (0..3).fold(0u32, |bits, i| bits << 8 | u32::from(three.get(i).copied().unwrap_or(0)));
        for i in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * i) & 63) as usize];
            out.push(if i <= three.len() { char::from(letter) } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc() {
        // RFC 4648, section 10.
        for (text, encoded) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(base64(text.as_bytes()), encoded);
        }
    }
}
