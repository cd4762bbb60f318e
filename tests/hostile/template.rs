//! Chat templates that loop, grow or nest without end are errors with their line, and take little
//! time and memory until then.

use std::path::PathBuf;

use serde_json::json;
use tandem::gguf::Gguf;
use tandem::text::{Clock, Prompter, Template, Tokenizer};

use super::common::local;

fn noon() -> Clock {
    "2025-03-14 12:00".parse().unwrap()
}

/// Templates that never come to an end, or that make gigabytes, by their names: the inputs of
/// `tests/data/hostile`, and further ones that go around what stops those.
fn endless() -> Vec<(String, String)> {
    let dir = local().join("hostile");
    let files = std::fs::read_dir(dir).unwrap().map(|f| f.unwrap().path());
    let files = files.filter(|p| p.extension().is_some_and(|e| e == "jinja"));
    let mut all: Vec<(String, String)> =
        files.map(|p| (p.file_name().unwrap().display().to_string(), std::fs::read_to_string(p).unwrap())).collect();
    assert!(all.len() >= 17, "{}", all.len());
    let loops =
        |n: usize, body: &str| format!("{}{body}{}", "{% for i in range(9999) %}".repeat(n), "{% endfor %}".repeat(n));
    let more = [
        "{{ 'a' * 10**9 }}".to_owned(),
        "{% set x = 'a' * 10**7 %}{{ x.replace('a', x) }}".into(),
        "{% set a = [0, 1] %}{% set a = a * 99999999 %}".into(),
        "{{ '' ~ ([[0] * 99999999] * 99999999) }}".into(),
        format!("{{% set a = [1] %}}{}{{{{ a }}}}", "{% set a = [a, a] %}".repeat(60)),
        format!("{{% set a = [1] %}}{{% set b = [1] %}}{}{{{{ a == b }}}}", "{% set a = [a, a] %}{% set b = [b, b] %}".repeat(60)),
        format!("{{% set a = [1] %}}{}{{{{ a | join }}}}", "{% set a = a + a %}".repeat(60)),
        "{% macro f(a, n) %}{{ f([a, a], n - 1) if n else '' ~ a }}{% endmacro %}{{ f(1, 90) }}".into(),
        "{% macro f(a, n) %}{{ f(dict(a=a, b=a), n - 1) if n else {a: 1} }}{% endmacro %}{{ f(1, 90) }}".into(),
        "{% macro f(a, b, n) %}{{ f([a, a], [b, b], n - 1) if n else a in [b] }}{% endmacro %}{{ f(1, 1, 90) }}".into(),
        "{% set n = namespace(a=1) %}{% set n.b = [{'n': n}] %}".into(),
        "{% set n = namespace(l=range(9)) %}{% for i in range(9999) %}{% set n.l = n.l[1:] + n.l %}{% endfor %}{{ n.l | list }}".into(),
        loops(1, "{% set l = range(99999)[99998:] %}{% for x in l %}{% endfor %}"),
        loops(1, "{% for x in range(99999) | sort %}{% break %}{% endfor %}"),
        format!("{{% set x = 'a' * 9999999 %}}{}", loops(1, "{% if x.strip(x) == x %}{% endif %}")),
        "{% set x = 'a' * 99999 %}{{ ('{0}' * 99999).format(x) }}".into(),
        "{% set x = 'a' * 99999 %}{{ ('%(x)s' * 99999) | format(x=x) }}".into(),
        "{{ '%*d' | format(999999999, 1) }}{{ '{:999999999}'.format(1) }}".into(),
        "{{ '{:999999999}'.format(1) }}".into(),
        "{{ range(99999) | map(attribute='x', default='a' * 99999) | join }}".into(),
        "{{ [range(99999) | list] | tojson(separators=('a' * 9999999, ':')) }}".into(),
        "{{ ('[' * 999999) | from_json }}".into(),
        "{% for a, b in [range(99999) | list * 2] %}{% endfor %}".into(),
        loops(1, &"x".repeat(99_999)),
        loops(3, "{% set x %}{{ x }}{{ x }}{% endset %}"),
        format!("{{{{ {}1{} }}}}", "(".repeat(99_999), ")".repeat(99_999)),
        format!("{{{{ {}1 }}}}", "-".repeat(99_999)),
        format!("{{{{ x{} }}}}", "|upper".repeat(20_000)),
        format!("{{{{ 1{} }}}}", "+1".repeat(99_999)),
        "{% if 1 %}".repeat(20_000),
        "{{\"{%a%} ".repeat(20_000),
        "{{ 1 }} ".repeat(1 << 20),
    ];
    all.extend(more.into_iter().enumerate().map(|(n, source)| (format!("further {n}"), source)));
    all
}

/// What this does, if it ends: none of it takes longer than a tenth of this.
fn ends<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, end) = std::sync::mpsc::channel();
    std::thread::spawn(move || done.send(work()));
    end.recv_timeout(std::time::Duration::from_secs(60)).unwrap_or_else(|_| panic!("{what} does not end"))
}

#[test]
fn a_template_that_would_not_end_or_fill_the_memory_is_an_error_with_its_line() {
    let t = Tokenizer::new(&Gguf::open(&local().join("models/qwen3moe.gguf")).unwrap()).unwrap();
    let t = std::sync::Arc::new(t);
    for (name, source) in endless() {
        let mut variables = json!({"x": "a"});
        variables["messages"] = vec![json!({"role": "user", "content": "a"}); 4].into();
        let (name_too, t) = (name.clone(), t.clone());
        let results = ends(&name, move || {
            let rendered = Template::new(&source, &name_too).and_then(|t| t.render(&variables, noon()));
            let prompter = Template::new(&source, &name_too).and_then(|template| Prompter::new(template, &t));
            [rendered.map(drop), prompter.and_then(|p| p.prompt(&variables, noon())).map(drop)]
        });
        for result in results {
            let e = format!("{:#}", result.expect_err(&name));
            let large = e.starts_with(&format!("{name}, ")) && e.contains("bytes");
            assert!(e.starts_with(&format!("{name}, line ")) || large, "{name}: {e}");
            assert!(e.len() < 500, "{name}: {e}");
        }
    }
}

#[test]
fn what_a_template_of_anybody_s_may_use_of_memory_is_bounded() {
    let program = env!("CARGO_BIN_EXE_tandem");
    for (name, source) in endless().into_iter().filter(|(name, _)| name.ends_with("jinja")) {
        let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("hostile.jinja");
        std::fs::write(&file, source).unwrap();
        // Address space, of which the stack's 256 MiB, a share of the program and of its threads
        // are never used.
        let limited = "ulimit -v 1200000; exec \"$0\" template --chat-template-file \"$1\"";
        let mut command = std::process::Command::new("sh");
        let messages = json!({"messages": vec![json!({"role": "user", "content": "a"}); 4]}).to_string();
        let mut child = command
            .args(["-c", limited, program])
            .arg(&file)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), messages.as_bytes()).unwrap();
        let out = ends(&name, move || child.wait_with_output().unwrap());
        let e = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.code() == Some(1) && e.contains("hostile.jinja, "), "{name}: {:?} {e}", out.status);
    }
}
