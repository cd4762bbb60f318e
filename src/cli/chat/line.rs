//! The line that is typed: edited, with a history and completion of commands on a terminal; read as it is from a pipe.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use rustyline::completion::{Completer, FilenameCompleter, Pair};
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Cmd, CompletionType, Config, Context, Editor, ExternalPrinter, Helper, KeyCode, KeyEvent, Modifiers};

use super::commands;
use crate::cli::{own_folder, signals};

/// What came from the user.
pub(super) enum Line {
    /// A message or a command.
    Text(String),
    /// Ctrl-C.
    Interrupt,
    /// Nothing will come any more.
    End,
}

/// The mark before a line, and before the further ones of a message.
const PROMPT: &str = "> ";

/// Reads lines.
pub(super) struct Lines {
    editor: Editor<Keys, FileHistory>,
    history: Option<PathBuf>,
    terminal: bool,
    prompt: (String, String),
    /// Nothing is printed with it: while there is one, the editor listens for signals beside keys, and misses none.
    _listens: Option<Box<dyn ExternalPrinter>>,
}

impl Lines {
    pub(super) fn new(colour: bool) -> Result<Lines> {
        let config = Config::builder()
            .history_ignore_space(true)
            .completion_type(CompletionType::List)
            .max_history_size(1000)
            .context("no history")?
            .build();
        let mut editor = Editor::with_config(config).context("the terminal cannot be set up")?;
        editor.set_helper(Some(Keys { files: FilenameCompleter::new() }));
        for key in [KeyEvent(KeyCode::Enter, Modifiers::ALT), KeyEvent::ctrl('J')] {
            editor.bind_sequence(key, Cmd::Newline);
        }
        let terminal = std::io::stdin().is_terminal();
        let history = terminal.then(history_file).flatten();
        if let Some(path) = &history {
            let _ = editor.load_history(path); // there is none the first time
        }
        let listens = editor.create_external_printer().ok().map(|p| Box::new(p) as Box<dyn ExternalPrinter>);
        let styled = if colour { format!("\x1b[1m{PROMPT}\x1b[22m") } else { PROMPT.into() };
        Ok(Lines { editor, history, terminal, prompt: (PROMPT.into(), styled), _listens: listens })
    }

    /// Whether somebody sits there.
    pub(super) fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// The next line, or several: one that ends in a backslash goes on in the next.
    pub(super) fn read(&mut self, draft: &str) -> Result<Line> {
        let line = signals::wait(|| match draft {
            "" => self.editor.readline(&self.prompt),
            text => self.editor.readline_with_initial(&self.prompt, (text, "")),
        });
        let Some(line) = line else { return Ok(Line::End) };
        match line {
            Ok(text) => {
                if self.terminal && !text.trim().is_empty() {
                    let _ = self.editor.add_history_entry(text.as_str());
                    if let Some(path) = &self.history {
                        let _ = self.editor.append_history(path); // kept in memory all the same
                    }
                }
                Ok(Line::Text(text.replace("\\\n", "\n")))
            }
            Err(ReadlineError::Interrupted) => Ok(Line::Interrupt),
            Err(ReadlineError::Eof) => Ok(Line::End),
            Err(ReadlineError::Io(e)) => Err(e).context("cannot read the next line"),
            Err(e) => Err(e).context("cannot read the next line"),
        }
    }

    /// A question that is answered with y or n; no where nobody can answer.
    pub(super) fn ask(&mut self, question: &str) -> Result<bool> {
        if !self.terminal {
            say!("{question}no, because stdin is no terminal (--when-full drop says yes)");
            return Ok(false);
        }
        std::io::stderr().flush()?;
        loop {
            match signals::wait(|| self.editor.readline(question)) {
                Some(Ok(text)) if matches!(text.trim(), "y" | "Y" | "yes") => return Ok(true),
                Some(Ok(text)) if matches!(text.trim(), "n" | "N" | "no") => return Ok(false),
                Some(Ok(_)) => {}
                None | Some(Err(_)) => return Ok(false),
            }
        }
    }
}

/// Where lines are remembered: the system's place for such files.
fn history_file() -> Option<PathBuf> {
    Some(own_folder("XDG_STATE_HOME", ".local/state").ok()??.join("history"))
}

/// What keys do beyond editing: Tab completes commands and the files that they name, and a backslash goes on.
struct Keys {
    files: FilenameCompleter,
}

impl Completer for Keys {
    type Candidate = Pair;

    fn complete(&self, line: &str, pos: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<Pair>)> {
        if !line.starts_with('/') {
            return Ok((pos, Vec::new()));
        }
        match line[..pos].split_once(' ') {
            None => {
                let names = commands::names().filter(|n| n.starts_with(&line[..pos]));
                let pair = |n: &str| Pair { display: n.into(), replacement: n.into() };
                Ok((0, names.map(pair).collect()))
            }
            Some(("/save" | "/load", _)) => self.files.complete_path(line, pos),
            Some(_) => Ok((pos, Vec::new())),
        }
    }
}

impl Validator for Keys {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        let more = context.input().ends_with('\\');
        Ok(if more { ValidationResult::Incomplete } else { ValidationResult::Valid(None) })
    }
}

impl Hinter for Keys {
    type Hint = String;
}
impl Highlighter for Keys {}
impl Helper for Keys {}
