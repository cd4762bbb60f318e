//! Sizes, counts, tables and paragraphs as people write and read them.

/// A size as people write it: 6G, 1.5G, 800M, 4096K, or bytes; K, M and G are powers of 1024, as
/// memory is sold.
pub(super) fn parse_size(text: &str) -> Option<usize> {
    let text = text.trim().trim_end_matches(['B', 'b']).trim_end_matches('i');
    let (number, by) = match text.char_indices().last()? {
        (at, 'K' | 'k') => (&text[..at], 1 << 10),
        (at, 'M' | 'm') => (&text[..at], 1 << 20),
        (at, 'G' | 'g') => (&text[..at], 1 << 30),
        (at, 'T' | 't') => (&text[..at], 1u64 << 40),
        _ => (text, 1),
    };
    let n: f64 = number.trim().parse().ok()?;
    (n.is_finite() && n >= 0.0).then_some((n * by as f64) as usize)
}

/// Bytes for people: GB are 1e9.
pub(super) fn size(bytes: usize) -> String {
    let n = bytes as f64;
    match bytes {
        1_000_000_000.. => format!("{:.1} GB", n / 1e9),
        100_000.. => format!("{:.1} MB", n / 1e6),
        1000.. => format!("{:.1} kB", n / 1e3),
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
