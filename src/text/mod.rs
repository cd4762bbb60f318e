//! Text and token numbers: a GGUF file's vocabulary, how text is cut into its tokens and put together again; chat
//! templates, and what a chat model's answer consists of.

mod answer;
mod bpe;
mod calls;
mod clock;
pub mod grammar;
mod guard;
mod jinja;
mod length;
mod limits;
mod marks;
mod named;
mod overlap;
mod own;
mod pre;
mod python;
mod split;
mod spm;
mod strings;
mod template;
mod tokenizer;
mod tokenizer_json;
mod vocab;

pub use answer::{Markers, Part, Reader};
pub use calls::{Call, CallGrammars, Markup, Taken, Tools};
pub use clock::Clock;
pub use guard::{Prompt, Prompter};
pub use length::TooLong;
pub use template::Template;
pub use tokenizer::{NO_VOCABULARY, TokenStream, Tokenizer};
pub use tokenizer_json::HubTokenizer;
