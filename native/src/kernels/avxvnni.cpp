#define EQUIBIT_TABLE avxvnni_kernels
#define EQUIBIT_NAME "avxvnni"
#include "kernels/kernels.inc"
