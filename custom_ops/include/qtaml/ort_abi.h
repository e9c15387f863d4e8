// The part of onnxruntime's C ABI that the operator library uses, pinned to API version 17.
//
// onnxruntime's wheel ships no headers, and the library must not link libonnxruntime: it is handed an OrtApiBase when
// it is loaded. OrtApi is a table of function pointers whose order never changes, so a function is its slot number. The
// build checks every slot below against the real headers with -DONNXRUNTIME_INCLUDE_DIR=... (src/abi_check.cpp).
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

extern "C" {

struct OrtStatus;
struct OrtValue;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtShapeInferContext;
struct OrtTensorTypeAndShapeInfo;

struct OrtApiBase {
  const void* const* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};

struct OrtCustomOp {
  uint32_t version;
  void* (*CreateKernel)(const OrtCustomOp*, const void* api, const OrtKernelInfo*);
  const char* (*GetName)(const OrtCustomOp*);
  const char* (*GetExecutionProviderType)(const OrtCustomOp*);
  int (*GetInputType)(const OrtCustomOp*, size_t index);
  size_t (*GetInputTypeCount)(const OrtCustomOp*);
  int (*GetOutputType)(const OrtCustomOp*, size_t index);
  size_t (*GetOutputTypeCount)(const OrtCustomOp*);
  void (*KernelCompute)(void* kernel, OrtKernelContext*);
  void (*KernelDestroy)(void* kernel);
  int (*GetInputCharacteristic)(const OrtCustomOp*, size_t index);
  int (*GetOutputCharacteristic)(const OrtCustomOp*, size_t index);
  int (*GetInputMemoryType)(const OrtCustomOp*, size_t index);
  int (*GetVariadicInputMinArity)(const OrtCustomOp*);
  int (*GetVariadicInputHomogeneity)(const OrtCustomOp*);
  int (*GetVariadicOutputMinArity)(const OrtCustomOp*);
  int (*GetVariadicOutputHomogeneity)(const OrtCustomOp*);
  OrtStatus* (*CreateKernelV2)(const OrtCustomOp*, const void* api, const OrtKernelInfo*, void** kernel);
  OrtStatus* (*KernelComputeV2)(void* kernel, OrtKernelContext*);
  OrtStatus* (*InferOutputShapeFn)(const OrtCustomOp*, OrtShapeInferContext*);
  int (*GetStartVersion)(const OrtCustomOp*);
  int (*GetEndVersion)(const OrtCustomOp*);
};

}  // extern "C"

namespace qtaml::ort {

inline constexpr uint32_t kApiVersion = 17;
inline constexpr uint32_t kApiVersionOfTwoBits = 24;  // the first whose runtimes know tensors of 2-bit integers

enum ErrorCode : int { kFail = 1, kInvalidArgument = 2 };
enum InputCharacteristic : int { kRequired = 0 };

enum ElementType : int {
  kUndefined = 0,
  kFloat = 1,
  kUint8 = 2,
  kInt8 = 3,
  kUint16 = 4,
  kInt16 = 5,
  kInt32 = 6,
  kInt64 = 7,
  kFloat16 = 10,
  kUint32 = 12,
  kBfloat16 = 16,
  kFloat8E4M3FN = 17,
  kFloat8E4M3FNUZ = 18,
  kFloat8E5M2 = 19,
  kFloat8E5M2FNUZ = 20,
  kUint4 = 21,
  kInt4 = 22,
  kUint2 = 24,
  kInt2 = 25,
};

// Slot, name and signature of every function used; abi_check.cpp expands the same list against the real OrtApi.
#define QTAML_ORT_FUNCTIONS(X)                                                                                  \
  X(0, CreateStatus, OrtStatus*(int code, const char* message))                                                 \
  X(26, CreateCustomOpDomain, OrtStatus*(const char* domain, OrtCustomOpDomain** out))                          \
  X(27, CustomOpDomain_Add, OrtStatus*(OrtCustomOpDomain*, const OrtCustomOp*))                                 \
  X(28, AddCustomOpDomain, OrtStatus*(OrtSessionOptions*, OrtCustomOpDomain*))                                  \
  X(51, GetTensorMutableData, OrtStatus*(OrtValue*, void**))                                                    \
  X(60, GetTensorElementType, OrtStatus*(const OrtTensorTypeAndShapeInfo*, int*))                               \
  X(61, GetDimensionsCount, OrtStatus*(const OrtTensorTypeAndShapeInfo*, size_t*))                              \
  X(62, GetDimensions, OrtStatus*(const OrtTensorTypeAndShapeInfo*, int64_t*, size_t))                          \
  X(64, GetTensorShapeElementCount, OrtStatus*(const OrtTensorTypeAndShapeInfo*, size_t*))                      \
  X(65, GetTensorTypeAndShape, OrtStatus*(const OrtValue*, OrtTensorTypeAndShapeInfo**))                        \
  X(86, KernelInfoGetAttribute_int64, OrtStatus*(const OrtKernelInfo*, const char*, int64_t*))                  \
  X(87, KernelInfoGetAttribute_string, OrtStatus*(const OrtKernelInfo*, const char*, char*, size_t*))              \
  X(90, KernelContext_GetInput, OrtStatus*(const OrtKernelContext*, size_t, const OrtValue**))                  \
  X(91, KernelContext_GetOutput, OrtStatus*(OrtKernelContext*, size_t, const int64_t*, size_t, OrtValue**))     \
  X(93, ReleaseStatus, void(OrtStatus*))                                                                        \
  X(99, ReleaseTensorTypeAndShapeInfo, void(OrtTensorTypeAndShapeInfo*))                                        \
  X(268, ShapeInferContext_GetInputTypeShape,                                                                   \
    OrtStatus*(const OrtShapeInferContext*, size_t, OrtTensorTypeAndShapeInfo**))                               \
  X(270, ShapeInferContext_SetOutputTypeShape,                                                                  \
    OrtStatus*(const OrtShapeInferContext*, size_t, const OrtTensorTypeAndShapeInfo*))                          \
  X(274, KernelContext_ParallelFor,                                                                             \
    OrtStatus*(const OrtKernelContext*, void (*)(void*, size_t), size_t total, size_t batches, void* user))

// The functions, as a table of typed pointers.
struct Api {
#define QTAML_MEMBER(slot, name, ...) std::add_pointer_t<__VA_ARGS__> name;
  QTAML_ORT_FUNCTIONS(QTAML_MEMBER)
#undef QTAML_MEMBER

  explicit Api(const void* const* table) {
#define QTAML_TAKE(slot, name, ...) \
  name = reinterpret_cast<std::add_pointer_t<__VA_ARGS__>>(const_cast<void*>(table[slot]));
    QTAML_ORT_FUNCTIONS(QTAML_TAKE)
#undef QTAML_TAKE
  }
};

}  // namespace qtaml::ort
