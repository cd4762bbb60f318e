//! Speculation against runs without it: the same tokens, the same bits, the same states, whatever is drafted.

mod common;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use common::{Reference, argmax, emu, exact, references};
use serde_json::{Value, json};
use tandem::cuda::Gpu;
use tandem::gguf::Gguf;
use tandem::plan::{Place, Plan};
use tandem::sample::{Params, Sampler, Stage};
use tandem::schedule::{Request, Scheduler};
use tandem::session::{self, Options, Session, Want};
use tandem::speculate::{DraftModel, Drafter, Limits, Next, Script, Speculation, check_vocabulary};
use tandem::talk::{self, End, GenParams, Generated, Writer};
use tandem::text::grammar::{Grammar, Grammars, Kind};
use tandem::text::{Reader, Tokenizer};

/// Most drafted tokens of a walk, with which it has as many rows as go through row kernels.
const MOST: usize = 7;

/// Tokens that each run generates.
fn length() -> usize {
    if std::env::var_os("TANDEM_TEST_ALL").is_some() { 200 } else { 20 }
}

fn options() -> Options {
    Options { drafts: MOST, ..exact() }
}

fn open(r: &Reference, o: &Options) -> Session {
    Session::open(&r.gguf, o).unwrap_or_else(|e| panic!("{}: {e:#}", r.name))
}

/// What is saved of a sequence, as a number.
fn state(s: &Session, seq: usize) -> u64 {
    let snapshot = s.snapshot(seq).unwrap();
    let mut hasher = DefaultHasher::new();
    (snapshot.tokens, snapshot.checkpoints, snapshot.states).hash(&mut hasher);
    hasher.finish()
}

/// A greedy run one token after the other: what it chose, the logits that it chose from, and the state after each token
/// that it read.
struct Plain {
    prompt: Vec<u32>,
    tokens: Vec<u32>,
    logits: Vec<Vec<f32>>,
    states: Vec<u64>,
}

impl Plain {
    fn new(r: &Reference, o: &Options, n: usize) -> Plain {
        let prompt = r.prompt[..r.prompt.len().min(40)].to_vec();
        let mut s = open(r, o);
        let mut logits = vec![s.feed(0, &prompt, Want::Last).unwrap().into_logits()];
        let (mut tokens, mut states) = (vec![argmax(&logits[0])], vec![state(&s, 0)]);
        for i in 0..n {
            logits.push(s.step(&[(0, tokens[i])], Want::Last).unwrap().remove(0).into_logits());
            tokens.push(argmax(&logits[i + 1]));
            states.push(state(&s, 0));
        }
        Plain { prompt, tokens, logits, states }
    }

    /// Of `most` drafted tokens after the one at `at`, the first `right` as they will be chosen, the next another.
    fn draft(&self, at: usize, most: usize, right: usize, n_vocab: usize) -> Vec<u32> {
        let follow = self.tokens.get(at + 1..).unwrap_or_default().iter().take(most).enumerate();
        follow.map(|(i, t)| if i < right { *t } else { (*t + 1) % n_vocab as u32 }).collect()
    }
}

/// Rounds of drafts, of which `right` says how many tokens each is to have and how many of them are right.
fn rounds(r: &Reference, plain: &Plain, o: &Options, what: &str, right: &dyn Fn(usize) -> (usize, usize)) {
    let mut s = open(r, o);
    let n_vocab = s.n_vocab();
    let first = s.feed(0, &plain.prompt, Want::Last).unwrap().into_logits();
    assert!(first == plain.logits[0], "{}: the prompt differs", r.name);
    let (mut at, mut round) = (0, 0);
    while at + 1 < plain.states.len() {
        let (most, good) = right(round);
        let room = plain.states.len() - 1 - at - 1;
        let draft = plain.draft(at, most.min(room), good, n_vocab);
        let good = good.min(draft.len());
        let tokens = [&[plain.tokens[at]], &draft[..]].concat();
        let outputs = s.verify(&[(0, &tokens, Want::Last)]).unwrap().remove(0);
        assert_eq!(outputs.len(), tokens.len());
        for (i, output) in outputs.into_iter().enumerate().take(good + 1) {
            let same = output.into_logits() == plain.logits[at + 1 + i];
            assert!(same, "{}, {what}: row {i} of round {round} at {at} differs", r.name);
        }
        at += 1 + good;
        let again = s.rewind(0, plain.prompt.len() + at).unwrap();
        assert_eq!(again, 0, "{}, {what}: going back read tokens again", r.name);
        assert!(state(&s, 0) == plain.states[at], "{}, {what}: the state after round {round} differs", r.name);
        round += 1;
    }
}

