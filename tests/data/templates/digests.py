"""Renders chat templates with jinja2, set up as Hugging Face transformers sets it up, and writes digests of the prompts.

    python3 digests.py FOLDER    every *.jinja in FOLDER and its subfolders -> digests.json, beside this file

The conversations are those of cases.json. A digest is the length of the prompt in bytes and its 64-bit FNV-1a hash, or
"error" where the template raises one.
"""
import json, sys
from datetime import datetime
from pathlib import Path
from jinja2 import nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

HERE = Path(__file__).parent


class Generation(Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return nodes.CallBlock(self.call_method("_inner"), [], [], body).set_lineno(line)

    def _inner(self, caller):
        return caller()


def environment(now):
    def fail(message):
        raise TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = fail
    env.globals["strftime_now"] = lambda form: now.strftime(form)
    return env


def digest(text):
    data, h = text.encode(), 0xCBF29CE484222325
    for b in data:
        h = ((h ^ b) * 0x100000001B3) % (1 << 64)
    return f"{len(data)}:{h:016x}"


def main():
    cases = json.load(open(HERE / "cases.json"))
    env = environment(datetime.fromisoformat(cases["now"]))
    out = {}
    for path in sorted(Path(sys.argv[1]).rglob("*.jinja")):
        template, made = env.from_string(path.read_text()), []
        for case in cases["cases"]:
            variables = {"tools": None, "documents": None, "add_generation_prompt": False, **cases["tokens"], **case}
            try:
                made.append(digest(template.render(**variables)))
            except Exception as e:
                made.append("error")
                print(f"{path.name}: {len(made) - 1}: {type(e).__name__}: {e}", file=sys.stderr)
        out[str(path.relative_to(sys.argv[1]))] = made
    with open(HERE / "digests.json", "w") as f:
        f.write("{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in out.items()) + "\n}\n")


main()
