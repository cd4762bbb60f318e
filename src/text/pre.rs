//! How text is cut into words, one list of rules per name that files give in `tokenizer.ggml.pre`.
//!
//! The names, and what goes with each, are those of llama.cpp b11434 (`llama_vocab::impl::load` in src/llama-vocab.cpp;
//! the expressions, in `llm_tokenizer_bpe`). The expressions are those of the models' own tokenizers. Where llama.cpp has to say something weaker, for want of
//! categories such as \p{Lu} and \p{Han} (gpt-4o, tekken, kimi-k2, youtu, tiny_aya), the model's own is used here.

/// One step of cutting.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum SplitRule {
    /// Matches of this are pieces.
    Each(&'static str),
    /// As `Each`, with `|\s+(?!\S)|\s+` at the end.
    Words(&'static str),
    /// As `Each`, with `|\s{512}(?!\S)|\s{256}(?!\S)|..|\s{4}(?!\S)|\s{1,2}(?!\S)|\s` at the end.
    Doubling(&'static str),
    /// Runs of digits in groups of three, counted from the right.
    Digits,
    /// Runs of newlines, and runs of anything else.
    Lines,
    /// Matches of this are pieces, and what is between them is dropped.
    Only(&'static str),
}
use SplitRule::{Digits, Doubling, Each, Lines, Only, Words};

/// What a pre-tokenizer's name means.
#[derive(Debug)]
pub(super) struct PreTokenizer {
    pub(super) names: &'static [&'static str],
    pub(super) rules: &'static [SplitRule],
    /// A word that is a token is that token, whatever the merges would make of it.
    pub(super) ignore_merges: bool,
    /// Texts start with the begin token where the file does not say.
    pub(super) add_bos: bool,
    /// The vocabulary is in UTF-8 with ▁ for spaces, not in the 256 letters that encode bytes.
    pub(super) raw: bool,
    /// Newlines that together are a token are that token, whatever the merges would make of them.
    pub(super) whole_newlines: bool,
    /// A line has a space at its beginning, and each space begins a word.
    pub(super) space_first: bool,
    /// The tokens are listed in the order in which they were joined, which replaces merges where there are none.
    pub(super) ordered: bool,
}

/// Most of them: merges rule, no begin token, letters for bytes.
const PLAIN: PreTokenizer = PreTokenizer {
    names: &[],
    rules: &[],
    ignore_merges: false,
    add_bos: false,
    raw: false,
    whole_newlines: false,
    space_first: false,
    ordered: false,
};

const GPT2: SplitRule = Words(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+");
const LLAMA3: SplitRule = Words(concat!(
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
));
const QWEN2: SplitRule = Words(concat!(
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
));
const QWEN35: SplitRule = Words(concat!(
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}|",
    r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+"
));
/// Words change where small letters turn to capitals; a contraction stays with its word.
const GPT4O: SplitRule = Words(concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|",
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+"
));
const TEKKEN: SplitRule = Words(concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|",
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+"
));
const YOUTU: SplitRule = Words(concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|",
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+"
));
/// As GPT4O with runs of Han apart, and no slash after punctuation.
const KIMI: SplitRule = Words(concat!(
    r"\p{Han}+|",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+",
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*",
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|",
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
));
/// DeepSeek's last step from V3 on: an ASCII sign takes the ASCII letters after it.
const SIGN_AND_WORD: SplitRule = Words(concat!(
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"##,
    r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+"
));
const HAN_AND_KANA: SplitRule = Each("[一-龥\u{3040}-ゟ゠-ヿ]+");
/// The range before Han has white space in it, which stays with white space.
const HAN_AND_HANGUL: SplitRule = Each(r"[[\x{800}-龥가-\x{d7ff}]&&\S]+");
/// The cased letters of a fixed list of alphabets.
const CASED: SplitRule = Each(concat!(
    r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝ",
    r"Ὗ-\x{1f7d}ᾀ-ᾴᾶ-ᾼ\x{1fbe}ῂ-ῄῆ-ῌῐ-\x{1fd3}ῖ-\x{1fdb}ῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\x{2126}ℨ\x{212a}-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻ",
    r"Ȿ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+"
));

