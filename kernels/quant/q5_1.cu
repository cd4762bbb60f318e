#include "small.cuh"
#include "../matrix.cuh"
MATRIX_KERNELS(q5_1, Q5_1)
