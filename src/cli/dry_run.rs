//! `--dry-run`: prints the command that would run, with everything written out that was left to
//! this program.
//!
//! The words come from clap's own definitions, so that no flag can be forgotten: every argument of
//! the verb is printed as it was typed, unless it is resolved here (`-c` becomes the context that
//! results) or is on the list [`LEFT_OUT`].

use std::collections::BTreeMap;
use std::io::Write;

use anyhow::{Context, Result};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, CommandFactory};

use super::args::{self, Cli, Verb};
use super::errors::{Failure, off, usage};
use super::settings::Settings;
use super::terminal::Stdout;
use super::{gpus, open, speculation};
use crate::cpu::Pool;
use crate::gguf::{Gguf, Load};
use crate::plan;
use crate::sample::Params;
use crate::session::{self, Numa, NumaPlan, Options};
use crate::tape::Tape;

/// Arguments that are never printed, and why not.
const LEFT_OUT: [(&str, &str); 7] = [
    ("hf_token", "a secret"),
    ("dry_run", "the printed command is meant to be run"),
    ("sampler_seq", "--samplers names the same order"),
    ("cpu_moe", "part of the placement, which is printed as a whole with -ngl"),
    ("n_cpu_moe", "part of the placement"),
    ("expert_cache", "part of the placement"),
    ("tensor_split", "part of the placement"),
];

/// The words to print for resolved arguments, by clap's id; no words where the value is what it
/// would be anyway.
type Resolved = BTreeMap<String, Vec<String>>;

/// Prints the command if `--dry-run` asks for it, and returns whether it does. `given`: the
/// arguments that `verb` was made of.
pub(super) fn run(verb: &Verb, given: &ArgMatches) -> Result<bool> {
    match command(verb, given)? {
        Some(line) => Ok(writeln!(Stdout::of_answers(), "{line}").map(|()| true)?),
        None => Ok(false),
    }
}

/// The command that asks for what `verb` would do; None without `--dry-run`.
fn command(verb: &Verb, given: &ArgMatches) -> Result<Option<String>> {
    if let Verb::Convert(a) = verb {
        return conversion(a, given);
    }
    let drafts = match verb {
        Verb::Chat(a) => Some(&a.speculation),
        Verb::Run(a) => Some(&a.speculation),
        Verb::Batch(a) => Some(&a.speculation),
        Verb::Bench(a) if a.speculation.spec != args::Spec::Off => Some(&a.speculation),
        _ => None,
    };
    let (model, sampling, n_seq) = match verb {
        Verb::Chat(a) => (&a.model, Some(&a.sampling), 1),
        Verb::Run(a) => (&a.model, Some(&a.sampling), 1),
        Verb::Batch(a) => (&a.model, Some(&a.sampling), a.parallel),
        Verb::Bench(a) => (&a.model, None, 1),
        Verb::Perplexity(a) => (&a.model, None, 1),
        Verb::Logits(a) => (&a.model, None, 1),
        Verb::Verify(a) => (&a.model, None, 1),
        _ => return Ok(None),
    };
    let Some((name, given)) = given.subcommand().filter(|_| model.dry_run) else { return Ok(None) };
    if n_seq == 0 {
        return usage("--parallel 0: at least 1 expected".into());
    }
    let mut o = match verb {
        Verb::Perplexity(_) | Verb::Logits(_) | Verb::Verify(_) => open::for_all_logits(open::options(model)?),
        _ => open::for_sequences(open::options(model)?, n_seq, matches!(verb, Verb::Batch(_))),
    };
    let drafts = drafts.map(|a| Ok::<_, anyhow::Error>((a, speculation::limits(a, model)?))).transpose()?;
    if let Some((drafts, limits)) = drafts {
        o.drafts = limits.most;
        o.heads = speculation::uses_heads(drafts, limits);
    }
    o.load = Load { mmap: true, mlock: false }; // no weight is read
    let mut gguf = open::header(model.model.as_deref(), &o.load, 0)?;
    let mut draft = None;
    if let Some((drafts, _)) = drafts {
        (gguf, draft) = speculation::with_draft_file(drafts, gguf, &o, false)?;
    }
    let tape = session::tape(&gguf, &o).context(Failure::Model)?;
    if let Some((drafts, limits)) = drafts {
        tracing::info!("{}", speculation::describe(drafts, limits, &tape, draft.as_ref()));
    }
    let mut resolved = placed(model, &o, &gguf, tape)?;
    if let Some(flags) = sampling {
        let (mut settings, mut usual) = (Settings::new(flags)?, Settings::default());
        settings.follow(&gguf.meta);
        usual.take(&gguf.meta);
        if name != "batch" {
            settings.report_idle()?;
        }
        resolved.extend(sampled(&settings, &usual));
    }
    Ok(Some(line(name, given, &resolved)))
}

