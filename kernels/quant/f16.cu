#include "floats.cuh"
#include "../matrix.cuh"
FLOAT_KERNELS(f16, F16)
