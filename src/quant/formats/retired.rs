//! Type numbers that GGUF has used or reserved, and that no model file has today.

/// Returns the name of the retired type with this number, and what to do about a file that has it.
pub fn by_id(id: u32) -> Option<(&'static str, &'static str)> {
    const REMOVED: &str = "was removed from the format: quantize the original model again";
    const REPACKED: &str = "was removed from the format (plain files are repacked when loaded): get or make the file \
                            in the plain type of that name";
    const INNER: &str = "is for activations only and holds no weights: quantize the original model again";
    Some(match id {
        4 => ("Q4_2", REMOVED),
        5 => ("Q4_3", REMOVED),
        9 => ("Q8_1", INNER),
        15 => ("Q8_K", INNER),
        31 => ("Q4_0_4_4", REPACKED),
        32 => ("Q4_0_4_8", REPACKED),
        33 => ("Q4_0_8_8", REPACKED),
        36 => ("IQ4_NL_4_4", REPACKED),
        37 => ("IQ4_NL_4_8", REPACKED),
        38 => ("IQ4_NL_8_8", REPACKED),
        _ => return None,
    })
}
