//! The command line: one file per verb, and rooms for what verbs share.
//!
//! | shared room | what |
//! |---|---|
//! | `program` | `main`: reads the arguments, runs the verb, ends with an exit status |
//! | `args`, `argv` | clap's structs and nothing else; what a person types, made ready for clap |
//! | `errors` | usage errors, options without effect, exit statuses |
//! | `files` | files that are read and written, and checks before anything is lost |
//! | `human` | sizes, tables and paragraphs for people |
//! | `open`, `opened` | flags to options to a session; the same with tokenizer, template and sampling settings |
//! | `predict`, `stats` | how fast a model should be, and how fast it was (`--stats`) |
//! | `session_file` | the file that `--session` names |
//! | `settings`, `structured` | sampling parameters and the form of the text, from flags and requests |
//! | `signals`, `terminal` | Ctrl-C; colours and the progress bar |
//! | `dry_run` | `--dry-run` |

pub mod args;
pub mod argv;
mod batch;
mod bench;
mod chat;
mod completions;
mod convert;
mod doctor;
mod dry_run;
mod errors;
mod explain;
mod fetch;
mod files;
mod human;
mod list;
mod logits;
mod open;
mod opened;
mod perplexity;
mod predict;
mod program;
mod run;
mod session_file;
pub mod settings;
mod signals;
mod stats;
mod structured;
mod template;
mod terminal;
mod tokenize;
mod unknown;
mod verify;

pub use batch::check_request;
pub use program::main;
