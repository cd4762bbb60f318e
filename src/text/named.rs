//! The chat templates that llama.cpp knows by name, in `named.jinja`: each writes what its code
//! writes (`llm_chat_apply_template` in src/llama-chat.cpp of b11434).

use anyhow::{Result, anyhow};

use super::template::Template;
use crate::gguf::Meta;

/// All of them, each after a line `## NAME ..`.
static ALL: &str = include_str!("named.jinja");

/// Templates that write their own begin token.
const BEGUN: [&str; 2] = ["gigachat", "hunyuan-vl"];

/// The names that share a template, and its Jinja.
fn templates() -> impl Iterator<Item = (&'static str, &'static str)> {
    ALL.split("\n## ").skip(1).filter_map(|part| part.split_once('\n'))
}

/// The Jinja of the template of this name; `bos`: with the begin token in front.
fn source(name: &str, bos: bool) -> Option<String> {
    let (_, source) = templates().find(|(names, _)| names.split(' ').any(|n| n == name))?;
    let first = if bos && !BEGUN.contains(&name) { "{{ bos_token }}" } else { "" };
    Some(format!("{first}{}", source.trim_end()))
}

impl Template {
    /// The template that a user names: one of the model's, one of llama.cpp's, or Jinja itself.
    /// `bos`: whether every text of the model begins with its begin token, which llama.cpp's names
    /// leave to the tokenizer.
    ///
    /// # Errors
    /// If nothing is called so, or the template does not parse.
    pub fn chosen(meta: &Meta, name: &str, bos: bool) -> Result<Template> {
        let of_model = meta.get(&format!("tokenizer.chat_template.{name}")).is_some();
        if !of_model && let Some(source) = source(name, bos) {
            return Template::new(&source, &format!("chat template {name}"));
        }
        if !of_model && (name.contains("{%") || name.contains("{{")) {
            return Template::new(name, "the chat template that was given");
        }
        let known = || names().collect::<Vec<_>>().join(", ");
        Template::of(meta, Some(name), false).map_err(|e| anyhow!("{e:#}; llama.cpp's names work too: {}", known()))
    }
}

/// All names.
fn names() -> impl Iterator<Item = &'static str> {
    templates().flat_map(|(names, _)| names.split(' '))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::text::Clock;

    #[test]
    fn every_name_of_llama_cpp_writes_what_llama_cpp_writes() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/named_templates.json");
        let data: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let prompts = data["prompts"].as_object().unwrap();
        for (name, prompts) in prompts {
            let template = Template::new(&source(name, false).unwrap_or_else(|| panic!("{name}")), name).unwrap();
            for (messages, want) in data["conversations"].as_array().unwrap().iter().zip(prompts.as_array().unwrap()) {
                let variables = json!({ "messages": messages, "add_generation_prompt": true });
                let got = template.render(&variables, Clock::now()).unwrap();
                assert_eq!(got, want.as_str().unwrap(), "{name}");
            }
        }
        assert!(names().all(|name| prompts.contains_key(name)) && prompts.len() == names().count());
    }
}
