#include "small.cuh"
#include "../matrix.cuh"
MATRIX_KERNELS(q8_0, Q8_0)
