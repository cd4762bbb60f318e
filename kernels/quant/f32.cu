#include "floats.cuh"
#include "../matrix.cuh"
FLOAT_KERNELS(f32, F32)
FLOAT_MATMUL(f32, F32)
