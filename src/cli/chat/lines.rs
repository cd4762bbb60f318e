//! The line that is typed: edited, with a history and completion of commands on a terminal; read as
//! it is from a pipe.

use std::io::{ErrorKind, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result};
use rustyline::completion::{Completer, FilenameCompleter, Pair};
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{
    Behavior, CharSearch, Cmd, CompletionType, ConditionalEventHandler, Config, Context, Editor, Event, EventContext,
    EventHandler, ExternalPrinter, Helper, KeyCode, KeyEvent, Modifiers, Movement, RepeatCount,
};

use super::attach::mentions;
use super::command;
use super::paste::Pastes;
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
    /// Long texts in the line.
    pastes: Shared,
    /// The last line as it was typed, with the placeholders of long texts.
    last: String,
    /// What was typed where y or n was expected, for the next line.
    kept: String,
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
        let typed = Arc::new(AtomicBool::new(false));
        let pastes = Shared::default();
        if terminal {
            let pasting = |key: Option<Cmd>| EventHandler::Conditional(Box::new(Pasting(pastes.clone(), key)));
            editor.bind_sequence(Event::Any, pasting(None));
            editor.bind_sequence(KeyEvent(KeyCode::Enter, Modifiers::ALT), pasting(Some(Cmd::Newline)));
            // Not by what a line ends in when it is done: what is pasted stays as it is.
            // Ctrl-J is Enter that was typed before the editor listened.
            for key in [KeyEvent(KeyCode::Enter, Modifiers::NONE), KeyEvent::ctrl('J')] {
                editor.bind_sequence(key, EventHandler::Conditional(Box::new(Further(pastes.clone()))));
            }
            let notes = Box::new(Notes(typed.clone(), pastes.clone()));
            editor.bind_sequence(KeyEvent::ctrl('C'), EventHandler::Conditional(notes));
        }
        let history = terminal.then(history_file).flatten();
        if let Some(path) = &history {
            let _ = editor.load_history(path); // there is none the first time
        }
        let listens = editor.create_external_printer().ok().map(|p| Box::new(p) as Box<dyn ExternalPrinter>);
        let styled = if colour(terminal) { format!("\x1b[1m{PROMPT}\x1b[22m") } else { PROMPT.into() };
        let (prompt, kept) = ((PROMPT.into(), styled), String::new());
        Ok(Lines { editor, history, terminal, prompt, typed, pastes, last: String::new(), kept, _listens: listens })
    }

    /// Whether stdin is a terminal.
    pub(super) fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// The last line as it was typed, with the placeholders of long texts.
    pub(super) fn typed(&self) -> &str {
        &self.last
    }

    /// Keeps a long text; returns its placeholder for a line.
    pub(super) fn keep(&mut self, what: &str, text: String) -> String {
        open(&self.pastes).keep(what, text)
    }

    /// The next line, or several: one that ends in a backslash continues on the next. It begins
    /// with `draft`.
    pub(super) fn read(&mut self, draft: &str) -> Result<Line> {
        self.typed.store(false, Ordering::Relaxed);
        let kept = std::mem::take(&mut self.kept);
        let draft = open(&self.pastes).collapse(if draft.is_empty() { &kept } else { draft });
        let line = signals::wait(|| match &draft[..] {
            "" => self.editor.readline(&self.prompt),
            // The editor writes a line as it is, and this one may come from a session of somebody else's.
            text => self.editor.readline_with_initial(&self.prompt, (&printable(text), "")),
        });
        let Some(line) = line else { return Ok(Line::End) };
        match line {
            Ok(text) => {
                let text = text.replace(&format!("\\{JOINT}"), "\n").replace(JOINT, "\n");
                // A placeholder of a long text would mean nothing in the next start.
                if self.terminal && !text.trim().is_empty() && !open(&self.pastes).has(&text) {
                    let _ = self.editor.add_history_entry(text.as_str());
                    if let Some(path) = &self.history {
                        let _ = self.editor.append_history(path); // kept in memory all the same
                    }
                }
                self.last.clone_from(&text);
                Ok(Line::Text(match self.terminal {
                    true => open(&self.pastes).expand(&text),
                    false => text.replace("\\\n", "\n"),
                }))
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

    /// Asks a question for y or n, until one of them is the answer; the answer is no if stdin is not
    /// a terminal. What else is typed is kept for the next line, or for the history.
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
                Some(Ok(text)) if text.trim().is_empty() => {}
                Some(Ok(text)) => {
                    say!("(expected y or n; what you typed is kept for the next line)");
                    let _ = self.editor.add_history_entry(text.as_str());
                    self.kept = open(&self.pastes).expand(&text);
                }
                None | Some(Err(_)) => return Ok(false),
            }
        }
    }
}

