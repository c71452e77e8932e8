#define EQUIBIT_TABLE avx2_kernels
#define EQUIBIT_NAME "avx2"
#include "kernels/kernels.inc"
