#!/usr/bin/env python3
"""Writes launch/ from the kernels' prototypes and codes.rs from codes.cuh, in src/cuda or the folder that is named.

A prototype becomes a function of the same arguments. Kernels that a macro makes become one function that takes the
macro's arguments first: the format's name, or the sizes that the kernel's name carries.
"""
import re
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import wrap

HERE = Path(__file__).resolve().parent
WIDTH = 120  # of a line of Rust, as rustfmt.toml has it; rustfmt itself leaves the file alone

NUMBERS = {"int": ("i32", "Int({})"), "u64": ("u64", "Long({})"), "float": ("f32", "Float({})")}
STRUCTS = {"Cache": ("CacheArg", "Cache({})")}
KERNEL = re.compile(r'extern "C" __global__ void\s+(?:__launch_bounds__\([^)]*\)\s*)?([\w#]+)\(([^)]*)\)\s*\{\s*(\w+)')

CODES_HEAD = """//! The numbers that kernels and host share.
//!
//! kernels/launch.py makes this file from kernels/codes.cuh.
"""

HEAD = """\
//! One function for every kernel, with the arguments of its prototype: a module for each source. kernels/ptx.sh makes
//! these files (so does kernels/launch.py, without the CUDA compiler) from the sources, whose hash is
//! {hash}.

#![allow(clippy::too_many_arguments)] // the kernels' arguments, in their order

{modules}

pub use super::codes::*;
{uses}
"""

MODULE = """\
//! Starts the kernels of {source}.

use anyhow::Result;
use crate::cuda::{{{names}}};

{functions}
"""


def fail(what):
    sys.exit(f"kernels/launch.py: {what}")


def comments(text):
    """Where each declaration begins, and the lines of `///` above it."""
    found = {}
    for m in re.finditer(r"((?:^///.*\n)+)", text, re.M):
        found[m.end()] = " ".join(line[3:].strip() for line in m[1].splitlines())
    return found


def doc(text, indent=""):
    return [f"{indent}/// {line}" for line in wrap(text, 96 - len(indent))]


def kernels(path, enums):
    """The kernels of a source: (name, macro's parameters in the name, arguments, comment)."""
    logical = path.read_text().replace("\\\n", " ")  # a macro is one line
    macros = [(m.start(), m.end(), m[1], [p.strip() for p in m[2].split(",")])
              for m in re.finditer(r"^#define (\w+)\(([^)]*)\).*$", logical, re.M)]
    about = comments(logical)
    templates = re.finditer(r"^template .*\n__device__ __forceinline__ void (\w+_body)\(", logical, re.M)
    bodies = {m[1]: about[m.start()] for m in templates if m.start() in about}
    found = list(KERNEL.finditer(logical))
    if len(found) != logical.count("__global__"):
        fail(f"{path.name}: only {len(found)} of {logical.count('__global__')} prototypes can be read")
    for m in found:
        name, args, body = m[1], m[2], m[3]
        macro = next((x for x in macros if x[0] <= m.start() < x[1]), None)
        where = f"{path.name}: {name}"
        comment = about.get(m.start()) or bodies.get(body) or fail(f"{where} has no comment")
        used = [p for p in macro[3] if f"##{p}" in name] if macro else []
        yield name, macro and macro[2], used, [argument(a, enums, where) for a in args.split(",")], comment


def argument(text, enums, where):
    """(name, Rust's type, the argument for the driver) of a parameter."""
    m = re.fullmatch(r"(?:const )?(\w+) (\*?)(\w+)", " ".join(text.split()))
    if not m:
        fail(f"{where}: parameter {text.strip()!r}")
    ty, pointer, name = m.groups()
    if pointer:
        return name, "Ptr", f"Arg::Ptr({name})"
    if ty in enums:
        return name, ty, f"Arg::Int({name} as i32)"
    rust, arg = (NUMBERS | STRUCTS).get(ty) or fail(f"{where}: no Rust type for {ty}")
    return name, rust, "Arg::" + arg.format(name)


def function(name, first, args, module, kernel, comment, source):
    names = [a[0] for a in first + args]
    if len({*names, "gpu", "grid"}) != len(names) + 2:
        fail(f"{source}: {name} needs other names of its arguments")
    params = ["gpu: Option<&Gpu>"] + [f"{n}: {t}" for n, t in first]
    params += ["grid: Grid"] + [f"{n}: {t}" for n, t, _ in args]
    # Formulas are not Markdown.
    lines = doc(f"Starts `{kernel}` of {source}:") + ["/// ```text"] + doc(comment) + ["/// ```", "/// # Errors"]
    lines += ["/// If the driver does not take the kernel or its arguments."]
    lines += packed(f"pub fn {name}(", params, ") -> Result<()> {")
    lines += packed("    let args = [", [a[2] for a in args], "];")
    return "\n".join(lines + [f"    start(gpu, {module}, grid, &args)", "}"])


def packed(before, items, after):
    """A list, with as many items to a line as fit."""
    items = [item + "," for item in items[:-1]] + [items[-1] + after]
    lines = [before + items[0]]
    for item in items[1:]:
        if len(lines[-1]) + 1 + len(item) <= WIDTH:
            lines[-1] += " " + item
        else:
            lines.append("        " + item)
    return lines


