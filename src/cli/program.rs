//! The program: the command line is read, its verb runs, and a failure becomes a message and an
//! exit status.

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use anyhow::Result;
use clap::{ArgMatches, CommandFactory, FromArgMatches};

use super::args::{Cli, ModelArgs, Verb};
use super::terminal::of_stdout;
use super::{
    affinity, argv, batch, bench, chat, closed, completions, convert, doctor, dry_run, errors, explain, fetch, list,
    logits, overrides, perplexity, run, signals, template, tokenize, trial, verify,
};
use crate::printable::Printable;
use crate::session::Interrupted;
use crate::text::grammar::try_with;

/// Runs the program: the whole of `main`.
pub fn main(argv: impl Iterator<Item = OsString>) -> ExitCode {
    let argv: Vec<OsString> = argv.collect();
    if argv.get(1).is_some_and(|a| a == trial::ARGUMENT) {
        return trial::main();
    }
    try_with(trial::try_form);
    let at = argv::Terminals { stdin: std::io::stdin().is_terminal(), stdout: std::io::stdout().is_terminal() };
    let line = match argv::read(argv, at) {
        Ok(argv::Request::Run(line)) => line,
        Ok(argv::Request::Print(text)) => {
            return ended(
                closed::check_stdout().and_then(|()| Ok(writeln!(std::io::stdout(), "{text}").map_err(of_stdout)?)),
            );
        }
        Err(why) => {
            say!("tandem: usage error: {why}");
            return ExitCode::from(2);
        }
    };
    let mut command = Cli::command();
    let parsed =
        command.try_get_matches_from_mut(&line.words).and_then(|given| Ok((Cli::from_arg_matches(&given)?, given)));
    let (cli, given) = match parsed.map_err(|e| e.format(&mut command)) {
        Ok(parsed) => parsed,
        Err(e) if e.use_stderr() => {
            let _ = e.print();
            return ExitCode::from(2);
        }
        Err(help) => return ended(print_help(&help)),
    };
    errors::be_strict(cli.strict);
    set_up_notices(&cli);
    ended(work(cli, &given, &line))
}

/// Does what the command line asks for.
fn work(mut cli: Cli, given: &ArgMatches, line: &argv::CommandLine) -> Result<()> {
    check_stdout(&cli.verb)?;
    signals::outlive_full_files()?;
    line.tell(cli.quiet)?;
    let _headers = fetch::settle(&mut cli.verb)?;
    run_verb(&cli.verb, given)
}

/// The exit status of what was done; an error is printed.
fn ended(done: Result<()>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) if errors::is_closed_pipe(&e) => ExitCode::SUCCESS,
        Err(e) => {
            if !e.is::<Interrupted>() {
                say!("tandem: {e:#}");
            }
            ExitCode::from(errors::exit_status(&e))
        }
    }
}

/// Notices go to stderr, as many as `-q` and `-v` say.
fn set_up_notices(cli: &Cli) {
    let level = match cli.verbose {
        0 if cli.quiet => tracing::Level::WARN,
        0 => tracing::Level::INFO,
        1 => tracing::Level::DEBUG,
        _ => tracing::Level::TRACE,
    };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(|| Printable::new(std::io::stderr()))
        .with_ansi(false)
        .without_time()
        .with_target(false)
        .with_level(false)
        .log_internal_errors(false) // a closed stderr does not keep the answer from being written
        .init();
}

/// The flags of the model that a verb opens, if it has all of them.
fn model_flags(verb: &Verb) -> Option<&ModelArgs> {
    match verb {
        Verb::Chat(a) => Some(&a.model),
        Verb::Run(a) => Some(&a.model),
        Verb::Batch(a) => Some(&a.model),
        Verb::Logits(a) => Some(&a.model),
        Verb::Bench(a) => Some(&a.model),
        Verb::Explain(a) => Some(&a.model),
        Verb::Perplexity(a) => Some(&a.model),
        Verb::Verify(a) => Some(&a.model),
        _ => None,
    }
}

/// Writes what `--help` or `--version` asks for.
fn print_help(help: &clap::Error) -> Result<()> {
    closed::check_stdout()?;
    help.print().and_then(|()| std::io::stdout().flush()).map_err(|e| of_stdout(e).into())
}

/// Fails if stdout is closed and the answer would go there.
fn check_stdout(verb: &Verb) -> Result<()> {
    let elsewhere = match verb {
        Verb::Run(a) => a.output.is_some(),
        Verb::Batch(a) => a.output.is_some(),
        Verb::Logits(_) | Verb::Convert(_) => true,
        _ => false,
    };
    if elsewhere { Ok(()) } else { closed::check_stdout() }
}

/// `given`: what clap made the verb of, for `--dry-run`.
fn run_verb(verb: &Verb, given: &ArgMatches) -> Result<()> {
    if let Some(model) = model_flags(verb) {
        affinity::hold(&model.overrides)?;
        overrides::hold(&model.overrides)?;
    }
    if dry_run::run(verb, given)? {
        return Ok(());
    }
    match verb {
        Verb::Chat(a) => chat::run(a),
        Verb::Run(a) => run::run(a),
        Verb::Batch(a) => batch::run(a),
        Verb::Logits(a) => logits::run(a),
        Verb::Convert(a) => convert::run(a),
        Verb::Bench(a) => bench::run(a),
        Verb::Explain(a) => explain::run(a),
        Verb::Doctor(a) => doctor::run(a),
        Verb::Fetch(a) => fetch::run(a),
        Verb::List(a) => list::run(a),
        Verb::Perplexity(a) => perplexity::run(a),
        Verb::Template(a) => template::run(a),
        Verb::Tokenize(a) => tokenize::run(a),
        Verb::Verify(a) => verify::run(a),
        Verb::Completions(a) => completions::completions(a),
        Verb::Man(a) => completions::man(a),
    }
}
