#define QTAML_KERNEL inject_avx512
#define QTAML_VECTOR 64
#include "kernel.inc"
