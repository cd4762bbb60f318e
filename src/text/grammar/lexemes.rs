//! A GBNF grammar in the notation of llguidance: which of its parts are read as one lexeme each.
//!
//! GBNF is a grammar over characters. llguidance has a lexer before its parser, which takes the longest lexeme that may
//! occur at a place, and never goes back on it. Were each character a lexeme of its own, the language would be right
//! and every mask a long walk; were every part that a regular expression can say one lexeme, masks would be quick and
//! some grammars wrong: of `"return" ws | name`, the name `return(` would be lost to the first.
//!
//! So the largest regular parts become lexemes, and one is taken apart where the lexer could run into it past the end
//! of another: where a word of some lexeme R, and a first byte of what may follow R, begin a word of the lexeme S. For
//! all R at once that is the question whether
//!
//! ```text
//! (R1 F1 | R2 F2 | ...) .* & S     R: words of at least one byte, F: the first bytes of what follows R
//! ```
//!
//! is empty, which the engine of derivatives under llguidance answers. Which lexemes may occur at the same place is not
//! asked: all of them, for the sake of certainty. A single character is never taken apart, nor has to be.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use anyhow::{Result, bail};
use llguidance::derivre::{RegexAst, RegexBuilder};

use super::RULES;
use super::gbnf::{Gbnf, Node, Set};

/// A lexeme's parts, and their depth: rules that name each other twice would grow without end when written out.
const LARGEST: usize = 5000;
const DEEPEST: usize = 40;
/// Steps of the engine for one answer; where they do not suffice, the lexeme is taken apart. A second at most.
const FUEL: u64 = 2_000_000;

/// The grammar in llguidance's notation.
///
/// # Errors
/// If it has too many rules.
pub(super) fn lark(grammar: &Gbnf) -> Result<String> {
    let facts = Facts::new(grammar);
    let mut apart = vec![false; grammar.nodes.len()];
    loop {
        let lexemes = facts.lexemes(&apart);
        let torn = torn(&lexemes);
        if torn.is_empty() {
            let text = facts.write(&apart);
            if text.lines().nth(RULES).is_some() {
                bail!("more than {RULES} parts that no regular expression can say");
            }
            return Ok(text);
        }
        torn.iter().for_each(|&id| apart[id] = true);
    }
}

/// A regular part: where it occurs, and the characters that may follow it.
struct Lexeme {
    nodes: Vec<usize>,
    follow: Set,
    /// It is one character.
    single: bool,
}

/// The parts of lexemes into which the lexer could run by mistake.
fn torn(lexemes: &BTreeMap<String, Lexeme>) -> Vec<usize> {
    let regex = |text: &str| RegexAst::Regex(text.to_owned());
    let ends = lexemes.iter().filter(|(_, l)| !l.follow.0.is_empty()).map(|(text, l)| {
        let some = RegexAst::And(vec![regex(text), regex("(?s:.+)")]);
        RegexAst::Concat(vec![some, RegexAst::ByteSet(first_bytes(&l.follow))])
    });
    let ends = RegexAst::Or(ends.collect());
    let rest = RegexAst::Repeat(Box::new(RegexAst::ByteSet(vec![u32::MAX; 8])), 0, u32::MAX);
    let past = RegexAst::Concat(vec![ends, rest]);
    let mut builder = RegexBuilder::new();
    let Ok(past) = builder.mk(&past) else { return all_apart(lexemes) };
    let mut safe = |text: &str| {
        let both = builder.mk(&RegexAst::And(vec![RegexAst::ExprRef(past), regex(text)])).ok()?;
        Some(builder.to_regex_limited(both, FUEL).ok()?.always_empty())
    };
    let torn = lexemes.iter().filter(|(text, l)| !l.single && safe(text) != Some(true));
    torn.flat_map(|(_, l)| l.nodes.iter().copied()).collect()
}

fn all_apart(lexemes: &BTreeMap<String, Lexeme>) -> Vec<usize> {
    lexemes.values().filter(|l| !l.single).flat_map(|l| l.nodes.iter().copied()).collect()
}

/// The first bytes of these characters in UTF-8, as bits.
fn first_bytes(set: &Set) -> Vec<u32> {
    let first = |c: u32| {
        let mut bytes = [0; 4];
        char::from_u32(c).map_or(0, |c| c.encode_utf8(&mut bytes).as_bytes()[0])
    };
    let mut bits = vec![0; 8];
    for &(lo, hi) in &set.0 {
        // First bytes rise with code points.
        (first(lo)..=first(hi)).for_each(|b| bits[b as usize / 32] |= 1 << (b % 32));
    }
    bits
}