/// Every name. Order is that of kinship.
const PRES: &[PreTokenizer] = &[
    PreTokenizer {
        names: &[
            "gpt-2",
            "phi-2",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
            "exaone4",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "jina-es",
            "jina-de",
            "jina-v1-en",
            "jina-v2-es",
            "jina-v2-de",
            "jina-v2-code",
            "roberta-bpe",
        ],
        rules: &[GPT2],
        ..PLAIN
    },
    PreTokenizer {
        names: &["starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b", "mellum2"],
        rules: &[Each(r"\p{N}"), GPT2],
        ..PLAIN
    },
    PreTokenizer {
        names: &["default"],
        rules: &[Each(r"[\p{P}$+<=>^~|]+"), GPT2, Each(r"\p{N}+"), Each("[0-9][0-9][0-9]")],
        ..PLAIN
    },
    PreTokenizer { names: &["falcon"], rules: &[Each(r"[\p{P}$+<=>^~|`]+"), GPT2, Each("[0-9][0-9][0-9]")], ..PLAIN },
    PreTokenizer {
        names: &[
            "llama3",
            "llama-v3",
            "llama-bpe",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
        ],
        rules: &[LLAMA3],
        ignore_merges: true,
        add_bos: true,
        ..PLAIN
    },
    PreTokenizer { names: &["glm4", "glm5"], rules: &[LLAMA3], ignore_merges: true, ..PLAIN },
    PreTokenizer { names: &["chatglm-bpe", "dbrx", "smaug-bpe"], rules: &[LLAMA3], ..PLAIN },
    PreTokenizer {
        names: &["jais-2"],
        rules: &[Doubling(concat!(
            r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|",
            r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        ))],
        ..PLAIN
    },
    PreTokenizer {
        names: &["minicpm5"],
        rules: &[
            Each(r"\p{N}{1,3}"),
            Words(concat!(
                r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+|",
                r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
            )),
        ],
        ignore_merges: true,
        ..PLAIN
    },
    PreTokenizer {
        names: &[
            "qwen2",
            "deepseek-r1-qwen",
            "kormo",
            "f2llmv2",
            "megrez",
            "stablelm2",
            "hunyuan",
            "solar-open",
            "grok-2",
        ],
        rules: &[QWEN2],
        ..PLAIN
    },
    PreTokenizer { names: &["qwen35"], rules: &[QWEN35], ..PLAIN },
    PreTokenizer { names: &["laguna"], rules: &[Lines, QWEN2], ..PLAIN },
    PreTokenizer {
        names: &["ufakzeka"],
        rules: &[Words(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+")],
        ..PLAIN
    },
    PreTokenizer {
        names: &["seed-coder"],
        rules: &[Words(concat!(
            r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|",
            r" ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+"
        ))],
        ..PLAIN
    },
    PreTokenizer {
        names: &["bailingmoe", "bailingmoe2", "llada-moe"],
        rules: &[Words(concat!(
            r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|",
            r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]"
        ))],
        ..PLAIN
    },
    PreTokenizer {
        names: &["exaone-moe"],
        rules: &[Words(concat!(
            r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|",
            r"[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]"
        ))],
        ..PLAIN
    },
    PreTokenizer { names: &["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"], rules: &[GPT4O], ..PLAIN },
    PreTokenizer { names: &["granite-embed-multi-97m"], rules: &[GPT4O], ignore_merges: true, ..PLAIN },
    PreTokenizer { names: &["tiny_aya", "cohere2moe"], rules: &[Digits, GPT4O], ..PLAIN },
    PreTokenizer { names: &["tekken"], rules: &[TEKKEN], ignore_merges: true, add_bos: true, ..PLAIN },
    PreTokenizer { names: &["kimi-k2"], rules: &[KIMI], ordered: true, ..PLAIN },
    PreTokenizer {
        names: &["youtu"],
        rules: &[
            Each(concat!("[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|", "[一-龥\u{3040}-ゟ゠-ヿ]+")),
            YOUTU,
        ],
        ignore_merges: true,
        ..PLAIN
    },
    PreTokenizer {
        names: &["deepseek-llm"],
        rules: &[
            Each(r"[\r\n]"),
            CASED,
            // Its makers' range ends in 、 and 。 but begins with U+3000, which stays with white space as above.
            Each(r"\s?[!-/:-~！-／：-～‘-‟、。]+"),
            Each(r"\s+$"),
            HAN_AND_HANGUL,
            Each(r"\p{N}+"),
        ],
        ..PLAIN
    },
    PreTokenizer {
        names: &["deepseek-coder"],
        rules: &[Each(r"[\r\n]"), Each(r"\s?\p{L}+"), Each(r"\s?\p{P}+"), HAN_AND_HANGUL, Each(r"\p{N}")],
        ..PLAIN
    },
    PreTokenizer {
        names: &["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"],
        rules: &[Each(r"\p{N}{1,3}"), HAN_AND_KANA, SIGN_AND_WORD],
        ..PLAIN
    },
    PreTokenizer {
        names: &["spark2_5"],
        rules: &[
            Each(r"\p{N}{1,3}"),
            HAN_AND_KANA,
            Words(concat!(
                r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"##,
                r" ?[\p{P}\p{S}]+|[\r\n]"
            )),
            Each(r"\p{N}"),
        ],
        ..PLAIN
    },
    PreTokenizer {
        names: &["afmoe"],
        rules: &[
            Digits,
            Each(concat!(
                r"[\x{4e00}-\x{9fff}\x{3400}-\x{4dbf}\x{f900}-\x{faff}\x{3040}-\x{309f}\x{30a0}-\x{30ff}",
                r"\x{ff65}-\x{ff9f}\x{2f00}-\x{2fdf}\x{e40}-\x{e7f}\x{e80}-\x{eff}\x{1780}-\x{17ff}",
                r"\x{1000}-\x{109f}\x{aa60}-\x{aa7f}\x{a9e0}-\x{a9ff}\x{ac00}-\x{d7af}\x{1100}-\x{11ff}]+"
            )),
            SIGN_AND_WORD,
        ],
        ..PLAIN
    },
    PreTokenizer {
        names: &["bloom", "poro-chat", "gpt3-finnish"],
        rules: &[Each(r" ?[^(\s|.,!?…。，、।۔،)]+")],
        ..PLAIN
    },
    PreTokenizer { names: &["viking"], rules: &[Each(r" ?[^(\s|.,!?…。，、।۔،)]+"), Each(r"\p{N}")], ..PLAIN },
    PreTokenizer {
        names: &["chameleon"],
        rules: &[
            Each("<sentinel:[0-9]+>"),
            Each("IMGIMG[A-I]{1,4}Z"),
            Each(r"[\t\n]|    |  "),
            Each(r"\p{N}"),
            Each(r"[\p{P}!-/:-@\[-`{-~]"),
            GPT2,
        ],
        add_bos: true,
        ..PLAIN
    },
    PreTokenizer {
        names: &["gemma4", "granite-embed-multi-311m"],
        rules: &[Lines],
        add_bos: true,
        raw: true,
        whole_newlines: true,
        ..PLAIN
    },
    PreTokenizer { names: &["sarvam-moe"], rules: &[Lines], raw: true, ..PLAIN },
    PreTokenizer { names: &["mmbert"], rules: &[Lines], raw: true, whole_newlines: true, space_first: true, ..PLAIN },
    PreTokenizer { names: &["whitespace"], rules: &[Only(r"\S+")], raw: true, ..PLAIN },
    // Tokens go across words: only numbers are cut, by threes from the right.
    PreTokenizer { names: &["superbpe"], rules: &[Digits], ..PLAIN },
];

/// Every pre-tokenizer.
pub(super) fn all() -> impl Iterator<Item = &'static PreTokenizer> {
    PRES.iter()
}

/// What the pre-tokenizer of this name is.
pub(super) fn pre(name: &str) -> Option<&'static PreTokenizer> {
    PRES.iter().find(|p| p.names.contains(&name))
}

/// Every name there is, in the order of the alphabet.
pub(super) fn names() -> Vec<&'static str> {
    let mut names: Vec<&str> = PRES.iter().flat_map(|p| p.names).copied().collect();
    names.sort_unstable();
    names
}
