//! What a command line says otherwise than the model's file: `--override-kv`, and llama.cpp's flags
//! for RoPE and YaRN, each as the metadata key that it sets.
//!
//! ```text
//! --rope-freq-base N      rope.freq_base = N
//! --rope-scale N          rope.scaling.factor = N; --rope-freq-scale N is 1/N
//! --rope-scaling TYPE     rope.scaling.type
//! --yarn-orig-ctx N       rope.scaling.original_context_length
//! --yarn-attn-factor N    rope.scaling.attn_factor, times N
//! --yarn-beta-fast N      rope.scaling.yarn_beta_fast, and so slow
//! ```
//! Keys and types are those of llama.cpp b11434 (`string_parse_kv_override` in common/common.cpp; the
//! context's parameters in src/llama-context.cpp).

use std::sync::OnceLock;

use anyhow::Result;

use super::args::OverrideArgs;
use super::errors::{off, usage};
use crate::gguf::{Gguf, Meta, Value};
use crate::tape::Tape;

/// Stands for the name of the model's architecture, which is known when its file is open.
const ARCH: &str = "ARCH.";
/// What rotated values are multiplied by.
const MAGNITUDE: &str = "ARCH.rope.scaling.attn_factor";

/// One override.
#[derive(Clone, Debug, PartialEq)]
struct Override {
    /// The flag, as messages name it.
    flag: String,
    key: String,
    value: Value,
}

/// The overrides of this process, for every model that it opens.
static ASKED: OnceLock<Vec<Override>> = OnceLock::new();

/// Makes the flags' overrides hold for every model that is opened from now on.
///
/// # Errors
/// If a flag has a value that it cannot have: a usage error.
pub(super) fn hold(flags: &OverrideArgs) -> Result<()> {
    let _ = ASKED.set(overrides(flags)?);
    Ok(())
}

/// What the flags override.
fn overrides(flags: &OverrideArgs) -> Result<Vec<Override>> {
    let mut all = Vec::new();
    for text in flags.override_kv.iter().flat_map(|list| list.split(',')) {
        let Some((key, value)) = parse(text) else {
            return usage(format!("--override-kv {text}: expected KEY=TYPE:VALUE with int, float, bool or str"));
        };
        all.push(Override { flag: format!("--override-kv {key}"), key, value });
    }
    let scale = flags.rope_freq_scale.map(|n| if n == 0.0 { n } else { 1.0 / n });
    let numbers = [
        ("--rope-freq-base", "ARCH.rope.freq_base", flags.rope_freq_base),
        ("--rope-freq-scale", "ARCH.rope.scaling.factor", scale),
        ("--rope-scale", "ARCH.rope.scaling.factor", flags.rope_scale),
        ("--yarn-attn-factor", MAGNITUDE, flags.yarn_attn_factor),
        ("--yarn-beta-fast", "ARCH.rope.scaling.yarn_beta_fast", flags.yarn_beta_fast),
        ("--yarn-beta-slow", "ARCH.rope.scaling.yarn_beta_slow", flags.yarn_beta_slow),
    ];
    for (flag, key, value) in numbers {
        let of_model = if key.starts_with("ARCH.rope.scaling.yarn") || key == MAGNITUDE { -1.0 } else { 0.0 };
        match value {
            Some(n) if n == of_model => {}
            Some(n) if n.is_finite() && n > 0.0 => {
                all.push(Override { flag: flag.into(), key: key.into(), value: n.into() });
            }
            Some(n) => {
                return usage(format!("{flag} {n}: expected a number above 0, or {of_model} for the model's own"));
            }
            None => {}
        }
    }
    if let Some(n) = flags.yarn_orig_ctx.filter(|n| *n > 0) {
        let key = "ARCH.rope.scaling.original_context_length".into();
        all.push(Override { flag: "--yarn-orig-ctx".into(), key, value: n.into() });
    }
    if let Some(kind) = &flags.rope_scaling {
        let key = "ARCH.rope.scaling.type".into();
        all.push(Override { flag: "--rope-scaling".into(), key, value: kind.as_str().into() });
    }
    Ok(all)
}

