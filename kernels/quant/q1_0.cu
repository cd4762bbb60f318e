#include "small.cuh"
#include "../matrix.cuh"
MATRIX_KERNELS(q1_0, Q1_0)
