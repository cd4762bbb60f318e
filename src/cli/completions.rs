//! `tandem completions` and `tandem man`: made from the definitions of the flags, so that they
//! cannot be out of date.

use std::io::Write;

use anyhow::Result;
use clap::CommandFactory;

use super::args::{self, Cli};
use super::errors::usage;
use super::terminal::Stdout;

/// A shell's completions.
pub(super) fn completions(a: &args::CompletionsArgs) -> Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(a.shell, &mut Cli::command(), "tandem", &mut text);
    write(&text)
}

/// A page of the manual: the program's, or a verb's.
pub(super) fn man(a: &args::ManArgs) -> Result<()> {
    let mut command = Cli::command();
    command.build();
    let page = match &a.verb {
        None => command,
        Some(name) => match command.find_subcommand(name) {
            Some(verb) => {
                let full: &'static str = format!("tandem-{name}").leak(); // clap keeps names for good
                verb.clone().name(full)
            }
            None => {
                let all: Vec<&str> = command.get_subcommands().map(clap::Command::get_name).collect();
                return usage(format!("man {name}: no such verb, expected one of {}", all.join(", ")));
            }
        },
    };
    let mut text = Vec::new();
    clap_mangen::Man::new(page).render(&mut text)?;
    write(&text)
}

fn write(text: &[u8]) -> Result<()> {
    let mut out = Stdout::of_answers();
    out.write_all(text)?;
    Ok(out.flush()?)
}
