#include "super.cuh"
#include "../matrix.cuh"
MATRIX_KERNELS(tq1_0, TQ1_0)
