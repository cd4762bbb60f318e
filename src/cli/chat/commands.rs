//! What a line that begins with a slash does.

use std::path::PathBuf;

use anyhow::{Result, bail};

use super::{Chat, Kept, Next};
use crate::talk;

/// Names, what they take, what they do.
const ALL: &[(&str, &str, &str)] = &[
    ("/help", "", "this list"),
    ("/system", "TEXT", "sets the system message; without TEXT it is taken out"),
    ("/undo", "", "takes back the last message and its answer"),
    ("/regen", "", "answers the last message anew"),
    ("/edit", "", "takes back the last message and its answer, to be edited"),
    ("/save", "FILE", "keeps the conversation in FILE (without FILE: in the one of --session)"),
    ("/load", "FILE", "goes on with the conversation in FILE"),
    (
        "/set",
        "NAME VALUE",
        "a parameter of sampling (temp, top_p, ...), or reasoning show|hide; without both: lists them",
    ),
    ("/stats", "", "what the last answer took, and how full the context is"),
    ("/clear", "", "begins anew; the system message stays"),
    ("/exit", "", "ends (so do Ctrl-D, and Ctrl-C twice)"),
];

/// A command.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Command {
    Help,
    System(String),
    Undo,
    Regen,
    Edit,
    Save(Option<PathBuf>),
    Load(PathBuf),
    Set(Option<(String, String)>),
    Stats,
    Clear,
    Exit,
}

/// The commands' names.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    ALL.iter().map(|c| c.0)
}

/// A file's name as it was typed, or as completion wrote it: ~ is the home folder, and a backslash makes a letter itself.
fn path(text: &str) -> String {
    let text = rustyline::completion::unescape(text, Some('\\')).into_owned();
    match (text.strip_prefix("~/"), std::env::var("HOME")) {
        (Some(rest), Ok(home)) => format!("{home}/{rest}"),
        _ => text,
    }
}

