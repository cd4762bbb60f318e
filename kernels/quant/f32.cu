#include "floats.cuh"
#include "../matrix.cuh"
FLOAT_KERNELS(f32, F32)
