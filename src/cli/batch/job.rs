//! A line of a batch: what is asked, in Tandem's own form or in that of OpenAI's batch files.
//!
//! ```text
//! {"id": any, "prompt": text | "messages": [...], "n_predict", "stop", "json_schema" | "grammar" | "regex",
//!  "reasoning_budget", "logprobs": N, any sampling parameter; with messages: "tools", "tool_choice",
//!  "parallel_tool_calls", "continue_final_message", "add_generation_prompt", "chat_template_kwargs"}
//! {"custom_id": text, "method": "POST", "url": "/v1/chat/completions" | "/v1/completions", "body": {...}}
//! ```
//! A field that nobody knows is an error: it would otherwise be a wish that is silently not granted.

use anyhow::{Result, bail};
use serde_json::{Map, Value, json};

use crate::cli::settings::Settings;
use crate::talk::{GenParams, ToolUse};
use crate::text::grammar::Kind;

/// The form in which a request came and its answer goes.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Form {
    /// Tandem's own.
    Own,
    /// OpenAI's, a conversation or a text.
    OpenAi { custom_id: String, chat: bool, model: Value },
}

/// What is to be continued.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Prompt {
    /// A text; `raw` as it is, else as a user's message where the model has a template.
    Text { text: String, raw: bool },
    /// A conversation.
    Messages { messages: Vec<Value>, tools: Option<Box<ToolUse>>, variables: Map<String, Value>, then: Then },
}

/// What comes after the messages of a conversation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Then {
    /// An answer, which the template opens.
    Answer,
    /// What the model likes: the template opens nothing.
    Anything,
    /// The rest of the last message.
    Rest,
}

/// A request.
#[derive(Clone, Debug)]
pub(super) struct Job {
    pub(super) form: Form,
    pub(super) id: Value,
    pub(super) prompt: Prompt,
    pub(super) settings: Settings,
    pub(super) params: GenParams,
    pub(super) kind: Option<Kind>,
}

/// What a request does not say.
pub(super) struct Defaults {
    pub(super) settings: Settings,
    pub(super) params: GenParams,
    pub(super) kind: Option<Kind>,
    pub(super) raw: bool,
}

/// OpenAI's fields that ask for nothing that this program would do otherwise.
const WITHOUT_EFFECT: [&str; 8] =
    ["model", "user", "stream", "stream_options", "n", "store", "metadata", "service_tier"];

/// Whether a field, OpenAI's or vLLM's, asks for what is done anyway.
fn is_usual(name: &str, value: &Value) -> bool {
    match name {
        "echo" | "use_beam_search" | "include_stop_str_in_output" => *value == false,
        "skip_special_tokens" | "spaces_between_special_tokens" | "add_generation_prompt" => *value == true,
        "best_of" => *value == 1,
        "min_tokens" => *value == 0,
        "tool_choice" => *value == "auto",
        _ => false,
    }
}

/// A request that cannot be answered: who asked, and why not.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) form: Form,
    pub(super) id: Value,
    pub(super) why: String,
}

impl Job {
    /// Reads a line.
    pub(super) fn parse(line: &str, defaults: &Defaults) -> Result<Job, Box<Refused>> {
        let refuse = |form: Form, id: Value, why: String| Box::new(Refused { form, id, why });
        let value: Value = match serde_json::from_str(line) {
            Ok(value) => value,
            Err(e) => return Err(refuse(Form::Own, Value::Null, format!("not JSON: {e}"))),
        };
        let Value::Object(mut map) = value else {
            return Err(refuse(Form::Own, Value::Null, "a JSON object expected".into()));
        };
        map.retain(|name, v| name == "id" || !v.is_null()); // null is not said
        if map.contains_key("custom_id") || map.contains_key("body") {
            let custom_id = match map.remove("custom_id") {
                Some(Value::String(id)) => id,
                other => {
                    let found = other.unwrap_or(Value::Null);
                    return Err(refuse(Form::Own, found, "custom_id: a text expected".into()));
                }
            };
            let model = map.get("body").map_or(Value::Null, |b| b["model"].clone());
            let url = map.get("url").and_then(Value::as_str).unwrap_or_default().to_owned();
            let form = Form::OpenAi { custom_id: custom_id.clone(), chat: url.ends_with("/chat/completions"), model };
            return Job::open_ai(form.clone(), custom_id.clone(), &url, map, defaults)
                .map_err(|e| refuse(form, custom_id.into(), format!("{e:#}")));
        }
        let id = map.remove("id").unwrap_or(Value::Null);
        Job::own(id.clone(), map, defaults).map_err(|e| refuse(Form::Own, id, format!("{e:#}")))
    }

