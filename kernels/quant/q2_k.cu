#include "super.cuh"
#include "../matrix.cuh"
MATRIX_KERNELS(q2_k, Q2_K)
