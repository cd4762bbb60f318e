#!/usr/bin/env python3
"""Counts the instructions of the kernels' hottest loops in the machine code that ptxas makes of kernels/ptx.

    kernels/sass.py [check] [--arch 86,89] [KERNEL..]

A row for each kernel that has a budget (or is named: matvec1_q4_k, 'attend*'), and a column for each architecture.
`check` fails where a kernel is over its budget, which holds on sm_86. kernels/ptx.sh fetches ptxas and nvdisasm into
target/nvcc, and runs the check.

What is counted: the loop that holds the most of the instruction that does the work, or of equals the smallest;
everything in it but NOP, on whatever path, divided by the units of work that one turn of it does:

    matvec1          8 IDP.4A, which are 32 weights times one row of activations
    matvec4          32 IDP.4A, which are 32 weights times four rows of activations
    matmul, attend   an IMMA or HMMA

So it does not matter how often a loop is unrolled or how many rows a warp takes.
"""
import fnmatch
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PTX = ROOT / "kernels/ptx"
CUDA = next((ROOT / "target/nvcc/lib").glob("python3*/site-packages/nvidia/cu13"), ROOT / "target/nvcc")

# What does the work of a kernel, and how many make one unit of it.
WORK = [("matvec1_*", "IDP.4A", 8), ("matvec4_*", "IDP.4A", 32), ("matmul_*", "IMMA", 1), ("matmul_*", "HMMA", 1),
        ("attend_*", "HMMA", 1)]

# The most instructions per unit on sm_86: what the kernels take, to the next multiple of five. A multiprocessor of a
# 3060 or 3090 issues instructions for 128 lanes in a cycle in which 7 bytes come from VRAM: a mat-vec does not wait for
# them up to 18 for each byte of 32 weights (150 for IQ2_XXS, of 8.25 bytes; 325 for Q4_K).
BUDGETS = {
    "matvec1_iq1_m": 110, "matvec1_iq1_s": 85, "matvec1_iq2_s": 120, "matvec1_iq2_xs": 120, "matvec1_iq2_xxs": 110,
    "matvec1_iq3_s": 145, "matvec1_iq3_xxs": 150, "matvec1_iq4_nl": 110, "matvec1_iq4_xs": 110, "matvec1_mxfp4": 115,
    "matvec1_nvfp4": 115, "matvec1_q1_0": 55, "matvec1_q2_0": 75, "matvec1_q2_k": 80, "matvec1_q3_k": 115,
    "matvec1_q4_0": 60, "matvec1_q4_1": 45, "matvec1_q4_k": 60, "matvec1_q5_0": 90, "matvec1_q5_1": 80,
    "matvec1_q5_k": 80, "matvec1_q6_k": 105, "matvec1_q8_0": 50, "matvec1_tq1_0": 165, "matvec1_tq2_0": 80,
    "matvec4_iq1_m": 170, "matvec4_iq1_s": 145, "matvec4_iq2_s": 180, "matvec4_iq2_xs": 175, "matvec4_iq2_xxs": 165,
    "matvec4_iq3_s": 200, "matvec4_iq3_xxs": 205, "matvec4_iq4_nl": 165, "matvec4_iq4_xs": 160, "matvec4_mxfp4": 170,
    "matvec4_nvfp4": 180, "matvec4_q1_0": 115, "matvec4_q2_0": 130, "matvec4_q2_k": 150, "matvec4_q3_k": 175,
    "matvec4_q4_0": 115, "matvec4_q4_1": 110, "matvec4_q4_k": 130, "matvec4_q5_0": 145, "matvec4_q5_1": 145,
    "matvec4_q5_k": 145, "matvec4_q6_k": 165, "matvec4_q8_0": 100, "matvec4_tq1_0": 215, "matvec4_tq2_0": 135,
}

LINE = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)([^;]*);")


def blocks_of(lines):
    """The basic blocks of a kernel: for each its instructions, and the blocks that can follow."""
    blocks, labels, open_block = [], {}, False
    for line in lines:
        label = re.match(r"^(\.L_\w+):", line)
        m = LINE.match(line)
        if label or (m and not open_block):
            if not open_block or blocks[-1]["code"]:
                blocks.append({"code": [], "to": [], "falls": True})
            open_block = True
        if label:
            labels[label[1]] = len(blocks) - 1
        if not m:
            continue
        guard, name, rest = m.groups()
        blocks[-1]["code"].append(name)
        if name.split(".")[0] in ("BRA", "BRX", "JMP", "EXIT", "RET"):
            target = re.search(r"`\((\.L_\w+)\)", rest)
            blocks[-1]["to"] = [target[1]] if target and name.startswith("BRA") else []
            asked = guard or re.search(r"^\s*!?U?P\w+\s*,|\.DIV", name[3:] + rest)
            blocks[-1]["falls"] = bool(asked)
            open_block = False
    for i, b in enumerate(blocks):
        b["to"] = [labels[t] for t in b["to"] if t in labels]
        if b["falls"] and i + 1 < len(blocks):
            b["to"].append(i + 1)
    return blocks