    fn own(id: Value, mut map: Map<String, Value>, defaults: &Defaults) -> Result<Job> {
        let raw = match map.remove("raw") {
            None => defaults.raw,
            Some(v) => v.as_bool().ok_or_else(|| wrong("raw", &v, "true or false"))?,
        };
        let prompt = match (map.remove("prompt"), map.remove("messages")) {
            (Some(Value::String(text)), None) => Prompt::Text { text, raw },
            (None, Some(list)) => messages(list, &mut map)?,
            (Some(_), Some(_)) => bail!("prompt and messages: one of them expected, not both"),
            (Some(v), None) => return Err(wrong("prompt", &v, "a text")),
            (None, None) => bail!("prompt or messages expected"),
        };
        let mut job = Job {
            form: Form::Own,
            id,
            prompt,
            settings: defaults.settings.clone(),
            params: defaults.params.clone(),
            kind: defaults.kind.clone(),
        };
        agree(&map)?;
        for (name, value) in map {
            if !job.take(&name, &value)? {
                bail!("{name}: no such field");
            }
        }
        job.check_tools()?;
        Ok(job)
    }

    /// Fails where an answer is to be in a form, and calls as well.
    fn check_tools(&self) -> Result<()> {
        match &self.prompt {
            Prompt::Messages { tools: Some(_), .. } if self.kind.is_some() => {
                bail!("tools and a form of the answer (schema, grammar, regex): one of them expected, not both")
            }
            _ => Ok(()),
        }
    }

    fn open_ai(form: Form, id: String, url: &str, mut map: Map<String, Value>, defaults: &Defaults) -> Result<Job> {
        if let Some(method) = map.get("method").filter(|m| *m != "POST") {
            return Err(wrong("method", method, "\"POST\""));
        }
        let Some(Value::Object(mut body)) = map.remove("body") else { bail!("body: an object expected") };
        body.retain(|_, v| !v.is_null());
        body.retain(|name, v| !is_usual(name, v));
        if body.contains_key("max_completion_tokens") {
            body.remove("max_tokens"); // its older name
        }
        let prompt = if url.ends_with("/chat/completions") {
            let Some(list) = body.remove("messages") else { bail!("body.messages expected") };
            messages(list, &mut body)?
        } else if url.ends_with("/completions") {
            match body.remove("prompt") {
                Some(Value::String(text)) => Prompt::Text { text, raw: true },
                other => return Err(wrong("body.prompt", &other.unwrap_or(Value::Null), "a text")),
            }
        } else {
            bail!("url is {url:?}: /v1/chat/completions or /v1/completions expected");
        };
        let mut job = Job {
            form,
            id: id.into(),
            prompt,
            settings: defaults.settings.clone(),
            params: defaults.params.clone(),
            kind: defaults.kind.clone(),
        };
        if !url.ends_with("/chat/completions") && job.params.limit.is_none() {
            job.params.limit = Some(16); // as the API has it
        }
        if body.get("stream").is_some_and(|s| *s != false) {
            bail!("stream is {}: an answer is one line here", body["stream"]);
        }
        if body.get("n").is_some_and(|n| n.as_u64() != Some(1)) {
            bail!("n is {}: 1 expected, send a line for each", body["n"]);
        }
        agree(&body)?;
        // A chat asks by a bool and a number, a text by the number alone.
        let top = body.remove("top_logprobs");
        if top.is_some() && !body.contains_key("logprobs") {
            bail!("top_logprobs needs logprobs: true");
        }
        if let Some(asked) = body.remove("logprobs") {
            job.params.logprobs = match (&asked, &top) {
                (Value::Null | Value::Bool(false), _) => None,
                (Value::Bool(true), None | Some(Value::Null)) => Some(0),
                (Value::Bool(true), Some(n)) => Some(whole("top_logprobs", n)?),
                (n, _) => Some(whole("logprobs", n)?),
            };
        }
        for (name, value) in body {
            if !WITHOUT_EFFECT.contains(&name.as_str()) && !job.take(&name, &value)? {
                bail!("body.{name}: no such field");
            }
        }
        job.check_tools()?;
        Ok(job)
    }

