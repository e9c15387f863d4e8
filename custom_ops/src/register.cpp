// The one exported symbol: onnxruntime calls it when a program registers the library with its session options.
#include "qtaml/ops.h"

extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(OrtSessionOptions* options,
                                                                               const OrtApiBase* base) {
  using namespace qtaml;
  const void* const* table = base->GetApi(ort::kApiVersion);
  if (table == nullptr) {
    // Too old an onnxruntime. Slot 0 of its oldest table makes the status.
    const ort::Api* none = nullptr;
    (void)none;
    const void* const* oldest = base->GetApi(1);
    if (oldest == nullptr) return nullptr;
    const auto create_status = reinterpret_cast<OrtStatus* (*)(int, const char*)>(const_cast<void*>(oldest[0]));
    return create_status(ort::kFail, "qtaml: this onnxruntime is too old; version 1.17 or later is needed");
  }
  static const ort::Api api(table);
  // One domain for the process, never released: sessions refer to it for as long as they live.
  static OrtCustomOpDomain* domain = nullptr;
  static OrtStatus* const failed = [] {
    if (OrtStatus* status = api.CreateCustomOpDomain("qtaml", &domain)) return status;
    return api.CustomOpDomain_Add(domain, fault_inject_op(api));
  }();
  if (failed != nullptr) return api.CreateStatus(ort::kFail, "qtaml: the operator domain could not be made");
  return api.AddCustomOpDomain(options, domain);
}
