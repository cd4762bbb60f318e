//! Prompts are the very text that transformers makes of a template, what a template cannot do is reported with its line,
//! and no text of a conversation becomes structure.

mod common;

use std::path::PathBuf;
use std::process::Output;

use common::{find, ids, json, local, whole};
use serde_json::{Value, json};
use tandem::gguf::{Gguf, Writer};
use tandem::text::{Clock, Part, Prompter, Reader, Template, Tokenizer};

/// The reference templates, if they are here.
fn references() -> Vec<PathBuf> {
    let Some(dir) = whole() else {
        println!("not checked, because the reference folder is not next to this checkout: templates");
        return Vec::new();
    };
    let mut all: Vec<PathBuf> = std::fs::read_dir(dir.join("templates")).unwrap().map(|f| f.unwrap().path()).collect();
    all.retain(|p| p.extension().is_some_and(|e| e == "jinja"));
    all.sort();
    assert!(all.len() >= 6, "{all:?}");
    all
}

fn template(path: &std::path::Path) -> Template {
    Template::new(&std::fs::read_to_string(path).unwrap(), &path.display().to_string()).unwrap()
}

/// What the templates of this file are given.
fn variables() -> Value {
    json!({
        "s": "  Hello, <World>! \n", "e": "", "l": [3, 1, 2], "d": {"b": 1, "a": [true, null, 1.5, "x'y"]}, "n": null,
        "t": true, "i": 7, "u": "Zürich\t\"\\/", "w": "a b  c\td\n\ne",
        "m": [
            {"role": "user", "content": "hi", "k": 2},
            {"role": "assistant", "content": "yo", "k": 1},
            {"role": "user", "content": null, "k": 3},
        ],
    })
}

fn noon() -> Clock {
    "2025-03-14 12:00".parse().unwrap()
}

fn render(source: &str) -> Result<String, String> {
    let rendered = Template::new(source, "made.jinja").and_then(|t| t.render(&variables(), noon()));
    rendered.map_err(|e| format!("{e:#}"))
}

/// Templates, and what jinja2 3.1.6, set up as transformers sets it up, makes of them.
fn same(cases: &[(&str, &str)]) {
    for (source, want) in cases {
        assert_eq!(render(source).as_deref(), Ok(*want), "{source}");
    }
}

#[test]
fn every_reference_conversation_renders_to_the_same_text() {
    for path in references() {
        let cases = json(&path.with_extension("json"));
        let (template, now) = (template(&path), cases["now"].as_str().unwrap().parse().unwrap());
        for case in cases["cases"].as_array().unwrap() {
            let got = template.render(&case["inputs"], now).unwrap();
            assert_eq!(got, case["expected"].as_str().unwrap(), "{}: {}", path.display(), case["inputs"]);
        }
    }
}

/// Every template of the reference folder with its name there, llama.cpp's among them.
fn all_templates() -> Vec<(String, PathBuf)> {
    let Some(dir) = whole().map(|dir| dir.join("templates")) else { return Vec::new() };
    let mut all: Vec<PathBuf> = references();
    all.extend(std::fs::read_dir(dir.join("llama.cpp-b11434")).unwrap().map(|f| f.unwrap().path()));
    all.retain(|p| p.extension().is_some_and(|e| e == "jinja"));
    all.sort();
    all.into_iter().map(|p| (p.strip_prefix(&dir).unwrap().display().to_string(), p)).collect()
}

/// The conversations that `tests/data/templates/digests.py` renders, whole variables with its tokens.
fn conversations() -> Vec<Value> {
    let cases = json(&data("cases.json"));
    let tokens = cases["tokens"].as_object().unwrap();
    let whole = |case: &Value| {
        let mut case = case.as_object().unwrap().clone();
        case.extend(tokens.clone());
        Value::Object(case)
    };
    cases["cases"].as_array().unwrap().iter().map(whole).collect()
}

fn data(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/templates").join(name)
}

/// Length and 64-bit FNV-1a hash, as `digests.py` has them.
fn digest(text: &str) -> String {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    format!("{}:{hash:016x}", text.len())
}

