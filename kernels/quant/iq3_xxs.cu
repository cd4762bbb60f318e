#include "grid.cuh"
#include "../matrix.cuh"
MATRIX_KERNELS(iq3_xxs, IQ3_XXS)
