//! What a line that begins with a slash does.

use std::path::PathBuf;

use anyhow::{Result, bail};

/// Names, what they take, what they do.
pub(super) const ALL: &[(&str, &str, &str)] = &[
    ("/help", "", "lists the commands"),
    ("/system", "TEXT", "sets the system message; without TEXT removes it"),
    ("/read", "FILE", "puts a text file into the next message (so does @FILE in a message)"),
    ("/undo", "", "removes the last message and its answer"),
    ("/retry", "", "answers the last message again (so does /regen)"),
    ("/edit", "", "removes the last message and its answer, and lets you edit the message"),
    ("/copy", "", "copies the last answer to the clipboard, as the model wrote it"),
    ("/save", "FILE", "saves the conversation to FILE (default: the file of --session)"),
    ("/load", "FILE", "continues the conversation in FILE"),
    (
        "/set",
        "NAME VALUE",
        "sets a sampling parameter (temp, top_p, ...), reasoning show|hide, markdown on|off; alone, lists them",
    ),
    ("/tokens", "", "shows how many tokens each message takes, and how many are left"),
    ("/stats", "", "shows counts and rates of the last answer, and how full the context is"),
    ("/model", "FILE", "shows the model and where it is placed; with FILE, goes on with that model"),
    ("/clear", "", "starts a new conversation; the system message stays"),
    ("/exit", "", "leaves (so do Ctrl-D, and Ctrl-C twice)"),
];

/// A command.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Command {
    Help,
    System(String),
    Read(PathBuf),
    Undo,
    Retry,
    Edit,
    Copy,
    Save(Option<PathBuf>),
    Load(PathBuf),
    Set(Option<(String, String)>),
    Tokens,
    Stats,
    Model(Option<PathBuf>),
    Clear,
    Exit,
}

/// The commands' names.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    ALL.iter().map(|c| c.0).chain(["/regen"])
}

/// A line with the slash of the words that leave or help elsewhere too: exit, quit, ?.
pub(super) fn with_slash(text: String) -> String {
    match text.trim() {
        "exit" | "quit" => "/exit".into(),
        "?" => "/help".into(),
        _ => text,
    }
}

/// A file's name as it was typed, or as completion wrote it: ~ is the home folder, and a backslash
/// makes a letter itself.
pub(super) fn path(text: &str) -> String {
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
            _ => bail!("{name} takes no argument, found {rest:?}"),
        };
        let file = || PathBuf::from(path(rest));
        match name {
            "/help" => takes_none(Command::Help),
            "/system" => Ok(Command::System(rest.into())),
            "/read" if rest.is_empty() => bail!("/read: expected the name of a text file"),
            "/read" => Ok(Command::Read(file())),
            "/undo" => takes_none(Command::Undo),
            "/retry" | "/regen" => takes_none(Command::Retry),
            "/copy" => takes_none(Command::Copy),
            "/edit" => takes_none(Command::Edit),
            "/save" => Ok(Command::Save((!rest.is_empty()).then(file))),
            "/load" if rest.is_empty() => bail!("/load: expected the name of a file"),
            "/load" => Ok(Command::Load(file())),
            "/set" if rest.is_empty() => Ok(Command::Set(None)),
            "/set" => match rest.split_once(char::is_whitespace) {
                Some((name, value)) => Ok(Command::Set(Some((name.into(), value.trim().into())))),
                None => bail!("/set {rest}: expected a value after the name"),
            },
            "/tokens" => takes_none(Command::Tokens),
            "/stats" => takes_none(Command::Stats),
            "/model" => Ok(Command::Model((!rest.is_empty()).then(file))),
            "/clear" => takes_none(Command::Clear),
            "/exit" | "/quit" | "/bye" => takes_none(Command::Exit),
            other => {
                let near = names().filter(|n| n.starts_with(other) || strsim::jaro(n, other) > 0.8);
                let near: Vec<&str> = near.collect();
                match near.is_empty() {
                    true => bail!(
                        "{other}: no such command; /help lists them (to send a message that starts with /, type a space first)"
                    ),
                    false => bail!("{other}: no such command; {}?", near.join(" or ")),
                }
            }
        }
    }
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
    fn the_words_that_leave_other_programs_leave_this_one_and_nothing_longer_does() {
        let line = |text: &str| with_slash(text.into());
        assert_eq!([line("exit"), line(" quit "), line("?")], ["/exit", "/exit", "/help"]);
        assert_eq!([line("exit now"), line("quit?"), line("/undo")], ["exit now", "quit?", "/undo"]);
    }

    #[test]
    fn a_misspelled_command_names_the_near_one_and_is_never_a_message() {
        let said = |line: &str| Command::parse(line).unwrap_err().to_string();
        assert!(said("/regn").contains("/regen"), "{}", said("/regn"));
        assert!(said("/rety").contains("/retry"), "{}", said("/rety"));
        assert!(said("/sav x").contains("/save"), "{}", said("/sav x"));
        assert!(said("/xyzzy").contains("/help"), "{}", said("/xyzzy"));
        assert!(said("/undo 3").contains("no argument"), "{}", said("/undo 3"));
        assert!(said("/set temp").contains("value"), "{}", said("/set temp"));
    }
}
