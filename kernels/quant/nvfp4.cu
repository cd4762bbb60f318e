#include "small.cuh"
#include "../matrix.cuh"
MATRIX_KERNELS(nvfp4, NVFP4)
