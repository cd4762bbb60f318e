#!/usr/bin/env bash
# What is left of the decode rate on a busy machine: with one endless loop per thread beside it, against the quiet rate,
# turn about; for tandem and for llama.cpp's or ik_llama.cpp's llama-bench on one file.
#
#   benches/busy.sh PEER_BENCH MODEL             PEER_BENCH: path of a llama-bench
#
# Environment: TANDEM (default target/release/tandem), THREADS (default: one per physical core), ROUNDS (default 5), PEER
# (what to call the peer).
source "$(dirname "$0")/common.sh"

measure() {
    local loops=() who c quiet busy
    # In the shell that starts the loops, which do not hear Ctrl-C themselves.
    trap 'kill "${loops[@]}" 2>/dev/null || true' EXIT
    trap 'exit 130' INT TERM
    for ((i = 0; i < rounds; i++)); do
        for who in tandem peer; do
            quiet=$("run_$who" tg 64 0)
            for ((c = 0; c < threads; c++)); do
                taskset -c "$c" bash -c 'while :; do :; done' &
                loops+=($!)
            done
            busy=$("run_$who" tg 64 0)
            kill "${loops[@]}"
            wait "${loops[@]}" 2>/dev/null || true
            loops=()
            echo "$who ${quiet%% *} ${busy%% *}"
        done
    done
}

head_lines
echo "| who | quiet t/s | busy t/s | busy / quiet | min-max |"
echo "| --- | --: | --: | --: | --: |"
measure | awk "$median"'
    { n[$1]++; q[$1, n[$1]] = $2; b[$1, n[$1]] = $3 }
    END {
        split("tandem peer", names)
        for (k = 1; k <= 2; k++) {
            who = names[k]
            m = n[who]
            if (!m) exit 1
            for (i = 1; i <= m; i++) { x[i] = q[who, i]; y[i] = b[who, i]; r[i] = y[i] / x[i] }
            ratio = median(r, m)
            printf "| %s | %.2f | %.2f | %.0f%% | %.0f-%.0f%% |\n", who, median(x, m), median(y, m), 100 * ratio, 100 * r[1], 100 * r[m]
        }
    }'
