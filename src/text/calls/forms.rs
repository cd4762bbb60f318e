//! The markups of the published chat templates, and which one a template has.

use super::call::{Found, Offer};
use super::keyed::Keyed;
use super::named::{DEEPSEEK, KIMI, Named, SOLAR};
use super::objects::{Objects, PLAIN};
use super::others::{self, MARK};
use super::tagged::Tagged;

/// The markup in which a model calls tools.
#[derive(Debug, PartialEq)]
pub struct Markup {
    pub(super) name: &'static str,
    /// Texts of a template that has it: all of them.
    signs: &'static [&'static str],
    /// In what forms calls come; of two at one place the first that can be read counts.
    pub(super) forms: &'static [CallForm],
    /// Marks that are no content wherever they are.
    pub(super) drops: &'static [&'static str],
    /// A mark with which the prompt ends.
    pub(super) leads: &'static str,
}

/// What a call without its section is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Bare {
    /// No call.
    No,
    /// One if its name is offered.
    Guess,
    /// One: it has marks of its own.
    Marked,
}

/// How calls stand together.
#[derive(Debug, PartialEq)]
pub(super) struct CallForm {
    /// Marks that open a section of calls.
    pub(super) sections: &'static [&'static str],
    /// What a call begins with, which is part of it.
    pub(super) begins: &'static [&'static str],
    /// Marks after a call.
    pub(super) ends: &'static [&'static str],
    /// Marks that close the section.
    pub(super) closes: &'static [&'static str],
    /// Signs between calls.
    pub(super) separators: &'static [&'static str],
    /// Calls may be a list in brackets.
    pub(super) listed: bool,
    /// The template writes them as one.
    pub(super) list: bool,
    /// The template writes a section for each call.
    pub(super) apart: bool,
    pub(super) bare: Bare,
    pub(super) unit: Unit,
}

impl CallForm {
    /// The marks with which calls open.
    pub(super) fn opens(&self) -> impl Iterator<Item = &'static str> {
        let bare: &[&str] = if self.bare == Bare::No { &[] } else { self.begins };
        self.sections.iter().chain(bare).copied()
    }
}

/// How one call is written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Unit {
    Objects(Objects),
    Named(Named),
    Tagged(Tagged),
    Keyed(Keyed),
    Harmony,
    Gemma,
    Python(&'static str),
    Nested,
}

impl Unit {
    pub(super) fn find(&self, source: Offer, text: &str) -> Found {
        match self {
            Unit::Objects(objects) => objects.find(source, text),
            Unit::Named(named) => named.find(source, text),
            Unit::Tagged(tagged) => tagged.find(source, text),
            Unit::Keyed(keyed) => keyed.find(source, text),
            Unit::Harmony => others::harmony(text),
            Unit::Gemma => others::gemma(source, text),
            Unit::Python(method) => others::python(text, method),
            Unit::Nested => others::nested(source, text),
        }
    }
}

impl Markup {
    /// The markup of the model with this chat template, if it is a known one.
    pub fn of(template_source: &str) -> Option<&'static Markup> {
        MARKUPS.iter().find(|m| m.signs.iter().all(|s| template_source.contains(s)))
    }

    /// Whether a call's message has a head that names the tool besides the markup.
    pub(super) fn leads_recipients(&self) -> bool {
        self.name == "Muse Glimmer"
    }

    /// A short name, for messages.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Whether a control token of this text is part of the markup.
    pub fn knows(&self, piece: &str) -> bool {
        let inner = self.forms.iter().flat_map(|f| match f.unit {
            Unit::Named(Named::Kimi) => &KIMI[..],
            Unit::Named(Named::DeepSeek | Named::Fenced) => &DEEPSEEK[..],
            Unit::Named(Named::Solar) => &SOLAR[..],
            Unit::Named(Named::Mistral | Named::Numbered) => &["[CALL_ID]", "[ARGS]"],
            Unit::Gemma => &["<|\"|>"],
            Unit::Keyed(_) | Unit::Tagged(_) | Unit::Nested => &["<|sep|>", "<|open|>", "<|close|>", MARK, "｜DSML｜"],
            _ => &[],
        });
        let tags = self.forms.iter().flat_map(|f| match f.unit {
            Unit::Tagged(t) => vec![t.call[0], t.call[1], t.argument[0], t.argument[1]],
            Unit::Keyed(k) => [k.call, k.key, k.value].concat(),
            _ => Vec::new(),
        });
        let marks =
            self.forms.iter().flat_map(|f| [f.sections, f.begins, f.ends, f.closes].into_iter().flatten().copied());
        !piece.is_empty()
            && marks.chain(inner.copied()).chain(tags).chain(self.drops.iter().copied()).any(|m| m.contains(piece))
    }
}

