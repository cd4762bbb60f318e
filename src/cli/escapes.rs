//! The escapes that llama.cpp reads in flags (`string_process_escapes` in common/common.cpp).

/// Text with its escapes as what they mean: \\n \\r \\t \\\\ \\' \\" and \\x with two digits, a byte. Others stay
/// as they are; so do bytes above 7f that together are no UTF-8.
pub(super) fn unescape(text: &str) -> String {
    String::from_utf8(bytes(text, u8::MAX))
        .unwrap_or_else(|_| String::from_utf8(bytes(text, 0x7f)).expect("text and ASCII letters are UTF-8"))
}

/// The bytes of a text, \\x taken up to `most`.
fn bytes(text: &str, most: u8) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        let (before, escape) = rest.split_at(at);
        let digits = escape.get(2..4).filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()));
        let byte = digits.and_then(|d| u8::from_str_radix(d, 16).ok()).filter(|b| *b <= most);
        let (byte, n) = match (escape.as_bytes().get(1), byte) {
            (Some(b'n'), _) => (b'\n', 2),
            (Some(b'r'), _) => (b'\r', 2),
            (Some(b't'), _) => (b'\t', 2),
            (Some(b @ (b'\\' | b'\'' | b'"')), _) => (*b, 2),
            (Some(b'x'), Some(byte)) => (byte, 4),
            _ => (b'\\', 1),
        };
        out.extend_from_slice(before.as_bytes());
        out.push(byte);
        rest = &escape[n..];
    }
    out.extend_from_slice(rest.as_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_those_of_llama_cpp_and_nothing_else_changes() {
        for (typed, meant) in [
            (r"a\nb\tc\rd", "a\nb\tc\rd"),
            (r#"\\n \" \'"#, "\\n \" '"),
            (r"\x41\xc3\xa9\x0a", "Aé\n"),
            (r"\xe9 \x41", r"\xe9 A"), // the byte is no letter of UTF-8
            (r"\d \x4 \xzz \", r"\d \x4 \xzz \"),
            (r"é\é\né", "é\\é\né"),
        ] {
            assert_eq!(unescape(typed), meant, "{typed}");
        }
    }
}
