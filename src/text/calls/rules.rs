//! Grammars that hold calls to the schemas of their arguments, in the markup of the template.
//!
//! ```text
//! after   the marks with which calls open, each with what may follow: the answer is free until one of them comes
//! whole   an answer that is calls and nothing else
//! heads   heads of the messages that calls are in, where messages have some (harmony): one tool's each
//! ```
//! They are in llguidance's notation of Lark. Marks that are control tokens are named by their numbers. Arguments come in
//! the schema's order, as llguidance has it for JSON.

use super::call::Tools;
use super::forms::{Bare, CallForm, Markup, Unit};
use super::keyed::Keyed;
use super::named::{DEEPSEEK, KIMI, Named, SOLAR};
use super::objects::Objects;
use super::tagged::Tagged;
use super::values::{Argument, Marks, Values, arguments, quote};

/// Grammars that hold calls to their schemas.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CallGrammars {
    /// Texts with which calls open, and the grammar of what follows each of them.
    pub after: Vec<(Vec<String>, String)>,
    /// The grammar of an answer that is calls.
    pub whole: Option<String>,
    /// The heads of messages with calls.
    pub heads: Vec<String>,
}

/// White space between marks.
const SPACE: &str = "ws: /[ \\n]{0,2}/";

impl Markup {
    /// The grammars that hold calls of these tools to their schemas; None where the markup has none.
    pub fn rules(&self, tools: &Tools, parallel: bool, marks: Marks) -> Option<CallGrammars> {
        let mut rules = CallGrammars::default();
        for form in self.forms {
            let Some(made) = form.rules(tools, parallel, marks) else { continue };
            for (opens, text) in made.after {
                let fresh = |open: &String| !rules.after.iter().any(|(all, _)| all.contains(open));
                let opens: Vec<String> = opens.into_iter().filter(fresh).collect();
                if !opens.is_empty() {
                    rules.after.push((opens, text));
                }
            }
            rules.whole = rules.whole.or(made.whole);
            rules.heads.extend(made.heads);
        }
        if self.leads_recipients() {
            rules.heads = tools.iter().map(|(name, _)| format!(" to={name}")).collect();
        }
        (!rules.after.is_empty()).then_some(rules)
    }
}

/// A call of one tool: what it begins with, and what follows that.
struct Rule {
    begin: String,
    rest: String,
}

impl CallForm {
    fn rules(&self, tools: &Tools, parallel: bool, marks: Marks) -> Option<CallGrammars> {
        if self.unit == Unit::Harmony {
            return Some(harmony(tools, marks));
        }
        let mut values = Values::new(marks);
        let mut calls: Vec<Rule> = Vec::new();
        for (name, schema) in tools.iter() {
            calls.push(match &self.unit {
                Unit::Objects(objects) => objects.rule(&mut values, name, schema),
                Unit::Named(named) => named.rule(&mut values, name, schema),
                Unit::Tagged(tagged) => tagged.rule(&mut values, name, &arguments(schema)),
                Unit::Keyed(keyed) => keyed.rule(&mut values, name, &arguments(schema)),
                Unit::Gemma => {
                    let object = values.gemma(schema);
                    Rule { begin: String::new(), rest: format!("{} {object}", quote(&format!("call:{name}"))) }
                }
                Unit::Harmony | Unit::Python(_) | Unit::Nested => return None,
            });
        }
        let mark = |text: &str| values.mark(text);
        let any = |marks: &[&str]| marks.first().map_or(String::new(), |m| mark(m));
        let (end, close) = (any(self.ends), any(self.closes));
        let one = |rule: &Rule| format!("{} {}", rule.begin, rule.rest);
        let whole: Vec<String> = calls.iter().map(one).collect();
        let rest: Vec<String> = calls.iter().map(|c| c.rest.clone()).collect();
        let more = |separator: &str| if parallel { format!("({separator} ws call end)*") } else { String::new() };
        let many = match self.list {
            true => format!("ws \"[\" ws call {} ws \"]\"", more("ws \",\"").replace(" end", "")),
            // A section of one JSON object closes after it; the next call has a section of its own.
            false
                if matches!(
                    self.unit,
                    Unit::Objects(_) | Unit::Gemma | Unit::Named(Named::Mistral | Named::Numbered)
                ) =>
            {
                "ws call".into()
            }
            false if self.sections.is_empty() => "ws call end".into(),
            false if self.apart => "ws call end".into(),
            false => format!("ws call end {}", more("ws")),
        };
        let lines = |start: String| {
            let end = if end.is_empty() { "end: \"\"".into() } else { format!("end: ws {end}") };
            let call = format!("call: {}", whole.join("\n  | "));
            let rest = format!("rest: {}", rest.join("\n  | "));
            let all = [vec![start, call, rest, end, SPACE.into()], values.lines.clone()].concat();
            all.join("\n") + "\n"
        };
        let mut rules = CallGrammars::default();
        let after_section =
            if close.is_empty() { format!("start: {many}") } else { format!("start: {many} ws {close}") };
        let section = any(self.sections);
        if !self.sections.is_empty() {
            rules.after.push((self.sections.iter().map(|s| (*s).to_owned()).collect(), lines(after_section.clone())));
            let one = after_section.trim_start_matches("start: ");
            let again = if parallel && self.again() { format!("(ws {section} {one})*") } else { String::new() };
            rules.whole = Some(lines(format!("start: ws {section} {one} {again}")));
        }
        if let Unit::Objects(objects) = &self.unit
            && self.bare == Bare::Guess
        {
            // Without a mark only the whole beginning tells a call.
            for (name, schema) in tools.iter() {
                let mut values = Values::new(marks);
                let args = values.json(schema);
                let text = format!("start: {args} \"}}\"\n{}\n", values.lines.join("\n"));
                rules.after.push((vec![objects.head(name)], text));
            }
            let again = if parallel { "(\"; \" call)*" } else { "" };
            rules.whole = Some(lines(format!("start: ws call {again}")));
        } else if self.bare != Bare::No && !matches!(self.unit, Unit::Gemma) {
            let begins: Vec<String> = self.begins.iter().map(|b| (*b).to_owned()).collect();
            rules.after.push((begins, lines("start: rest end".into())));
            if rules.whole.is_none() {
                rules.whole = Some(lines(format!("start: ws call end {}", more("ws"))));
            }
        }
        Some(rules)
    }

