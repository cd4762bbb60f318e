#include "grid.cuh"
#include "../matrix.cuh"
MATRIX_KERNELS(iq2_s, IQ2_S)
