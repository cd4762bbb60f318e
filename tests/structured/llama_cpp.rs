//! Grammars as llama.cpp understands them. The first list is from its tests/test-grammar-integration.cpp, the second is
//! about its example grammars (tests/data/grammars).

use super::common::local;
use super::{bytes, small, takes};
use tandem::text::Tokenizer;
use tandem::text::grammar::{Grammars, Kind};

/// A grammar, texts that it derives, and texts that it does not.
type Case<'a> = (&'a str, &'a [&'a str], &'a [&'a str]);

const CASES: &[Case] = &[
    (
        "root ::= expr\nexpr ::= term (\"+\" term)*\nterm ::= number\nnumber ::= [0-9]+",
        &["42", "1+2+3+4+5", "123+456"],
        &["+", "/ 3", "1+2+3+4+5+", "12a45"],
    ),
    (
        r#"root ::= expression
           expression ::= term ws (("+"|"-") ws term)*
           term ::= factor ws (("*"|"/") ws factor)*
           factor ::= number | variable | "(" expression ")" | function-call
           number ::= [0-9]+
           variable ::= [a-zA-Z_][a-zA-Z0-9_]*
           function-call ::= variable ws "(" (expression ("," ws expression)*)? ")"
           ws ::= [ \t\n\r]?"#,
        &[
            "42",
            "1*2*3*4*5",
            "x",
            "x+10",
            "x1+y2",
            "(a+b)*(c-d)",
            "func()",
            "func(x,y+2)",
            "a*(b+c)-d/e",
            "f(g(x),h(y,z))",
            "x + 10",
            "(a + b) * (c - d)",
            "func(x, y + 2)",
            "f(g(x), h(y, z))",
            "123*456*789-123/456+789*123",
            "123+456*789-123/456+789*123-456/789+123*456-789/123+456*789-123/456+789*123-456",
        ],
        &[
            "+",
            "/ 3x",
            "x + + y",
            "a * / b",
            "func(,)",
            "func(x y)",
            "(a + b",
            "x + y)",
            "a + b * (c - d",
            "42 +",
            "x + 10 +",
            "func(",
            "func(x, y + 2",
            "f(g(x), h(y, z)",
        ],
    ),
    (
        "root ::= ... \"abc\" ...",
        &["abcabcabc", "aaaabcccc", "🔵🟠✅abc❌🟠🔵"],
        &["aaabcccc", "aaaaabcccc", "aaaabccc", "🔵🟠✅❌abc❌✅🟠🔵", "🔵🟠abc🟠🔵"],
    ),
    ("root ::= \"a\"*", &["", "a", "aaaaa"], &["b", "ab", "aab", "ba"]),
    ("root ::= \"a\"+", &["a", "aaaaa"], &["", "b", "ab", "ba"]),
    ("root ::= \"a\"?", &["", "a"], &["b", "ab", "aa", "ba"]),
    (
        "root ::= cons+ vowel* cons? (vowel cons)*\nvowel ::= [aeiouy]\ncons ::= [bcdfghjklmnpqrstvwxyz]",
        &["yes", "no", "noyes", "crwth", "four", "bryyyy"],
        &["yess", "yesno", "forty", "catyyy"],
    ),
    ("root ::= [ab]{4}", &["aaaa", "bbbb", "abab"], &["a", "b", "aaaaa"]),
    ("root ::= [ab]{4,}", &["aaaa", "aaaaab", "ababab"], &["", "aba"]),
    ("root ::= [ab]{0,4}", &["", "a", "aaa", "aaab"], &["aaaaa"]),
    (
        "root ::= (\"0x\" [A-F0-9]{2} \" \"?){3,5}",
        &["0xFF 0x12 0xAB", "0xFF 0x12 0xAB 0x00 0x00"],
        &["", "0xFF", "0xFF 0x12", "0xFF 0x12 0xAB 0x00 0x00 0x00"],
    ),
    ("root ::= ( [x]* )*", &["", "x", "xx"], &["y", "yy"]),
];

