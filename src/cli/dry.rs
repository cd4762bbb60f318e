//! `--dry-run`: what would be done, as one command in which everything that was left to this program is written out.

use std::io::Write;

use anyhow::{Context, Result};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, CommandFactory};

use super::args::{self, Cli, Verb};
use super::sampling::Settings;
use super::{Failure, gguf, gpu, options, usage};
use crate::cpu::Pool;
use crate::gguf::Load;
use crate::plan;
use crate::session::{self, Options};

/// A verb's name, model and sampling, and how many sequences it has.
type Asked<'a> = (&'static str, &'a args::Model, Option<&'a args::Sampling>, usize);

/// Prints the command, if that is all that is asked; whether it is. `given`: the arguments that the verb was made of.
pub(super) fn run(verb: &Verb, given: &ArgMatches) -> Result<bool> {
    let (name, model, sampling, n_seq): Asked<'_> = match verb {
        Verb::Chat(a) => ("chat", &a.model, Some(&a.sampling), 1),
        Verb::Run(a) => ("run", &a.model, Some(&a.sampling), 1),
        Verb::Batch(a) => ("batch", &a.model, Some(&a.sampling), a.parallel),
        Verb::Bench(a) => ("bench", &a.model, None, 1),
        Verb::Perplexity(a) => ("perplexity", &a.model, None, 1),
        Verb::Logits(a) => ("logits", &a.model, None, 1),
        Verb::Verify(a) => ("verify", &a.model, None, 1),
        _ => return Ok(false),
    };
    if !model.dry_run {
        return Ok(false);
    }
    if n_seq == 0 {
        return usage("--parallel 0: at least 1 expected".into());
    }
    let o = Options { n_seq, n_output_rows: Some(n_seq), ..options(model)? };
    let gguf = gguf(model.model.as_deref(), &Load { mmap: true, mlock: false })?; // nothing is loaded
    let tape = session::tape(&gguf, &o).context(Failure::Model)?;
    super::unknown::unknown_keys(&gguf, &tape)?;
    let shape = session::shape(&gguf, &o).context(Failure::Model)?;
    let budget = match gpu(model, &o)? {
        Some(gpu) => {
            let free = gpu.memory()?.0;
            Some(free.saturating_sub(session::margin(free, gpu.shown)))
        }
        None => None,
    };
    let fit = plan::fit(tape, &o.ask, budget, shape)?;
    let threads = Pool::new(o.threads)?.threads();
    let mut words = vec!["tandem".to_owned(), name.into()];
    words.extend(model.model.iter().flat_map(|m| ["-m".into(), quoted(&m.display().to_string())]));
    words.push(format!(
        "-c {} -t {threads} -tb {} -b {} -ub {} -ctk {} -ctv {} {}",
        shape.n_ctx,
        o.threads_batch.filter(|n| *n > 0).unwrap_or(threads),
        model.batch_size,
        o.n_batch,
        o.type_k.name.to_lowercase(),
        o.type_v.name.to_lowercase(),
        fit.flags(&o.ask),
    ));
    for (flag, given) in [("--no-mmap", !o.load.mmap), ("--mlock", o.load.mlock), ("--deterministic", o.deterministic)]
    {
        words.extend(given.then(|| flag.to_owned()));
    }
    if let Some(sampling) = sampling {
        let (mut settings, mut usual) = (Settings::new(sampling)?, Settings::default());
        settings.follow(&gguf.meta);
        usual.take(&gguf.meta);
        if name != "batch" {
            settings.tell_idle()?;
        }
        words.extend(chosen(&settings, &usual));
    }
    if let Some((_, given)) = given.subcommand() {
        words.extend(others(name, given));
    }
    Ok(writeln!(std::io::stdout(), "{}", words.join(" ")).map(|()| true)?)
}

/// The flags that make these settings of the usual ones.
fn chosen(settings: &Settings, usual: &Settings) -> Vec<String> {
    let others = settings.params.numbers().into_iter().zip(usual.params.numbers());
    // Not a flag: only programs set it.
    let others = others.filter(|(own, usual)| own.1 != usual.1 && own.0 != "min_keep");
    let mut words: Vec<String> =
        others.map(|((name, value), _)| format!("--{} {value}", name.replace('_', "-"))).collect();
    if settings.params.order != usual.params.order {
        let names: Vec<&str> = settings.params.order.iter().map(|s| s.name()).collect();
        words.push(format!("--samplers '{}'", names.join(";")));
    }
    if settings.breakers != usual.breakers {
        words.push("--dry-sequence-breaker none".into());
        let escaped =
            |b: &String| b.replace('\\', "\\\\").replace('\n', "\\n").replace('\r', "\\r").replace('\t', "\\t");
        words.extend(settings.breakers.iter().map(|b| format!("--dry-sequence-breaker={}", quoted(&escaped(b)))));
    }
    words.extend(settings.params.logit_bias.iter().map(|(id, by)| format!("--logit-bias {id}{by:+}")));
    words.extend(settings.seed.map(|seed| format!("--seed {seed}")));
    words
}

