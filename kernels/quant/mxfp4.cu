#include "small.cuh"
#include "../matrix.cuh"
MATRIX_KERNELS(mxfp4, MXFP4)
