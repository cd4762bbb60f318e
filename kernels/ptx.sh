#!/usr/bin/env bash
# Makes kernels/ptx, src/cuda/launch and codes.rs from the kernels' sources, with the compiler that the project pins (from PyPI,
# 250 MB, kept in target/nvcc). `kernels/ptx.sh check` makes them elsewhere, compares, assembles the PTX for every kind
# of device (no difference, no spills), and holds the kernels' budgets of instructions (kernels/sass.py).
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# = 0 ] || [ "$*" = check ] || { sed -n '2,4s/^# //p' "$0"; exit 2; }

stubs=src/cuda
[ $# = 0 ] || stubs=target/stubs
mkdir -p $stubs
python3 kernels/launch.py $stubs
for made in launch codes.rs; do
    diff -r src/cuda/$made $stubs/$made || { echo "src/cuda/$made is not what the sources give: run kernels/launch.py" >&2; exit 1; }
done

# The first four in one version: nvcc's own requirements name none, and would bring parts that do not fit. There is no
# disassembler of that version; this one reads what it makes.
tools=target/nvcc
packages=(nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-cuda-runtime==13.0.96
    nvidia-cuda-nvdisasm==13.5.37)
if [ "$(cat $tools/packages 2>/dev/null)" != "${packages[*]}" ]; then
    rm -rf $tools
    python3 -m venv $tools
    $tools/bin/pip -q install "${packages[@]}"
    echo "${packages[*]}" > $tools/packages
fi
cuda=$(echo $tools/lib/python3*/site-packages/nvidia/cu13)

to=kernels/ptx
[ $# = 0 ] || to=target/ptx
mkdir -p $to
rm -f $to/*.ptx $to/*.new
make_one() { # source tier
    local name out
    name=$(basename "$1" .cu)
    out=$to/$name.sm_$2.ptx
    $cuda/bin/nvcc -ptx -arch=compute_$2 -O3 -Ikernels "$1" -o "$out.new"
    # The kernels use nothing newer than PTX 7.0, so that a driver of CUDA 11 can read them; what the compiler says to a
    # newer assembler of bytes that nobody looks at is left out, and so are its comments, indents and empty lines.
    {
        echo "// of $(kernels/hash.sh "$1")"
        sed 's/^[[:space:]]*//; s/[[:space:]]*\/\/.*//; s/ \t/ /; /^\.pragma "used_bytes_mask/d; /^$/d
             s/^\.version .*/.version 7.0/' "$out.new"
    } > "$out"
    rm "$out.new"
}
# As many at a time as there are processors: a function for every line of two words.
some() {
    xargs -P "$(nproc)" -n 2 bash -c 'set -euo pipefail; "$0" "$@"' "$1"
}
export cuda to
export -f make_one
for tier in 75 80; do
    for source in kernels/*.cu kernels/quant/*.cu; do echo "$source $tier"; done
done | some make_one
[ $# = 0 ] && exit

diff -rq kernels/ptx target/ptx || { echo "kernels/ptx is not what the sources give: run kernels/ptx.sh" >&2; exit 1; }
assemble_one() { # PTX architecture
    local said
    said=$($cuda/bin/ptxas -v -arch=sm_$2 "$1" -o /dev/null 2>&1) || { echo "$1, sm_$2: $said" >&2; return 1; }
    if grep -q '[1-9][0-9]* bytes spill' <<<"$said"; then
        grep -B3 '[1-9][0-9]* bytes spill' <<<"$said" | sed "s|^|$1, sm_$2: |" >&2
        return 1
    fi
}
export -f assemble_one
for ptx in $to/*.ptx; do
    archs="80 86 89 90 100 120"
    [[ $ptx == *sm_75* ]] && archs=75
    for arch in $archs; do echo "$ptx $arch"; done
done | some assemble_one
kernels/sass.py check
echo "$(ls $to | wc -l) PTX files are current, assemble without spills and are within their budgets of instructions"