#[test]
fn verified_rows_are_single_steps_bit_for_bit_and_going_back_leaves_their_state() {
    for r in references() {
        let o = options();
        let plain = Plain::new(&r, &o, length());
        rounds(&r, &plain, &o, "all accepted", &|_| (3, 3));
        rounds(&r, &plain, &o, "all of the most accepted", &|_| (MOST, MOST));
        rounds(&r, &plain, &o, "none accepted", &|_| (3, 0));
        rounds(&r, &plain, &o, "none, one, two, .. accepted in turns", &|round| (MOST, round % (MOST + 1)));
        rounds(&r, &plain, &o, "drafts of all lengths", &|round| (round % 4, (round / 2) % 4));
        say!("{:24} {} tokens: logits and states bit-equal", r.name, length());
    }
}

/// A sampler of one of three kinds: greedy, with draws and every penalty, mirostat.
fn sampler(kind: usize, prompt: &[u32]) -> Sampler {
    let params = match kind {
        0 => Params { temperature: 0.0, ..Params::default() },
        1 => Params {
            temperature: 1.5,
            repeat_penalty: 1.3,
            presence_penalty: 0.3,
            frequency_penalty: 0.2,
            dry_multiplier: 0.8,
            ..Params::default()
        },
        _ => Params { mirostat: 2, ..Params::default() },
    };
    let mut sampler = Sampler::new(params, 7, Vec::new());
    prompt.iter().for_each(|t| sampler.accept(*t));
    sampler
}

/// Generates `n` tokens and reads all but the last; what was chosen, and a number for all logits.
fn generated(s: &mut Session, spec: &mut Speculation, prompt: &[u32], kind: usize, n: usize) -> (Vec<u32>, u64) {
    s.rewind(0, 0).unwrap();
    let mut logits = s.feed(0, prompt, Want::Last).unwrap().into_logits();
    let (mut sampler, mut tokens, mut hasher) = (sampler(kind, prompt), Vec::new(), DefaultHasher::new());
    spec.begin(0);
    loop {
        logits.iter().for_each(|v| v.to_bits().hash(&mut hasher));
        let token = sampler.pick(&logits, None).unwrap();
        sampler.accept(token);
        tokens.push(token);
        if tokens.len() == n {
            break;
        }
        let next = Next { seq: 0, token, want: Want::Last, room: n - tokens.len() };
        logits = spec.read(s, next).unwrap().into_logits();
    }
    spec.settle(s, 0).unwrap();
    (tokens, hasher.finish())
}

const LIMITS: Limits = Limits { most: MOST, least: 0, p_min: 0.0, deterministic: false };

/// A drafter that knows what will be chosen: of each round, how many tokens it drafts and how many of them are right.
fn script(after: usize, tokens: Vec<u32>, n_vocab: usize, right: fn(usize) -> (usize, usize)) -> Speculation {
    let mut round = 0;
    let draft = move |_: usize, read: &[u32], most: usize| {
        let (n, good) = right(round);
        round += 1;
        let follow = tokens.get(read.len() - after..).unwrap_or_default().iter().take(most.min(n)).enumerate();
        follow.map(|(i, t)| if i < good { *t } else { (*t + 1) % n_vocab as u32 }).collect()
    };
    Speculation::new(vec![Drafter::Script(Script(Box::new(draft)))], LIMITS)
}

