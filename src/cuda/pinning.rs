//! How the host memory that experts lie in may be pinned, so that the GPU copies from it by itself.
//!
//! Two things decide about a mapped file, whose pages are read-only:
//! - Device attribute 113 says whether read-only pages can be pinned at all. Public probes found 0
//!   on a B300 with driver 610.
//! - NVIDIA's kernel module up to 565 marks every page dirty when it is unpinned, whatever the
//!   flags say (os-mlock.c of the open kernel modules, put right in 570.86.15): after a run that
//!   pinned 60 GB of a file the system writes 60 GB back to the drive. `cuDriverGetVersion` tells
//!   of libcuda, which a compatibility package can be newer than, so the module itself is asked.
//!
//! Memory of the program's own is writable and no file's, and is pinned plainly on every machine.

use std::path::Path;

/// The oldest kernel module that leaves the pages of a file clean.
const OLDEST_CLEAN: u32 = 570;

/// Whose the pages are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostMemory {
    /// A mapped file's: read-only.
    Mapped,
    /// The program's own.
    Own,
}

/// How pages are pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PinMode {
    /// The device may only read them.
    ReadOnly,
    /// The device may write to them too, as far as the driver knows.
    Plain,
}

/// How pages of this kind may be pinned, or why not. `read_only`: device attribute 113; `module`:
/// the version of the kernel module, None where nobody tells it.
///
/// # Errors
/// The reason, in words.
pub fn pin_mode(read_only: bool, module: Option<&str>, memory: HostMemory) -> Result<PinMode, String> {
    let major = module.and_then(|v| v.split('.').next()?.parse::<u32>().ok());
    match (memory, read_only, major) {
        (HostMemory::Own, _, _) => Ok(PinMode::Plain),
        (HostMemory::Mapped, false, _) => {
            Err("this GPU's driver cannot pin a mapped file, which is read-only (device attribute 113 is 0)".into())
        }
        (HostMemory::Mapped, true, Some(n)) if n >= OLDEST_CLEAN => Ok(PinMode::ReadOnly),
        (HostMemory::Mapped, true, Some(_)) => Err(format!(
            "kernel module {} of the driver would mark a mapped file's pinned pages as changed, so that the system writes \
             the whole file again; {OLDEST_CLEAN} or newer does not",
            module.unwrap_or_default()
        )),
        (HostMemory::Mapped, true, None) => Err(format!(
            "the version of the driver's kernel module is unknown, and one before {OLDEST_CLEAN} would mark a mapped file's \
             pinned pages as changed, so that the system writes the whole file again"
        )),
    }
}

/// The name that the stand-in driver of the tests has for its device.
const STAND_IN: &str = "emulated device";

/// The version of NVIDIA's kernel module. With the stand-in driver there is none:
/// `TANDEM_EMU_KERNEL_MODULE` says which one to believe in, a new one where it is not set.
pub(super) fn kernel_module(device: &str) -> Option<String> {
    if device == STAND_IN {
        let version = std::env::var("TANDEM_EMU_KERNEL_MODULE").unwrap_or("580.82.07".into());
        return version_in(&version);
    }
    read_kernel_module(Path::new("/"))
}

fn read_kernel_module(root: &Path) -> Option<String> {
    let files = ["sys/module/nvidia/version", "proc/driver/nvidia/version"];
    files.iter().find_map(|file| version_in(&std::fs::read_to_string(root.join(file)).ok()?))
}

/// The first word that is a version, as 570.86.15.
fn version_in(text: &str) -> Option<String> {
    let is_version =
        |w: &&str| w.contains('.') && w.split('.').all(|n| !n.is_empty() && n.chars().all(|c| c.is_ascii_digit()));
    text.split_whitespace().find(is_version).map(String::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_file_is_pinned_only_where_that_works_and_leaves_it_clean() {
        use HostMemory::{Mapped, Own};
        let word = |read_only, module, memory| match pin_mode(read_only, module, memory) {
            Ok(PinMode::ReadOnly) => "read-only".to_owned(),
            Ok(PinMode::Plain) => "plain".to_owned(),
            Err(why) => why,
        };
        for (read_only, module, memory, want) in [
            (true, Some("580.82.07"), Mapped, "read-only"),
            (true, Some("570.86.15"), Mapped, "read-only"),
            (true, Some("1000.1"), Mapped, "read-only"),
            (true, Some("565.57.01"), Mapped, "kernel module 565.57.01"),
            (true, Some("99.1"), Mapped, "kernel module 99.1"),
            (true, Some("new"), Mapped, "unknown"),
            (true, None, Mapped, "unknown"),
            (false, Some("610.43"), Mapped, "attribute 113"),
            (false, None, Mapped, "attribute 113"),
            (true, Some("580.82.07"), Own, "plain"),
            (false, Some("580.82.07"), Own, "plain"),
            (true, Some("535.54.03"), Own, "plain"),
            (false, None, Own, "plain"),
        ] {
            let got = word(read_only, module, memory);
            assert!(got.contains(want), "{read_only} {module:?} {memory:?}: {got}, expected {want}");
        }
    }

    #[test]
    fn the_kernel_module_is_asked_and_not_the_library() {
        let proc = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.54.03  Tue Jun  6 22:20:39 UTC 2023\nGCC version: \
                    gcc version 12.2.0 (Debian 12.2.0-14)\n";
        let open = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build  (dvs@host)\n";
        for (text, want) in [
            ("570.86.15\n", Some("570.86.15")),
            (proc, Some("535.54.03")),
            (open, Some("570.86.15")),
            ("", None),
            ("none of it. is one", None),
        ] {
            assert_eq!(version_in(text).as_deref(), want, "{text}");
        }
        let root = tempfile::tempdir().unwrap();
        assert_eq!(read_kernel_module(root.path()), None, "no module, no version");
        let write = |file: &str, text: &str| {
            let path = root.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("proc/driver/nvidia/version", proc);
        assert_eq!(read_kernel_module(root.path()).as_deref(), Some("535.54.03"));
        write("sys/module/nvidia/version", "570.86.15\n");
        assert_eq!(read_kernel_module(root.path()).as_deref(), Some("570.86.15"));
    }
}
