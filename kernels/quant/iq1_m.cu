#include "grid.cuh"
#include "../matrix.cuh"
MATRIX_KERNELS(iq1_m, IQ1_M)
