#define QTAML_KERNEL inject_chunk_plain
#include "fault_kernel.inc"