#[test]
fn every_sampler_chooses_the_same_tokens_whatever_is_drafted() {
    let all = std::env::var_os("TANDEM_TEST_ALL").is_some();
    for (i, r) in references().into_iter().enumerate() {
        let mut s = open(&r, &options());
        let prompt = &r.prompt[..r.prompt.len().min(30)];
        let n_vocab = s.n_vocab();
        for kind in (0..3).filter(|kind| all || *kind == i % 3) {
            let (tokens, bits) = generated(&mut s, &mut Speculation::off(), prompt, kind, length());
            let end = state(&s, 0);
            let forced = Limits { least: 3, ..LIMITS };
            let of = |right| script(prompt.len(), tokens.clone(), n_vocab, right);
            let specs = [
                ("all right", of(|_| (4, 4))),
                ("none right", of(|_| (3, 0))),
                ("in turns", of(|round| (round % 8, round / 2 % 8))),
                ("of none, then some", of(|round| (round % 2 * 5, 2))),
                ("from the text, always", Speculation::new(vec![Drafter::Lookup], forced)),
                ("from the text, by time", Speculation::new(vec![Drafter::Lookup], LIMITS)),
            ];
            for (what, mut spec) in specs {
                let got = generated(&mut s, &mut spec, prompt, kind, length());
                assert!(got.0 == tokens, "{}, sampler {kind}, {what}: {:?} instead of {tokens:?}", r.name, got.0);
                assert!(got.1 == bits, "{}, sampler {kind}, {what}: the logits differ", r.name);
                assert!(state(&s, 0) == end, "{}, sampler {kind}, {what}: the state at the end differs", r.name);
                if what == "all right" {
                    let (_, stats) = spec.sources().next().unwrap();
                    assert_eq!(stats.accepted, stats.drafted, "{}: what is right is accepted", r.name);
                    assert!(stats.drafted >= length() / 2, "{}: {stats:?}", r.name);
                }
            }
        }
    }
}

#[test]
fn heads_change_no_token_and_no_bit_whatever_they_draft() {
    let mut seen = 0;
    for (i, r) in references().into_iter().filter(|r| r.name.ends_with("-mtp")).enumerate() {
        let mut s = open(&r, &Options { heads: true, ..options() });
        let prompt = &r.prompt[..r.prompt.len().min(30)];
        if s.n_heads() == 0 {
            say!("{}: no heads", r.name);
            continue;
        }
        for kind in [0, 1 + i % 2] {
            let plain = generated(&mut s, &mut Speculation::off(), prompt, kind, length());
            for least in [0, 1, 3] {
                let limits = Limits { most: 3, least, ..LIMITS };
                let mut spec = Speculation::new(vec![Drafter::Heads(Session::draft), Drafter::Lookup], limits);
                assert!(generated(&mut s, &mut spec, prompt, kind, length()) == plain, "{}: sampler {kind}", r.name);
                let (_, stats) = spec.sources().next().unwrap();
                seen += stats.drafted;
                if least == 3 {
                    say!("{:24} sampler {kind}: {} of {} drafts accepted", r.name, stats.accepted, stats.drafted);
                }
            }
        }
    }
    assert!(seen > 0 || common::whole().is_none(), "heads draft");
}

/// All that a caller sees of a text: with what came at once, and what the sequence then is.
#[derive(Debug, PartialEq)]
struct Written {
    tokens: Vec<u32>,
    answer: String,
    logprobs: Vec<Value>,
    end: End,
    shown: Vec<String>,
    state: u64,
}

/// The demo model with its words.
struct Demo {
    session: Session,
    tokenizer: Tokenizer,
    prompt: Vec<u32>,
}

impl Demo {
    fn new(n_seq: usize) -> Demo {
        let o = Options { n_ctx: Some(512), n_seq, drafts: MOST, ..Options::default() };
        let session = Session::open(&common::demo(), &o).unwrap();
        let tokenizer = Tokenizer::new(session.engine().gguf()).unwrap();
        let prompt = tokenizer.encode("ROMEO:\nO, she doth teach the torches", true, false).unwrap();
        Demo { session, tokenizer, prompt }
    }

