#include "floats.cuh"
#include "../matrix.cuh"
FLOAT_KERNELS(f16, F16)
HALF_MATMUL(f16, F16)
