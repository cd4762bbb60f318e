#include "small.cuh"
#include "../matrix.cuh"
MATRIX_KERNELS(q4_0, Q4_0)