/// Calls without a section.
const fn form(unit: Unit, begins: &'static [&'static str], bare: Bare) -> CallForm {
    CallForm {
        sections: &[],
        begins,
        ends: &[],
        closes: &[],
        separators: &[],
        listed: false,
        list: false,
        apart: false,
        bare,
        unit,
    }
}

/// JSON objects in a section, alone or as a list.
const fn objects(sections: &'static [&'static str], closes: &'static [&'static str], unit: Objects) -> CallForm {
    CallForm {
        sections,
        closes,
        separators: &[",", ";"],
        listed: true,
        list: true,
        ..form(Unit::Objects(unit), &["{"], Bare::No)
    }
}

/// JSON objects, each in a section of its own; a list is read, too.
const fn object(sections: &'static [&'static str], closes: &'static [&'static str], unit: Objects) -> CallForm {
    CallForm { list: false, ..objects(sections, closes, unit) }
}

const fn markup(name: &'static str, signs: &'static [&'static str], forms: &'static [CallForm]) -> Markup {
    Markup { name, signs, forms, drops: &[], leads: "" }
}

const XML: Tagged = Tagged {
    call: ["<function=", "</function>"],
    argument: ["<parameter=", "</parameter>"],
    end: ">",
    lines: true,
    kind: None,
    tight: false,
};
const INVOKE: Tagged = Tagged {
    call: ["<invoke", "</invoke>"],
    argument: ["<parameter", "</parameter>"],
    end: ">",
    lines: false,
    kind: None,
    tight: false,
};
const DSML: Tagged = Tagged {
    call: ["<｜DSML｜invoke", "</｜DSML｜invoke>"],
    argument: ["<｜DSML｜parameter", "</｜DSML｜parameter>"],
    end: ">",
    lines: false,
    kind: Some("string"),
    tight: false,
};
const ATEM: Tagged =
    Tagged { call: ["<atem:invoke", "</atem:invoke>"], argument: ["<atem:parameter", "</atem:parameter>"], ..INVOKE };
const PARAM: Tagged =
    Tagged { call: ["<function", "</function>"], argument: ["<param", "</param>"], tight: true, ..INVOKE };
const OPEN: Tagged = Tagged {
    call: ["<|open|>call", "<|close|>call<|sep|>"],
    argument: ["<|open|>argument", "<|close|>argument<|sep|>"],
    end: "<|sep|>",
    lines: false,
    kind: Some("type"),
    tight: true,
};
const GLM: Keyed = Keyed {
    call: ["<tool_call>", "</tool_call>"],
    key: ["<arg_key>", "</arg_key>"],
    value: ["<arg_value>", "</arg_value>"],
    separator: "",
};
const HY3: Keyed = Keyed {
    call: ["<tool_call:opensource>", "</tool_call:opensource>"],
    key: ["<arg_key:opensource>", "</arg_key:opensource>"],
    value: ["<arg_value:opensource>", "</arg_value:opensource>"],
    separator: "<tool_sep:opensource>",
};
const COHERE: Objects = Objects { keys: ["tool_name", "parameters", "tool_call_id"], ..PLAIN };
const LLAMA: Objects = Objects { keys: ["name", "parameters", ""], strict: true, ..PLAIN };

/// Every markup, the more special ones first: of those whose signs a template has, the first counts.
const MARKUPS: &[Markup] = &[
    Markup {
        drops: &[],
        ..markup(
            "Muse Glimmer",
            &["<atem:invoke"],
            &[CallForm {
                sections: &["<atem:function_calls>"],
                closes: &["</atem:function_calls>"],
                ..form(Unit::Tagged(ATEM), &["<atem:invoke"], Bare::Guess)
            }],
        )
    },
    markup(
        "harmony",
        &["<|channel|>", "<|message|>", "commentary"],
        &[form(Unit::Harmony, &["<|channel|>", " to="], Bare::Marked)],
    ),
    markup(
        "DeepSeek V3.2",
        &["｜DSML｜", "function_calls"],
        &[dsml(
            &["<｜DSML｜function_calls>", "<｜DSML｜tool_calls>"],
            &["</｜DSML｜function_calls>", "</｜DSML｜tool_calls>"],
        )],
    ),
    markup(
        "DeepSeek V4",
        &["｜DSML｜"],
        &[dsml(
            &["<｜DSML｜tool_calls>", "<｜DSML｜function_calls>"],
            &["</｜DSML｜tool_calls>", "</｜DSML｜function_calls>"],
        )],
    ),
    markup(
        "Kimi K3",
        &["open_tag('call'"],
        &[CallForm {
            sections: &["<|open|>tools<|sep|>"],
            closes: &["<|close|>tools<|sep|>"],
            ..form(Unit::Tagged(OPEN), &["<|open|>call"], Bare::Guess)
        }],
    ),
    markup(
        "MiniMax M3",
        &[MARK, "<invoke name="],
        &[CallForm {
            sections: &["]<]minimax[>[<tool_call>"],
            closes: &["]<]minimax[>[</tool_call>"],
            ..form(Unit::Nested, &["]<]minimax[>[<invoke"], Bare::Guess)
        }],
    ),
    markup(
        "MiniMax M2",
        &["<minimax:tool_call>"],
        &[CallForm {
            sections: &["<minimax:tool_call>"],
            closes: &["</minimax:tool_call>"],
            ..form(Unit::Tagged(INVOKE), &["<invoke"], Bare::Guess)
        }],
    ),
    markup(
        "Hy3",
        &["HYTK = ':opensource'"],
        &[CallForm {
            sections: &["<tool_calls:opensource>"],
            closes: &["</tool_calls:opensource>"],
            ..form(Unit::Keyed(HY3), &["<tool_call:opensource>"], Bare::Marked)
        }],
    ),
    markup("GLM", &["<arg_key>"], &[form(Unit::Keyed(GLM), &["<tool_call>"], Bare::Marked)]),
    markup(
        "Kimi K2",
        &["<|tool_call_begin|>"],
        &[CallForm {
            sections: &["<|tool_calls_section_begin|>", "<|tool_call_section_begin|>"],
            ends: &["<|tool_call_end|>"],
            closes: &["<|tool_calls_section_end|>", "<|tool_call_section_end|>"],
            ..form(Unit::Named(Named::Kimi), &["<|tool_call_begin|>"], Bare::Marked)
        }],
    ),
    markup("DeepSeek V3", &["<｜tool▁call▁begin｜>", "```json"], &[deepseek(Named::Fenced)]),
    markup("DeepSeek V3.1", &["<｜tool▁call▁begin｜>"], &[deepseek(Named::DeepSeek)]),
    Markup {
        drops: &["<tool_call|>", "<channel|>"],
        ..markup(
            "Gemma 4",
            &["<|tool_call>call:"],
            &[CallForm {
                sections: &["<|tool_call>"],
                closes: &["<tool_call|>"],
                ..form(Unit::Gemma, &["call:"], Bare::Guess)
            }],
        )
    },
    markup("Mistral", &["[TOOL_CALLS]", "[CALL_ID]"], &[mistral(Named::Numbered), nemo()]),
    markup("Mistral", &["[TOOL_CALLS]", "[ARGS]"], &[mistral(Named::Mistral), nemo()]),
    markup("Mistral", &["[TOOL_CALLS]"], &[nemo(), mistral(Named::Mistral)]),
    markup(
        "Seed-OSS",
        &["<seed:tool_call>"],
        &[CallForm {
            sections: &["<seed:tool_call>"],
            closes: &["</seed:tool_call>"],
            apart: true,
            ..form(Unit::Tagged(Tagged { lines: false, ..XML }), &["<function="], Bare::Guess)
        }],
    ),
    markup(
        "Qwen3-Coder",
        &["<function=", "<parameter="],
        &[
            CallForm {
                sections: &["<tool_call>"],
                closes: &["</tool_call>"],
                apart: true,
                ..form(Unit::Tagged(XML), &["<function="], Bare::Guess)
            },
            object(&["<tool_call>"], &["</tool_call>"], PLAIN),
        ],
    ),
    markup("MiniCPM 5", &["<function name="], &[form(Unit::Tagged(PARAM), &["<function name="], Bare::Marked)]),
    markup(
        "Apertus",
        &["<|tools_prefix|>"],
        &[objects(&["<|tools_prefix|>"], &["<|tools_suffix|>"], Objects { short: true, ..PLAIN })],
    ),
    markup("Command", &["<|START_ACTION|>"], &[objects(&["<|START_ACTION|>"], &["<|END_ACTION|>"], COHERE)]),
    markup(
        "Command R+",
        &["Action:\\n```json"],
        &[objects(&["Action:\n```json", "Action: ```json"], &["```"], COHERE)],
    ),
    markup("Nemotron Nano", &["<TOOLCALL>"], &[objects(&["<TOOLCALL>"], &["</TOOLCALL>"], PLAIN)]),
    Markup {
        drops: &["<answer>", "</answer>"],
        ..markup(
            "Hunyuan A13B",
            &["<answer>", "<tool_calls>"],
            &[objects(&["<tool_calls>"], &["</tool_calls>"], PLAIN)],
        )
    },
    markup("tool_calls", &["<tool_calls>"], &[objects(&["<tool_calls>"], &["</tool_calls>"], PLAIN)]),
    markup(
        "LFM2",
        &["<|tool_call_start|>"],
        &[
            objects(&["<|tool_call_start|>"], &["<|tool_call_end|>"], PLAIN),
            CallForm {
                sections: &["<|tool_call_start|>"],
                closes: &["<|tool_call_end|>"],
                separators: &[",", ";"],
                listed: true,
                ..form(Unit::Python(""), &[""], Bare::No)
            },
        ],
    ),
    markup("LFM2", &["<|tool_list_start|>"], LFM2),
    markup("Granite 3", &["<|tool_call|>"], &[objects(&["<|tool_call|>", "<tool_call>"], &["</tool_call>"], PLAIN)]),
    markup("Hermes", &["<tool_call>"], &[object(&["<tool_call>"], &["</tool_call>"], PLAIN)]),
    markup(
        "Solar",
        &["<|tool_call:begin|>"],
        &[CallForm {
            sections: &["<|tool_calls|>"],
            ends: &["<|tool_call:end|>"],
            ..form(Unit::Named(Named::Solar), &["<|tool_call:begin|>"], Bare::Marked)
        }],
    ),
    markup("GigaChat", &["<|function_call|>"], &[object(&["<|function_call|>"], &[], PLAIN)]),
    markup(
        "GigaChat",
        &["function call", "<|role_sep|>"],
        &[object(&["<|message_sep|>\n\nfunction call<|role_sep|>"], &[], PLAIN)],
    ),
    markup(
        "Functionary 3.1",
        &["<function=", "</function>"],
        &[CallForm { ends: &["</function>"], ..form(Unit::Named(Named::Function), &["<function="], Bare::Marked) }],
    ),
    Markup {
        drops: &[">>>all\n"],
        leads: ">>>",
        ..markup(
            "Functionary 3.2",
            &[">>>all"],
            &[CallForm { sections: &[">>>"], ..form(Unit::Named(Named::Line), &[""], Bare::No) }],
        )
    },
    markup("Firefunction", &["functools["], &[objects(&["functools"], &[], PLAIN)]),
    markup("Llama 3", &["<|python_tag|>"], LLAMA_FORMS),
    markup("Llama 3", &["{\"name\": function name, \"parameters\":"], LLAMA_FORMS),
];

const fn deepseek(named: Named) -> CallForm {
    CallForm {
        sections: &["<｜tool▁calls▁begin｜>"],
        ends: &["<｜tool▁call▁end｜>"],
        closes: &["<｜tool▁calls▁end｜>"],
        ..form(Unit::Named(named), &["<｜tool▁call▁begin｜>"], Bare::Marked)
    }
}

const fn mistral(named: Named) -> CallForm {
    CallForm { sections: &["[TOOL_CALLS]"], apart: true, ..form(Unit::Named(named), &[""], Bare::No) }
}

/// Mistral's older form.
const fn nemo() -> CallForm {
    objects(&["[TOOL_CALLS]"], &[], Objects { keys: ["name", "arguments", "id9"], ..PLAIN })
}

const LFM2: &[CallForm] = &[CallForm {
    sections: &["<|tool_call_start|>"],
    closes: &["<|tool_call_end|>"],
    separators: &[",", ";"],
    listed: true,
    ..form(Unit::Python(""), &[""], Bare::No)
}];

const LLAMA_FORMS: &[CallForm] = &[
    CallForm { separators: &[";", ","], ..form(Unit::Objects(LLAMA), &["{"], Bare::Guess) },
    object(&["<|python_tag|>"], &[], LLAMA),
    CallForm { sections: &["<|python_tag|>"], ..form(Unit::Python(".call"), &[""], Bare::No) },
    CallForm { ends: &["</function>"], ..form(Unit::Named(Named::Function), &["<function="], Bare::Guess) },
];

const fn dsml(sections: &'static [&'static str], closes: &'static [&'static str]) -> CallForm {
    CallForm { sections, closes, ..form(Unit::Tagged(DSML), &["<｜DSML｜invoke"], Bare::Guess) }
}
