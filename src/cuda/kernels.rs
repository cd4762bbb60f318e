//! The kernels, as PTX in this binary: one module for each source file under `kernels/`, in two tiers. `kernels/ptx.sh`
//! makes them; a test holds each to the hash of its sources.
//!
//! `TANDEM_PTX_DIR` names a folder of other PTX files for those who work on kernels.

use std::path::PathBuf;

use crate::quant::ptx::{FORMATS, Tiers, modules};

/// The ops' own.
static OPS: [(&str, Tiers); 5] = modules!("attend" "basic" "recurrent" "route" "streams");

/// The module of a weight format, if it has kernels.
pub fn module_of(format: &str) -> Option<&'static str> {
    FORMATS.iter().map(|(name, _)| *name).find(|name| name.eq_ignore_ascii_case(format))
}

/// Every module: its name, and its PTX in the two tiers.
pub fn all() -> impl Iterator<Item = (&'static str, Tiers)> {
    OPS.iter().chain(&FORMATS).copied()
}

/// A module's PTX for a device.
pub(super) fn ptx(name: &str, capability: (i32, i32)) -> String {
    let (tier, file) = if capability >= (8, 0) { (1, "sm_80") } else { (0, "sm_75") };
    if let Some(dir) = std::env::var_os("TANDEM_PTX_DIR") {
        let path = PathBuf::from(dir).join(format!("{name}.{file}.ptx"));
        match std::fs::read_to_string(&path) {
            Ok(text) => return text,
            Err(e) => say!("TANDEM_PTX_DIR: {}: {e}; using the built-in kernels of {name}", path.display()),
        }
    }
    let (_, tiers) = all().find(|(n, _)| *n == name).expect("a module of this binary");
    tiers[tier].to_owned()
}