/// What its parser takes in other places than most people write, and what a lexer could stumble over.
const MORE: &[Case] = &[
    ("root ::= [a-z-]+ [\\]\\-\\[] [^\\x00-\\x7F]", &["a-z]é", "--日", "a[🔵"], &["a]a", "é]é", "a-a"]),
    (
        "root ::= ( # why\n \"a\"\n | # not\n \"b\" ) |\n \"\\u00e9\" \"\\U0001F535\"\n\n#end",
        &["a", "b", "é🔵"],
        &["é"],
    ),
    ("r-1 ::= \"x\" root?\nroot ::= r-1 \"y\"", &["xy", "xxyy"], &["x", "xyy", "y"]),
    ("root ::= root \"a\" | \"b\"", &["b", "baa"], &["", "a", "ab"]),
    // A keyword that is a name too, and a name that goes on where the keyword ends.
    (
        "root ::= (\"return\" \" \" name | name \"(\" root \")\") \";\"\nname ::= [a-z]+",
        &["return x;", "return(x(return y;););", "returns(return return;);"],
        &["return;", "return x", "returnx;"],
    ),
    // The longest lexeme is not the one that is meant.
    ("root ::= [a-z]+ \"x\" | \"(\" root \")\"", &["abx", "xxx", "(axx)"], &["x", "ab", "(abx"]),
    ("root ::= \"a\" \"bx\" | \"ab\" \"d\" | \"(\" root \")\"", &["abx", "abd", "((abx))"], &["ab", "abxd"]),
    // é and è begin with the same byte.
    ("root ::= \"a\" root? \"é\" | \"aè\"", &["aé", "aaèé", "aè"], &["aèé", "aaè", "a"]),
    ("root ::= \"\" | \"(\" root{0,2} \")\"", &["", "()", "(())", "(()())"], &["(", "(()()())"]),
    ("root ::= a | \"x\"\na ::= b\nb ::= a", &["x"], &["", "a"]),
];

const FILES: &[Case] = &[
    ("arithmetic", &["x=1\n", "(a +b2) *3 -c =4\n1=2\n"], &["x=1", "=1\n", "x==1\n"]),
    (
        "c",
        &["int main(int argc){return 1;}", "float f(){while(a<b){x = -f(y, 2)/3;}// done\n/* and * more */}"],
        &["int main(", "intmain(){}", "int f(){return ;}", "int f(){x = 1}"],
    ),
    ("chess", &["1. e4 e5\n2. Nf3 Nc6\n", "1. exd5 O-O-O+\n10. Qh4 a8=Q#\n"], &["1. e4 e5\n", "1. e9 e5\n2. e4 e5\n"]),
    ("english", &["Hello, world!", "a b\nc"], &["", " a", "a  b", "é"]),
    ("japanese", &["これは、日本語", "カタ カナ"], &["abc", "これ  は"]),
    (
        "json",
        &["{}", "{\"a\": [1, -2.5e3, \"b\\n\\u00e9é\", true, null], \"c\":{\"d\": {} } }", "{\"a\":\n\t[ ]}"],
        &["", "[]", "{\"a\"}", "{a:1}", "{\"a\":01}", "{\"a\":1,}", "{} x", "{\"a\":\"\u{7f}\"}"],
    ),
    ("json_arr", &["[\n]", "[\n1,\n{\"a\":[]}]"], &["[]", "[1]", "[\n1]\n"]),
    ("list", &["- a\n", "- one\n- two é\n"], &["", "- \n", "- a", "a\n", "- a\u{2028}\n"]),
];

fn check(t: &Tokenizer, grammars: &Grammars, name: &str, grammar: &str, yes: &[&str], no: &[&str]) {
    let start = || grammars.start(&Kind::grammar(grammar.into())).unwrap_or_else(|e| panic!("{name}: {e:#}"));
    for (texts, want) in [(yes, true), (no, false)] {
        for text in texts {
            assert_eq!(takes(start(), &bytes(t, text)), want, "{name}: {text:?} byte by byte");
            assert_eq!(takes(start(), &t.encode(text, false, false).unwrap()), want, "{name}: {text:?}");
        }
    }
}

#[test]
fn a_grammar_derives_what_llama_cpp_says_and_nothing_else() {
    let t = small();
    let grammars = Grammars::new(&t).unwrap();
    for (grammar, yes, no) in CASES.iter().chain(MORE) {
        check(&t, &grammars, grammar, grammar, yes, no);
    }
}

