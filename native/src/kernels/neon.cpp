#define EQUIBIT_TABLE neon_kernels
#define EQUIBIT_NAME "neon"
#include "kernels/kernels.inc"
