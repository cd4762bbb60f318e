//! Masks against brute force: a token is allowed if, and only if, some text of the form begins with what there is and it.

use std::collections::BTreeSet;
use std::path::Path;

use llguidance::derivre::Regex;
use tandem::gguf::{Gguf, Value, Writer};
use tandem::quant::Rng;
use tandem::text::Tokenizer;
use tandem::text::grammar::{Grammar, Grammars, Kind};

use super::{has, small};

/// The letters of the made grammars. The first bytes of é and è are the same; that of € comes twice in no letter.
const LETTERS: [char; 5] = ['a', 'b', 'é', 'è', '€'];

/// A vocabulary of those letters, with tokens that begin and end inside them, and one that says what another says.
fn made() -> Tokenizer {
    // In the alphabet of bytes, é is Ã©, è is Ã¨ and € is âĤ¬.
    let words =
        ["a", "b", "Ã", "©", "¨", "â", "Ĥ", "¬", "ab", "ba", "aab", "Ã©", "aÃ", "©b", "©Ã", "Ĥ¬a", "âĤ", "aâĤ¬"];
    let mut tokens: Vec<(&str, i32)> = words.iter().map(|w| (*w, 1)).collect();
    tokens.extend([("<0x61>", 6), ("<end>", 3), ("<stop>", 3), ("a<", 1)]);
    let id = |text: &str| tokens.iter().position(|t| t.0 == text).unwrap() as u32;
    let mut w = Writer::new();
    w.set("general.architecture", "test");
    w.set("tokenizer.ggml.model", "gpt2");
    w.set("tokenizer.ggml.pre", "gpt-2");
    w.set("tokenizer.ggml.tokens", tokens.iter().map(|t| t.0.to_owned()).collect::<Vec<String>>());
    w.set("tokenizer.ggml.token_type", tokens.iter().map(|t| t.1).collect::<Vec<i32>>());
    w.set("tokenizer.ggml.merges", Value::from(vec!["a b".to_owned()]));
    w.set("tokenizer.ggml.eos_token_id", id("<end>"));
    w.set("tokenizer.ggml.eot_token_id", id("<stop>"));
    Tokenizer::new(&Gguf::from_bytes(w.to_bytes().unwrap(), Path::new("made.gguf")).unwrap()).unwrap()
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    One(Vec<char>),
    Any(Vec<char>),
    Rule(usize),
}

/// A grammar: for each rule what it may be. Each alternative begins with a letter or is empty.
type Rules = Vec<Vec<Vec<Part>>>;

fn random(rng: &mut Rng) -> Rules {
    let mut upto = |n: u64| rng.bits() % n;
    let n = 2 + upto(3) as usize;
    (0..n)
        .map(|_| {
            let mut alternatives: Vec<Vec<Part>> = Vec::new();
            for i in 0..1 + upto(3) {
                let mut seq = Vec::new();
                let len = if upto(5) == 0 { 0 } else { 1 + upto(4) };
                for at in 0..len {
                    let letters: BTreeSet<char> = (0..1 + upto(2)).map(|_| LETTERS[upto(5) as usize]).collect();
                    let letters = letters.into_iter().collect();
                    seq.push(match upto(10) {
                        // The first alternative has no rule, so that every rule derives something.
                        7.. if at > 0 && i > 0 => Part::Rule(upto(n as u64) as usize),
                        5..7 if at > 0 => Part::Any(letters),
                        _ => Part::One(letters),
                    });
                }
                alternatives.push(seq);
            }
            alternatives
        })
        .collect()
}

fn gbnf(rules: &Rules) -> String {
    let part = |p: &Part| match p {
        Part::One(l) if l.len() == 1 => format!("\"{}\"", l[0]),
        Part::One(l) => format!("[{}]", l.iter().collect::<String>()),
        Part::Any(l) => format!("[{}]*", l.iter().collect::<String>()),
        Part::Rule(0) => "root".into(),
        Part::Rule(r) => format!("r{r}"),
    };
    let seq = |s: &Vec<Part>| match s.len() {
        0 => "\"\"".into(),
        _ => s.iter().map(part).collect::<Vec<_>>().join(" ").replace("\" \"", ""),
    };
    let line = |(i, alt): (usize, &Vec<Vec<Part>>)| {
        let name = if i == 0 { "root".into() } else { format!("r{i}") };
        format!("{name} ::= {}\n", alt.iter().map(seq).collect::<Vec<_>>().join(" | "))
    };
    rules.iter().enumerate().map(line).collect()
}

/// What may still come, next part last: all ways to have read a text.
type Ways = BTreeSet<Vec<Part>>;

