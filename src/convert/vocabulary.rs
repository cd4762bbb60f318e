//! The metadata of a checkpoint's tokenizer and chat templates.

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value as Json;

use super::files::text;
use crate::gguf::Value;
use crate::models::checkpoint::Config;
use crate::text::{HubTokenizer, NO_VOCABULARY};

/// Special tokens by their names in tokenizer_config.json, and the keys that tell of them.
const SPECIAL: [(&str, &str); 4] =
    [("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding")];

/// The keys of the tokenizer and the templates in `dir`, for a model of `n_vocab` tokens.
pub(super) fn keys(
    dir: &Path,
    config: &Config,
    n_vocab: usize,
    notes: &mut Vec<String>,
) -> Result<Vec<(String, Value)>> {
    let settings = json(dir, "tokenizer_config.json")?;
    let generation = json(dir, "generation_config.json")?;
    let mut keys = match text(&dir.join("tokenizer.json"))? {
        Some(text) => {
            let file = dir.join("tokenizer.json");
            let tokenizer = HubTokenizer::new(&file, &text)?;
            let mut special = special(&tokenizer, &settings, config, &generation);
            for (flag, key) in [("add_bos_token", "add_bos"), ("add_eos_token", "add_eos")] {
                let value = settings[flag].as_bool().map(Value::Bool);
                special.extend(value.map(|v| (format!("tokenizer.ggml.{key}_token"), v)));
            }
            tokenizer.keys(n_vocab, special)?
        }
        None => {
            notes.push(format!(
                "{}: tokenizer.json is missing, so the file gets no vocabulary: `tandem logits` takes token IDs, text \
                 cannot be read or written",
                dir.display()
            ));
            vec![("tokenizer.ggml.model".into(), NO_VOCABULARY.into())]
        }
    };
    keys.extend(templates(dir, &settings)?);
    Ok(keys)
}

/// A JSON file; null where it is missing.
fn json(dir: &Path, name: &str) -> Result<Json> {
    let path = dir.join(name);
    match text(&path)? {
        Some(text) => serde_json::from_str(&text).with_context(|| format!("{}: not JSON", path.display())),
        None => Ok(Json::Null),
    }
}

/// The numbers of the special tokens: those that tokenizer_config.json names, else those of
/// generation_config.json and config.json. Of several that end a text the second is the end of a
/// turn.
fn special(t: &HubTokenizer, settings: &Json, config: &Config, generation: &Json) -> Vec<(String, Value)> {
    let mut keys = Vec::new();
    let mut add = |key: &str, id: u32| keys.push((format!("tokenizer.ggml.{key}_token_id"), Value::U32(id)));
    let number = |v: &Json| v.as_u64().and_then(|n| u32::try_from(n).ok());
    for (name, key) in SPECIAL {
        let given = &settings[name];
        let text = given.as_str().or_else(|| given["content"].as_str());
        let of_files = [generation.get(format!("{name}_id")), config.get(&format!("{name}_id"))];
        let of_files: Vec<u32> = of_files
            .into_iter()
            .flatten()
            .flat_map(|v| v.as_array().cloned().unwrap_or_else(|| vec![v.clone()]))
            .filter_map(|v| number(&v))
            .collect();
        let id = text.and_then(|text| t.id(text)).or(of_files.first().copied());
        id.into_iter().for_each(|id| add(key, id));
        if key == "eos" {
            let turn = of_files.into_iter().find(|other| Some(*other) != id);
            turn.into_iter().for_each(|id| add("eot", id));
        }
    }
    keys
}

/// The chat templates: chat_template.jinja, else those of tokenizer_config.json, of which a list
/// has names.
fn templates(dir: &Path, settings: &Json) -> Result<Vec<(String, Value)>> {
    const KEY: &str = "tokenizer.chat_template";
    if let Some(text) = text(&dir.join("chat_template.jinja"))? {
        return Ok(vec![(KEY.into(), text.into())]);
    }
    match &settings["chat_template"] {
        Json::Null => Ok(Vec::new()),
        Json::String(text) => Ok(vec![(KEY.into(), text.as_str().into())]),
        Json::Array(list) => {
            let mut keys = Vec::new();
            for entry in list {
                let (Some(name), Some(text)) = (entry["name"].as_str(), entry["template"].as_str()) else {
                    bad(dir, entry)?;
                    continue;
                };
                let key = if name == "default" { KEY.to_owned() } else { format!("{KEY}.{name}") };
                keys.push((key, text.into()));
            }
            Ok(keys)
        }
        other => bad(dir, other).map(|()| Vec::new()),
    }
}

fn bad(dir: &Path, found: &Json) -> Result<()> {
    let file = dir.join("tokenizer_config.json");
    bail!(
        "{}: key \"chat_template\" has {found}, expected a template, or a list of names and templates",
        file.display()
    )
}
