#!/usr/bin/env bash
# Times tandem against llama.cpp's or ik_llama.cpp's llama-bench on one file, turn about, and prints the ratio pair by
# pair: absolute figures of a machine that does other things mean little, the ratio of two neighbouring runs does.
#
#   benches/against.sh PEER_BENCH MODEL          PEER_BENCH: path of a llama-bench
#
# Environment: TANDEM (default target/release/tandem), THREADS (default: one per physical core), ROUNDS (default 5),
# TESTS (default "tg128 tg64@4096 pp512 pp2048": what to run, at which depth), PEER (what to call the peer).
source "$(dirname "$0")/common.sh"
tests=${TESTS:-tg128 tg64@4096 pp512 pp2048}
for test in $tests; do
    [[ $test =~ ^(tg|pp)[0-9]+(@[0-9]+)?$ ]] || fail "TESTS: $test is no test: tg128, pp512 or tg64@4096 are"
done

head_lines
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
        echo "$a" "$b"
    done | awk -v test="$test" -v kind="$kind" "$median"'
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
