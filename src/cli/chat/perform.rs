//! What the commands of a chat do.

use std::path::PathBuf;

use anyhow::{Result, bail};

use super::command::{ALL, Command};
use super::conversation::{Chat, count_turns};
use crate::cli::session_file::SessionFile;
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
            Command::Undo => match self.take_back() {
                Some(text) => say!("(removed: {:?})", short(&text)),
                None => say!("(there is nothing to undo)"),
            },
            Command::Regen => {
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
            Command::Save(path) => self.save_as(path)?,
            Command::Load(path) => self.load_from(path)?,
            Command::Set(None) => {
                let limit = self.params.limit.map_or("-1".into(), |n| n.to_string());
                let reasoning = if self.screen.reasoning { "show" } else { "hide" };
                let seed = self.seed;
                say!("{}, seed {seed}, n_predict {limit}, reasoning {reasoning}", self.settings.describe());
            }
            Command::Set(Some((name, value))) => self.set(&name, &value)?,
            Command::Stats => self.print_stats(),
            Command::Clear => {
                self.messages.retain(|m| m["role"] == "system");
                say!("(a new conversation)");
            }
            Command::Exit => return Ok(Next::Leave),
        }
        Ok(Next::Nothing)
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
        say!("({})", self.greeting());
        self.saved.push(SessionFile::new(&path).seen());
        Ok(())
    }

    fn set(&mut self, name: &str, value: &str) -> Result<()> {
        if name == "reasoning" {
            self.screen.reasoning = match value {
                "show" => true,
                "hide" => false,
                _ => bail!("/set reasoning {value}: expected show or hide"),
            };
            return Ok(());
        }
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

/// The beginning of a text.
fn short(text: &str) -> String {
    let mut start: String = text.chars().take(60).collect();
    if start.len() < text.len() {
        start.push('…');
    }
    start
}
