//! On which CPUs the process runs: `--cpu-mask` and `--cpu-range`, read as llama.cpp reads them.

use anyhow::{Context, Result};

use super::args::OverrideArgs;
use super::errors::usage;

/// The most CPUs that the system's set has.
const MOST: usize = 1024;

/// Keeps the process on the CPUs that the flags name. Called before threads start, which inherit it;
/// their default number follows from it.
///
/// # Errors
/// If a flag has no form of a mask or a range, or the system refuses these CPUs.
pub(super) fn hold(flags: &OverrideArgs) -> Result<()> {
    let mut cpus = Vec::new();
    if let Some(text) = &flags.cpu_mask {
        match mask(text) {
            Some(list) => cpus.extend(list),
            None => return usage(format!("--cpu-mask {text}: expected a hexadecimal number, a bit for each CPU")),
        }
    }
    if let Some(text) = &flags.cpu_range {
        match range(text) {
            Some((from, to)) => cpus.extend(from..=to),
            None => return usage(format!("--cpu-range {text}: expected two numbers of CPUs, like 0-7")),
        }
    }
    if cpus.is_empty() { Ok(()) } else { run_on(&cpus) }
}

/// Keeps the process on these CPUs.
fn run_on(cpus: &[usize]) -> Result<()> {
    match crate::cpu::run_on(cpus) {
        Err(e) if e.kind() == std::io::ErrorKind::Unsupported => {
            super::errors::off("--cpu-mask", "this system has no such call")
        }
        done => done.context("cannot run on the CPUs of --cpu-mask and --cpu-range"),
    }
}

/// The CPUs of a mask: the last digit has CPUs 0 to 3.
fn mask(text: &str) -> Option<Vec<usize>> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    let digits: Vec<u32> = digits.chars().rev().map(|c| c.to_digit(16)).collect::<Option<_>>()?;
    let bits = digits.iter().enumerate().flat_map(|(i, digit)| (0..4).map(move |bit| (4 * i + bit, digit >> bit & 1)));
    let cpus: Vec<usize> = bits.filter(|(_, on)| *on == 1).map(|(cpu, _)| cpu).collect();
    (cpus.last()? < &MOST).then_some(cpus)
}

/// `FROM-TO`; without FROM it begins at 0, without TO it goes up to the last CPU.
fn range(text: &str) -> Option<(usize, usize)> {
    let (from, to) = text.split_once('-')?;
    let number = |text: &str, default| if text.is_empty() { Some(default) } else { text.parse().ok() };
    let (from, to) = (number(from, 0)?, number(to, MOST - 1)?);
    (from <= to && to < MOST).then_some((from, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_and_a_range_name_their_cpus() {
        assert_eq!(mask("0xf0"), Some(vec![4, 5, 6, 7]));
        assert_eq!(mask("100000001"), Some(vec![0, 32]));
        assert_eq!([mask(""), mask("0"), mask("0xg")], [None, None, None]);
        assert_eq!([range("2-5"), range("-3"), range("1020-")], [Some((2, 5)), Some((0, 3)), Some((1020, 1023))]);
        assert_eq!([range("5-2"), range("7"), range("0-9999")], [None, None, None]);
    }
}