/// The command of a conversion, with the type of the file; what would be written is a notice.
fn conversion(a: &args::ConvertArgs, given: &ArgMatches) -> Result<Option<String>> {
    let Some((name, given)) = given.subcommand().filter(|_| a.dry_run) else { return Ok(None) };
    let c = super::convert::settled(a)?;
    c.notes.iter().for_each(|note| tracing::warn!("{note}"));
    tracing::info!("{}: {} tensors, {}", c.arch, c.n_tensors(), super::human::size(c.bytes() as usize));
    let ty = vec![format!("--type {}", c.ty.name.to_lowercase())];
    Ok(Some(line(name, given, &Resolved::from([("ty".into(), ty)]))))
}

/// The words of a command, joined.
fn line(name: &str, given: &ArgMatches, resolved: &Resolved) -> String {
    let first = ["tandem", name].map(String::from);
    first.into_iter().chain(words(name, given, resolved)).collect::<Vec<_>>().join(" ")
}

/// The arguments of the model that are resolved by its header, this machine and the GPU's free
/// memory.
fn placed(model: &args::ModelArgs, o: &Options, gguf: &Gguf, tape: Tape) -> Result<Resolved> {
    super::unknown::unknown_keys(gguf, &tape)?;
    super::overrides::report_idle(gguf, &tape)?;
    let shape = session::shape(gguf, o).context(Failure::Model)?;
    let budgets = gpus::budgets(&gpus::open(model, o)?)?;
    let fit = plan::fit(tape, &o.ask, &budgets, shape)?;
    let (shape, placement) = (fit.shape, fit.flags(&o.ask));
    // A -b below the batch would be the smaller of the two.
    let most = model.batch_size.unwrap_or(0).max(shape.n_batch);
    let numa = match NumaPlan::new(gguf, (&fit.tape, &fit.plan, fit.shape), false, o) {
        Ok(_) => "distribute",
        Err(why) if o.numa == Numa::Distribute => {
            off("--numa distribute", &why)?;
            "distribute"
        }
        Err(_) => "off",
    };
    let threads = Pool::new(o.threads)?.threads();
    let batch_threads = o.threads_batch.filter(|n| *n > 0).unwrap_or(threads);
    let words = [
        ("ctx_size", format!("-c {}", shape.n_ctx)),
        ("threads", format!("-t {threads}")),
        ("threads_batch", format!("-tb {batch_threads}")),
        ("batch_size", format!("-b {most}")),
        ("ubatch_size", format!("-ub {}", shape.n_batch)),
        ("cache_type_k", format!("-ctk {}", o.type_k.name.to_lowercase())),
        ("cache_type_v", format!("-ctv {}", o.type_v.name.to_lowercase())),
        ("gpu_layers", placement),
        ("numa", format!("--numa {numa}")),
    ];
    let mut resolved: Resolved = words.into_iter().map(|(id, word)| (id.into(), vec![word])).collect();
    resolved.insert("override_tensor".into(), Vec::new()); // in the placement
    Ok(resolved)
}

/// The sampling arguments: what makes these settings of the usual ones.
fn sampled(settings: &Settings, usual: &Settings) -> Resolved {
    let number = |s: &Settings, name: &str| s.params.numbers().into_iter().find(|n| n.0 == name).map(|n| n.1);
    let mut resolved = Resolved::new();
    for arg in args::SamplingArgs::augment_args(Command::new("")).get_arguments() {
        let Some(name) = arg.get_long().and_then(Params::name_of) else { continue };
        let value = number(settings, name).filter(|_| number(settings, name) != number(usual, name));
        let word = value.map(|v| format!("--{} {v}", name.replace('_', "-")));
        resolved.insert(arg.get_id().to_string(), word.into_iter().collect());
    }
    let mut put = |id: &str, words: Vec<String>| resolved.insert(id.into(), words);
    let order: Vec<&str> = settings.params.order.iter().map(|s| s.name()).collect();
    let other_order = settings.params.order != usual.params.order;
    put("samplers", other_order.then(|| format!("--samplers '{}'", order.join(";"))).into_iter().collect());
    let mut breakers = Vec::new();
    if settings.breakers != usual.breakers {
        breakers.push("--dry-sequence-breaker none".into());
        let escaped =
            |b: &String| b.replace('\\', "\\\\").replace('\n', "\\n").replace('\r', "\\r").replace('\t', "\\t");
        breakers.extend(settings.breakers.iter().map(|b| format!("--dry-sequence-breaker={}", quoted(&escaped(b)))));
    }
    put("dry_sequence_breaker", breakers);
    let biases = settings.params.logit_bias.iter().map(|(id, by)| format!("--logit-bias {id}{by:+}"));
    put("logit_bias", biases.collect());
    put("seed", settings.seed.map(|seed| format!("--seed {seed}")).into_iter().collect());
    resolved
}

