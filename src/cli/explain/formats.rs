//! The names that files of one format, or of a usual mix of formats, go by.

/// `general.file_type`, by llama.cpp's `enum llama_ftype` (include/llama.h, b11434).
const FILE_TYPES: [(usize, &str); 36] = [
    (0, "F32"),
    (1, "F16"),
    (2, "Q4_0"),
    (3, "Q4_1"),
    (7, "Q8_0"),
    (8, "Q5_0"),
    (9, "Q5_1"),
    (10, "Q2_K"),
    (11, "Q3_K_S"),
    (12, "Q3_K_M"),
    (13, "Q3_K_L"),
    (14, "Q4_K_S"),
    (15, "Q4_K_M"),
    (16, "Q5_K_S"),
    (17, "Q5_K_M"),
    (18, "Q6_K"),
    (19, "IQ2_XXS"),
    (20, "IQ2_XS"),
    (21, "Q2_K_S"),
    (22, "IQ3_XS"),
    (23, "IQ3_XXS"),
    (24, "IQ1_S"),
    (25, "IQ4_NL"),
    (26, "IQ3_S"),
    (27, "IQ3_M"),
    (28, "IQ2_S"),
    (29, "IQ2_M"),
    (30, "IQ4_XS"),
    (31, "IQ1_M"),
    (32, "BF16"),
    (36, "TQ1_0"),
    (37, "TQ2_0"),
    (38, "MXFP4"),
    (39, "NVFP4"),
    (40, "Q1_0"),
    (41, "Q2_0"),
];

/// Formats that files are published in, the largest first, with bits per weight: those of
/// Llama-3.1-8B (llama.cpp b11434, tools/quantize/README.md).
const PUBLISHED: [(&str, f64); 17] = [
    ("BF16", 16.0),
    ("Q8_0", 8.50),
    ("Q6_K", 6.56),
    ("Q5_K_M", 5.70),
    ("Q5_K_S", 5.57),
    ("Q4_K_M", 4.89),
    ("Q4_K_S", 4.67),
    ("IQ4_XS", 4.46),
    ("Q3_K_L", 4.30),
    ("Q3_K_M", 4.00),
    ("Q3_K_S", 3.64),
    ("IQ3_XXS", 3.25),
    ("Q2_K", 3.16),
    ("IQ2_M", 2.93),
    ("IQ2_XXS", 2.38),
    ("IQ1_M", 2.15),
    SMALLEST,
];

/// The smallest of the published formats.
pub(super) const SMALLEST: (&str, f64) = ("IQ1_S", 2.00);

/// The name of a file's format: by its metadata, else the format of most of its bytes.
pub(super) fn name(file_type: Option<usize>, most: Option<&'static str>) -> &'static str {
    let known = FILE_TYPES.iter().find(|t| Some(t.0) == file_type);
    known.map(|t| t.1).or(most).unwrap_or("no format")
}

/// The largest published format of at most this many bits per weight.
pub(super) fn largest(bits: f64) -> Option<&'static str> {
    PUBLISHED.iter().find(|f| f.1 <= bits).map(|f| f.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_to_take_is_the_largest_that_has_room() {
        assert_eq!(largest(100.0), Some("BF16"));
        assert_eq!(largest(5.0), Some("Q4_K_M"));
        assert_eq!(largest(2.0), Some("IQ1_S"));
        assert_eq!(largest(1.9), None);
        assert!(PUBLISHED.windows(2).all(|w| w[0].1 > w[1].1), "the largest first");
    }
}
