//! The command line: one file per verb, and rooms for what verbs share.
//!
//! | shared room | what |
//! |---|---|
//! | `program` | `main`: reads the arguments, runs the verb, ends with an exit status |
//! | `args`, `argv` | clap's structs and nothing else; what a person types, made ready for clap |
//! | `flags` | the table of llama.cpp's and ik_llama.cpp's flags |
//! | `errors` | usage errors, options without effect, exit statuses |
//! | `escapes` | \n and the like in flags |
//! | `files` | files that are read and written, and checks before anything is lost |
//! | `human` | sizes, tables and paragraphs for people |
//! | `open`, `opened` | flags to options to a session; the same with tokenizer, template and sampling settings |
//! | `predict`, `stats` | how fast a model should be, and how fast it was (`--stats`) |
//! | `session_file` | the file that `--session` names |
//! | `overrides`, `affinity` | metadata that the command line sets; the CPUs that the process runs on |
//! | `settings`, `structured` | sampling parameters and the form of the text, from flags and requests |
//! | `signals`, `terminal`, `echo` | Ctrl-C; colours, the progress bar, text that is safe to show; the echo of what is typed |
//! | `closed` | whether there is a stdout |
//! | `dry_run` | `--dry-run` |
//! | `trial` | the process in which a JSON schema or a grammar is tried before it is compiled |

mod affinity;
pub mod args;
pub mod argv;
mod batch;
mod bench;
mod chat;
mod closed;
mod completions;
mod convert;
mod doctor;
mod dry_run;
mod echo;
mod errors;
mod escapes;
mod explain;
mod fetch;
mod files;
mod flags;
mod gpus;
mod human;
mod list;
mod logits;
mod open;
mod opened;
mod overrides;
mod perplexity;
mod predict;
mod program;
mod run;
mod session_file;
pub mod settings;
mod signals;
mod speculation;
mod stats;
mod structured;
mod template;
mod terminal;
mod tokenize;
mod trial;
mod unknown;
mod verify;

pub use batch::check_request;
pub use program::main;
