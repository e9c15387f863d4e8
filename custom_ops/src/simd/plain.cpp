#define QTAML_KERNEL inject_plain
#define QTAML_VECTOR 16
#include "kernel.inc"
