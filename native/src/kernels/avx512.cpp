#define EQUIBIT_TABLE avx512_kernels
#define EQUIBIT_NAME "avx512"
#include "kernels/kernels.inc"
