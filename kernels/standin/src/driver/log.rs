//! The file of `TANDEM_EMU_COUNT`: what the program asked for, a line each, so that tests can count it.
//!
//! ```text
//! launch NAME 64x1x1 256      a kernel, its blocks and the threads of each
//! copy up 4096                to a device; down, within, across (from one to another): bytes
//! set 4096                    a memset
//! replay 21 2                 a recorded graph of 21 kernels and 2 copies was started
//! ```
//! What is recorded into a graph and does not run at once has `recorded` before it.

use std::fmt::Arguments;
use std::fs::File;
use std::io::Write;

#[derive(Default)]
pub(crate) struct Log(Option<File>);

impl Log {
    pub(super) fn open() -> Log {
        let path = std::env::var_os("TANDEM_EMU_COUNT");
        let open = |path: &std::ffi::OsStr| {
            File::options().create(true).append(true).open(path).unwrap_or_else(|e| panic!("TANDEM_EMU_COUNT: {e}"))
        };
        Log(path.as_deref().map(open))
    }

    pub(super) fn line(&mut self, recorded: bool, text: Arguments<'_>) {
        if let Some(file) = &mut self.0 {
            let before = if recorded { "recorded " } else { "" };
            // One write for each line, so that processes may share the file.
            file.write_all(format!("{before}{text}\n").as_bytes()).expect("TANDEM_EMU_COUNT can be written");
        }
    }
}
