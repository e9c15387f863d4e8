#define QTAML_KERNEL inject_chunk_avx512
#include "fault_kernel.inc"
