#define QTAML_KERNEL inject_chunk_plain
#define QTAML_VECTOR 16
#include "fault_kernel.inc"