/// What was asked for beside the model's opening and the sampling, as it was asked.
fn others(verb: &str, given: &ArgMatches) -> Vec<String> {
    let mut program = Cli::command();
    program.build(); // gives the verbs the flags of all
    let written = args::Sampling::augment_args(args::Model::augment_args(Command::new("")));
    let written = |arg: &Arg| arg.get_id() != "stats" && written.get_arguments().any(|w| w.get_id() == arg.get_id());
    let asked = |arg: &Arg| given.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine);
    let mut words = Vec::new();
    // What belongs to no flag comes last.
    let mut args: Vec<&Arg> = program.find_subcommand(verb).into_iter().flat_map(Command::get_arguments).collect();
    args.retain(|a| asked(a) && !written(a));
    args.sort_by_key(|a| a.is_positional());
    for arg in args {
        let flag = arg.get_long().map(|l| format!("--{l}"));
        let values = given.get_raw(arg.get_id().as_str()).into_iter().flatten();
        match (arg.get_action(), flag) {
            (ArgAction::SetTrue, Some(flag)) => words.push(flag),
            (ArgAction::Count, Some(flag)) => {
                words.extend((0..given.get_count(arg.get_id().as_str())).map(|_| flag.clone()));
            }
            (_, Some(flag)) => words.extend(values.map(|v| format!("{flag}={}", quoted(&v.to_string_lossy())))),
            (_, None) => words.extend(values.map(|v| quoted(&v.to_string_lossy()))),
        }
    }
    words
}

/// As a shell reads it.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "/._-+=:,@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) { text.into() } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;
    use crate::sample::Params;

    fn settings(words: &[String]) -> Settings {
        let line = ["tandem".to_owned(), "run".into()].into_iter().chain(words.iter().cloned());
        let Verb::Run(a) = Cli::try_parse_from(line).unwrap().verb else { panic!("run is asked for") };
        Settings::new(&a.sampling).unwrap()
    }

    #[test]
    fn the_flags_that_are_printed_give_the_same_sampling_again() {
        let asked = "--temp 0.35 --top-k 7 --typical 0.5 --xtc-probability 0.1 --repeat-penalty 1.1 --repeat-last-n 9 \
                     --dry-multiplier 0.8 --mirostat 2 --mirostat-lr 0.2 --min-p 0 --top-nsigma 2 --seed 5 --samplers top_k;temperature \
                     --logit-bias 5-1.5 --dry-sequence-breaker none --dry-sequence-breaker a\\nb --presence-penalty 0.25 --dynatemp-range 0.5";
        let first = settings(&asked.split_whitespace().map(String::from).collect::<Vec<_>>());
        let mut file = Settings::default(); // as a model's file may ask for
        (file.params.temperature, file.params.top_k, file.params.top_p) = (0.3, 20, 0.5);
        for usual in [Settings::default(), file] {
            let printed = chosen(&first, &usual).join(" ").replace('\'', "");
            let again = settings(&printed.split_whitespace().map(String::from).collect::<Vec<_>>());
            // What is not printed is as usual.
            let numbers = first.params.numbers().into_iter().zip(again.params.numbers()).zip(usual.params.numbers());
            for ((first, again), usual) in numbers {
                let name = first.0.replace('_', "-");
                let now = if printed.contains(&format!("--{name} ")) { again.1 } else { usual.1 };
                assert_eq!(first.1, now, "{name}: {printed}");
            }
            assert_eq!((&first.params.order, first.seed), (&again.params.order, again.seed), "{printed}");
            assert_eq!((&first.params.logit_bias, &first.breakers), (&again.params.logit_bias, &again.breakers));
        }
    }

    #[test]
    fn every_number_has_a_flag_of_its_name() {
        let command = Cli::command();
        let run = command.find_subcommand("run").unwrap();
        for (name, _) in Params::default().numbers().into_iter().filter(|n| n.0 != "min_keep") {
            let name = name.replace('_', "-");
            let known = |a: &clap::Arg| {
                a.get_long() == Some(&name) || a.get_all_aliases().is_some_and(|l| l.contains(&&name[..]))
            };
            assert!(run.get_arguments().any(known), "--{name}");
        }
    }

    #[test]
    fn what_else_was_asked_is_asked_again_and_what_is_written_out_is_not_asked_twice() {
        let line =
            "tandem run -p -x -n 5 --strict -vv --temp 0 -t 1 --stop a --stop b --json --logprobs 2 --stats --dry-run";
        let given = Cli::command().try_get_matches_from(line.split(' ')).unwrap();
        let (verb, given) = given.subcommand().unwrap();
        let mut words = others(verb, given);
        words.sort();
        let all =
            "--json --logprobs=2 --n-predict=5 --prompt=-x --stats --stop=a --stop=b --strict --verbose --verbose";
        assert_eq!(words.join(" "), all);
    }

    #[test]
    fn a_path_is_one_word_for_a_shell() {
        assert_eq!(quoted("/a/b-c.gguf"), "/a/b-c.gguf");
        assert_eq!(quoted(""), "''");
        assert_eq!(quoted("it's here"), r"'it'\''s here'");
    }
}
