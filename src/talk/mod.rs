//! Conversations and generations: the way from a session's tokens to what a person or a program reads, and back.

mod stops;
mod turns;
mod writer;

pub use stops::Stops;
pub use turns::{Progress, Turns, feed, message, read, read_ahead, rest, set_system, shared};
pub use writer::{End, GenParams, Generated, Parts, Writer, write};