    /// What is written with these drafts.
    fn write(
        &mut self,
        spec: &mut Speculation,
        params: (Params, u64),
        asked: GenParams,
        grammar: Option<Grammar>,
    ) -> Written {
        let Demo { session, tokenizer, prompt } = self;
        session.rewind(0, 0).unwrap();
        let sampler = Sampler::new(params.0, params.1, Vec::new());
        let mut writer = Writer::new(tokenizer, sampler, grammar, Reader::plain(), asked, prompt);
        let output = session.feed(0, prompt, writer.want()).unwrap();
        let (never, mut shown) = (AtomicBool::new(false), Vec::new());
        let mut show = |_, text: &str| {
            shown.push(text.to_owned());
            Ok(())
        };
        let end = talk::write(session, spec, 0, &mut writer, output, &never, &mut show).unwrap();
        let Generated { tokens, answer, logprobs, .. } = std::mem::take(&mut writer.generated);
        drop(writer);
        Written { tokens, answer, logprobs, end, shown, state: state(session, 0) }
    }

    fn script(&self, tokens: &[u32], right: fn(usize) -> (usize, usize)) -> Speculation {
        script(self.prompt.len(), tokens.to_vec(), self.session.n_vocab(), right)
    }
}

#[test]
fn a_text_ends_where_it_ends_without_drafts_and_so_does_its_state() {
    let mut demo = Demo::new(1);
    let warm = || (Params { temperature: 1.0, ..Params::default() }, 11);
    let asked = |limit, stop: Option<String>| GenParams {
        limit: Some(limit),
        stop: stop.into_iter().collect(),
        logprobs: Some(2),
        ..GenParams::default()
    };
    let long = demo.write(&mut Speculation::off(), warm(), asked(40, None), None);
    let modes: [fn(usize) -> (usize, usize); 3] = [|_| (7, 7), |_| (5, 2), |round| (round % 5, round % 3)];
    let mut compare = |what: String, params: (Params, u64), asked: GenParams, wanted: &dyn Fn(&End) -> bool| {
        let plain = demo.write(&mut Speculation::off(), params.clone(), asked.clone(), None);
        assert!(wanted(&plain.end), "{what}: {:?}", plain.end);
        for mode in modes {
            let mut spec = demo.script(&long.tokens, mode);
            let got = demo.write(&mut spec, params.clone(), asked.clone(), None);
            assert_eq!(got, plain, "{what}");
        }
        plain.tokens.len()
    };
    for limit in 1..20 {
        compare(format!("-n {limit}"), warm(), asked(limit, None), &|end| *end == End::Limit(limit));
    }
    // Stop texts that end with each token of the text: in a block, and with -n in the same block.
    let tokenizer = Demo::new(1).tokenizer;
    for i in 2..16 {
        let stop = tokenizer.decode(&long.tokens[i - 1..=i], true);
        let n = compare(format!("stop {stop:?}"), warm(), asked(40, Some(stop.clone())), &|end| {
            *end == End::Stop(stop.clone())
        });
        compare(format!("stop {stop:?} after -n"), warm(), asked(n - 1, Some(stop.clone())), &|end| {
            *end == End::Limit(n - 1)
        });
    }
    // The model's own end, early in the text, for some seeds.
    let eog = tokenizer.eog()[0];
    let mut ended = 0;
    for seed in 0..12 {
        let params = Params { temperature: 1.0, logit_bias: vec![(eog, 8.0 + seed as f32)], ..Params::default() };
        let n = compare(format!("seed {seed}"), (params, seed), asked(40, None), &|end| {
            matches!(end, End::Model | End::Limit(40))
        });
        ended += usize::from(n < 40);
    }
    assert!(ended > 3, "{ended} of the texts ended by themselves");
}

#[test]
fn a_drafted_end_or_a_token_that_does_not_exist_ends_the_draft_alone() {
    let mut demo = Demo::new(1);
    let greedy = || (Params { temperature: 0.0, ..Params::default() }, 0);
    let asked = GenParams { limit: Some(30), ..GenParams::default() };
    let plain = demo.write(&mut Speculation::off(), greedy(), asked.clone(), None);
    for bad in [demo.tokenizer.eog()[0], demo.session.n_vocab() as u32, u32::MAX] {
        let draft = move |_: usize, _: &[u32], most: usize| vec![bad; most];
        let mut spec = Speculation::new(vec![Drafter::Script(Script(Box::new(draft)))], LIMITS);
        assert!(demo.write(&mut spec, greedy(), asked.clone(), None) == plain, "token {bad}");
    }
}

