//! What becomes of the flags of llama.cpp and ik_llama.cpp here: the table of all of them, and the
//! answer to one that was typed.
//!
//! | class | what becomes of it |
//! |---|---|
//! | works | it is a flag here too, by this or another name |
//! | changes | the same, of a flag that changes the text that is written |
//! | already so | it asks for what is so anyway; all of them are told in one line |
//! | no effect | it is about speed or notices alone, and is not followed: a notice, an error under `--strict` |
//! | not here | the text would be another one without it: refused, with the reason and what to do instead |

mod flag;
mod lookup;
mod table;
#[cfg(test)]
mod tests;
mod values;

pub(super) use flag::{Outcome, joined};
pub(super) use lookup::{Lookup, look_up, own_word, unknown};
