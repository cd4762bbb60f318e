//! Conversations and generations: from a session's tokens to what a person or a program reads, and back.

mod stops;
mod tools;
mod turns;
mod writer;

pub use stops::Stops;
pub use tools::{CallRules, ToolChoice, ToolUse};
pub use turns::{Turns, message, read, read_ahead, rest, set_system, shared};
pub use writer::{End, GenParams, Generated, Parts, Writer, write};
