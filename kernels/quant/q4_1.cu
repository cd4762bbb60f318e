#include "small.cuh"
#include "../matrix.cuh"
MATRIX_KERNELS(q4_1, Q4_1)
