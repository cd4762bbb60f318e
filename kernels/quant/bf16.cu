#include "floats.cuh"
#include "../matrix.cuh"
FLOAT_KERNELS(bf16, BF16)