#[test]
fn a_schema_holds_the_same_text_with_drafts_from_the_text() {
    let mut demo = Demo::new(1);
    let item = json!({ "type": "object", "properties": { "name": { "enum": ["Romeo", "Juliet"] }, "n": { "enum": [1, 2] } },
        "required": ["name", "n"], "additionalProperties": false });
    let schema = json!({ "type": "array", "items": item, "minItems": 3, "maxItems": 4 });
    let tokenizer = Demo::new(1).tokenizer;
    let grammars = Grammars::new(&tokenizer).unwrap();
    let mut accepted = 0;
    for seed in 0..4 {
        let grammar = || Some(grammars.start(&Kind::JsonSchema(schema.clone())).unwrap());
        let params = || (Params { temperature: if seed == 0 { 0.0 } else { 1.0 }, ..Params::default() }, seed);
        let asked = GenParams { limit: Some(300), ..GenParams::default() };
        let plain = demo.write(&mut Speculation::off(), params(), asked.clone(), grammar());
        for least in [0, 1, 4] {
            let mut spec = Speculation::new(vec![Drafter::Lookup], Limits { least, ..LIMITS });
            assert!(demo.write(&mut spec, params(), asked.clone(), grammar()) == plain, "seed {seed}, least {least}");
            accepted += spec.sources().next().unwrap().1.accepted;
        }
    }
    assert!(accepted > 50, "JSON repeats itself: {accepted}");
}

#[test]
fn requests_that_are_answered_together_get_the_answers_and_the_drafts_that_they_get_alone() {
    let tokenizer = Demo::new(1).tokenizer;
    let texts = ["ROMEO:\nO, ", "KING HENRY:\nThe sun", "JULIET:\nGood", "First Citizen:\nWe"];
    let request = |number: usize| {
        let prompt = tokenizer.encode(texts[number], true, false).unwrap();
        let sampler = Sampler::new(Params::default(), 7 + number as u64, Vec::new());
        let params =
            GenParams { limit: Some(20 + number), ignore_eos: true, logprobs: Some(1), ..GenParams::default() };
        let writer = Writer::new(&tokenizer, sampler, None, Reader::plain(), params, &prompt);
        Request { number, prompt, writer }
    };
    let drained = |s: &mut Scheduler<'_>| {
        let mut all: Vec<Option<Generated>> = vec![None; texts.len()];
        while !s.is_idle() {
            s.step().unwrap().into_iter().for_each(|a| all[a.number] = Some(a.generated));
        }
        all
    };
    let alone: Vec<Generated> = (0..texts.len())
        .map(|i| {
            let mut s = Scheduler::new(Demo::new(1).session, Speculation::off());
            s.add(request(i)).unwrap();
            drained(&mut s).remove(i).unwrap()
        })
        .collect();
    for n in [2, 4] {
        // Of every sequence it knows the text by the prompt; with each fourth token it is wrong.
        let known: Vec<Vec<u32>> = (0..n).map(|i| [&request(i).prompt[..], &alone[i].tokens].concat()).collect();
        let draft = move |_: usize, read: &[u32], most: usize| {
            let text = known.iter().find(|k| k.starts_with(&read[..read.len().min(4)])).expect("one of the texts");
            let follow = text.get(read.len()..).unwrap_or_default().iter().take(most);
            follow.enumerate().map(|(i, t)| if (read.len() + i).is_multiple_of(4) { 0 } else { *t }).collect()
        };
        let spec = Speculation::new(vec![Drafter::Script(Script(Box::new(draft)))], LIMITS);
        let mut s = Scheduler::new(Demo::new(n).session, spec);
        (0..n).for_each(|i| s.add(request(i)).unwrap());
        for (i, (got, want)) in drained(&mut s).into_iter().zip(&alone).enumerate().take(n) {
            let got = got.expect("an answer for each");
            assert_eq!((&got.tokens, &got.logprobs), (&want.tokens, &want.logprobs), "answer {i} of {n}");
        }
        let (_, stats) = s.speculation().sources().next().unwrap();
        let rate = stats.accepted as f64 / stats.drafted as f64;
        assert!(rate > 0.6, "{n} at once: {stats:?}");
    }
}

