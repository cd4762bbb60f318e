//! The formats' GPU kernels as PTX: one module per format, named after it in lower case, in two
//! versions, for devices from sm_75 and from sm_80 on. `kernels/ptx.sh` makes them from
//! kernels/quant.

/// A module's PTX for sm_75 and for sm_80.
pub type Tiers = [&'static str; 2];

/// Lists modules by name, with their PTX.
macro_rules! modules {
    ($($name:literal)*) => {
        [$(($name, [
            include_str!(concat!("../../kernels/ptx/", $name, ".sm_75.ptx")),
            include_str!(concat!("../../kernels/ptx/", $name, ".sm_80.ptx")),
        ])),*]
    };
}
pub(crate) use modules;

/// The module of each format.
#[rustfmt::skip]
pub static FORMATS: [(&str, Tiers); 28] = modules!(
    "bf16" "f16" "f32" "iq1_m" "iq1_s" "iq2_s" "iq2_xs" "iq2_xxs" "iq3_s" "iq3_xxs" "iq4_nl" "iq4_xs" "mxfp4" "nvfp4"
    "q1_0" "q2_0" "q2_k" "q3_k" "q4_0" "q4_1" "q4_k" "q5_0" "q5_1" "q5_k" "q6_k" "q8_0" "tq1_0" "tq2_0"
);
