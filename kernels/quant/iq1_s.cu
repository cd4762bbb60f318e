#include "grid.cuh"
#include "../matrix.cuh"
MATRIX_KERNELS(iq1_s, IQ1_S)