#[test]
fn tokens_that_follow_accepted_drafts_have_the_models_own_distribution() {
    const KEPT: usize = 6;
    let Demo { mut session, prompt, .. } = Demo::new(1);
    let params = Params {
        temperature: 1.0,
        top_k: KEPT as i32,
        order: vec![Stage::TopK, Stage::Temperature],
        ..Params::default()
    };
    let first = argmax(&session.feed(0, &prompt, Want::Last).unwrap().into_logits());
    let one = session.feed(0, &[first], Want::Last).unwrap().into_logits();
    let drafted = argmax(&one);
    let two = session.feed(0, &[drafted], Want::Last).unwrap().into_logits();
    let mut counts = [vec![0usize; one.len()], vec![0usize; one.len()]];
    let draft = move |_: usize, _: &[u32], _: usize| vec![drafted];
    let mut spec = Speculation::new(vec![Drafter::Script(Script(Box::new(draft)))], LIMITS);
    for seed in 0..1500 {
        session.rewind(0, prompt.len()).unwrap();
        let mut sampler = Sampler::new(params.clone(), seed, Vec::new());
        let next = |token| Next { seq: 0, token, want: Want::Last, room: 9 };
        let output = spec.read(&mut session, next(first)).unwrap().into_logits();
        let token = sampler.pick(&output, None).unwrap();
        counts[0][token as usize] += 1;
        if let Some(output) = spec.take(&next(token)) {
            counts[1][sampler.pick(&output.into_logits(), None).unwrap() as usize] += 1;
        }
        spec.settle(&mut session, 0).unwrap();
    }
    for (logits, counts) in [&one, &two].into_iter().zip(&counts) {
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
        let weights: Vec<f64> = order[..KEPT].iter().map(|i| f64::from(logits[*i] - logits[order[0]]).exp()).collect();
        let (n, sum) = (counts.iter().sum::<usize>() as f64, weights.iter().sum::<f64>());
        assert!(n > 100.0, "{n} draws");
        assert_eq!(order[KEPT..].iter().map(|i| counts[*i]).sum::<usize>(), 0, "others are cut");
        let square = |(i, w): (&usize, &f64)| (counts[*i] as f64 - n * w / sum).powi(2) / (n * w / sum);
        let chi: f64 = order.iter().zip(&weights).map(square).sum();
        // Five degrees of freedom: one in a thousand is above 20.5.
        assert!(chi < 20.5, "chi-squared {chi:.1} of {n} draws");
    }
}

#[test]
fn the_program_writes_the_same_text_with_drafts_and_says_what_it_drafted() {
    let run = |more: &[&str]| {
        let args = ["run", "--raw", "-p", "ROMEO:\nO, she doth", "-n", "40", "--seed", "5", "--no-stdin"];
        let out = common::program(&[&args[..], more].concat(), b"");
        (out.status.code(), String::from_utf8(out.stdout).unwrap(), String::from_utf8(out.stderr).unwrap())
    };
    let (status, text, _) = run(&["--spec", "off"]);
    assert_eq!(status, Some(0));
    for more in [
        &["--stats"][..],
        &["--spec", "ngram", "--draft-min", "3", "--stats"],
        &["--spec-type", "ngram-mod", "--draft-n-min", "2", "--draft", "7", "--stats"],
        &["-md", "demo/demo.gguf", "--draft-min", "2", "--stats"],
    ] {
        let (status, with, notices) = run(more);
        assert_eq!((status, &with), (Some(0), &text), "{more:?}: {notices}");
        assert!(notices.contains("speculation ("), "{more:?}: {notices}");
    }
    let (_, _, notices) = run(&["-md", "demo/demo.gguf", "--draft-min", "2", "--stats"]);
    assert!(
        notices.contains("speculation (draft): ") && notices.contains("times as fast as single steps"),
        "{notices}"
    );
    assert!(notices.contains("each further row brings"), "{notices}");
    for (more, status, word) in [
        (&["--spec", "mtp"][..], 2, "--spec mtp: "),
        (&["--spec", "draft"], 2, "-md FILE"),
        (&["--draft-min", "5", "--draft-max", "3"], 2, "--draft-min 5 is more than"),
        (&["--draft-p-min", "2"], 2, "a probability from 0 to 1"),
        (&["-md", "demo/demo.gguf", "--spec", "ngram", "--strict"], 2, "-md demo/demo.gguf has no effect"),
        (&["--spec-type", "draft-eagle3"], 2, "draft-eagle3 is not here"),
        (&["--dry-run", "--spec", "ngram"], 0, "speculation: repetitions of the text (ngram), at most 4 tokens"),
    ] {
        let (code, _, notices) = run(more);
        assert!(code == Some(status) && notices.contains(word), "{more:?}: {code:?}, {notices}");
    }
}

