#!/usr/bin/env bash
# The hash that a kernel's PTX carries in its first line: of its source and of all headers.
set -euo pipefail
cd "$(dirname "$0")/.."
cat "$1" $(ls kernels/*.cuh kernels/quant/*.cuh | LC_ALL=C sort) | sha256sum | cut -d' ' -f1
