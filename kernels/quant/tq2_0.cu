#include "super.cuh"
#include "../matrix.cuh"
MATRIX_KERNELS(tq2_0, TQ2_0)
