#include <cstdlib>
#include <cstring>

#include "qtaml/fault_job.h"

namespace qtaml {

Kernel best_kernel() {
  const char* wanted = std::getenv("QTAML_SIMD");
  const auto admits = [wanted](const char* name) {
    return wanted == nullptr || *wanted == 0 || std::strcmp(wanted, name) == 0;
  };
#ifdef QTAML_X86
  __builtin_cpu_init();
  if (admits("avx512") && __builtin_cpu_supports("avx512f")) return inject_avx512;
  if (admits("avx2") && __builtin_cpu_supports("avx2")) return inject_avx2;
#endif
  return admits("plain") ? inject_plain : nullptr;
}

}  // namespace qtaml
