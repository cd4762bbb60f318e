#!/usr/bin/env bash
# The hash of these sources and of all headers. A kernel's PTX carries its own in the first line, src/cuda/launch/mod.rs
# that of kernels/*.cu.
set -euo pipefail
cd "$(dirname "$0")/.."
cat "$@" $(ls kernels/*.cuh kernels/quant/*.cuh | LC_ALL=C sort) | sha256sum | cut -d' ' -f1