    /// Takes in one field; false if there is no such field.
    fn take(&mut self, name: &str, value: &Value) -> Result<bool> {
        match name {
            _ if value.is_null() && self.settings.clone().set(name, value)? => {}
            "n_predict" | "max_tokens" | "max_completion_tokens" => {
                self.params.limit = match value {
                    Value::Null => return Ok(true),
                    v if v.as_i64() == Some(-1) => None,
                    v => Some(whole(name, v)?),
                }
            }
            "stop" => {
                self.params.stop = match value {
                    Value::Null => Vec::new(),
                    Value::String(text) => vec![text.clone()],
                    Value::Array(list) if list.iter().all(Value::is_string) => {
                        list.iter().filter_map(|v| v.as_str().map(String::from)).collect()
                    }
                    v => return Err(wrong(name, v, "a text or a list of texts")),
                }
            }
            "ignore_eos" => {
                self.params.ignore_eos = value.as_bool().ok_or_else(|| wrong(name, value, "true or false"))?
            }
            "reasoning_budget" if value.as_i64() == Some(-1) => self.params.budget = None,
            "reasoning_budget" => self.params.budget = Some(whole(name, value)?),
            "logprobs" => self.params.logprobs = Some(whole(name, value)?),
            "json_schema" | "grammar" | "regex" => self.kind = Some(kind(name, value)?),
            // vLLM's names for the same.
            "structured_outputs" => {
                let object = value.as_object().filter(|o| o.len() == 1);
                let one = object.and_then(|o| o.iter().next());
                self.kind = match one.map(|(name, v)| (name.as_str(), v)) {
                    Some(("json", v)) => Some(kind("json_schema", v)?),
                    Some((name @ ("grammar" | "regex"), v)) => Some(kind(name, v)?),
                    _ => return Err(wrong(name, value, "an object with json, grammar or regex")),
                }
            }
            "repetition_penalty" => return self.settings.set("repeat_penalty", value),
            "guided_json" => self.kind = Some(kind("json_schema", value)?),
            "guided_grammar" => self.kind = Some(kind("grammar", value)?),
            "guided_regex" => self.kind = Some(kind("regex", value)?),
            "response_format" => {
                self.kind = match value["type"].as_str() {
                    Some("text") => None,
                    Some("json_object") => Some(Kind::JsonSchema(json!({ "type": "object" }))),
                    Some("json_schema") => Some(kind("json_schema", &value["json_schema"]["schema"])?),
                    _ => return Err(wrong(name, value, "a type of text, json_object or json_schema")),
                }
            }
            _ => return self.settings.set(name, value),
        }
        Ok(true)
    }
}

/// Fails where two fields say the same thing, which may be another thing.
fn agree(map: &Map<String, Value>) -> Result<()> {
    const FORMS: &[&str] = &[
        "json_schema",
        "grammar",
        "regex",
        "guided_json",
        "guided_grammar",
        "guided_regex",
        "structured_outputs",
        "response_format",
    ];
    for same in [FORMS, &["n_predict", "max_tokens", "max_completion_tokens"]] {
        let given: Vec<&str> = same.iter().copied().filter(|name| map.contains_key(*name)).collect();
        if given.len() > 1 {
            bail!("{}: one of them expected, not both", given.join(" and "));
        }
    }
    Ok(())
}

fn wrong(name: &str, found: &Value, expected: &str) -> anyhow::Error {
    anyhow::anyhow!("{name} is {found}: {expected} expected")
}

