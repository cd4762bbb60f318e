//! Sizes, counts, tables and paragraphs as people write and read them.

use std::sync::atomic::{AtomicBool, Ordering};

/// The unit of a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    /// GB: 1e9 bytes, as disks and files are measured.
    Decimal,
    /// GiB: 2^30 bytes, as memory is sold. A plain G means this.
    Binary,
}

/// A size as people write it, and the unit that they mean: 6G, 1.5GiB, 800M and 4096K are powers of
/// 1024; 6GB, 800MB and 4096KB are powers of 1000; a plain number is bytes.
pub(super) fn parse_size(text: &str) -> Option<(usize, Unit)> {
    let lower = text.trim().to_ascii_lowercase();
    let (rest, unit) = match (lower.strip_suffix("ib"), lower.strip_suffix('b'), lower.strip_suffix('i')) {
        (Some(rest), _, _) | (None, None, Some(rest)) => (rest, Unit::Binary),
        (None, Some(rest), _) => (rest, Unit::Decimal),
        (None, None, None) => (&lower[..], Unit::Binary),
    };
    let by = if unit == Unit::Binary { 1024.0 } else { 1000f64 };
    let (number, power) = match rest.char_indices().last()? {
        (at, 'k') => (&rest[..at], 1),
        (at, 'm') => (&rest[..at], 2),
        (at, 'g') => (&rest[..at], 3),
        (at, 't') => (&rest[..at], 4),
        _ => (rest, 0),
    };
    let unit = if power == 0 { Unit::Decimal } else { unit };
    let n: f64 = number.trim().parse().ok()?;
    (n.is_finite() && n >= 0.0).then_some(((n * by.powi(power)) as usize, unit))
}

/// Whether sizes are written in GiB.
static BINARY: AtomicBool = AtomicBool::new(false);

/// Makes [`size`] write sizes in this unit from now on, in this process; GB without it.
pub(super) fn write_sizes_in(unit: Unit) {
    BINARY.store(unit == Unit::Binary, Ordering::Relaxed);
}

/// Bytes for people, in the unit of [`write_sizes_in`].
pub(super) fn size(bytes: usize) -> String {
    size_in(bytes, if BINARY.load(Ordering::Relaxed) { Unit::Binary } else { Unit::Decimal })
}

fn size_in(bytes: usize, unit: Unit) -> String {
    let (by, names) = match unit {
        Unit::Decimal => (1e3, ["kB", "MB", "GB"]),
        Unit::Binary => (1024.0, ["KiB", "MiB", "GiB"]),
    };
    let n = bytes as f64;
    // A tenth of a MB is more telling than a hundred kB.
    match n {
        n if n >= by * by * by => format!("{:.1} {}", n / by / by / by, names[2]),
        n if n >= by * by / 10.0 => format!("{:.1} {}", n / by / by, names[1]),
        n if n >= by => format!("{:.1} {}", n / by, names[0]),
        _ => format!("{bytes} B"),
    }
}

/// A count for people.
pub(super) fn count(n: usize) -> String {
    let x = n as f64;
    match n {
        100_000_000.. => format!("{:.1} billion", x / 1e9),
        100_000.. => format!("{:.1} million", x / 1e6),
        _ => format!("{n}"),
    }
}

/// A number with its thousands set apart: 12,345.
pub(super) fn grouped(n: usize) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Rows of cells: each column as wide as its widest cell, `right` says which are aligned right.
/// Lines are indented by two and have no trailing spaces.
pub(super) fn table(rows: &[Vec<String>], right: &[bool]) -> String {
    let cells = |c: usize| rows.iter().filter_map(move |r| r.get(c)).map(|s| s.chars().count());
    let widths: Vec<usize> = (0..right.len()).map(|c| cells(c).max().unwrap_or(0)).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::from(" ");
        for ((cell, &width), &right) in row.iter().zip(&widths).zip(right) {
            line += &if right { format!(" {cell:>width$} ") } else { format!(" {cell:<width$} ") };
        }
        out += line.trim_end();
        out.push('\n');
    }
    out
}

/// A paragraph cut into lines of at most 98 characters, indented by two.
pub(super) fn wrapped(text: &str) -> String {
    let (mut out, mut line) = (String::new(), String::new());
    for word in text.split(' ') {
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > 98 {
            out += &format!("  {line}\n");
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line += word;
    }
    out + &format!("  {line}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_read_in_the_unit_that_was_typed() {
        for (text, bytes, unit) in [
            ("128G", 128 << 30, Unit::Binary),
            ("128GiB", 128 << 30, Unit::Binary),
            ("128 gi", 128 << 30, Unit::Binary),
            ("128GB", 128_000_000_000, Unit::Decimal),
            ("1.5t", 3 << 39, Unit::Binary),
            ("800MB", 800_000_000, Unit::Decimal),
            ("4096K", 4 << 20, Unit::Binary),
            ("17", 17, Unit::Decimal),
            ("17B", 17, Unit::Decimal),
        ] {
            assert_eq!(parse_size(text), Some((bytes, unit)), "{text}");
        }
        for text in ["", "G", "-1G", "1X", "nanG", "infG", "GiB", "b"] {
            assert_eq!(parse_size(text), None, "{text}");
        }
    }

    #[test]
    fn a_size_is_written_in_either_unit() {
        let both = |n| [Unit::Decimal, Unit::Binary].map(|unit| size_in(n, unit));
        assert_eq!(both(128 << 30), ["137.4 GB", "128.0 GiB"]);
        assert_eq!(both(250_000), ["0.2 MB", "0.2 MiB"]);
        assert_eq!(both(2048), ["2.0 kB", "2.0 KiB"]);
        assert_eq!(both(17), ["17 B", "17 B"]);
    }
}
