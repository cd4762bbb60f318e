#include "super.cuh"
#include "../matrix.cuh"
MATRIX_KERNELS(q4_k, Q4_K)
