#include "small.cuh"
#include "../matrix.cuh"
MATRIX_KERNELS(iq4_nl, IQ4_NL)
