//! The codebooks of the IQ formats: constants, and how kernels look entries up.

pub(crate) mod grid;
pub(crate) mod tables;
