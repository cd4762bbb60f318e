#include "small.cuh"
#include "../matrix.cuh"
MATRIX_KERNELS(q5_0, Q5_0)
