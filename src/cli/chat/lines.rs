//! The line that is typed: edited, with a history and completion of commands on a terminal; read as
//! it is from a pipe.

use std::io::{ErrorKind, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result};
use rustyline::completion::{Completer, FilenameCompleter, Pair};
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{
    Behavior, Cmd, CompletionType, ConditionalEventHandler, Config, Context, Editor, Event, EventContext, EventHandler,
    ExternalPrinter, Helper, KeyCode, KeyEvent, Modifiers, RepeatCount,
};

use super::command;
use crate::cli::files::own_folder;
use crate::cli::signals;
use crate::cli::terminal::colour;
use crate::printable::printable;

/// What came from the user.
pub(super) enum Line {
    /// A message or a command.
    Text(String),
    /// Ctrl-C, on a line with nothing in it or with something.
    Interrupt { empty: bool },
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
    /// Whether the line on which Ctrl-C came had something in it.
    typed: Arc<AtomicBool>,
    /// Nothing is printed with it: while there is one, the editor listens for signals as well as
    /// keys, and misses none.
    _listens: Option<Box<dyn ExternalPrinter>>,
}

impl Lines {
    pub(super) fn new() -> Result<Lines> {
        let terminal = std::io::stdin().is_terminal();
        // If answers go to a file, what is typed is still shown on the terminal.
        let aside = terminal && !std::io::stdout().is_terminal();
        let config = Config::builder()
            .behavior(if aside { Behavior::PreferTerm } else { Behavior::Stdio })
            .history_ignore_space(true)
            .completion_type(CompletionType::List)
            .max_history_size(1000)
            .context("cannot keep a history")?
            .build();
        let mut editor = Editor::with_config(config).context("the terminal cannot be set up")?;
        editor.set_helper(Some(Keys { files: FilenameCompleter::new(), terminal }));
        editor.bind_sequence(KeyEvent(KeyCode::Enter, Modifiers::ALT), Cmd::Newline);
        let typed = Arc::new(AtomicBool::new(false));
        if terminal {
            // Not by what a line ends in when it is done: what is pasted stays as it is.
            // Ctrl-J is Enter that was typed before the editor listened.
            for key in [KeyEvent(KeyCode::Enter, Modifiers::NONE), KeyEvent::ctrl('J')] {
                editor.bind_sequence(key, EventHandler::Conditional(Box::new(Further)));
            }
            let notes = Box::new(Notes(typed.clone()));
            editor.bind_sequence(KeyEvent::ctrl('C'), EventHandler::Conditional(notes));
        }
        let history = terminal.then(history_file).flatten();
        if let Some(path) = &history {
            let _ = editor.load_history(path); // there is none the first time
        }
        let listens = editor.create_external_printer().ok().map(|p| Box::new(p) as Box<dyn ExternalPrinter>);
        let styled = if colour(terminal) { format!("\x1b[1m{PROMPT}\x1b[22m") } else { PROMPT.into() };
        Ok(Lines { editor, history, terminal, prompt: (PROMPT.into(), styled), typed, _listens: listens })
    }

    /// Whether stdin is a terminal.
    pub(super) fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// The next line, or several: one that ends in a backslash continues on the next.
    pub(super) fn read(&mut self, draft: &str) -> Result<Line> {
        self.typed.store(false, Ordering::Relaxed);
        let line = signals::wait(|| match draft {
            "" => self.editor.readline(&self.prompt),
            // The editor writes a line as it is, and this one may come from a session of somebody else's.
            text => self.editor.readline_with_initial(&self.prompt, (&printable(text), "")),
        });
        let Some(line) = line else { return Ok(Line::End) };
        match line {
            Ok(text) => {
                let text = text.replace(&format!("\\{JOINT}"), "\n").replace(JOINT, "\n");
                if self.terminal && !text.trim().is_empty() {
                    let _ = self.editor.add_history_entry(text.as_str());
                    if let Some(path) = &self.history {
                        let _ = self.editor.append_history(path); // kept in memory all the same
                    }
                }
                Ok(Line::Text(if self.terminal { text } else { text.replace("\\\n", "\n") }))
            }
            Err(ReadlineError::Interrupted) => Ok(Line::Interrupt { empty: !self.typed.load(Ordering::Relaxed) }),
            Err(ReadlineError::Io(e)) if self.terminal && e.kind() == ErrorKind::InvalidData => {
                say!("(the line is not UTF-8 and was ignored)");
                Ok(Line::Text(String::new()))
            }
            Err(ReadlineError::Eof) => Ok(Line::End),
            Err(ReadlineError::Io(e)) => Err(e).context("cannot read the next line"),
            Err(e) => Err(e).context("cannot read the next line"),
        }
    }

    /// Asks a question for y or n; the answer is no if stdin is not a terminal.
    pub(super) fn ask(&mut self, question: &str) -> Result<bool> {
        if !self.terminal {
            say!("{question}no: stdin is not a terminal (--when-full drop answers yes)");
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

/// What keys do beyond editing: Tab completes commands and the files that they name; from a pipe, a
/// backslash continues the line.
struct Keys {
    files: FilenameCompleter,
    terminal: bool,
}

/// Enter after a backslash: a new line begins, marked so that a pasted backslash is not taken for
/// one.
struct Further;

/// Nothing to be seen (a word joiner), between the backslash and the new line.
const JOINT: &str = "\u{2060}\n";

/// Notes whether Ctrl-C came with something in the line.
struct Notes(Arc<AtomicBool>);

impl ConditionalEventHandler for Notes {
    fn handle(&self, _: &Event, _: RepeatCount, _: bool, context: &EventContext<'_>) -> Option<Cmd> {
        self.0.store(!context.line().is_empty(), Ordering::Relaxed);
        None // as always
    }
}

impl ConditionalEventHandler for Further {
    fn handle(&self, _: &Event, _: RepeatCount, _: bool, context: &EventContext<'_>) -> Option<Cmd> {
        let further = context.pos() == context.line().len() && context.line().ends_with('\\');
        further.then(|| Cmd::Insert(1, JOINT.into()))
    }
}

impl Completer for Keys {
    type Candidate = Pair;

    fn complete(&self, line: &str, pos: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<Pair>)> {
        if !line.starts_with('/') {
            return Ok((pos, Vec::new()));
        }
        match line[..pos].split_once(' ') {
            None => {
                let names = command::names().filter(|n| n.starts_with(&line[..pos]));
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
        let more = !self.terminal && context.input().ends_with('\\');
        Ok(if more { ValidationResult::Incomplete } else { ValidationResult::Valid(None) })
    }
}

impl Hinter for Keys {
    type Hint = String;
}
impl Highlighter for Keys {}
impl Helper for Keys {}
