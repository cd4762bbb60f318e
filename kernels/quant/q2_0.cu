#include "small.cuh"
#include "../matrix.cuh"
MATRIX_KERNELS(q2_0, Q2_0)
