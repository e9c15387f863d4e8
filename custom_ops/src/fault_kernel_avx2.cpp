#define QTAML_KERNEL inject_chunk_avx2
#define QTAML_VECTOR 32
#include "fault_kernel.inc"
