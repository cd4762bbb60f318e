#include "grid.cuh"
#include "../matrix.cuh"
MATRIX_KERNELS(iq3_s, IQ3_S)
