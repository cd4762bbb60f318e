#!/usr/bin/env bash
# What a machine with a GPU is asked, in one go: whether all is computed as it should be, and how fast. Needs the built
# `tandem` and `synth` and nothing else; prints Markdown.
#
#   benches/gpu.sh [ORACLE_DIR]                 ORACLE_DIR: a folder of reference models, each of which is verified
#
# Environment: TANDEM (default target/release/tandem), SYNTH (default target/release/examples/synth), PEER_BENCH (a
# llama-bench built for CUDA, measured in the same run), SHAPES (default: four), LAYERS (of each model; default 6), WORK
# (a folder for the models, default a temporary one), ROUNDS (default 3), LONG (tokens of the long prompt, default 4096),
# PARTS (default "verify sanitize speed").
set -euo pipefail
export LC_ALL=C
here=$(cd "$(dirname "$0")/.." && pwd)
tandem=${TANDEM:-$here/target/release/tandem}
synth=${SYNTH:-$here/target/release/examples/synth}
rounds=${ROUNDS:-3}
layers=${LAYERS:-6}
shapes=${SHAPES:-qwen3-30b-a3b gpt-oss-120b qwen3.5-122b-a10b deepseek-v4-flash}
parts=${PARTS:-verify sanitize speed}
long=${LONG:-4096}
[ $# -le 1 ] || { sed -n '2,11s/^# \{0,1\}//p' "$0"; exit 2; }
[ -x "$tandem" ] || { echo "$tandem is not built: cargo build --release" >&2; exit 2; }
work=${WORK:-$(mktemp -d)}
[ -n "${WORK:-}" ] || trap 'rm -rf "$work"' EXIT
failed=0
has() { [[ " $parts " == *" $1 "* ]]; }
# The number after "KEY": in a JSON text, the first there is.
number() { sed -n "s/.*\"$1\": *\"\{0,1\}\([0-9.eE+-]*\).*/\1/p" | head -1; }

cpu() { lscpu | sed -n "s/^$1: *//p"; }
echo "# $(nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader 2>/dev/null || echo "no nvidia-smi")"
echo
echo "$(cpu 'Model name') (family $(cpu 'CPU family') model $(cpu Model)), $(nproc) cores;" \
    "tandem $("$tandem" --version | cut -d' ' -f2)"

if has verify; then
    echo
    echo "## verify"
    echo '```'
    "$tandem" verify 2>&1 || failed=1
    for model in ${1:+"$1"/models/*.gguf}; do
        [ -f "$model" ] || continue
        echo
        echo "-- $(basename "$model")"
        "$tandem" verify --model-only -m "$model" --tokens 160 2>&1 || failed=1
    done
    echo '```'
fi

if has sanitize; then
    echo
    echo "## compute-sanitizer"
    if command -v compute-sanitizer >/dev/null; then
        for tool in memcheck racecheck; do
            echo '```'
            timeout 300 compute-sanitizer --tool $tool --error-exitcode 9 "$tandem" verify --tokens 8 2>&1 | tail -3 || failed=1
            echo '```'
        done
    else
        echo "not on this machine"
    fi
fi

# Runs tandem's bench with these flags and keeps its lines; a run that fails is said.
bench() {
    "$tandem" bench -m "$model" -r "$rounds" -o csv --stats "$@" >"$work/table" 2>"$work/said" ||
        { failed=1; sed 's/^/    /' "$work/said" >&2; }
}
# A column of the line of a test: 7 is tokens/s, 10 the share of the CPU memory's rate, 11 of the GPU's or the bus's.
cell() { awk -F, -v t="$1" -v c="$2" '$6 == t { print $c }' "$work/table"; }
peer() { # kind, number, flags
    local p=0 g=0
    [ "$1" = pp ] && p=$2 || g=$2
    "$PEER_BENCH" -m "$model" -p $p -n $g -r "$rounds" -o json "${@:3}" 2>/dev/null | number avg_ts
}
over() { awk -v a="$1" -v b="$2" 'BEGIN { if (b > 0) printf "%.2f", a / b }'; }

if has speed; then
    echo
    echo "## speed, tokens/s"
    echo
    echo "$layers layers of each shape, random weights: experts are chosen evenly, so a cache of a quarter has a quarter of the"
    echo "choices. RAM, VRAM, bus: shares of what was measured in the same run. hidden: of the GPU's work in single tokens, what"
    echo "the CPU did not wait for."
    for shape in $shapes; do
        model=$work/$shape.gguf
        quant=Q4_K
        [ "$shape" = gpt-oss-120b ] && quant=MXFP4,attn=Q8_0,embed=Q8_0,output=Q8_0
        [ "$shape" = deepseek-v4-flash ] && quant=Q4_K,experts=MXFP4
        [ -f "$model" ] || "$synth" --shape "$shape" --layers "$layers" --vocab 32768 --quant "$quant" -o "$model" >/dev/null
        experts=$("$tandem" explain "$model" -ngl 0 --json | grep -B2 '"part": "experts"' | number bytes)
        echo
        echo "### $shape"
        echo
        echo "| where | tg64 | RAM | VRAM | hidden | pp512 | pp$long | bus |${PEER_BENCH:+ tg64 / peer | pp$long / peer |}"
        echo "| --- | --: | --: | --: | --: | --: | --: | --: |${PEER_BENCH:+ --: | --: |}"
        line() { # name, flags of tandem, flags of the peer
            local name=$1 ours=$2 theirs=$3 row tg
            bench -p 512 -n 64 $ours
            tg=$(cell tg64 7)
            local waited worked hidden=
            waited=$(sed -n 's/.*CPU waited \([0-9.]*\) ms.*/\1/p' "$work/said")
            worked=$(sed -n 's/.*GPU worked \([0-9.]*\) ms.*/\1/p' "$work/said")
            [ -z "$worked" ] || hidden=$(awk -v w="$waited" -v g="$worked" 'BEGIN { if (g > 0) printf "%.0f%%", 100 * (1 - w / g) }')
            row="| $name | $tg | $(cell tg64 10) | $(cell tg64 11) | $hidden | $(cell pp512 7) |"
            grep -h 'expert\|GPU memory' "$work/said" | sed "s/^/    $name: /" >>"$work/notes" || true
            bench -p $long -n 0 -b $long -ub $long -c $((2 * long)) $ours
            row+=" $(cell pp$long 7) | $(cell pp$long 11) |"
            if [ -n "${PEER_BENCH:-}" ]; then
                [ -n "$theirs" ] && row+=" $(over "$tg" "$(peer tg 64 $theirs)") | $(over "$(cell pp$long 7)" "$(peer pp $long -ub $long -b $long $theirs)") |" || row+="  |  |"
            fi
            echo "$row"
        }
        : >"$work/notes"
        line "CPU" "-ngl 0" "-ngl 0"
        line "experts on the CPU" "-ngl all -cmoe --expert-cache off" "-ngl 99 -ncmoe 99"
        line "experts on the CPU, passing through" "-ngl all -cmoe --expert-cache 1M" "-ngl 99 -ncmoe 99"
        for share in 12 25 50; do
            line "cache of $share%" "-ngl all -cmoe --expert-cache $((experts * share / 100 / 1048576))M" "-ngl 99 -ncmoe 99"
        done
        line "all on the GPU" "-ngl all --n-cpu-moe 0 --expert-cache off" "-ngl 99"
        echo
        cat "$work/notes"
        [ -n "${WORK:-}" ] || rm -f "$model"
    done
fi
exit $failed
