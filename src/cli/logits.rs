//! `tandem logits`: the logits of a list of tokens as raw f32, for anyone who compares engines.

use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::errors::usage;
use super::files::{AnswerFile, apart, has_folder, read_text};
use super::stats::stats;
use super::{args, open};
use crate::session::Want;

/// Runs the verb.
pub(super) fn run(a: &args::LogitsArgs) -> Result<()> {
    let tokens = tokens(&a.tokens)?;
    let positions = positions(&a.positions, tokens.len())?;
    has_folder("--out", &a.out)?;
    apart("--out", &a.out, &[("the model", a.model.model.as_deref()), ("the tokens", Some(Path::new(&a.tokens)))])?;
    let o = open::for_all_logits(open::options(&a.model)?);
    let mut session = open::session(open::header(a.model.model.as_deref(), &o.first_load(), o.threads)?, &a.model, &o)?;
    let n_vocab = session.n_vocab();
    let logits = session.feed(0, &tokens, Want::All)?.into_logits();
    let mut out = BufWriter::new(AnswerFile::open(Some(&a.out))?); // not before there is something to write
    for &p in &positions {
        for v in &logits[p * n_vocab..(p + 1) * n_vocab] {
            out.write_all(&v.to_le_bytes())?;
        }
    }
    out.flush()?;
    tracing::info!("{}: {} rows of {n_vocab} f32", a.out.display(), positions.len());
    stats(&session, &a.model)
}

/// Token IDs: `1,2,3`, or a JSON file with a list or an object that has `prompt_ids`.
fn tokens(text: &str) -> Result<Vec<u32>> {
    let ids: Vec<Option<u32>> = text.split(',').map(|n| n.trim().parse().ok()).collect();
    let bad = text.split(',').zip(&ids).find(|(_, id)| id.is_none());
    let list = match bad {
        None => ids.into_iter().flatten().collect(),
        // Commas and a sign mean a list, unless there is such a file.
        Some((word, _)) if (ids.len() > 1 || text.starts_with(['-', '+'])) && !Path::new(text).exists() => {
            let max = u32::MAX;
            return usage(format!(
                "--tokens {text}: {word:?} is no token ID, expected whole numbers from 0 to {max} like 1,2,3; or give the \
                 name of a JSON file"
            ));
        }
        Some(_) => of_file(text)?,
    };
    if list.is_empty() {
        return usage(format!("--tokens {text}: expected at least one token"));
    }
    Ok(list)
}

/// The token IDs in a JSON file.
fn of_file(text: &str) -> Result<Vec<u32>> {
    let read = read_text(Path::new(text)).context("--tokens: expected a list like 1,2,3 or a JSON file")?;
    let json: Value = serde_json::from_str(&read).with_context(|| format!("{text}: not JSON"))?;
    let list = json.as_array().or_else(|| json["prompt_ids"].as_array());
    let Some(list) = list else { bail!("{text}: expected a list of token IDs, or an object with prompt_ids") };
    let number = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
    list.iter().map(|v| number(v).with_context(|| format!("{text}: {v} is not a token ID"))).collect()
}

/// Positions: `all`, or numbers of which negative ones count from the end.
fn positions(text: &str, n: usize) -> Result<Vec<usize>> {
    if text == "all" {
        return Ok((0..n).collect());
    }
    text.split(',')
        .map(|p| {
            let at = p.trim().parse::<i64>().ok().map(|p| if p < 0 { n as i64 + p } else { p });
            match at.and_then(|p| usize::try_from(p).ok()).filter(|p| *p < n) {
                Some(p) => Ok(p),
                None => usage(format!("--positions {p}: expected a position from {} to {}", -(n as i64), n - 1)),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_with_a_word_in_it_names_the_word_and_a_name_is_a_file() {
        assert_eq!(tokens("1, 2,3").unwrap(), [1, 2, 3]);
        for (text, word) in [("1,2,x", "\"x\""), ("1,,2", "\"\""), ("-5", "\"-5\""), ("7,4294967296", "4294967296")] {
            let said = format!("{:#}", tokens(text).unwrap_err());
            assert!(said.starts_with("usage error") && said.contains(word) && said.contains("1,2,3"), "{said}");
        }
        let said = format!("{:#}", tokens("no-such.json").unwrap_err());
        assert!(said.contains("cannot read no-such.json") && said.contains("a list like 1,2,3"), "{said}");
    }
}