/// `KEY=TYPE:VALUE`.
fn parse(text: &str) -> Option<(String, Value)> {
    let (key, typed) = text.split_once('=').filter(|(key, _)| !key.is_empty())?;
    let (kind, value) = typed.split_once(':')?;
    let value = match kind {
        "int" => Value::I64(value.parse().ok()?),
        "float" => Value::F64(value.parse().ok().filter(|n: &f64| n.is_finite())?),
        "bool" => Value::Bool(value.parse().ok()?),
        "str" => Value::Str(value.into()),
        _ => return None,
    };
    Some((key.to_owned(), value))
}

/// Puts the overrides into a model's metadata.
///
/// # Errors
/// If the file's own value is of no kind that can be multiplied.
pub(super) fn apply(meta: &mut Meta) -> Result<()> {
    for Override { flag, key, value } in ASKED.get().into_iter().flatten() {
        let own = full(key, meta)?;
        let value = match (value, key == MAGNITUDE) {
            (Value::F32(by), true) => (by * meta.opt_f32(&own)?.unwrap_or(1.0)).into(),
            (value, _) => value.clone(),
        };
        match meta.get(&own) {
            Some(before) => tracing::info!("{flag}: {own} is {} instead of {}", value.describe(), before.describe()),
            None => tracing::info!("{flag}: {own} is {}; the file does not have it", value.describe()),
        }
        meta.replace(&own, value);
    }
    Ok(())
}

/// Reports the overrides that the model does not depend on.
///
/// # Errors
/// If there are any and `--strict` was given.
pub(super) fn report_idle(gguf: &Gguf, tape: &Tape) -> Result<()> {
    for Override { flag, key, .. } in ASKED.get().into_iter().flatten() {
        let key = full(key, &gguf.meta)?;
        if let Some(unused) = tape.unused_keys.iter().find(|k| k.key == key && k.known) {
            off(flag, &format!("this model does not use {key} ({})", unused.why))?;
        }
    }
    Ok(())
}

/// A key with the name of the model's architecture.
fn full(key: &str, meta: &Meta) -> Result<String> {
    Ok(match key.strip_prefix(ARCH) {
        Some(rest) => format!("{}.{rest}", meta.str("general.architecture")?),
        None => key.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_of_override_is_read_as_llama_cpp_reads_it_and_no_other_is() {
        let of = |text: &str| overrides(&OverrideArgs { override_kv: vec![text.into()], ..OverrideArgs::default() });
        let values = of("a=int:-3,b=float:0.5,c=bool:true,d=str:x y:z").unwrap();
        let values: Vec<(&str, &Value)> = values.iter().map(|o| (&o.key[..], &o.value)).collect();
        let text = Value::from("x y:z");
        assert_eq!(values, [("a", &(-3i64).into()), ("b", &0.5f64.into()), ("c", &true.into()), ("d", &text)]);
        for bad in ["", "a", "a=3", "a=int:x", "a=bool:1", "a=float:nan", "a=i32:1", "=int:1"] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_flags_of_rope_become_the_keys_that_they_stand_for() {
        let flags = OverrideArgs {
            rope_freq_base: Some(5e5),
            rope_freq_scale: Some(0.25),
            rope_scaling: Some("yarn".into()),
            yarn_orig_ctx: Some(4096),
            yarn_beta_fast: Some(-1.0),
            ..OverrideArgs::default()
        };
        let all = overrides(&flags).unwrap();
        let all: Vec<(&str, &Value)> = all.iter().map(|o| (&o.key[5..], &o.value)).collect();
        let (n, yarn) = (Value::U32(4096), Value::from("yarn"));
        assert_eq!(all[0], ("rope.freq_base", &5e5f32.into()));
        assert_eq!(all[1], ("rope.scaling.factor", &4f32.into()));
        assert_eq!(all[2..], [("rope.scaling.original_context_length", &n), ("rope.scaling.type", &yarn)]);
        assert!(overrides(&OverrideArgs { rope_scale: Some(-2.0), ..OverrideArgs::default() }).is_err());
    }
}
