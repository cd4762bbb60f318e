//! What the commands of a chat do.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::command::{ALL, Command};
use super::conversation::{Chat, count_turns};
use super::{attach, clipboard};
use crate::cli::human::{grouped, table};
use crate::cli::session_file::SessionFile;
use crate::gguf::Gguf;
use crate::talk;

/// What follows a command.
pub(super) enum Next {
    Nothing,
    /// The conversation is over.
    Leave,
    /// The last message is to be answered.
    Answer,
    /// This text is to be edited.
    Edit(String),
    /// A file of this name, as it goes into the next message.
    Attach(String, String),
    /// The conversation goes on with this model.
    Model(PathBuf),
}

impl Chat<'_> {
    /// Does what a command says.
    pub(super) fn run(&mut self, command: Command) -> Result<Next> {
        match command {
            Command::Help => {
                for (name, takes, does) in ALL {
                    say!("  {:22} {does}", format!("{name} {takes}"));
                }
                say!("  A line that ends in \\ continues on the next; Alt-Enter starts a new line; Tab completes.");
            }
            Command::System(text) => {
                talk::set_system(&mut self.messages, &text);
                if self.turn_count() > 0 {
                    say!("(the conversation will be processed again with the next message)");
                }
            }
            Command::Read(path) => return self.read_file(&path),
            Command::Undo => match self.take_back() {
                Some(text) => say!("(removed: {:?})", short(&text)),
                None => say!("(there is nothing to undo)"),
            },
            Command::Retry => {
                let Some(at) = self.messages.iter().rposition(|m| m["role"] == "user") else {
                    bail!("there is no message to answer");
                };
                self.replaced = self.messages.split_off(at + 1);
                return Ok(Next::Answer);
            }
            Command::Edit => match self.take_out() {
                Some((text, taken)) => {
                    self.edited = taken;
                    return Ok(Next::Edit(text));
                }
                None => say!("(there is no message to edit)"),
            },
            Command::Copy => self.copy_answer()?,
            Command::Save(path) => self.save_as(path)?,
            Command::Load(path) => self.load_from(path)?,
            Command::Set(None) => self.list_settings(),
            Command::Set(Some((name, value))) => self.set(&name, &value)?,
            Command::Tokens => self.count_tokens()?,
            Command::Stats => self.print_stats(),
            Command::Model(None) => self.show_model(),
            Command::Model(Some(path)) => {
                // Found out before the model that runs is let go.
                Gguf::open(&path).with_context(|| format!("/model {}", path.display()))?;
                return Ok(Next::Model(path));
            }
            Command::Clear => {
                self.messages.retain(|m| m["role"] == "system");
                say!("(a new conversation)");
            }
            Command::Exit => return Ok(Next::Leave),
        }
        Ok(Next::Nothing)
    }

    /// Puts a file's text into the next message.
    fn read_file(&self, path: &Path) -> Result<Next> {
        let block = attach::block(path, self.most_bytes())?;
        let (n, name) = (self.tokenizer.encode(&block, false, false)?.len(), path.display());
        say!("({name}: {} characters, {} tokens)", grouped(block.chars().count()), grouped(n));
        Ok(Next::Attach(name.to_string(), block))
    }

    /// Copies the last answer to the clipboard, as the model wrote it.
    fn copy_answer(&self) -> Result<()> {
        let answer = self.messages.iter().rfind(|m| m["role"] == "assistant").and_then(|m| m["content"].as_str());
        match answer.filter(|text| !text.is_empty()) {
            Some(text) => say!("({})", clipboard::copy(text)?),
            None => bail!("/copy: there is no answer yet"),
        }
        Ok(())
    }

    /// Saves to a file that is new or was saved to before, or to the conversation's own.
    fn save_as(&mut self, path: Option<PathBuf>) -> Result<()> {
        match (path, &self.file) {
            (Some(path), own) if own.as_ref().is_none_or(|f| f.path() != path) => {
                let mut file = match self.saved.iter().position(|f| f.path() == path) {
                    Some(at) => self.saved.remove(at),
                    None => SessionFile::new(&path),
                };
                if file.is_strange() {
                    bail!("{}: already exists and is not from this conversation; give another name", path.display());
                }
                file.save(|path| self.save(path, true))?;
                say!("(saved to {})", file.path().display());
                self.saved.push(file);
            }
            (_, Some(_)) => {
                self.keep(true)?;
                self.file.iter().for_each(|f| say!("(saved to {})", f.path().display()));
            }
            _ => bail!("/save: expected the name of a file (or start with --session FILE)"),
        }
        Ok(())
    }

    /// Continues the conversation in a file, which becomes the conversation's own if it had one.
    fn load_from(&mut self, path: PathBuf) -> Result<()> {
        let file = SessionFile::new(&path);
        self.load(&path)?;
        if let Some(own) = &mut self.file {
            if own.path() != path {
                let (old, new) = (own.path().display(), path.display());
                say!("({old} is left as it is; the conversation is now saved to {new})");
            }
            *own = file;
        }
        say!("({})", self.begins());
        self.show_last_turn();
        self.saved.push(SessionFile::new(&path).seen());
        Ok(())
    }

    /// Lists what can be set, one value a line, and marks what is not as it is without flags.
    fn list_settings(&self) {
        let mut all = self.settings.list();
        let mut more = |name: &str, value: String, default: &str| {
            let default = (value != default && !default.is_empty()).then(|| default.to_owned());
            all.push((name.to_owned(), value, default));
        };
        more("seed", self.seed.to_string(), "");
        more("n_predict", self.params.limit.map_or("-1".into(), |n| n.to_string()), "-1");
        more("reasoning", if self.screen.reasoning { "show" } else { "hide" }.into(), "show");
        more("markdown", if self.screen.markdown { "on" } else { "off" }.into(), "on");
        let row = |(name, value, default): (String, String, Option<String>)| {
            let (mark, note) = match default {
                Some(default) => ("*", format!("(default {default})")),
                None => ("", String::new()),
            };
            vec![mark.to_owned(), name, value, note]
        };
        let rows: Vec<Vec<String>> = all.into_iter().map(row).collect();
        say!("{}", table(&rows, &[false; 4]).trim_end());
    }

    fn set(&mut self, name: &str, value: &str) -> Result<()> {
        let two = |yes: &str, no: &str| match value {
            _ if value == yes => Ok(true),
            _ if value == no => Ok(false),
            _ => bail!("/set {name} {value}: expected {yes} or {no}"),
        };
        match name {
            "reasoning" => self.screen.reasoning = two("show", "hide")?,
            "markdown" => self.screen.markdown = two("on", "off")?,
            _ => return self.set_parameter(name, value),
        }
        say!("({name} is now {value})");
        Ok(())
    }

    fn set_parameter(&mut self, name: &str, value: &str) -> Result<()> {
        // Numbers, lists and objects as JSON; anything else is text.
        let json: serde_json::Value = serde_json::from_str(value).unwrap_or_else(|_| value.into());
        if json.is_null() {
            bail!("/set {name}: expected a value");
        }
        if name == "n_predict" {
            self.params.limit = match (json.as_u64().and_then(|n| usize::try_from(n).ok()), json.as_i64()) {
                (None, Some(-1)) => None,
                (None, _) => bail!("/set n_predict {value}: expected a whole number, or -1 for no limit"),
                (limit, _) => limit,
            };
        } else {
            let mut settings = self.settings.clone();
            if !settings.set(name, &json)? {
                bail!("/set {name}: no such parameter; /set alone lists them");
            }
            settings.sampler(0, self.tokenizer)?; // fails if a token is not in the vocabulary
            self.settings = settings;
        }
        if name == "seed" {
            (self.seed, self.drawn) = (self.settings.seed(), 0);
        }
        match self.settings.params.idle(name) {
            Some(why) => say!("({name} is now {value}, which has no effect with the current settings: {why})"),
            None => say!("({name} is now {value})"),
        }
        Ok(())
    }

    /// Shows the tokens of each message, of the whole prompt, and what is left of the context.
    fn count_tokens(&self) -> Result<()> {
        let mut rows = Vec::new();
        let mut sum = 0;
        for message in &self.messages {
            let text = message["content"].as_str().unwrap_or_default();
            let n = self.tokenizer.encode(text, false, false)?.len();
            sum += n;
            rows.push(vec![message["role"].as_str().unwrap_or_default().to_owned(), grouped(n), short_line(text)]);
        }
        let all = self.session.n_ctx();
        let whole = match self.messages.is_empty() {
            true => 0,
            false => self.tokenizer.encode_prompt(&self.turns.prompt(&self.messages, false)?)?.len(),
        };
        rows.push(vec!["template".into(), grouped(whole.saturating_sub(sum)), "marks between the messages".into()]);
        rows.push(vec![
            "sum".into(),
            grouped(whole),
            format!("{} of {} left", grouped(all - whole.min(all)), grouped(all)),
        ]);
        say!("{}", table(&rows, &[false, true, false]).trim_end());
        Ok(())
    }

    fn print_stats(&self) {
        if let Some(l) = &self.last {
            let rate = |n: usize, s: f64| n as f64 / s.max(1e-9);
            say!(
                "last answer: {} prompt tokens read ({:.1} tokens/s), {} cached, {} generated ({:.1} tokens/s); {}",
                l.read,
                rate(l.read, l.read_s),
                l.kept,
                l.made,
                rate(l.made, l.made_s),
                l.ended
            );
        }
        let (used, all) = (self.session.tokens(0).len(), self.session.n_ctx());
        say!(
            "context: {used} of {all} tokens ({:.0}%), {}; {:.1} MB of state; seed {}",
            100.0 * used as f64 / all as f64,
            count_turns(self.turn_count()),
            self.session.state_bytes(0) as f64 / 1e6,
            self.seed
        );
    }
}

/// The beginning of a text in a line, without what a terminal would obey.
fn short_line(text: &str) -> String {
    short(&text.split_whitespace().collect::<Vec<_>>().join(" ")).replace(char::is_control, "\u{fffd}")
}

/// The beginning of a text.
fn short(text: &str) -> String {
    let mut start: String = text.chars().take(60).collect();
    if start.len() < text.len() {
        start.push('…');
    }
    start
}