#[test]
fn every_template_renders_every_conversation_as_jinja2_does() {
    let digests = json(&data("digests.json"));
    let now: Clock = json(&data("cases.json"))["now"].as_str().unwrap().parse().unwrap();
    let (mut wrong, mut checked) = (Vec::new(), 0);
    // It adds text to what is marked safe, which Python escapes as if for HTML: quotes become &#34;.
    for (name, path) in all_templates().into_iter().filter(|(name, _)| !name.ends_with("functionary-medium-v3.1.jinja"))
    {
        let template = template(&path);
        for (n, case) in conversations().iter().enumerate() {
            let want = digests[&name][n].as_str().unwrap_or_else(|| panic!("{name}: no digest {n}"));
            let got = template.render(case, now);
            // What jinja2 refuses may be rendered: minijinja forgives more.
            if want != "error" && got.as_ref().ok().map(|text| digest(text)).as_deref() != Some(want) {
                wrong.push(format!("{name}, {n}: {got:?}"));
            }
            checked += usize::from(want != "error");
        }
    }
    assert!(wrong.is_empty(), "{} of {checked}:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn a_models_own_template_gives_the_reference_text_and_ids() {
    for name in ["qwen3moe", "gpt-oss"] {
        let path = find(&format!("models/{name}.chat.json")).unwrap();
        let chat = json(&path);
        let gguf = Gguf::open(&path.with_file_name(format!("{name}.gguf"))).unwrap();
        let tokenizer = Tokenizer::new(&gguf).unwrap();
        let template = || Template::of(&gguf.meta, None, false).unwrap();
        let mut variables =
            json!({"messages": chat["messages"], "add_generation_prompt": chat["add_generation_prompt"]});
        let prompt = Prompter::new(template(), &tokenizer).unwrap().prompt(&variables, noon()).unwrap();
        tokenizer.add_variables(variables.as_object_mut().unwrap());
        let want = chat["rendered"].as_str().unwrap();
        assert_eq!((prompt.text(), template().render(&variables, noon()).unwrap().as_str()), (want, want), "{name}");
        assert_eq!(tokenizer.encode_prompt(&prompt).unwrap(), ids(&chat["ids_add_special_parse_special"]), "{name}");
    }
}

#[test]
fn values_print_as_python_prints_them() {
    same(&[
        (
            r#"{{ l }} {{ d }} {{ n }} {{ t }} {{ 1.0 }} {{ (1, "a") }} {{ (1,) }}"#,
            r#"[3, 1, 2] {'b': 1, 'a': [True, None, 1.5, "x'y"]} None True 1.0 (1, 'a') (1,)"#,
        ),
        (r#"{{ ["it's", 'a\nb', 'é'] }}"#, r#"["it's", 'a\nb', 'é']"#),
        (
            "{{ 1e16 }} {{ 1e-5 }} {{ 0.0001 }} {{ 123456.5 }} {{ (1e-7)|string }} {{ 100000 * 1.0 }}",
            "1e+16 1e-05 0.0001 123456.5 1e-07 100000.0",
        ),
        ("{{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 / 2 }} {{ 2 ** 3 }} {{ 6 / 2 }}", "3 -4 2 3.5 8 3.0"),
        ("{{ 'a' ~ 1 ~ n ~ t ~ l }}", "a1NoneTrue[3, 1, 2]"),
    ]);
}

#[test]
fn undefined_is_empty_and_false() {
    same(&[
        (
            r#"[{{ x }}] {{ x is defined }} {{ x|length }} {{ x|list }} {{ "a" ~ x }} {{ d.x is none }}"#,
            "[] False 0 [] a False",
        ),
        ("{% for a in x %}{{ a }}{% else %}none{% endfor %} {% for k, v in x|items %}{{ k }}{% endfor %}.", "none ."),
        (
            "{{ x|default('y') }} {{ n|default('y') }} {{ n|default('y', true) }} {{ e|default('y', boolean=true) }} {{ x|default(none) is none }}",
            "y None y y True",
        ),
        ("{{ n or 'x' }} {{ e or 'y' }} {{ l and 'z' }} {{ ('a' if e) is undefined }}", "x y z True"),
    ]);
}

#[test]
fn types_are_what_python_takes_them_for() {
    same(&[
        (
            "{{ s is string }} {{ d is mapping }} {{ l is sequence }} {{ d is sequence }} {{ s is sequence }} {{ n is sequence }}",
            "True True True True True False",
        ),
        (
            "{{ s is iterable }} {{ d is iterable }} {{ n is iterable }} {{ i is iterable }} {{ x is iterable }}",
            "True True False False True",
        ),
        (
            "{{ t is boolean }} {{ i is number }} {{ t is integer }} {{ n is none }} {{ t is true }} {{ 1.5 is float }} {{ i is odd }}",
            "True True False True True True True",
        ),
        (
            "{{ 'World' in s }} {{ 'b' in d }} {{ 3 in l }} {{ 'x' not in l }} {{ (1, 2) == (1, 2) }}",
            "True True True True True",
        ),
    ]);
}

#[test]
fn strings_have_pythons_methods() {
    same(&[
        (
            r"[{{ s.strip() }}] [{{ s.lstrip() }}] [{{ s.rstrip('\n') }}] [{{ s|trim }}] {{ 'xyaxy'.strip('xy') }}",
            "[Hello, <World>!] [Hello, <World>! \n] [  Hello, <World>! ] [Hello, <World>!] a",
        ),
        (
            "{{ w.split() }} {{ w.split(' ', 1) }} {{ w.split(' ')[2] }} {{ w.split(maxsplit=1) }} {{ 'a,b,c'.rsplit(',', 1) }} {{ ' a  b c '.rsplit(None, 1) }}",
            r"['a', 'b', 'c', 'd', 'e'] ['a', 'b  c\td\n\ne']  ['a', 'b  c\td\n\ne'] ['a,b', 'c'] [' a  b', 'c']",
        ),
        ("{{ 'r</think>a</think>b'.split('</think>')[-1] }} {{ ''.split() }} {{ ''.split('x') }}", "b [] ['']"),
        (
            "{{ 'a=b=c'.partition('=') }} {{ 'a=b=c'.rpartition('=') }} {{ 'abc'.partition('=') }}",
            "('a', '=', 'b=c') ('a=b', '=', 'c') ('abc', '', '')",
        ),
        (
            "{{ 'abc'.removeprefix('a') }} {{ 'abc'.removesuffix('c') }} {{ 'abc'.startswith(('x', 'a')) }} {{ 'abc'.endswith('c') }} {{ 'abc'.index('b') }} {{ 'abc'.find('z') }}",
            "bc ab True True 1 -1",
        ),
        (
            "{{ 'aXbX'.replace('X', '-', 1) }} {{ 'aXbX'|replace('X', '-', 1) }} {{ 'ab'.upper() }} {{ 'hello wORLD'.capitalize() }} {{ 'a b'.title() }} {{ ', '.join(['a', 'b']) }}",
            "a-bX a-bX AB Hello world A B a, b",
        ),
        (
            "{{ '{} {0}'.replace('{0}', '').format('a') }} {{ '%s-%d'|format('a', 3) }} {{ 'abcabc'.count('bc') }} {{ '12'.isdigit() }}",
            "a  a-3 2 True",
        ),
    ]);
}

#[test]
fn mappings_have_pythons_methods() {
    same(&[
        (
            "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %} {% for k, v in d|dictsort %}{{ k }}{% endfor %} {{ d.keys()|list }}",
            r#"b=1;a=[True, None, 1.5, "x'y"]; ab ['b', 'a']"#,
        ),
        (
            "{{ d.get('b') }} {{ d.get('q') }} {{ d.get('q', 'z') }} {{ {'items': {'a': 1}}.items()|list }} {{ {'get': 1}.get('get') }} {{ d.copy() == d }}",
            "1 None z [('items', {'a': 1})] 1 True",
        ),
    ]);
}

#[test]
fn slices_go_both_ways() {
    same(&[
        (
            "{{ l[::-1] }} {{ l[1:] }} {{ l[:-1] }} {{ l[-2:] }} {{ l[-1:0:-1] }} {{ l[1::-1] }} {{ l[:1:-1] }} {{ l[::-2] }} {{ l[:-9:-1] }}",
            "[2, 1, 3] [1, 2] [3, 1] [1, 2] [2, 1] [1, 3] [2] [2, 3] [2, 1, 3]",
        ),
        (
            "{% set b = -1 %}{{ l[::b] }} {{ l[::2] }} {{ l[-9:9:1] }} {{ l[2::] }} {{ ''[::b] }}.",
            "[2, 1, 3] [3, 2] [3, 1, 2] [2] .",
        ),
        (
            "[{{ [][::-1] }}{{ ''[::-1] }}] {{ 'abc'[::-1] }} {{ 'héé'[1:2] }} {{ m[::-1][0].k }} {% for a in m[::-1] %}{{ a.k }}{% endfor %}",
            "[[]] cba é 3 312",
        ),
    ]);
}

#[test]
fn filters_are_jinja2s() {
    same(&[
        (
            "{{ m|selectattr('role', 'equalto', 'user')|map(attribute='k')|list }} {{ m|rejectattr('content')|list|length }} {{ l|sort|join(', ') }} {{ l|first }} {{ l|last }} {{ l|max }} {{ l|sum }}",
            "[2, 3] 1 1, 2, 3 3 2 3 6",
        ),
        (
            r"{{ 'x'|int }} {{ '3'|int }} {{ 'x'|int(5) }} {{ 3.7|int }} {{ 2.5|round|int }} {{ '<a>'|e }} {{ '<a>'|safe }} {{ 'a\nb'|indent(2) }} {{ ['b', 'a', 'b']|unique|list }} {{ 'abc'|reverse }}",
            "0 3 5 3 2 &lt;a&gt; <a> a\n  b ['b', 'a'] cba",
        ),
    ]);
}

#[test]
fn json_is_that_of_python() {
    same(&[
        (
            r#"{{ l|tojson }} {{ d|tojson }} {{ u|tojson }} {{ n|tojson }} {{ 1e-5|tojson }} {{ 1.0|tojson }} {{ "<a>&'"|tojson }}"#,
            r#"[3, 1, 2] {"b": 1, "a": [true, null, 1.5, "x'y"]} "Zürich\t\"\\/" null 1e-05 1.0 "<a>&'""#,
        ),
        (
            "{{ d|tojson(indent=2) }} {{ []|tojson(indent=2) }} {{ [{}, []]|tojson(indent=1) }}",
            "{\n  \"b\": 1,\n  \"a\": [\n    true,\n    null,\n    1.5,\n    \"x'y\"\n  ]\n} [] [\n {},\n []\n]",
        ),
        (
            "{{ u|tojson(ensure_ascii=True) }} {{ d|tojson(separators=(',', ':')) }} {{ {'b': 1, 'a': 2}|tojson(sort_keys=True) }} {{ {1: 2, none: 3}|tojson }}",
            r#""Z\u00fcrich\t\"\\/" {"b":1,"a":[true,null,1.5,"x'y"]} {"a": 2, "b": 1} {"1": 2, "null": 3}"#,
        ),
    ]);
}

#[test]
fn json_is_read_where_a_template_asks_for_it() {
    let read = "{% set j = d|tojson|from_json %}{{ j.a[3] }} {{ j is mapping }} {{ ('[1, \"x\"]'|from_json)[1] }}";
    assert_eq!(render(read).unwrap(), "x'y True x");
    assert!(render("{{ '{'|from_json }}").unwrap_err().contains("no JSON"));
}

#[test]
fn loops_macros_and_namespaces_have_pythons_scopes() {
    same(&[
        (
            "{% set ns = namespace(a=1, b=[]) %}{% for x in l %}{% set ns.a = ns.a + x %}{% set ns.b = ns.b + [x] %}{% endfor %}{{ ns.a }}{{ ns.b }}",
            "7[3, 1, 2]",
        ),
        (
            "{% set x = 1 %}{% if t %}{% set x = 2 %}{% endif %}{% for q in [1] %}{% set x = 3 %}{% endfor %}{{ x }}",
            "2",
        ),
        (
            "{% macro f(a, b=2) %}[{{ a }}{{ b }}{{ i }}]{% endmacro %}{{ f(1) }}{{ f(a=1, b='q') ~ '!' }}{{ f() }}",
            "[127][1q7]![27]",
        ),
        (
            "{% macro o(x) %}{{ r(x) }}{% endmacro %}{% macro r(x) %}{% if x > 0 %}{{ x }}{{ r(x - 1) }}{% endif %}{% endmacro %}{{ o(3) }}",
            "321",
        ),
        (
            "{% for a in l %}{{ loop.index0 }}{{ loop.last }}{{ loop.previtem }}{{ loop.nextitem }}{% if a == 1 %}{% continue %}{% endif %};{% if a == 2 %}{% break %}{% endif %}{% endfor %}",
            "0False1;1False322True1;",
        ),
        (
            "{% for a in m if a.role == 'user' %}{{ loop.length }}{{ a.k }}{% endfor %} {% set c %} x {% endset %}[{{ c }}] {% macro f2() %}{{ caller() }}{% endmacro %}{% call f2() %}y{% endcall %}",
            "2223 [ x ] y",
        ),
    ]);
}

#[test]
fn white_space_around_tags_goes_as_in_jinja2() {
    same(&[
        ("a\n    {% if t %}\n  b\n    {% endif %}  \nc\n\n", "a\n  b\n  \nc\n"),
        ("  {# x #}\n  {{ i }}\n {{- i -}} \n z\n", "  77z"),
        ("a\r\n{% if t %}\r\nb\r\n{% endif %}\r\nc\rd", "a\nb\nc\nd"),
        ("x\n  {%- generation -%}\n  a{% set q = 1 %}\n  {% endgeneration %}\n  b{{ q is defined }}", "xa  bFalse"),
        (
            r"{% raw %}{% generation %}{{ x }}{% endraw %}|{{ 'a\/b\x41\u00e9\U0001F600\d' }}",
            r"{% generation %}{{ x }}|a\/bAé😀\d",
        ),
    ]);
}
#[test]
fn the_time_is_the_one_that_was_given() {
    same(&[("{{ strftime_now('%d %b %Y %H:%M') }}", "14 Mar 2025 12:00")]);
    let macros = "{% macro now() %}{{ strftime_now('%Y') }}{% endmacro %}{{ now() }}";
    let year: u32 = Template::new(macros, "x").unwrap().render(&json!({}), Clock::now()).unwrap().parse().unwrap();
    assert!(year >= 2025);
}

#[test]
fn what_is_always_there_is_there() {
    same(&[(
        "{{ tools is none }} {{ documents is none }} {{ add_generation_prompt }} {{ messages is defined }}",
        "True True False False",
    )]);
}

#[test]
fn errors_name_the_template_its_line_and_what_failed() {
    for (source, line, why) in [
        ("a\n{{ raise_exception('No ' + m[0].role) }}", 2, "the template says: No user"),
        ("{% macro f() %}\n\n{{ raise_exception('deep') }}{% endmacro %}\n{{ f() }}", 3, "deep"),
        ("\n\n{{ s|nope }}", 3, "filter nope is unknown"),
        ("\n{% generation %}\n{{ n.x.y }}{% endgeneration %}", 3, "`n.x` is undefined"),
        ("\r\n{{ m[0].content.nope() }}", 2, "no method named nope"),
        ("{{ 'a' + n }}", 1, "unsupported types string and none"),
        ("\n{{ 'abc'.index('z') }}", 2, "substring not found"),
        ("{{ i[::-1] }}", 1, "cannot be sliced"),
        ("{{ strftime_now|tojson }}", 1, "cannot be written as JSON"),
        ("\n{% if %}", 2, "unexpected end of block"),
        ("\n{{ 'open }}", 2, "the tag that begins here does not end"),
        ("{% macro r() %}{{ r() }}{% endmacro %}{{ r() }}", 1, "recursion limit"),
    ] {
        let e = render(source).unwrap_err();
        assert!(e.starts_with(&format!("made.jinja, line {line}: ")) && e.contains(why), "{source}: {e}");
    }
    let e = Template::new("x", "made.jinja").unwrap().render(&json!([1]), noon()).unwrap_err().to_string();
    assert!(e.contains("made.jinja") && e.contains("object") && e.contains("[1]"), "{e}");
}

#[test]
fn real_templates_stay_far_from_every_limit() {
    let text = "A word, and <b>another</b> one. ".repeat(30);
    let call = json!([{"type": "function", "id": "abcdefghi", "function": {"name": "f", "arguments": {"x": text}}}]);
    let mut messages = vec![json!({"role": "system", "content": text})];
    for n in 0..50 {
        messages.push(json!({"role": "user", "content": format!("{n} {text}")}));
        messages.push(json!({"role": "assistant", "content": text, "tool_calls": call}));
        messages.push(json!({"role": "tool", "name": "f", "tool_call_id": "abcdefghi", "content": text}));
        messages.push(json!({"role": "assistant", "content": format!("<think>\n{text}</think>\n{text}")}));
    }
    let plain: Vec<Value> =
        (0..200).map(|n| json!({"role": (["user", "assistant"][n % 2]), "content": format!("{n} {text}")})).collect();
    let tools: Vec<Value> = (0..40)
        .map(|n| {
            json!({"type": "function", "function": {"name": format!("f{n}"), "description": text, "parameters": {
                "type": "object", "properties": {"x": {"type": "string", "description": text}}, "required": ["x"]}}})
        })
        .collect();
    let mut most = (0.0, String::new());
    for (name, path) in all_templates() {
        let template = template(&path);
        let both = [
            json!({"messages": messages, "tools": tools, "add_generation_prompt": true, "bos_token": "<s>", "eos_token": "</s>"}),
            json!({"messages": plain, "add_generation_prompt": true, "bos_token": "<s>", "eos_token": "</s>"}),
        ];
        let steps = both.iter().map(|v| template.steps(v, noon()));
        let fails = |e: &anyhow::Error| format!("{e:#}").contains("may never end");
        for (n, result) in steps.enumerate() {
            assert!(!result.as_ref().is_err_and(fails), "{name}, {n}: {result:?}");
            let Ok((steps, all)) = result else { continue }; // some refuse calls, or two of one role
            let share = steps as f64 / all as f64;
            if share > most.0 {
                most = (share, format!("{name}, conversation {n}: {steps} of {all} steps"));
            }
        }
    }
    println!("the hungriest template takes {:.2} %: {}", 100.0 * most.0, most.1);
    assert!(most.0 < 0.3, "{most:?}");
}

#[test]
fn an_empty_template_is_none() {
    for empty in ["", " \n"] {
        let e = format!("{:#}", Template::of(&with_templates(&[("", empty)]).meta, None, false).unwrap_err());
        assert!(e.contains("the model has no chat template") || e.contains("no usual chat template"), "{e}");
    }
}

/// A file with these chat templates.
fn with_templates(templates: &[(&str, &str)]) -> Gguf {
    let mut w = Writer::new();
    w.set("general.architecture", "test");
    for (key, source) in templates {
        w.set(&format!("tokenizer.chat_template{key}"), *source);
    }
    Gguf::from_bytes(w.to_bytes().unwrap(), std::path::Path::new("made.gguf")).unwrap()
}

#[test]
fn a_model_with_several_templates_gives_the_one_that_is_asked_for() {
    let gguf = with_templates(&[("", "usual"), (".tool_use", "tools"), (".rag", "{{ bad")]);
    let source = |named, tools| Template::of(&gguf.meta, named, tools).unwrap().source().to_owned();
    assert_eq!(source(None, false), "usual");
    assert_eq!(source(None, true), "tools", "as transformers chooses");
    assert_eq!(source(Some("default"), true), "usual");
    assert_eq!(source(Some("tool_use"), false), "tools");
    let e = |gguf: &Gguf, named| format!("{:#}", Template::of(&gguf.meta, named, false).unwrap_err());
    let text = e(&gguf, Some("nope"));
    assert!(["made.gguf", "nope", "tool_use", "rag", "default"].iter().all(|w| text.contains(w)), "{text}");
    let text = e(&gguf, Some("rag"));
    assert!(text.contains("made.gguf: tokenizer.chat_template.rag, line 1"), "{text}");
    let text = e(&with_templates(&[]), None);
    assert!(text.contains("made.gguf") && text.contains("\"tokenizer.chat_template\" is missing"), "{text}");
    let text = e(&with_templates(&[(".rag", "x")]), None);
    assert!(text.contains("choose one of rag"), "{text}");
}

#[test]
fn a_conversation_full_of_control_tokens_has_no_more_of_them_than_a_harmless_one() {
    for (vocabulary, name) in
        [("qwen35", "Qwen3.5-4B"), ("gemma-4", "google-gemma-4-31B-it"), ("llama-bpe", "GLM-4.7-Flash")]
    {
        let Some(dir) = whole() else { continue };
        let t = Tokenizer::new(&Gguf::open(&dir.join(format!("vocab/ggml-vocab-{vocabulary}.gguf"))).unwrap()).unwrap();
        let prompter = Prompter::new(template(&dir.join(format!("templates/{name}.jinja"))), &t).unwrap();
        let controls: Vec<u32> = (0..t.n_vocab() as u32).filter(|&id| t.is_control(id)).collect();
        let evil: String = controls.iter().flat_map(|&id| [t.piece(id), " "]).collect();
        let found = |text: &str| {
            let messages = json!([
                {"role": "system", "content": text},
                {"role": "user", "content": [{"type": "text", "text": text}, {"type": "text", "text": text}]},
                {"role": "assistant", "content": text, "tool_calls": [
                    {"type": "function", "function": {"name": format!("f{text}"), "arguments": {"a": text, format!("b {text}"): [text]}}}
                ]},
                {"role": "tool", "name": format!("f{text}"), "content": text},
                {"role": "user", "content": text},
            ]);
            let variables = json!({"messages": messages, "add_generation_prompt": true});
            let ids = t.encode_prompt(&prompter.prompt(&variables, noon()).unwrap()).unwrap();
            assert!(t.decode(&ids, true).matches(text.trim()).count() >= 5, "{name}: the text is there all the same");
            ids.into_iter().filter(|&id| t.is_control(id)).collect::<Vec<u32>>()
        };
        let harmless = found("harmless");
        assert!(harmless.len() >= 5 || vocabulary == "llama-bpe", "{name}: {harmless:?}");
        assert_eq!(found(&evil), harmless, "{name}");
    }
}

/// A vocabulary of bytes and these control tokens.
fn byte_vocabulary(controls: &[String]) -> Tokenizer {
    let printable = |b: u32| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let others = (0..256).filter(|b| !printable(*b)).enumerate().map(|(n, _)| 0x100 + n as u32);
    let letters = (0..256).filter(|b| printable(*b)).chain(others).filter_map(char::from_u32).map(String::from);
    let tokens: Vec<String> = letters.chain(controls.iter().cloned()).collect();
    let mut w = Writer::new();
    w.set("general.architecture", "test");
    w.set("tokenizer.ggml.model", "gpt2");
    w.set("tokenizer.ggml.pre", "gpt-2");
    w.set("tokenizer.ggml.merges", Vec::<String>::new());
    w.set("tokenizer.ggml.token_type", (0..tokens.len()).map(|n| if n < 256 { 1 } else { 3 }).collect::<Vec<i32>>());
    w.set("tokenizer.ggml.tokens", tokens);
    w.set("tokenizer.ggml.bos_token_id", 256u32);
    w.set("tokenizer.ggml.eos_token_id", 257u32);
    Tokenizer::new(&Gguf::from_bytes(w.to_bytes().unwrap(), std::path::Path::new("made.gguf")).unwrap()).unwrap()
}

/// What looks like a control token in a template, and its short strings.
fn texts_of(source: &str) -> (Vec<String>, Vec<String>) {
    let all = |expression: &str, part: usize| {
        let found = regex::Regex::new(expression).unwrap();
        let texts: std::collections::BTreeSet<String> =
            found.captures_iter(source).map(|c| c[part].to_owned()).collect();
        texts.into_iter().collect::<Vec<_>>()
    };
    let tokens = all(r"<[|｜/]?[\w▁:.-]{1,40}[|｜]?>|\[/?[A-Z_]{2,30}\]|\]?<\]?[a-z~\[\]]+\[>\[", 0);
    (tokens, all(r#"'([^'\\{}\n]{1,16})'"#, 1))
}

/// Control tokens in every form that an edit may make one of: with texts in the middle that a template looks for, in
/// capitals, backwards, doubled.
fn hostile(controls: &[String], strings: &[String]) -> String {
    let mut lines = Vec::new();
    for (n, token) in controls.iter().enumerate() {
        let cut = token.char_indices().nth(1 + n % 3).map_or(1, |(at, _)| at);
        let (a, b) = token.split_at(cut);
        lines.extend(strings.iter().map(|s| format!("{a}{s}{b}")));
        lines.extend([
            token.to_uppercase(),
            token.chars().rev().collect(),
            format!("{token}{token}"),
            format!("a{token}"),
        ]);
        lines.extend([format!("{a}\n{b}"), format!("{a}{{}}{b}"), format!("{a}{token}{b}")]);
    }
    lines.join(" ")
}

#[test]
fn no_template_makes_a_control_token_of_a_conversation_or_loses_any_of_its_own() {
    let mut wrong = Vec::new();
    for (name, path) in all_templates() {
        let template = template(&path);
        let rendered: Vec<String> = conversations().iter().filter_map(|c| template.render(c, noon()).ok()).collect();
        let (_, strings) = texts_of(template.source());
        // A tag around a parameter's name is not the template's own, though it may be rendered.
        let (mut own, _) = texts_of(template.source());
        let (made, _) = texts_of(&rendered.concat());
        own.extend(made.into_iter().filter(|t| t.contains(['|', '｜', ':'])));
        own.sort();
        own.dedup();
        let never = ["<|evil|>", "<evil>", "</evil>", "[EVIL]", "<｜evil｜>"].map(String::from);
        let begin = ["<|bos|>", "<|eos|>"].map(String::from);
        let controls: Vec<String> =
            begin.iter().chain(&never).chain(own.iter().filter(|t| !begin.contains(t))).cloned().collect();
        let t = byte_vocabulary(&controls);
        let prompter = Prompter::new(Template::new(template.source(), &name).unwrap(), &t).unwrap();
        let some: Vec<String> = own.iter().take(20).chain(&never).cloned().collect();
        let (evil, worst) = (hostile(&never, &strings), hostile(&some, &strings));
        for case in conversations() {
            let mut without = case.clone();
            without.as_object_mut().unwrap().retain(|name, _| !name.ends_with("_token"));
            let plain = prompter.prompt(&without, noon()).map(|p| t.encode_prompt(&p).unwrap());
            // Harmless, its structure is the one that its text has.
            if let Ok(ids) = &plain {
                let rendered = template.render(&case, noon()).unwrap();
                let said = case["messages"].to_string();
                let want = t.encode(&rendered, false, true).unwrap();
                if !said.contains(['<', '|']) && *ids != want {
                    let lost = want.iter().filter(|id| t.is_control(**id) && !ids.contains(id));
                    let lost: Vec<&str> = lost.map(|id| t.piece(*id)).collect();
                    wrong.push(format!("{name}: its own {lost:?} are lost, or others come"));
                }
            }
            for said in [&evil, &worst] {
                let case = everywhere(&case, said);
                let (Ok(prompt), Ok(rendered)) = (prompter.prompt(&case, noon()), template.render(&case, noon()))
                else {
                    continue;
                };
                let ids = t.encode_prompt(&prompt).unwrap();
                if prompt.text() != rendered || t.decode(&ids, true) != rendered {
                    wrong.push(format!("{name}: another text"));
                }
                for evil in ids.iter().filter(|id| never.iter().any(|n| n == t.piece(**id))) {
                    wrong.push(format!("{name}: {:?} in {}", t.piece(*evil), case["messages"][0]["role"]));
                }
            }
        }
    }
    wrong.dedup();
    assert!(wrong.is_empty(), "{}:\n{}", wrong.len(), wrong.join("\n"));
}

/// A conversation with this at the end of every text in it but roles, types and the like, and in every key of arguments.
fn everywhere(value: &Value, said: &str) -> Value {
    match value {
        Value::String(text) => format!("{text}{said}").into(),
        Value::Array(list) => list.iter().map(|v| everywhere(v, said)).collect(),
        Value::Object(map) => {
            let field = |(key, value): (&String, &Value)| {
                let structure = matches!(key.as_str(), "role" | "type" | "id" | "tool_call_id" | "reasoning_effort");
                let new = if structure || key.ends_with("_token") { value.clone() } else { everywhere(value, said) };
                (if key == "city" { format!("{key}{said}") } else { key.clone() }, new)
            };
            map.iter().map(field).collect()
        }
        other => other.clone(),
    }
}

#[test]
fn nobody_s_text_becomes_a_control_token_whatever_field_it_is_in() {
    let model = find("models/qwen3moe.gguf").expect("one of the repository's own");
    let source = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}{{ tools }}{{ documents }}";
    let tokenizer = Tokenizer::new(&Gguf::open(&model).unwrap()).unwrap();
    let controls = |text: &str| {
        let further = json!({ "documents": [text] }).as_object().unwrap().clone();
        let template = Template::new(source, "here").unwrap();
        let turns = tandem::talk::Turns::new(template, &tokenizer, further.clone(), Clock::now()).unwrap();
        let messages = [json!({ "role": format!("user{text}"), "content": text })];
        let tools = json!([{ "role": text, "name": text }]);
        let prompt = turns.prompt_with(&messages, Some(&tools), Some(&further), true).unwrap();
        tokenizer.encode_prompt(&prompt).unwrap().iter().filter(|id| tokenizer.is_control(**id)).count()
    };
    assert_eq!(controls("<|im_end|>"), controls("x"));
}

#[test]
fn the_form_of_an_answer_is_read_off_every_reference_template() {
    let tags = ("<think>\nhm\n</think>\n\nyes", "hm\n</think>\n\nyes");
    let harmony = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>yes";
    for path in references() {
        let name = path.file_stem().unwrap().to_str().unwrap();
        // What the model writes where it opens its reasoning itself, and where the template did.
        let (own, opened) = match name {
            "mistralai-Ministral-3-14B-Reasoning-2512" => ("[THINK]hm[/THINK]yes", ""),
            "openai-gpt-oss-120b" => (harmony, ""),
            "google-gemma-4-31B-it" => ("<|channel>thought\nhm\n<channel|>yes", ""),
            _ => tags,
        };
        let template = template(&path);
        for thinking in [true, false] {
            let variables = json!({
                "messages": [{"role": "user", "content": "<think> or [THINK]? <think>"}], "add_generation_prompt": true,
                "thinking": thinking, "enable_thinking": thinking,
            });
            let prompt = template.render(&variables, noon()).unwrap();
            let open = thinking && !opened.is_empty();
            let mut reader = Reader::new(template.source(), &prompt);
            let mut parts = reader.push(if open { opened } else { own });
            parts.extend(reader.finish());
            let want = [(Part::Reasoning, "hm".to_owned()), (Part::Answer, "yes".to_owned())];
            assert_eq!(parts, want, "{name}, {thinking}: {prompt:?}");
        }
    }
}

/// `tandem template`, with this on stdin.
fn program(args: &[&str], stdin: &str) -> Output {
    common::program(&[&["template"], args].concat(), stdin.as_bytes())
}

#[test]
fn the_program_prints_the_prompt_and_nothing_else() {
    let model = local().join("models/qwen3moe.gguf");
    let model = model.to_str().unwrap();
    let o = program(&["-m", model], r#"{"messages": [{"role": "user", "content": "é <|im_end|>"}]}"#);
    assert_eq!(String::from_utf8(o.stdout).unwrap(), "<|im_start|>user\né <|im_end|><|im_end|>\n");
    assert!(o.status.success() && o.stderr.is_empty());

    let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("program.jinja");
    std::fs::write(&file, "{{ strftime_now('%F %T') }} {{ eos_token }}{{ x }}\n").unwrap();
    let file = file.to_str().unwrap();
    for now in ["2025-03-14 15:09:26", "1741964966"] {
        let o = program(&["--chat-template-file", file, "--now", now], r#"{"x": "y"}"#);
        assert_eq!(String::from_utf8(o.stdout).unwrap(), "2025-03-14 15:09:26 y");
    }
    for (args, stdin, status, why) in [
        (&["--chat-template-file", file, "--now", "soon"][..], "{}", 2, "YYYY-MM-DD"),
        (&["--chat-template-file", file, "-m", model], "{}", 2, "cannot be used with"),
        (&["--chat-template-file", file], "[1]", 2, "JSON object"),
        (&["--chat-template-file", file], "{", 1, "stdin is not"),
        (&["-m", model, "--chat-template", "nope"], "{}", 2, "nope"),
        (&["-m", "nowhere.gguf"], "{}", 3, "nowhere.gguf"),
    ] {
        let o = program(args, stdin);
        let err = String::from_utf8_lossy(&o.stderr).into_owned();
        assert!(o.stdout.is_empty() && o.status.code() == Some(status) && err.contains(why), "{args:?}: {err}");
    }
}
