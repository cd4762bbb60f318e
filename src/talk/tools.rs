//! The tools of a request: what is offered, whether one must be called, how calls are read out of the answer and held to
//! their schemas while they are written.

use anyhow::{Result, bail};
use serde_json::{Value, json};

use crate::text::grammar::{Grammar, Grammars, Kind};
use crate::text::{Markup, Taken, Tokenizer, Tools};

/// Whether a tool must be called.
#[derive(Clone, Debug, PartialEq)]
pub enum ToolChoice {
    /// As the model likes.
    Auto,
    /// One of them, at least.
    Required,
    /// This one.
    Named(String),
}

/// The tools of a request.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolUse {
    tools: Tools,
    choice: ToolChoice,
    parallel: bool,
    /// As the template gets them.
    list: Value,
    markup: Option<&'static Markup>,
}

impl ToolUse {
    /// From the API's `tools`, `tool_choice` and `parallel_tool_calls`; None where nothing may be called.
    ///
    /// # Errors
    /// If one of them is not as the API has it.
    pub fn new(tools: Option<&Value>, choice: Option<&Value>, parallel: Option<&Value>) -> Result<Option<ToolUse>> {
        let parallel = match parallel {
            None | Some(Value::Null) => true,
            Some(Value::Bool(parallel)) => *parallel,
            Some(other) => bail!("parallel_tool_calls is {other}: true or false expected"),
        };
        let list = tools.and_then(Value::as_array).cloned().unwrap_or_default();
        let tools = Tools::new(tools.unwrap_or(&json!([])))?;
        let choice = match choice {
            None | Some(Value::Null) => ToolChoice::Auto,
            Some(v) if v == "none" => return Ok(None),
            Some(v) if v == "auto" => ToolChoice::Auto,
            Some(v) if v == "required" || v == "any" => ToolChoice::Required,
            Some(v) => match v["function"]["name"].as_str().or(v["name"].as_str()) {
                Some(name) if tools.has(name) => ToolChoice::Named(name.to_owned()),
                Some(name) => bail!("tool_choice is {name:?}, which is none of the tools"),
                None => bail!(
                    "tool_choice is {v}: \"auto\", \"none\", \"required\" or \
                     {{\"type\": \"function\", \"function\": {{\"name\": ..}}}} expected"
                ),
            },
        };
        if tools.is_empty() {
            if choice != ToolChoice::Auto {
                bail!("tool_choice asks for a call, and no tools are given; give tools, or leave tool_choice out");
            }
            return Ok(None);
        }
        let whole = |tool: Value| match tool.get("function") {
            Some(_) => tool,
            None => json!({ "type": "function", "function": tool }),
        };
        let list = list.into_iter().map(whole).collect();
        Ok(Some(ToolUse { tools, choice, parallel, list, markup: None }))
    }

    /// The tools as a template gets them.
    pub fn list(&self) -> &Value {
        &self.list
    }

    /// The markup of the calls, once the model's template is known.
    pub fn markup(&self) -> Option<&'static Markup> {
        self.markup
    }

    /// Takes the model's markup, from its template's text.
    ///
    /// # Errors
    /// If a call is asked for and the template's calls are in no known markup.
    pub fn for_template(mut self, source: &str) -> Result<ToolUse> {
        self.markup = Markup::of(source);
        if self.markup.is_none() && self.choice != ToolChoice::Auto {
            bail!(
                "tool_choice: the chat template has no known markup for calls, so that none can be asked for; use auto"
            );
        }
        Ok(self)
    }

    /// What the model wrote, with the calls taken out; `complete`: it was not cut off.
    pub fn take(&self, reasoning: &str, answer: &str, complete: bool) -> Taken {
        match self.markup {
            Some(markup) => {
                let mut taken = markup.take(&self.tools, reasoning, answer, complete);
                if !self.parallel && taken.calls.len() > 1 {
                    let more = taken.calls.len() - 1;
                    tracing::warn!(
                        "the model made {more} more calls than the one that parallel_tool_calls: false allows"
                    );
                    taken.calls.truncate(1);
                }
                taken
            }
            None => Taken { reasoning: reasoning.to_owned(), content: answer.to_owned(), ..Taken::default() },
        }
    }

    /// What holds the calls to their schemas while they are written.
    ///
    /// # Errors
    /// If a call is asked for, and a schema cannot be kept. Otherwise a warning says that calls are not held.
    pub fn rules(&self, tokenizer: &Tokenizer, grammars: &Grammars) -> Result<CallRules> {
        let Some(markup) = self.markup else { return Ok(CallRules::default()) };
        let only = match &self.choice {
            ToolChoice::Named(name) => self.tools.only(name),
            _ => None,
        };
        let must = self.choice != ToolChoice::Auto;
        let mark = |text: &str| {
            let ids = tokenizer.encode(text, false, true).unwrap_or_default();
            let runs = ids.chunk_by(|a, b| !tokenizer.is_control(*a) && !tokenizer.is_control(*b));
            let one = |run: &[u32]| match run {
                [id] if tokenizer.is_control(*id) => Ok(*id),
                run => Err(tokenizer.decode(run, true)),
            };
            runs.map(one).collect()
        };
        let rules = markup.rules(only.as_ref().unwrap_or(&self.tools), self.parallel, &mark);
        let Some(rules) = rules else {
            if must {
                bail!("tool_choice: calls in the markup of {} cannot be asked for; use auto", markup.name());
            }
            tracing::info!("calls in the markup of {} are not held to the tools' schemas", markup.name());
            return Ok(CallRules::default());
        };
        let start = |text: &String| grammars.start(&Kind::Lark(text.clone()));
        let made = || -> Result<_> {
            let whole = if must { rules.whole.as_ref().map(start).transpose()? } else { None };
            let after = rules.after.iter().map(|(opens, text)| Ok((opens.clone(), start(text)?)));
            Ok((whole, after.collect::<Result<Vec<_>>>()?))
        };
        let (whole, after) = match made() {
            Ok(made) => made,
            Err(e) if must => return Err(e.context("tool_choice: the schemas of the tools cannot be kept; use auto")),
            Err(e) => {
                tracing::warn!("the calls of tools are not held to their schemas: {e:#}");
                return Ok(CallRules::default());
            }
        };
        let heads = if must { rules.heads } else { Vec::new() };
        Ok(CallRules { markup: Some(markup), must, whole, after, heads, single: !self.parallel })
    }
}

/// What holds calls to their schemas while they are written.
#[derive(Debug, Default)]
pub struct CallRules {
    pub(super) markup: Option<&'static Markup>,
    /// The answer must be a call.
    pub(super) must: bool,
    /// Then this is the answer's form.
    pub(super) whole: Option<Grammar>,
    /// What may follow the marks with which calls open.
    pub(super) after: Vec<(Vec<String>, Grammar)>,
    /// The heads of messages that a call can be in, where it must be one and messages have heads.
    pub(super) heads: Vec<String>,
    /// One call is all.
    pub(super) single: bool,
}
