#define QTAML_KERNEL inject_avx2
#define QTAML_VECTOR 32
#include "kernel.inc"
