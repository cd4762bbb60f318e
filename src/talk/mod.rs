//! Conversations and generations: what stands between a session's tokens and what a person or a program reads.

mod stops;
mod turns;
mod writer;

pub use stops::Stops;
pub use turns::{Progress, Turns, feed, message, read, read_ahead, rest, set_system, shared};
pub use writer::{Asked, End, Parts, Said, Writer, write};
