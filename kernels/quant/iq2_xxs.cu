#include "grid.cuh"
#include "../matrix.cuh"
MATRIX_KERNELS(iq2_xxs, IQ2_XXS)