#[test]
fn llama_cpp_s_example_grammars_do_what_they_say() {
    let t = small();
    let grammars = Grammars::new(&t).unwrap();
    for (name, yes, no) in FILES {
        let text = std::fs::read_to_string(local().join(format!("grammars/{name}.gbnf"))).unwrap();
        check(&t, &grammars, name, &text, yes, no);
    }
    let n = std::fs::read_dir(local().join("grammars")).unwrap().count();
    assert_eq!(n, FILES.len(), "every example has its texts here");
}

#[test]
fn a_grammar_can_ask_for_tokens_and_for_any_but_one() {
    let t = small();
    let grammars = Grammars::new(&t).unwrap();
    let end = t.eog()[0];
    let control = (0..t.n_vocab() as u32).find(|&id| t.is_control(id) && !t.is_eog(id)).expect("a control token");
    for by_name in [format!("<[{control}]>"), t.piece(control).to_owned()] {
        let kind = Kind::Gbnf(format!("root ::= {by_name} more {by_name}\nmore ::= (!<[{control}]>)*"));
        let takes = |ids: &[u32]| takes(grammars.start(&kind).unwrap(), ids);
        assert!(takes(&[control, control]));
        assert!(takes(&[control, 65, 300, 66, control]), "any text between");
        assert!(!takes(&[control, 65]), "no end");
        assert!(!takes(&[65, control]), "no beginning");
        assert!(!takes(&[control, control, control]), "one too many");
        assert!(!takes(&[control, end, control]), "the end of the generation is not any token");
    }
}

#[test]
fn structure_is_never_text() {
    // The text of a control token is no way to that token, and any character is no way to it either.
    let t = small();
    let grammars = Grammars::new(&t).unwrap();
    for kind in [Kind::Gbnf("root ::= .*".into()), Kind::Regex("(?s).*".into()), Kind::JsonSchema(true.into())] {
        let mut g = grammars.start(&kind).unwrap();
        let may_end = g.may_end();
        let mask = g.mask().unwrap();
        for id in 0..t.n_vocab() as u32 {
            assert!(!t.is_control(id) || has_end(&t, id, may_end) == super::has(mask, id), "{kind:?}: {}", t.piece(id));
        }
    }
}

fn has_end(t: &Tokenizer, id: u32, may_end: bool) -> bool {
    may_end && t.is_eog(id)
}

#[test]
fn rules_that_lead_far_are_followed_or_refused_and_never_break_the_stack() {
    let t = small();
    let grammars = Grammars::new(&t).unwrap();
    let chain = |n: usize| (0..n).map(move |i| format!("r{i} ::= \"(\" r{} \")\" | root \"!\" | \"x\"\n", (i + 1) % n));
    for order in [chain(2000).collect::<String>(), chain(2000).rev().collect()] {
        let kind = Kind::Gbnf(format!("root ::= \"[\" r0 \"]\"\n{order}"));
        for (text, want) in [("[((x))]", true), ("[([x]!)]", true), ("[((x)]", false)] {
            assert_eq!(takes(grammars.start(&kind).unwrap(), &bytes(&t, text)), want, "{text}");
        }
    }
    let refused = |kind: Kind| format!("{:#}", grammars.start(&kind).unwrap_err());
    let e = refused(Kind::Gbnf(format!("root ::= r0\n{}", chain(12_000).collect::<String>())));
    assert!(e.contains("more than 20000 parts"), "{e}");
    let lark = |n| (0..n).map(|i| format!("r{i}: \"a\" r{} \"b\" | \"c\"\n", i + 1)).collect::<String>();
    let e = refused(Kind::Lark(format!("start: r0\n{}", lark(30_000))));
    assert!(e.contains("more than 20000 lines"), "{e}");
    grammars.start(&Kind::Lark(format!("start: r0\n{}r15000: \"d\"\n", lark(15_000)))).unwrap();
    let refs = |n: usize| {
        let name = |i: usize| serde_json::json!({"items": {"$ref": format!("#/$defs/{i}")}, "type": "array"});
        let mut defs: serde_json::Map<String, _> = (0..n).map(|i| (i.to_string(), name(i + 1))).collect();
        defs.insert(n.to_string(), true.into());
        Kind::JsonSchema(serde_json::json!({"$ref": "#/$defs/0", "$defs": defs}))
    };
    grammars.start(&refs(4000)).unwrap();
    let e = refused(refs(6000));
    assert!(e.contains("more than 5000 places"), "{e}");
}
