// The one exported symbol: onnxruntime calls it when a program registers the library with its session options.
#include "qtaml/ops.h"

extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(OrtSessionOptions* options,
                                                                               const OrtApiBase* base) {
  using namespace qtaml;
  const void* const* table = base->GetApi(ort::kApiVersion);
  if (table == nullptr) {
    // Slot 0 of every version makes a status.
    const void* const* first_version = base->GetApi(1);
    const auto create_status = reinterpret_cast<OrtStatus* (*)(int, const char*)>(const_cast<void*>(first_version[0]));
    return create_status(ort::kFail, "qtaml: this onnxruntime is too old; install 1.17 or later");
  }
  static const ort::Api api(table);
  // One domain for the process, never released: sessions refer to it for as long as they live.
  static OrtCustomOpDomain* domain = nullptr;
  static const bool made = [base] {
    OrtStatus* status = api.CreateCustomOpDomain("qtaml", &domain);
    for (const OrtCustomOp* op : fault_inject_ops(api, base->GetApi(ort::kApiVersionOfTwoBits) != nullptr)) {
      if (status == nullptr) status = api.CustomOpDomain_Add(domain, op);
    }
    if (status != nullptr) api.ReleaseStatus(status);
    return status == nullptr;
  }();
  if (!made) return api.CreateStatus(ort::kFail, "qtaml: onnxruntime refuses the operator domain");
  return api.AddCustomOpDomain(options, domain);
}