/// What is printed of every argument of a verb, in clap's order, the ones without a flag last.
fn words(verb: &str, given: &ArgMatches, resolved: &Resolved) -> Vec<String> {
    let mut program = Cli::command();
    program.build(); // gives the verbs the flags of all
    let mut args: Vec<&Arg> = program.find_subcommand(verb).into_iter().flat_map(Command::get_arguments).collect();
    args.sort_by_key(|a| a.is_positional());
    let mut words = Vec::new();
    for arg in args.into_iter().filter(|arg| LEFT_OUT.iter().all(|(id, _)| arg.get_id() != id)) {
        match resolved.get(arg.get_id().as_str()) {
            Some(own) => words.extend(own.iter().cloned()),
            None => words.extend(typed(arg, given)),
        }
    }
    words
}

/// An argument as it was typed, if it was.
fn typed(arg: &Arg, given: &ArgMatches) -> Vec<String> {
    let id = arg.get_id().as_str();
    if given.value_source(id) != Some(ValueSource::CommandLine) {
        return Vec::new();
    }
    let values = given.get_raw(id).into_iter().flatten().map(|v| quoted(&v.to_string_lossy()));
    match (arg.get_action(), arg.get_long().map(|l| format!("--{l}"))) {
        (ArgAction::SetTrue, Some(flag)) => vec![flag],
        (ArgAction::Count, Some(flag)) => vec![flag; given.get_count(id).into()],
        (_, Some(flag)) => values.map(|v| format!("{flag}={v}")).collect(),
        (_, None) => values.collect(),
    }
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
            let printed =
                sampled(&first, &usual).into_values().flatten().collect::<Vec<_>>().join(" ").replace('\'', "");
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

    /// The command that `--dry-run` prints for a line, without the first two words.
    fn printed(line: &[&str]) -> Result<String> {
        let all = ["tandem", "run", "--dry-run"].iter().chain(line);
        let given = Cli::command().try_get_matches_from(all.clone())?;
        let text = command(&Cli::try_parse_from(all)?.verb, &given)?.expect("a dry run is asked for");
        Ok(text.strip_prefix("tandem run ").unwrap().to_owned())
    }

    #[test]
    fn what_was_typed_is_printed_again_and_nothing_twice() {
        let line = "-p -x -n 5 --strict -vv --temp 0 -t 1 --stop a --stop b --json --logprobs 2 --stats --override-tensor x=CPU";
        let text = printed(&line.split(' ').collect::<Vec<_>>()).unwrap();
        let mut words: Vec<&str> = text.split(' ').collect();
        for word in
            "--json --logprobs=2 --n-predict=5 --numa --prompt=-x --stats --stop=a --stop=b --strict --verbose -t \
                     -ot --temperature"
                .split_whitespace()
        {
            let at = words.iter().position(|w| *w == word).unwrap_or_else(|| panic!("{word}: {text}"));
            words.remove(at);
        }
        words.retain(|w| w.starts_with("--"));
        assert_eq!(words, ["--verbose"], "the second of -vv: {text}");
    }

    #[test]
    fn every_flag_of_the_model_and_of_sampling_is_printed_or_left_out_for_a_reason() {
        let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/demo.gguf");
        // For every kind of value some that it can have, of which one at least is not the usual
        // one.
        let values = [
            demo,
            "1",
            "3",
            "0.25",
            "600",
            "f32",
            "top_k;temperature",
            "7+1",
            "x=CPU",
            "none",
            "a.b=int:1",
            "yarn",
            "0-1",
            "distribute",
        ];
        let usual = printed(&[]).unwrap();
        let mut seen = 0;
        for group in
            [args::ModelArgs::augment_args(Command::new("")), args::SamplingArgs::augment_args(Command::new(""))]
        {
            for arg in group.get_arguments() {
                let flag = format!("--{}", arg.get_long().expect("all of them are flags"));
                let lines: Vec<Vec<&str>> = match arg.get_action() {
                    ArgAction::SetTrue => vec![vec![&flag]],
                    _ => values.iter().map(|v| vec![&flag[..], v]).collect(),
                };
                let is_printed = lines.iter().any(|line| printed(line).is_ok_and(|text| text != usual));
                let is_left_out = LEFT_OUT.iter().any(|(id, _)| arg.get_id() == id);
                // Without a GPU the placement is -ngl 0 whatever is asked for.
                let is_placement = arg.get_id() == "gpu_layers" && usual.contains("-ngl ");
                assert!(is_printed || is_left_out || is_placement, "{flag} vanishes from --dry-run");
                seen += 1;
            }
        }
        assert!(seen > 40, "the flags were found");
        for (id, why) in LEFT_OUT {
            let known = |a: &Arg| a.get_id() == id;
            let run = Cli::command().find_subcommand("run").unwrap().get_arguments().any(known);
            assert!(run && !why.is_empty(), "{id} is no argument any more");
        }
    }

    #[test]
    fn a_path_is_one_word_for_a_shell() {
        assert_eq!(quoted("/a/b-c.gguf"), "/a/b-c.gguf");
        assert_eq!(quoted(""), "''");
        assert_eq!(quoted("it's here"), r"'it'\''s here'");
    }
}