def camel(name):
    return "".join(part.capitalize() for part in name.split("_"))


def codes():
    """Rust's enums and constants for those of codes.cuh, and the enums' names."""
    text = (HERE / "codes.cuh").read_text()
    about = comments(text)
    out, names = [], []
    for m in re.finditer(r"^enum (?:(\w+) : int )?\{\n(.*?)^\};", text, re.M | re.S):
        lines = [re.fullmatch(r"\s+(\w+)(?: = (\d+))?,\s*/// (.*)", line) for line in m[2].splitlines()]
        if not all(lines):
            fail(f"codes.cuh: a line of enum {m[1] or ''} is not `NAME, /// What it is.`")
        if not m[1]:
            for x in lines:
                out.append("\n".join(doc(x[3]) + [f"pub const {x[1]}: usize = {x[2]};"]))
            continue
        names.append(m[1])
        rust = doc(about[m.start()]) + ["#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]", "#[repr(i32)]"]
        rust += [f"pub enum {m[1]} {{"]
        numbered = bool(lines[0][2])
        for i, x in enumerate(lines):
            if bool(x[2]) != numbered:
                fail(f"codes.cuh: {x[1]}: the lines of an enum have all a number, or none")
            value = f"    {camel(x[1].split('_', 1)[1])} = {x[2] or i},"
            rust += doc(x[3], "    ") + ["    #[default]"] * (i == 0) + [value]
        rust.append("}")
        if numbered:  # nobody can count through them
            variants = [f"{m[1]}::{camel(x[1].split('_', 1)[1])}" for x in lines]
            rust += ["", f"impl {m[1]} {{", "    /// Every one."]
            rust += packed(f"    pub const ALL: [{m[1]}; {len(lines)}] = [", variants, "];") + ["}"]
        out.append("\n".join(rust))
    return out, names


def sizes(macro, stub, names, path):
    """The sizes that a macro makes kernels of, as a constant."""
    lists = [x.split(",") for x in re.findall(rf"^{macro}\((.*)\)$", path.read_text(), re.M)]
    each = [", ".join(p.strip() for p in x) for x in lists]
    ty = "usize"
    if len(names) > 1:
        each, ty = [f"({x})" for x in each], "(" + ", ".join(["usize"] * len(names)) + ")"
    what = ", ".join(f"`{n}`" for n in names)
    return (f"/// The sizes that [`{stub}`] has kernels for: {what}.\n"
            f"pub const {stub.upper()}: [{ty}; {len(each)}] = [{', '.join(each)}];")


def functions(path, enums, done):
    """The functions for a source's kernels. `done`: arguments by name, of all so far."""
    source = f"kernels/{path.name}"
    for name, macro, used, args, comment in kernels(path, enums):
        stub, first, module, kernel = name, [], f'("{path.stem}", "{name}")', name
        if "name" in used:  # a format's
            stub = name.replace("_##name", "")
            first, kernel = [("format", "&'static str")], f"{stub}_FORMAT"
            module = f'(format, &format!("{stub}_{{format}}"))'
            if macro.startswith("FLOAT_") and done.get(stub) != args:
                stub += "_floats"
        elif used:  # one of several sizes
            stub, low = name.split("_##")[0], [p.lower() for p in used]
            first, kernel = [(p, "usize") for p in low], "_".join([stub, *used])
            module = f'("{path.stem}", &format!("{stub}_' + "_".join(f"{{{p}}}" for p in low) + '"))'
            yield sizes(macro, stub, low, path)
        if stub in done:  # by another macro for other formats
            if done[stub] != args:
                fail(f"{source}: {stub} has two lists of arguments")
            continue
        done[stub] = args
        yield function(stub, first, args, module, kernel, comment, source)


def module(functions, source, enums):
    """The file of a source's functions."""
    text = "\n\n".join(functions)
    codes = [e for e in enums if re.search(rf"\b{e}\b", text)]
    args = ["Arg", *["CacheArg"] * ("CacheArg" in text), "Grid"]
    names = ["Gpu", "Ptr", f"args::{{{', '.join(args)}}}", "queue::start", *(f"codes::{e}" for e in codes)]
    return MODULE.format(source=source, names=", ".join(names), functions=text)


def main():
    numbers, enums = codes()
    files, done = {}, {}
    sources = sorted(HERE.glob("*.cu"))
    for path in [HERE / "matrix.cuh", *sources]:
        files[path.stem] = module(functions(path, enums, done), f"kernels/{path.name}", enums)
    digest = subprocess.run([HERE / "hash.sh", *sources], check=True, capture_output=True, text=True).stdout.strip()
    each = sorted(files)
    modules, uses = ("\n".join(line.format(name) for name in each) for line in ("mod {};", "pub use {}::*;"))
    files["mod"] = HEAD.format(hash=digest, modules=modules, uses=uses)
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE.parent / "src/cuda"
    (folder / "codes.rs").write_text(CODES_HEAD + "\n" + "\n\n".join(numbers) + "\n")
    shutil.rmtree(folder / "launch", ignore_errors=True)  # of a source that is no more, too
    (folder / "launch").mkdir()
    for name, text in files.items():
        (folder / "launch" / f"{name}.rs").write_text(text)


main()
