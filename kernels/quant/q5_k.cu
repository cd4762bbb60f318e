#include "super.cuh"
#include "../matrix.cuh"
MATRIX_KERNELS(q5_k, Q5_K)
