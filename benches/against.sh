#!/usr/bin/env bash
# Times tandem against llama.cpp's or ik_llama.cpp's llama-bench on one file, turn about, and prints the ratio pair by
# pair: absolute figures of a machine that does other things mean little, the ratio of two neighbouring runs does.
#
#   benches/against.sh PEER_BENCH MODEL          PEER_BENCH: path of a llama-bench
#
# Environment: TANDEM (default target/release/tandem), THREADS (default: tandem's own choice), ROUNDS (default 5),
# TESTS (default "tg128 tg64@4096 pp512 pp2048": what to run, at which depth), PEER (what to call the peer).
set -euo pipefail
export LC_ALL=C

[ $# = 2 ] || { sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 2; }
peer=$1 model=$2
here=$(cd "$(dirname "$0")/.." && pwd)
tandem=${TANDEM:-$here/target/release/tandem}
rounds=${ROUNDS:-5}
tests=${TESTS:-tg128 tg64@4096 pp512 pp2048}
[ -x "$peer" ] || { echo "$peer is not a program" >&2; exit 2; }
[ -x "$tandem" ] || { echo "$tandem is not built: cargo build --release" >&2; exit 2; }
[ -r "$model" ] || { echo "$model cannot be read" >&2; exit 2; }
threads=${THREADS:-$(lscpu -p=core,socket | grep -v '^#' | sort -u | wc -l)}
# ik_llama.cpp generates at a depth with -gp, llama.cpp with -d.
gp=$("$peer" --help 2>&1 | grep -c -- '^ *-gp' || true)

# The number after "KEY": in a JSON text.
number() { sed -n "s/.*\"$1\": *\"\{0,1\}\([0-9.eE+-]*\).*/\1/p" | head -1; }

run_tandem() { # kind count depth: tokens/s, and the share of the read bandwidth
    local p=0 n=0
    [ "$1" = pp ] && p=$2 || n=$2
    local json
    json=$("$tandem" bench -m "$model" -t "$threads" -p "$p" -n "$n" -d "$3" -r 1 -o json)
    echo "$(number tokens_per_s <<<"$json") $(number share_of_read <<<"$json")"
}

run_peer() {
    local args=(-m "$model" -t "$threads" -r 1 -o json)
    case $1 in
        pp) args+=(-p "$2" -n 0) ;;
        tg) if [ "$3" != 0 ] && [ "$gp" != 0 ]; then args+=(-p 0 -n 0 -gp "$3,$2"); else args+=(-p 0 -n "$2"); fi ;;
    esac
    if [ "$3" != 0 ] && { [ "$gp" = 0 ] || [ "$1" = pp ]; }; then args+=(-d "$3"); fi
    "$peer" "${args[@]}" 2>/dev/null | number avg_ts
}

cpu() { lscpu | sed -n "s/^$1: *//p"; }
echo "$(cpu 'Model name') (family $(cpu 'CPU family') model $(cpu Model)), $threads threads, $rounds rounds in turn, medians"
echo "model $(basename "$model"), tandem $(git -C "$here" rev-parse --short HEAD), peer ${PEER:-$(basename "$peer")}"
echo
echo "| test | tandem t/s | peer t/s | tandem / peer | min-max | of read bandwidth |"
echo "| --- | --: | --: | --: | --: | --: |"
for test in $tests; do
    kind=${test:0:2} rest=${test:2}
    count=${rest%@*} depth=0
    [[ $rest == *@* ]] && depth=${rest#*@}
    for ((i = 0; i < rounds; i++)); do
        # Who goes first changes, so that neither always follows the other's heat.
        if ((i % 2)); then b=$(run_peer "$kind" "$count" "$depth"); fi
        a=$(run_tandem "$kind" "$count" "$depth")
        if ((i % 2 == 0)); then b=$(run_peer "$kind" "$count" "$depth"); fi
        [ -n "$b" ] || { echo "$peer printed no rate for $test" >&2; exit 1; }
        echo "$a" "$b"
    done | awk -v test="$test" -v kind="$kind" '
        # Sorts v[1..n] in place; returns the median.
        function median(v, n, i, j, x) {
            for (i = 2; i <= n; i++) { x = v[i]; for (j = i - 1; j > 0 && v[j] > x; j--) v[j + 1] = v[j]; v[j + 1] = x }
            return n % 2 ? v[(n + 1) / 2] : (v[n / 2] + v[n / 2 + 1]) / 2
        }
        {
            n++; a[n] = $1; b[n] = $NF; r[n] = $1 / $NF
            if (kind == "tg") share[n] = $2
        }
        END {
            if (!n) exit 1
            ra = median(r, n)
            printf "| %s | %.2f | %.2f | %.2f | %.2f-%.2f | %s |\n", test, median(a, n), median(b, n), ra, r[1], r[n],
                kind == "tg" ? sprintf("%.0f%%", 100 * median(share, n)) : ""
        }'
done