/// Goes on until each way has a letter next, or nothing.
fn settle(rules: &Rules, todo: Vec<Vec<Part>>) -> Ways {
    let (mut todo, mut seen, mut out) = (todo, BTreeSet::new(), Ways::new());
    while let Some(mut way) = todo.pop() {
        if !seen.insert(way.clone()) {
            continue;
        }
        match way.pop() {
            Some(Part::Rule(r)) => {
                todo.extend(rules[r].iter().map(|alt| way.iter().chain(alt.iter().rev()).cloned().collect()));
            }
            Some(Part::Any(l)) => {
                todo.push(way.clone());
                way.push(Part::Any(l.clone()));
                way.push(Part::One(l));
                out.insert(way);
            }
            Some(one) => {
                way.push(one);
                out.insert(way);
            }
            None => drop(out.insert(way)),
        }
    }
    out
}

fn after(rules: &Rules, ways: &Ways, c: char) -> Ways {
    let next = ways.iter().filter_map(|w| match w.last() {
        Some(Part::One(l)) if l.contains(&c) => Some(w[..w.len() - 1].to_vec()),
        _ => None,
    });
    settle(rules, next.collect())
}

/// Whether a text of the grammar begins with these bytes, and whether they are one.
fn viable(rules: &Rules, start: &Ways, bytes: &[u8]) -> (bool, bool) {
    let whole = match std::str::from_utf8(bytes) {
        Ok(_) => bytes.len(),
        Err(e) if e.error_len().is_none() => e.valid_up_to(),
        Err(_) => return (false, false),
    };
    let text = std::str::from_utf8(&bytes[..whole]).unwrap();
    let ways = text.chars().fold(start.clone(), |ways, c| after(rules, &ways, c));
    if whole == bytes.len() {
        return (!ways.is_empty(), ways.contains(&Vec::new()));
    }
    let begins = |c: &char| c.to_string().as_bytes().starts_with(&bytes[whole..]);
    (LETTERS.iter().filter(|c| begins(c)).any(|c| !after(rules, &ways, *c).is_empty()), false)
}

/// Follows allowed tokens at random and holds every mask to `viable`.
fn walk(
    t: &Tokenizer,
    mut g: Grammar,
    rng: &mut Rng,
    what: &str,
    mut viable: impl FnMut(&[u8]) -> (bool, bool),
) -> usize {
    let mut text = Vec::new();
    let mut masks = 0;
    for _ in 0..10 {
        let whole = viable(&text).1;
        let shown = String::from_utf8_lossy(&text).into_owned();
        let done = g.is_done();
        assert_eq!(g.may_end(), whole, "{what}: {shown:?} may end");
        let mask = g.mask().unwrap_or_else(|e| panic!("{what}: after {shown:?}: {e:#}")).to_vec();
        masks += 1;
        let mut allowed = Vec::new();
        for id in 0..t.n_vocab() as u32 {
            let bytes = t.bytes(id, false);
            let want = match (t.is_eog(id), bytes.is_empty()) {
                (true, _) => whole,
                (_, true) => false,
                _ => viable(&[&text[..], &bytes].concat()).0,
            };
            assert_eq!(has(&mask, id), want, "{what}: {:?} after {shown:?}", t.piece(id));
            if want && !t.is_eog(id) {
                allowed.push(id);
            }
        }
        assert!(!done || allowed.is_empty(), "{what}: {shown:?} is done");
        let Some(&id) = allowed.get(rng.bits() as usize % allowed.len().max(1)) else { break };
        g.accept(id).unwrap();
        text.extend(t.bytes(id, false));
    }
    masks
}

#[test]
fn masks_of_random_grammars_are_what_brute_force_finds() {
    let t = made();
    let grammars = Grammars::new(&t).unwrap();
    let mut rng = Rng(1);
    let mut masks = 0;
    for i in 0..400 {
        let rules = random(&mut rng);
        let text = gbnf(&rules);
        let start = settle(&rules, vec![vec![Part::Rule(0)]]);
        for _ in 0..3 {
            let g = grammars.start(&Kind::Gbnf(text.clone())).unwrap();
            masks += walk(&t, g, &mut rng, &format!("grammar {i}\n{text}"), |bytes| viable(&rules, &start, bytes));
        }
    }
    assert!(masks > 3000, "the grammars have texts of some length: {masks} masks");
}

#[test]
fn masks_of_regexes_are_what_brute_force_finds_in_cut_characters_too() {
    let t = small();
    let grammars = Grammars::new(&t).unwrap();
    let mut rng = Rng(2);
    for regex in
        ["(ab|a)*c{2,3}é?", r"[^\x00-\x7f]{1,4}", r"(?s).{0,9}the (🔵|日本)+", r"\d{4}-(0\d|1[0-2])", "(?i)no/yes"]
    {
        for _ in 0..5 {
            let mut by_hand = Regex::new(regex).unwrap();
            walk(&t, grammars.start(&Kind::Regex(regex.into())).unwrap(), &mut rng, regex, |bytes| {
                let start = by_hand.initial_state();
                let state = by_hand.transition_bytes(start, bytes);
                (!state.is_dead(), by_hand.is_accepting(state))
            });
        }
    }
}
