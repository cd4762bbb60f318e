#!/usr/bin/env bash
# What is left of the decode rate on a busy machine: with one endless loop per thread beside it, against the quiet rate,
# turn about; for tandem and for llama.cpp's or ik_llama.cpp's llama-bench on one file.
#
#   benches/busy.sh PEER_BENCH MODEL             PEER_BENCH: path of a llama-bench
#
# Environment: TANDEM (default target/release/tandem), THREADS (default: one per physical core), ROUNDS (default 5), PEER
# (what to call the peer).
set -euo pipefail
export LC_ALL=C

[ $# = 2 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 2; }
peer=$1 model=$2
here=$(cd "$(dirname "$0")/.." && pwd)
tandem=${TANDEM:-$here/target/release/tandem}
rounds=${ROUNDS:-5}
[ -x "$peer" ] || { echo "$peer is not a program" >&2; exit 2; }
[ -x "$tandem" ] || { echo "$tandem is not built: cargo build --release" >&2; exit 2; }
[ -r "$model" ] || { echo "$model cannot be read" >&2; exit 2; }
threads=${THREADS:-$(lscpu -p=core,socket | grep -v '^#' | sort -u | wc -l)}
loops=()
trap 'kill "${loops[@]}" 2>/dev/null || true' EXIT

rate() {
    case $1 in
        tandem) "$tandem" bench -m "$model" -t "$threads" -p 0 -n 64 -r 1 -o json | sed -n 's/.*"tokens_per_s": *\([0-9.]*\).*/\1/p' ;;
        peer) "$peer" -m "$model" -t "$threads" -p 0 -n 64 -r 1 -o json 2>/dev/null | sed -n 's/.*"avg_ts": *\([0-9.]*\).*/\1/p' ;;
    esac | head -1
}

cpu() { lscpu | sed -n "s/^$1: *//p"; }
echo "$(cpu 'Model name') (family $(cpu 'CPU family') model $(cpu Model)), $threads threads, $rounds rounds in turn, medians"
echo "model $(basename "$model"), tandem $(git -C "$here" rev-parse --short HEAD), peer ${PEER:-$(basename "$peer")}"
echo
echo "| who | quiet t/s | busy t/s | busy / quiet | min-max |"
echo "| --- | --: | --: | --: | --: |"
for ((i = 0; i < rounds; i++)); do
    for who in tandem peer; do
        quiet=$(rate $who)
        loops=()
        for ((c = 0; c < threads; c++)); do
            taskset -c "$c" bash -c 'while :; do :; done' &
            loops+=($!)
        done
        busy=$(rate $who)
        kill "${loops[@]}"
        wait "${loops[@]}" 2>/dev/null || true
        echo "$who $quiet $busy"
    done
done | awk '
    function median(v, n, i, j, x) {
        for (i = 2; i <= n; i++) { x = v[i]; for (j = i - 1; j > 0 && v[j] > x; j--) v[j + 1] = v[j]; v[j + 1] = x }
        return n % 2 ? v[(n + 1) / 2] : (v[n / 2] + v[n / 2 + 1]) / 2
    }
    { n[$1]++; q[$1, n[$1]] = $2; b[$1, n[$1]] = $3 }
    END {
        split("tandem peer", names)
        for (k = 1; k <= 2; k++) {
            who = names[k]
            for (i = 1; i <= n[who]; i++) { x[i] = q[who, i]; y[i] = b[who, i]; r[i] = y[i] / x[i] }
            m = n[who]
            ratio = median(r, m)
            printf "| %s | %.2f | %.2f | %.0f%% | %.0f-%.0f%% |\n", who, median(x, m), median(y, m), 100 * ratio, 100 * r[1], 100 * r[m]
        }
    }'