    /// Whether each call has a section of its own.
    fn again(&self) -> bool {
        self.apart
            || !self.list
                && matches!(self.unit, Unit::Objects(_) | Unit::Gemma | Unit::Named(_))
                && self.ends.is_empty()
    }
}

/// Harmony's calls: the head names the tool, and the message is its arguments.
fn harmony(tools: &Tools, marks: Marks) -> CallGrammars {
    let mut rules = CallGrammars::default();
    for (name, schema) in tools.iter() {
        let mut values = Values::new(marks);
        let args = values.json(schema);
        let to = format!(" to=functions.{name}");
        let kinds = ["", " json", " <|constrain|>json", " <|constrain|> json"];
        let first = kinds.iter().map(|kind| format!("{to}<|channel|>commentary{kind}<|message|>"));
        let then = kinds.iter().map(|kind| format!("<|channel|>commentary{to}{kind}<|message|>"));
        rules
            .after
            .push((first.chain(then).collect(), format!("start: ws {args}\n{SPACE}\n{}\n", values.lines.join("\n"))));
        rules.heads.push(format!("{to}<|channel|>commentary json"));
        rules.heads.push(format!("{to}<|channel|>commentary <|constrain|>json"));
    }
    rules
}

impl Objects {
    /// A call up to its arguments.
    fn head(&self, name: &str) -> String {
        let name = serde_json::Value::from(name);
        match (self.short, self.keys) {
            (true, _) => format!("{{{name}: "),
            (false, [key, arguments, "tool_call_id"]) => format!("\", \"{key}\": {name}, \"{arguments}\": "),
            (false, [key, arguments, _]) => format!("{{\"{key}\": {name}, \"{arguments}\": "),
        }
    }

    fn rule(&self, values: &mut Values, name: &str, schema: &serde_json::Value) -> Rule {
        let args = values.json(schema);
        let head = quote(&self.head(name));
        let rest = match self.keys[2] {
            "tool_call_id" => format!("{} /[0-9]{{1,3}}/ {head} {args} \"}}\"", quote("{\"tool_call_id\": \"")),
            "id9" => format!("{head} {args} {} /[a-zA-Z0-9]{{9}}/ {}", quote(", \"id\": \""), quote("\"}")),
            _ => format!("{head} {args} \"}}\""),
        };
        Rule { begin: String::new(), rest }
    }
}