/// What is true of each node, however lexemes are cut.
struct Facts<'g> {
    grammar: &'g Gbnf,
    /// How a regular expression says it; None for what none can say, or only a monster.
    regular: Vec<Option<Regular>>,
    follow: Vec<Set>,
}

/// A regular expression; without text it matches the empty text and nothing else.
#[derive(Clone)]
struct Regular {
    text: Option<String>,
    size: usize,
    depth: usize,
}

impl<'g> Facts<'g> {
    fn new(grammar: &'g Gbnf) -> Facts<'g> {
        let n = grammar.nodes.len();
        let mut facts = Facts { grammar, regular: vec![None; n], follow: vec![Set::default(); n] };
        let mut seen = vec![false; n];
        (0..n).for_each(|id| facts.find_regular(id, &mut seen));
        facts.find_follow();
        facts
    }

    /// A node that is met again before it is done names itself: it stays None, and with it all that lead there.
    fn find_regular(&mut self, id: usize, seen: &mut [bool]) {
        if std::mem::replace(&mut seen[id], true) {
            return;
        }
        let grammar = self.grammar;
        let children = grammar.children(id);
        children.iter().for_each(|&c| self.find_regular(c, seen));
        let parts: Option<Vec<Regular>> = children.iter().map(|&c| self.regular[c].clone()).collect();
        let Some(parts) = parts else { return };
        let size = 1 + parts.iter().map(|p| p.size).sum::<usize>();
        let depth = 1 + parts.iter().map(|p| p.depth).max().unwrap_or(0);
        if size > LARGEST || depth > DEEPEST {
            return;
        }
        let text = match &grammar.nodes[id] {
            Node::Tokens { .. } => return,
            Node::Set(set) => Some(class(set)),
            Node::Rule(_) => parts[0].text.clone(),
            Node::Seq(_) => {
                let texts: Vec<&str> = parts.iter().filter_map(|p| p.text.as_deref()).collect();
                (!texts.is_empty()).then(|| format!("(?:{})", texts.concat()))
            }
            Node::Alt(_) => {
                let texts: Vec<&str> = parts.iter().filter_map(|p| p.text.as_deref()).collect();
                let maybe = if texts.len() < parts.len() { "?" } else { "" };
                (!texts.is_empty()).then(|| format!("(?:(?:{}){maybe})", texts.join("|")))
            }
            Node::Repeat(_, _, Some(0)) => None,
            Node::Repeat(_, least, most) => {
                parts[0].text.as_ref().map(|t| format!("(?:(?:{t}){})", times(*least, *most)))
            }
        };
        self.regular[id] = Some(Regular { text, size, depth });
    }

    /// The characters that may follow each node: grown until nothing is new.
    fn find_follow(&mut self) {
        let nodes = &self.grammar.nodes;
        let mut empty = vec![false; nodes.len()]; // matches the empty text
        let mut first = vec![Set::default(); nodes.len()];
        // What a rule says may come before or after it.
        let there_and_back = || (0..nodes.len()).chain((0..nodes.len()).rev());
        let mut grows = true;
        while grows {
            grows = false;
            for id in there_and_back() {
                let (node, children) = (&nodes[id], self.grammar.children(id));
                let now_empty = match node {
                    Node::Set(_) | Node::Tokens { .. } => false,
                    Node::Rule(_) | Node::Seq(_) => children.iter().all(|&c| empty[c]),
                    Node::Alt(_) => children.iter().any(|&c| empty[c]),
                    Node::Repeat(c, least, _) => *least == 0 || empty[*c],
                };
                let mut now = first[id].clone();
                match node {
                    Node::Set(set) => grows |= now.add(set),
                    Node::Seq(_) => {
                        let reached = children.iter().position(|&c| !empty[c]).map_or(children.len(), |n| n + 1);
                        children[..reached].iter().for_each(|&c| grows |= now.add(&first[c]));
                    }
                    _ => children.iter().for_each(|&c| grows |= now.add(&first[c])),
                }
                grows |= now_empty != empty[id];
                first[id] = now;
                empty[id] = now_empty;
            }
        }
        let mut grows = true;
        while grows {
            grows = false;
            for id in there_and_back() {
                let node = &nodes[id];
                let mut after = self.follow[id].clone();
                if let Node::Repeat(c, _, most) = node
                    && most.is_none_or(|m| m > 1)
                {
                    after.add(&first[*c]);
                }
                let in_turn = matches!(node, Node::Seq(_));
                for &c in self.grammar.children(id).iter().rev() {
                    grows |= self.follow[c].add(&after);
                    if in_turn {
                        if !empty[c] {
                            after = Set::default();
                        }
                        after.add(&first[c]);
                    }
                }
            }
        }
    }

    /// The node that a rule's name refers to. Names in a circle have none, and end at one of them.
    fn resolve(&self, mut id: usize) -> usize {
        for _ in 0..=self.grammar.bodies.len() {
            match self.grammar.nodes[id] {
                Node::Rule(rule) => id = self.grammar.bodies[rule],
                _ => break,
            }
        }
        id
    }

    /// The text of a node that is a lexeme.
    fn lexeme(&self, id: usize, apart: &[bool]) -> Option<&Regular> {
        self.regular[id].as_ref().filter(|_| !apart[id])
    }

    /// Calls `f` with every node that is reached from the root, not going into lexemes.
    fn walk(&self, apart: &[bool], mut f: impl FnMut(usize)) {
        let mut todo = vec![self.resolve(self.grammar.bodies[self.grammar.root])];
        let mut seen = BTreeSet::from_iter(todo.iter().copied());
        while let Some(id) = todo.pop() {
            f(id);
            if self.lexeme(id, apart).is_none() {
                let children = self.grammar.children(id).into_iter().map(|c| self.resolve(c));
                todo.extend(children.filter(|c| seen.insert(*c)));
            }
        }
    }

    /// The lexemes by their texts.
    fn lexemes(&self, apart: &[bool]) -> BTreeMap<String, Lexeme> {
        let mut all: BTreeMap<String, Lexeme> = BTreeMap::new();
        self.walk(apart, |id| {
            let Some(text) = self.lexeme(id, apart).and_then(|r| r.text.clone()) else { return };
            let single = matches!(self.grammar.nodes[id], Node::Set(_));
            let lexeme = all.entry(text).or_insert(Lexeme { nodes: Vec::new(), follow: Set::default(), single });
            lexeme.nodes.push(id);
            lexeme.follow.add(&self.follow[id]);
        });
        all
    }

    fn write(&self, apart: &[bool]) -> String {
        let atom = |id: usize| {
            let id = self.resolve(id);
            match self.lexeme(id, apart) {
                Some(Regular { text: Some(text), .. }) => format!("/{text}/"),
                Some(_) => "\"\"".into(),
                None => format!("n{id}"),
            }
        };
        let root = self.grammar.bodies[self.grammar.root];
        let mut out = format!("start: {}\n", atom(root));
        self.walk(apart, |id| {
            if self.lexeme(id, apart).is_some() {
                return;
            }
            let all = |ids: &[usize], between: &str| ids.iter().map(|&c| atom(c)).collect::<Vec<_>>().join(between);
            let body = match &self.grammar.nodes[id] {
                Node::Tokens { ids, not } => {
                    let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
                    format!("<[{}{}]>", if *not { "^" } else { "" }, ids.join(","))
                }
                Node::Seq(ids) if ids.is_empty() => "\"\"".into(),
                Node::Seq(ids) => all(ids, " "),
                Node::Alt(ids) => all(ids, " | "),
                Node::Repeat(_, _, Some(0)) => "\"\"".into(),
                Node::Repeat(c, least, most) => format!("{}{}", atom(*c), times(*least, *most)),
                // Only rules that are nothing but each other's names are left: they match no text.
                Node::Rule(_) | Node::Set(_) => format!("n{id}"),
            };
            let _ = writeln!(out, "n{id}: {body}"); // to a string: cannot fail
        });
        out
    }
}

impl Gbnf {
    /// The parts of a node.
    fn children(&self, id: usize) -> Vec<usize> {
        match &self.nodes[id] {
            Node::Set(_) | Node::Tokens { .. } => Vec::new(),
            Node::Rule(rule) => vec![self.bodies[*rule]],
            Node::Seq(list) | Node::Alt(list) => list.clone(),
            Node::Repeat(inner, ..) => vec![*inner],
        }
    }
}

/// A repetition, as both notations write it.
fn times(least: u32, most: Option<u32>) -> String {
    match (least, most) {
        (0, None) => "*".into(),
        (1, None) => "+".into(),
        (0, Some(1)) => "?".into(),
        (least, None) => format!("{{{least},}}"),
        (least, Some(most)) => format!("{{{least},{most}}}"),
    }
}

/// A character class as a regular expression, in which nothing can be mistaken for an operator.
fn class(set: &Set) -> String {
    let char = |c: u32| match char::from_u32(c) {
        Some(c) if c.is_ascii_alphanumeric() => c.to_string(),
        _ => format!("\\x{{{c:X}}}"),
    };
    match set.0[..] {
        [(lo, hi)] if lo == hi => char(lo),
        _ => format!("[{}]", set.0.iter().map(|&(lo, hi)| format!("{}-{}", char(lo), char(hi))).collect::<String>()),
    }
}
