#define QTAML_KERNEL inject_chunk_avx512
#define QTAML_VECTOR 64
#include "fault_kernel.inc"
