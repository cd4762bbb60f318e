#include "floats.cuh"
#include "../matrix.cuh"
FLOAT_KERNELS(bf16, BF16)
FLOAT_MATMUL(bf16, BF16) // sm_75 has no tensor cores for it
HALF_MATMUL(bf16, BF16)
