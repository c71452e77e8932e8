#define EQUIBIT_TABLE portable_kernels
#define EQUIBIT_NAME "portable"
#include "kernels/kernels.inc"