impl Named {
    fn rule(self, values: &mut Values, name: &str, schema: &serde_json::Value) -> Rule {
        let args = values.json(schema);
        let mark = |text: &str| values.mark(text);
        let (begin, rest) = match self {
            Named::Kimi => {
                let head = quote(&format!("functions.{name}:"));
                (mark(KIMI[0]), format!("{head} /[0-9]{{1,3}}/ {} {args}", mark(KIMI[1])))
            }
            Named::DeepSeek => (mark(DEEPSEEK[0]), format!("{} {} {args}", quote(name), mark(DEEPSEEK[1]))),
            Named::Fenced => {
                let name = quote(&format!("{name}\n```json\n"));
                (mark(DEEPSEEK[0]), format!("\"function\" {} {name} {args} \"\\n```\"", mark(DEEPSEEK[1])))
            }
            Named::Mistral => (String::new(), format!("{} {} {args}", quote(name), mark("[ARGS]"))),
            Named::Numbered => {
                let id = format!("{} /[a-zA-Z0-9]{{9}}/", mark("[CALL_ID]"));
                (String::new(), format!("{} {id} {} {args}", quote(name), mark("[ARGS]")))
            }
            Named::Function => (mark("<function="), format!("{} {args}", quote(&format!("{name}>")))),
            Named::Line => (String::new(), format!("{} {args}", quote(&format!("{name}\n")))),
            Named::Solar => {
                let (name, args_mark) = (quote(name), mark(SOLAR[2]));
                (mark(SOLAR[0]), format!("/[a-zA-Z0-9_-]{{1,24}}/ {} {name} {args_mark} {args}", mark(SOLAR[1])))
            }
        };
        Rule { begin, rest }
    }
}

impl Tagged {
    fn rule(&self, values: &mut Values, name: &str, ways: &[Vec<Argument>]) -> Rule {
        let line = if self.tight { "" } else { "\n" };
        let (after, end) = match self.call[0] {
            "<|open|>call" => {
                (format!(" tool=\"{name}\" index=\""), format!("/[0-9]{{1,3}}/ \"\\\"\" {}", values.mark(self.end)))
            }
            tag if tag.ends_with('=') => (format!("{name}>{line}"), String::new()),
            _ => (format!(" name=\"{name}\">{line}"), String::new()),
        };
        let ways: Vec<String> = ways.iter().map(|way| self.way(values, way)).collect();
        let body = if ways.len() == 1 { ways[0].clone() } else { format!("({})", ways.join(" | ")) };
        // There is an attribute between a begin of MiniCPM's and its name.
        let begin = if self.call[0] == "<function" { "<function name=" } else { self.call[0] };
        let after = if self.call[0] == "<function" { format!("\"{name}\">") } else { after };
        let rest = format!("{} {end} {body} {}", quote(&after), values.mark(self.call[1]));
        Rule { begin: values.mark(begin), rest }
    }

    /// Arguments, one after the other.
    fn way(&self, values: &mut Values, way: &[Argument]) -> String {
        let mut all = Vec::with_capacity(way.len());
        for argument in way {
            let line = if self.lines { "\n" } else { "" };
            let close = format!("{line}{}", self.argument[1]);
            let gap = if self.tight { "\"\"" } else { "\"\\n\"" };
            let options = values.tagged(argument, &close);
            let tags = options.into_iter().map(|(kind, value)| {
                let tag = match (self.kind, self.argument[0]) {
                    (Some("type"), _) => format!(" key=\"{}\" type=\"{kind}\"", argument.key),
                    (Some(_), _) => {
                        let text = kind == "string";
                        format!(" name=\"{}\" string=\"{text}\">", argument.key)
                    }
                    (None, tag) if tag.ends_with('=') => format!("{}>{line}", argument.key),
                    (None, _) => format!(" name=\"{}\">{line}", argument.key),
                };
                let end = if self.kind == Some("type") { values.mark(self.end) } else { String::new() };
                format!("{} {} {end} {value} {gap}", values.mark(self.argument[0]), quote(&tag))
            });
            let one = tags.collect::<Vec<_>>().join(" | ");
            all.push(format!("({one}){}", if argument.required { "" } else { "?" }));
        }
        all.join(" ")
    }
}

impl Keyed {
    fn rule(&self, values: &mut Values, name: &str, ways: &[Vec<Argument>]) -> Rule {
        let mut all = Vec::new();
        for way in ways {
            let mut one = String::new();
            for argument in way {
                let options = values.tagged(argument, self.value[1]);
                let value = options.into_iter().map(|(_, value)| value).collect::<Vec<_>>().join(" | ");
                let key = format!("{} {} {}", values.mark(self.key[0]), quote(&argument.key), values.mark(self.key[1]));
                let optional = if argument.required { "" } else { "?" };
                one += &format!("({key} ws {} ({value}) ws){optional} ", values.mark(self.value[0]));
            }
            all.push(one);
        }
        let body = if all.len() == 1 { all.remove(0) } else { format!("({})", all.join(" | ")) };
        let separator = if self.separator.is_empty() { String::new() } else { values.mark(self.separator) };
        let rest = format!("{} {separator} ws {body} {}", quote(name), values.mark(self.call[1]));
        Rule { begin: values.mark(self.call[0]), rest }
    }
}