impl Command {
    pub(super) fn parse(line: &str) -> Result<Command> {
        let (name, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let rest = rest.trim();
        let takes_none = |command: Command| match rest {
            "" => Ok(command),
            _ => bail!("{name} takes nothing after it, found {rest:?}"),
        };
        let file = || PathBuf::from(path(rest));
        match name {
            "/help" => takes_none(Command::Help),
            "/system" => Ok(Command::System(rest.into())),
            "/undo" => takes_none(Command::Undo),
            "/regen" => takes_none(Command::Regen),
            "/edit" => takes_none(Command::Edit),
            "/save" => Ok(Command::Save((!rest.is_empty()).then(file))),
            "/load" if rest.is_empty() => bail!("/load: the name of a file expected after it"),
            "/load" => Ok(Command::Load(file())),
            "/set" if rest.is_empty() => Ok(Command::Set(None)),
            "/set" => match rest.split_once(char::is_whitespace) {
                Some((name, value)) => Ok(Command::Set(Some((name.into(), value.trim().into())))),
                None => bail!("/set {rest}: a value expected after the name"),
            },
            "/stats" => takes_none(Command::Stats),
            "/clear" => takes_none(Command::Clear),
            "/exit" | "/quit" | "/bye" => takes_none(Command::Exit),
            other => {
                let near = names().filter(|n| n.starts_with(other) || strsim::jaro(n, other) > 0.8);
                let near: Vec<&str> = near.collect();
                match near.is_empty() {
                    true => bail!(
                        "{other}: no such command; /help lists them (a message may begin with a space and a slash)"
                    ),
                    false => bail!("{other}: no such command; {}?", near.join(" or ")),
                }
            }
        }
    }
}

impl Chat<'_> {
    /// Does what a command says.
    pub(super) fn run(&mut self, command: Command) -> Result<Next> {
        match command {
            Command::Help => {
                for (name, takes, does) in ALL {
                    say!("  {:22} {does}", format!("{name} {takes}"));
                }
                say!("  A line that ends in \\ goes on in the next; Alt-Enter begins a new one; Tab completes.");
            }
            Command::System(text) => {
                talk::set_system(&mut self.messages, &text);
                if self.turn_count() > 0 {
                    say!("(the conversation is read again with the next message)");
                }
            }
            Command::Undo => match self.take_back() {
                Some(text) => say!("(taken back: {:?})", short(&text)),
                None => say!("(there is nothing to take back)"),
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
            Command::Save(path) => match (path, &self.file) {
                (Some(path), own) if own.as_ref().is_none_or(|f| f.path() != path) => {
                    let mut file = match self.saved.iter().position(|f| f.path() == path) {
                        Some(at) => self.saved.remove(at),
                        None if Kept::new(&path).exists() => bail!(
                            "{}: it is there already, and not from this conversation; give another name",
                            path.display()
                        ),
                        None => Kept::new(&path),
                    };
                    file.save(|path| self.save(path, true))?;
                    say!("(saved to {})", file.path().display());
                    self.saved.push(file);
                }
                (_, Some(_)) => {
                    self.keep(true)?;
                    self.file.iter().for_each(|f| say!("(saved to {})", f.path().display()));
                }
                _ => bail!("/save: the name of a file expected after it (or start with --session FILE)"),
            },
            Command::Load(path) => {
                let file = Kept::new(&path);
                self.load(&path)?;
                self.saved.push(file.clone());
                if let Some(own) = &mut self.file {
                    if own.path() != path {
                        let (old, new) = (own.path().display(), path.display());
                        say!("({old} stays as it is; from now on {new} is written)");
                    }
                    *own = file;
                }
                say!("({})", self.greeting());
            }
            Command::Set(None) => {
                let limit = self.asked.limit.map_or("-1".into(), |n| n.to_string());
                let reasoning = if self.screen.reasoning { "show" } else { "hide" };
                let seed = self.seed;
                say!("{}, seed {seed}, n_predict {limit}, reasoning {reasoning}", self.settings.words());
            }
            Command::Set(Some((name, value))) => self.set(&name, &value)?,
            Command::Stats => self.tell(),
            Command::Clear => {
                self.messages.retain(|m| m["role"] == "system");
                say!("(a new conversation)");
            }
            Command::Exit => return Ok(Next::Leave),
        }
        Ok(Next::Nothing)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<()> {
        if name == "reasoning" {
            self.screen.reasoning = match value {
                "show" => true,
                "hide" => false,
                _ => bail!("/set reasoning {value}: show or hide expected"),
            };
            return Ok(());
        }
        // Numbers, lists and objects as JSON writes them; all else is text.
        let json: serde_json::Value = serde_json::from_str(value).unwrap_or_else(|_| value.into());
        if json.is_null() {
            bail!("/set {name}: a value expected");
        }
        if name == "n_predict" {
            self.asked.limit = match (json.as_u64().and_then(|n| usize::try_from(n).ok()), json.as_i64()) {
                (None, Some(-1)) => None,
                (None, _) => bail!("/set n_predict {value}: a whole number expected, or -1 for no limit"),
                (limit, _) => limit,
            };
        } else {
            let mut settings = self.settings.clone();
            if !settings.set(name, &json)? {
                bail!("/set {name}: no such parameter; /set alone lists them");
            }
            settings.sampler(0, self.tokenizer)?; // what the vocabulary has not is found here
            self.settings = settings;
        }
        if name == "seed" {
            (self.seed, self.drawn) = (self.settings.seed(), 0);
        }
        match self.settings.params.idle(name) {
            Some(why) => say!("({name} is now {value}, which does nothing as things are: {why})"),
            None => say!("({name} is now {value})"),
        }
        Ok(())
    }

    fn tell(&self) {
        if let Some(l) = &self.last {
            let rate = |n: usize, s: f64| n as f64 / s.max(1e-9);
            say!(
                "last answer: {} tokens read ({:.1} per second) after {} that were known, {} written ({:.1} per second); ended by {}",
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
            turns(self.turn_count()),
            self.session.state_bytes(0) as f64 / 1e6,
            self.seed
        );
    }
}

/// So many turns, in words.
pub(super) fn turns(n: usize) -> String {
    format!("{n} {}", if n == 1 { "turn" } else { "turns" })
}

/// The beginning of a text.
fn short(text: &str) -> String {
    let mut start: String = text.chars().take(60).collect();
    if start.len() < text.len() {
        start.push('…');
    }
    start
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_of_the_list_is_understood() {
        for (name, takes, _) in ALL {
            let line = if takes.is_empty() { name.to_string() } else { format!("{name} a b") };
            Command::parse(&line).unwrap_or_else(|e| panic!("{line}: {e}"));
        }
    }

    #[test]
    fn a_misspelled_command_names_the_near_one_and_is_never_a_message() {
        let said = |line: &str| Command::parse(line).unwrap_err().to_string();
        assert!(said("/regn").contains("/regen"), "{}", said("/regn"));
        assert!(said("/sav x").contains("/save"), "{}", said("/sav x"));
        assert!(said("/xyzzy").contains("/help"), "{}", said("/xyzzy"));
        assert!(said("/undo 3").contains("nothing"), "{}", said("/undo 3"));
        assert!(said("/set temp").contains("value"), "{}", said("/set temp"));
    }
}
