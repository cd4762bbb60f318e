//! Tool calls come out of what models write as a client should get them, however the text is cut; a call that a template
//! writes reads back to the same call.

#[path = "common/mod.rs"]
mod common;

#[path = "tools/cases.rs"]
mod cases;

#[path = "tools/round.rs"]
mod round;

#[path = "tools/held.rs"]
mod held;

#[path = "tools/cli.rs"]
mod cli;