/// The files of a folder, if it is there.
fn files(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder).map_or(Vec::new(), |all| all.map(|f| f.unwrap().path()).collect())
}

#[test]
fn the_next_run_begins_with_what_this_one_measured_also_after_ctrl_c_unless_no_profile_is_given() {
    let (dir, demo) = (tempfile::tempdir().unwrap(), common::demo());
    let kept = || files(&dir.path().join("tandem"));
    let run = |more: &[&str]| {
        let mut c = Command::new(env!("CARGO_BIN_EXE_tandem"));
        c.args(["run", "-m", demo.to_str().unwrap(), "-p", "ROMEO:", "--raw", "--seed", "5", "--no-stdin"]).args(more);
        c.env("CUDA_VISIBLE_DEVICES", "").env("XDG_CACHE_HOME", dir.path());
        c.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        c
    };
    let said = |more: &[&str]| {
        let o = run(&[&["-n", "40"], more].concat()).output().unwrap();
        let (text, notices) = (String::from_utf8(o.stdout).unwrap(), String::from_utf8(o.stderr).unwrap());
        assert!(o.status.success(), "{more:?}: {notices}");
        (text, notices)
    };
    let (plain, _) = said(&["--spec", "off"]);
    said(&["--no-profile"]);
    said(&["--deterministic"]);
    assert_eq!(kept(), Vec::<PathBuf>::new(), "nothing was drafted, or it is not to be kept");
    let began = "began with what earlier runs measured";
    let (text, notices) = said(&["--stats"]);
    assert!(text == plain && !notices.contains(began), "{notices}");
    let [file] = &kept()[..] else { panic!("{:?}", kept()) };
    let run_of = |file: &Path| common::json(file)["runs"][0].clone();
    let first = run_of(file);
    assert_eq!(first["rows"][0], 1.0, "{first}");
    assert!(first["sources"]["ngram"]["judged"].is_array(), "{first}");
    let (text, notices) = said(&["--stats"]);
    assert!(text == plain && notices.contains(began), "{notices}");
    let (text, notices) = said(&["--stats", "--no-profile"]);
    assert!(text == plain && !notices.contains(began), "{notices}");
    // Another number of threads is another kind of run.
    let (_, notices) = said(&["--stats", "-t", "3"]);
    assert!(!notices.contains(began), "{notices}");
    assert_eq!(common::json(file)["runs"].as_array().unwrap().len(), 2);
    // Ctrl-C ends an answer, not what is kept of it.
    std::fs::write(file, "{").unwrap();
    let mut child = run(&["-n", "100000", "--ignore-eos", "-c", "8192", "-v"]).spawn().unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 40]).unwrap();
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    let o = child.wait_with_output().unwrap();
    let notices = String::from_utf8_lossy(&o.stderr);
    assert_eq!(o.status.code(), Some(130), "{notices}");
    assert!(notices.contains("ignored, and replaced at the end"), "{notices}");
    assert_eq!(run_of(file)["where"], first["where"]);
}

/// Models with every kind of state that a GPU holds: windows, latent rows, compressed rows, the delta rule, both scans, short
/// convolutions; and with experts at both places.
const ON_GPU: [&str; 8] =
    ["deepseek4", "deepseek41", "gpt-oss", "jamba", "lfm2moe", "nemotron_h_moe", "qwen35moe", "kimi-linear"];

