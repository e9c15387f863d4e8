#define QTAML_KERNEL inject_chunk_avx2
#include "fault_kernel.inc"
