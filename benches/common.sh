# What against.sh and busy.sh share; sourced by them with their own arguments, PEER_BENCH and MODEL.
set -euo pipefail
export LC_ALL=C

usage() { sed -n '2,/^set\|^source/{s/^# \{0,1\}//p;}' "$0"; exit 2; }
fail() { echo "$1" >&2; exit "${2:-2}"; }

[ $# = 2 ] || usage
peer=$1 model=$2
here=$(cd "$(dirname "$0")/.." && pwd)
tandem=${TANDEM:-$here/target/release/tandem}
rounds=${ROUNDS:-5}
[ -x "$peer" ] || fail "$peer is not a program"
[ -x "$tandem" ] || fail "$tandem is not built: cargo build --release"
[ -r "$model" ] || fail "$model cannot be read"
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

run_peer() { # kind count depth: tokens/s
    local args=(-m "$model" -t "$threads" -r 1 -o json)
    case $1 in
        pp) args+=(-p "$2" -n 0) ;;
        tg) if [ "$3" != 0 ] && [ "$gp" != 0 ]; then args+=(-p 0 -n 0 -gp "$3,$2"); else args+=(-p 0 -n "$2"); fi ;;
    esac
    if [ "$3" != 0 ] && { [ "$gp" = 0 ] || [ "$1" = pp ]; }; then args+=(-d "$3"); fi
    local rate
    rate=$("$peer" "${args[@]}" 2>/dev/null | number avg_ts)
    [ -n "$rate" ] || fail "$peer printed no rate for $1$2 at depth $3" 1
    echo "$rate"
}

head_lines() {
    cpu() { lscpu | sed -n "s/^$1: *//p"; }
    echo "$(cpu 'Model name') (family $(cpu 'CPU family') model $(cpu Model)), $threads threads, $rounds rounds in turn, medians"
    echo "model $(basename "$model"), checkout $(git -C "$here" rev-parse --short HEAD), peer ${PEER:-$(basename "$peer")}"
    echo
}

# For awk: sorts v[1..n] in place; returns the median.
median='function median(v, n, i, j, x) {
    for (i = 2; i <= n; i++) { x = v[i]; for (j = i - 1; j > 0 && v[j] > x; j--) v[j + 1] = v[j]; v[j + 1] = x }
    return n % 2 ? v[(n + 1) / 2] : (v[n / 2] + v[n / 2 + 1]) / 2
}'
