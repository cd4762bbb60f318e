#include "super.cuh"
#include "../matrix.cuh"
MATRIX_KERNELS(q3_k, Q3_K)
