#include "super.cuh"
#include "../matrix.cuh"
MATRIX_KERNELS(iq4_xs, IQ4_XS)