fn whole(name: &str, v: &Value) -> Result<usize> {
    v.as_u64().and_then(|n| usize::try_from(n).ok()).ok_or_else(|| wrong(name, v, "a whole number"))
}

fn kind(name: &str, v: &Value) -> Result<Kind> {
    match (name, v) {
        ("json_schema", Value::Object(_) | Value::Bool(_)) => Ok(Kind::JsonSchema(v.clone())),
        ("grammar", Value::String(text)) => Ok(Kind::grammar(text.clone())),
        ("regex", Value::String(text)) => Ok(Kind::Regex(text.clone())),
        ("json_schema", _) => Err(wrong(name, v, "a schema")),
        _ => Err(wrong(name, v, "a text")),
    }
}

/// A conversation, with what goes to its template.
fn messages(list: Value, map: &mut Map<String, Value>) -> Result<Prompt> {
    let Value::Array(list) = list else { return Err(wrong("messages", &list, "a list")) };
    if list.is_empty() {
        bail!("messages is empty: at least one expected");
    }
    let mut messages = Vec::with_capacity(list.len());
    for (i, mut m) in list.into_iter().enumerate() {
        if !m["role"].is_string() {
            bail!("messages[{i}] has no role");
        }
        // A list of parts is what templates for images read; of text alone it is the text.
        if let Some(parts) = m["content"].as_array() {
            let texts: Option<Vec<&str>> =
                parts.iter().map(|p| p["text"].as_str().filter(|_| p["type"] == "text")).collect();
            let Some(texts) = texts else { bail!("messages[{i}].content: only text can be read") };
            m["content"] = texts.join("\n").into();
        }
        messages.push(m);
    }
    let mut variables = match map.remove("chat_template_kwargs") {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(more)) => more,
        Some(v) => return Err(wrong("chat_template_kwargs", &v, "an object")),
    };
    // What templates call it, too; one that knows no effort has none to set.
    if let Some(effort) = map.remove("reasoning_effort") {
        variables.entry("reasoning_effort").or_insert(effort);
    }
    let flag = |map: &mut Map<String, Value>, name: &str| match map.remove(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(flag)) => Ok(Some(flag)),
        Some(v) => Err(wrong(name, &v, "true or false")),
    };
    let then = match (flag(map, "continue_final_message")?, flag(map, "add_generation_prompt")?) {
        (Some(true), Some(true)) => {
            bail!("continue_final_message and add_generation_prompt: one of them expected to be true, not both")
        }
        (Some(true), _) => Then::Rest,
        (_, Some(false)) => Then::Anything,
        _ => Then::Answer,
    };
    let mut take = |name: &str| map.remove(name);
    let (tools, choice, parallel) = (take("tools"), take("tool_choice"), take("parallel_tool_calls"));
    let tools = match choice {
        Some(none) if none == "none" => None, // so that the template tells the model of none
        choice => ToolUse::new(tools.as_ref(), choice.as_ref(), parallel.as_ref())?.map(Box::new),
    };
    Ok(Prompt::Messages { messages, tools, variables, then })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defaults() -> Defaults {
        Defaults { settings: Settings::default(), params: GenParams::default(), kind: None, raw: false }
    }

    fn refused(line: &str) -> (Value, String) {
        let r = Job::parse(line, &defaults()).unwrap_err();
        (r.id, r.why)
    }

    #[test]
    fn a_line_that_is_wrong_is_refused_with_its_id_and_what_is_wrong_with_it() {
        for (line, id, why) in [
            ("{", json!(null), "not JSON"),
            ("[1]", json!(null), "object"),
            (r#"{"id": 7}"#, json!(7), "prompt or messages"),
            (r#"{"id": "a", "prompt": 3}"#, json!("a"), "prompt is 3"),
            (r#"{"id": 1, "prompt": "x", "messages": []}"#, json!(1), "not both"),
            (r#"{"id": 1, "messages": []}"#, json!(1), "at least one"),
            (r#"{"id": 1, "messages": [{"content": "x"}]}"#, json!(1), "no role"),
            (r#"{"id": 1, "prompt": "x", "temprature": 1}"#, json!(1), "temprature: no such field"),
            (r#"{"id": 1, "prompt": "x", "temperature": "hot"}"#, json!(1), "temperature"),
            (r#"{"id": 1, "prompt": "x", "stop": [1]}"#, json!(1), "stop is [1]"),
            (r#"{"id": 1, "prompt": "x", "regex": "a", "json_schema": {}}"#, json!(1), "json_schema and regex"),
            (r#"{"id": 1, "prompt": "x", "n_predict": 2, "max_tokens": 3}"#, json!(1), "n_predict and max_tokens"),
            (r#"{"id": 1, "prompt": "x", "n_predict": -3}"#, json!(1), "n_predict is -3"),
            (r#"{"id": 1, "messages": [{"role": "user"}], "tools": {}}"#, json!(1), "tools is {}"),
            (r#"{"id": 1, "messages": [{"role": "user"}], "tools": [{}]}"#, json!(1), "tools[0] has no name"),
            (r#"{"id": 1, "messages": [{"role": "user"}], "tool_choice": "required"}"#, json!(1), "no tools are given"),
            (
                r#"{"id": 1, "messages": [{"role": "user"}], "tools": [{"name": "f"}], "tool_choice": {"name": "g"}}"#,
                json!(1),
                "none of the tools",
            ),
            (
                r#"{"id": 1, "messages": [{"role": "user"}], "tools": [{"name": "f"}], "regex": "a"}"#,
                json!(1),
                "not both",
            ),
            (r#"{"id": 1, "messages": [{"role": "user"}], "continue_final_message": 1}"#, json!(1), "true or false"),
            (r#"{"custom_id": "c", "url": "/v1/embeddings", "body": {}}"#, json!("c"), "/v1/chat/completions"),
            (r#"{"custom_id": "c", "url": "/v1/completions", "body": {"prompt": ["a"]}}"#, json!("c"), "a text"),
            (r#"{"custom_id": "c", "url": "/v1/completions", "body": {"prompt": "a", "n": 2}}"#, json!("c"), "n is 2"),
        ] {
            let (got, text) = refused(line);
            assert_eq!(got, id, "{line}");
            assert!(text.contains(why), "{line}: {text}");
        }
    }

    #[test]
    fn the_fields_of_an_openai_request_mean_what_they_mean_there() {
        let line = r#"{"custom_id": "r-1", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m",
            "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
            "temperature": 0, "max_completion_tokens": 9, "stop": "x", "seed": 4, "logprobs": true, "top_logprobs": 2,
            "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}}}"#;
        let job = Job::parse(line, &defaults()).unwrap();
        assert_eq!(job.form, Form::OpenAi { custom_id: "r-1".into(), chat: true, model: json!("m") });
        // What asks for nothing else than is done is no wish that is not granted.
        let usual = r#"{"custom_id": "c", "url": "/v1/chat/completions", "body": {"messages": [{"role": "user", "content": "a"}],
            "echo": false, "best_of": 1, "tool_choice": "none", "tools": [{"type": "function"}], "min_tokens": 0,
            "parallel_tool_calls": true, "reasoning_effort": "low", "repetition_penalty": 1.25,
            "structured_outputs": {"regex": "a"}}}"#;
        let usual = Job::parse(usual, &defaults()).unwrap();
        let Prompt::Messages { tools: None, variables, .. } = &usual.prompt else { panic!("{:?}", usual.prompt) };
        assert_eq!(variables["reasoning_effort"], "low");
        assert_eq!((usual.kind, usual.settings.params.repeat_penalty), (Some(Kind::Regex("a".into())), 1.25));
        let Prompt::Messages { messages, .. } = &job.prompt else { panic!("{:?}", job.prompt) };
        assert_eq!(messages[0]["content"], "a\nb");
        assert_eq!((job.params.limit, job.params.logprobs, job.settings.seed), (Some(9), Some(2), Some(4)));
        assert_eq!(job.params.stop, ["x"]);
        assert!(job.settings.params.greedy());
        assert_eq!(job.kind, Some(Kind::JsonSchema(json!({ "type": "object" }))));
    }
}