/// Where lines are remembered: the system's place for such files.
fn history_file() -> Option<PathBuf> {
    Some(own_folder("XDG_STATE_HOME", ".local/state").ok()??.join("history"))
}

/// The long texts in the line, which the editor's handlers change too.
type Shared = Arc<Mutex<Pastes>>;

fn open(pastes: &Shared) -> MutexGuard<'_, Pastes> {
    pastes.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What keys do beyond editing: Tab completes commands and the files that they or a message name;
/// from a pipe, a backslash continues the line.
struct Keys {
    files: FilenameCompleter,
    terminal: bool,
}

/// Any key: a paste is taken in as a whole, since the editor would show all of it and draw all of
/// it again with every further key. A backspace after the placeholder of a long text removes all of it.
struct Pasting(Shared, Option<Cmd>);

/// Enter after a backslash: a new line begins, marked so that a pasted backslash is not taken for
/// one.
struct Further(Shared);

/// Nothing to be seen (a word joiner), between the backslash and the new line.
const JOINT: &str = "\u{2060}\n";

/// Notes whether Ctrl-C came with something in the line.
struct Notes(Arc<AtomicBool>, Shared);

/// Takes in the key, if a paste is under way.
fn of_paste(pastes: &Shared, event: &Event) -> Option<Cmd> {
    let mut pastes = open(pastes);
    let key = event.get(0).filter(|_| pastes.is_open())?;
    if key.0 == KeyCode::BracketedPasteEnd {
        return Some(Cmd::Insert(1, pastes.end()));
    }
    pastes.key(key);
    Some(Cmd::Noop)
}

impl ConditionalEventHandler for Pasting {
    fn handle(&self, event: &Event, n: RepeatCount, _: bool, context: &EventContext<'_>) -> Option<Cmd> {
        if let Some(taken) = of_paste(&self.0, event) {
            return Some(taken);
        }
        let mut pastes = open(&self.0);
        match event.get(0)?.0 {
            KeyCode::BracketedPasteStart => {
                pastes.begin();
                Some(Cmd::Noop)
            }
            KeyCode::Backspace if n == 1 => {
                let all = Movement::ViCharSearch(1, CharSearch::Backward('['));
                pastes.ends(&context.line()[..context.pos()]).then_some(Cmd::Kill(all))
            }
            _ => self.1.clone(),
        }
    }
}

impl ConditionalEventHandler for Notes {
    fn handle(&self, event: &Event, _: RepeatCount, _: bool, context: &EventContext<'_>) -> Option<Cmd> {
        self.0.store(!context.line().is_empty(), Ordering::Relaxed);
        of_paste(&self.1, event) // else as always
    }
}

impl ConditionalEventHandler for Further {
    fn handle(&self, event: &Event, _: RepeatCount, _: bool, context: &EventContext<'_>) -> Option<Cmd> {
        let further = context.pos() == context.line().len() && context.line().ends_with('\\');
        of_paste(&self.0, event).or_else(|| further.then(|| Cmd::Insert(1, JOINT.into())))
    }
}

impl Completer for Keys {
    type Candidate = Pair;

    fn complete(&self, line: &str, pos: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<Pair>)> {
        if !line.starts_with('/') {
            return match ends_in_mention(&line[..pos]) {
                true => self.files.complete_path(line, pos),
                false => Ok((pos, Vec::new())),
            };
        }
        match line[..pos].split_once(' ') {
            None => {
                let names = command::names().filter(|n| n.starts_with(&line[..pos]));
                let pair = |n: &str| Pair { display: n.into(), replacement: n.into() };
                Ok((0, names.map(pair).collect()))
            }
            Some(("/save" | "/load" | "/read" | "/model", _)) => self.files.complete_path(line, pos),
            Some(_) => Ok((pos, Vec::new())),
        }
    }
}

/// Whether a text ends in the name of a file after `@`.
fn ends_in_mention(text: &str) -> bool {
    let last = mentions(text).pop();
    text.ends_with('@') && !text[..text.len() - 1].ends_with(|c: char| !c.is_whitespace())
        || last.is_some_and(|word| text.ends_with(word))
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