#[test]
fn on_a_gpu_verified_rows_are_single_steps_too_and_going_back_reads_nothing_again() {
    if !emu::load() {
        return;
    }
    let all = std::env::var_os("TANDEM_TEST_ALL").is_some();
    let mut off = Vec::new();
    for r in references().into_iter().filter(|r| all || ON_GPU.contains(&&*r.name)) {
        for experts in [Place::Gpu(0), Place::Cpu] {
            let o = Options { deterministic: true, ..options() };
            let open = || {
                let gguf = Gguf::open(&r.gguf).unwrap();
                let tape = session::tape(&gguf, &o).unwrap();
                let plan = Plan::new(&tape, &|_, s| match s.label.as_str() {
                    _ if s.op.gpu_refuses().is_some() => Place::Cpu,
                    l if l.contains("token_embd") => Place::Cpu,
                    l if l.contains("exps") => experts,
                    _ => Place::Gpu(0),
                });
                Session::planned(gguf, tape, plan, &o, &[Arc::new(Gpu::open().unwrap())]).unwrap()
            };
            let prompt = &r.prompt[..r.prompt.len().min(30)];
            let mut s = open();
            let mut tokens = vec![argmax(&s.feed(0, prompt, Want::Last).unwrap().into_logits())];
            let mut logits = Vec::new();
            for i in 0..20 {
                logits.push(s.step(&[(0, tokens[i])], Want::Last).unwrap().remove(0).into_logits());
                tokens.push(argmax(&logits[i]));
            }
            let mut s = open();
            s.feed(0, prompt, Want::None).unwrap();
            let (mut at, mut same) = (0, true);
            // The second walk of three rows is recorded, later ones are replayed.
            for (drafts, right) in [(2, 0), (2, 2), (2, 1), (3, 3), (2, 0), (0, 0), (2, 2), (3, 0)] {
                let mut read = tokens[at..at + 1 + drafts].to_vec();
                read[1 + right..].iter_mut().for_each(|t| *t = (*t + 1) % s.n_vocab() as u32);
                let outputs = s.verify(&[(0, &read, Want::Last)]).unwrap().remove(0);
                for (i, output) in outputs.into_iter().enumerate().take(1 + right) {
                    same &= logits[at + i] == output.into_logits();
                }
                at += 1 + right;
                assert_eq!(s.rewind(0, prompt.len() + at).unwrap(), 0, "{}: going back reads tokens again", r.name);
            }
            let rest = s.step(&[(0, tokens[at])], Want::Last).unwrap().remove(0).into_logits();
            same &= logits[at] == rest;
            say!("{:24} experts at {experts:?}: {}", r.name, if same { "same bits" } else { "OTHER BITS" });
            off.extend((!same).then(|| format!("{} with experts at {experts:?}", r.name)));
        }
    }
    assert!(off.is_empty(), "other logits than single steps: {off:?}");
}

#[test]
fn a_model_that_drafts_for_itself_is_always_right_and_another_vocabulary_is_refused_by_its_first_word() {
    let mut demo = Demo::new(1);
    let own = Demo::new(1);
    check_vocabulary(&demo.tokenizer, &own.tokenizer).unwrap();
    let model = DraftModel::new(own.session, own.tokenizer.eog().to_vec(), own.tokenizer.n_vocab());
    let greedy = || (Params { temperature: 0.0, ..Params::default() }, 0);
    let asked = GenParams { limit: Some(40), ..GenParams::default() };
    let plain = demo.write(&mut Speculation::off(), greedy(), asked.clone(), None);
    let mut spec = Speculation::new(vec![Drafter::Model(Box::new(model))], Limits { least: 3, ..LIMITS });
    for _ in 0..2 {
        assert!(demo.write(&mut spec, greedy(), asked.clone(), None) == plain);
    }
    let (_, stats) = spec.sources().next().unwrap();
    assert!(stats.drafted > 30 && stats.accepted == stats.drafted, "{stats:?}");
    // Wherever the text goes, it follows.
    let warm = || (Params { temperature: 1.2, ..Params::default() }, 3);
    let plain = demo.write(&mut Speculation::off(), warm(), asked.clone(), None);
    assert!(demo.write(&mut spec, warm(), asked.clone(), None) == plain);

    let has_words = |r: &Reference| Gguf::open(&r.gguf).ok().and_then(|g| Tokenizer::new(&g).ok());
    let Some(other) = references().iter().find_map(has_words) else { return };
    let error = format!("{:#}", check_vocabulary(&demo.tokenizer, &other).unwrap_err());
    assert!(error.contains("in the draft model and") || error.contains("a difference of at most"), "{error}");
}