def loops_of(blocks):
    """The natural loops: the blocks of each, as sets. A jump backwards makes one."""
    before = [[] for _ in blocks]
    for i, b in enumerate(blocks):
        for t in b["to"]:
            before[t].append(i)
    loops = {}
    for i, b in enumerate(blocks):
        for head in (t for t in b["to"] if t <= i):
            if blocks[i]["code"] == ["BRA"] and head == i:
                continue  # the endless jump after a kernel's end
            body, todo = loops.setdefault(head, {head}), [i]
            while todo:
                at = todo.pop()
                if at not in body:
                    body.add(at)
                    todo += before[at]
    return list(loops.values())


def hottest(blocks, work):
    """(instructions, of these `work`) of the loop with the most of it; None where no loop has any."""
    found = []
    for body in loops_of(blocks):
        code = [name for i in body for name in blocks[i]["code"] if name != "NOP"]
        n = sum(name.startswith(work) for name in code)
        if n:
            found.append((n, -len(code)))
    if not found:
        return None
    n, size = max(found)
    return -size, n


def kernels_of(ptx, arch):
    """The basic blocks of every kernel of a PTX file, by name."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "cubin")
        run = lambda *command: subprocess.run(command, check=True, capture_output=True, text=True).stdout
        run(CUDA / "bin/ptxas", f"-arch=sm_{arch}", ptx, "-o", cubin)
        text = run(CUDA / "bin/nvdisasm", "-c", cubin)
    parts = re.split(r"^\.text\.(\w+):$", text, flags=re.M)
    return {name: blocks_of(code.splitlines()) for name, code in zip(parts[1::2], parts[2::2])}


def measured(ptx, arch, wanted):
    """{(kernel, work): instructions per unit} of the kernels of a file that are wanted."""
    out = {}
    for name, blocks in kernels_of(ptx, arch).items():
        if not any(fnmatch.fnmatch(name, w) for w in wanted):
            continue
        for pattern, work, unit in WORK:
            if fnmatch.fnmatch(name, pattern) and (found := hottest(blocks, work)):
                out[name, work] = found[0] * unit / found[1]
    return out


def table(archs, wanted):
    """{(kernel, work): {arch: instructions per unit}}, with as many files at a time as there are CPUs."""
    has_wanted = lambda ptx: any(fnmatch.filter(re.findall(r"\.entry (\w+)", ptx.read_text()), w) for w in wanted)
    tier = lambda arch: "sm_75" if int(arch) < 80 else "sm_80"
    jobs = [(ptx, arch) for arch in archs for ptx in sorted(PTX.glob(f"*.{tier(arch)}.ptx")) if has_wanted(ptx)]
    rows = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for (_, arch), part in zip(jobs, pool.map(lambda job: measured(*job, wanted), jobs)):
            for key, n in part.items():
                rows.setdefault(key, {})[arch] = n
    return rows


def main():
    args, archs, check = sys.argv[1:], ["86"], False
    if args[:1] == ["check"]:
        args, check = args[1:], True
    if args[:1] == ["--arch"] and len(args) > 1:
        args, archs = args[2:], args[1].split(",")
    if any(a.startswith("-") for a in args):
        sys.exit(__doc__)
    rows = table(archs, args or list(BUDGETS))
    print(f"{'instructions per unit of':24} {'kernel':18}" + "".join(f"{'sm_' + a:>8}" for a in archs) + "  budget")
    over = []
    for (name, work), by in sorted(rows.items()):
        budget = BUDGETS.get(name)
        print(f"{work:24} {name:18}" + "".join(f"{by[a]:8.1f}" if a in by else " " * 8 for a in archs)
              + (f"  {budget:6}" if budget else ""))
        if budget and by.get("86", 0) > budget:
            over.append(f"{name}: {by['86']:.1f} instructions per unit of work, at most {budget} expected")
    lost = [] if args else sorted(set(BUDGETS) - {name for name, _ in rows})
    over += [f"{name}: no such kernel or no loop of its kind, but a budget" for name in lost]
    if check and over:
        sys.exit("\n".join(["kernels/sass.py: kernels over their budgets:", *over]))


if __name__ == "__main__":
    main()
