#include "super.cuh"
#include "../matrix.cuh"
MATRIX_KERNELS(q6_k, Q6_K)
