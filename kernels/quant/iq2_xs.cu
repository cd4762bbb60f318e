#include "grid.cuh"
#include "../matrix.cuh"
MATRIX_KERNELS(iq2_xs, IQ2_XS)
