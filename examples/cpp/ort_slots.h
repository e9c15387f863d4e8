// The part of onnxruntime's C API that run_faulty.cpp uses, under the names of onnxruntime_c_api.h: for machines that
// have the runtime's library (its Python wheel, for example) but not its headers. OrtApi is a table of function pointers
// whose order never changes, so that a function is its slot number; all are in API version 17.
#pragma once

#include <cstddef>
#include <cstdint>

struct OrtStatus;
struct OrtEnv;
struct OrtSession;
struct OrtSessionOptions;
struct OrtRunOptions;
struct OrtValue;
struct OrtAllocator;
struct OrtMemoryInfo;
struct OrtTensorTypeAndShapeInfo;

enum OrtLoggingLevel { ORT_LOGGING_LEVEL_ERROR = 3 };
enum OrtAllocatorType { OrtArenaAllocator = 1 };
enum OrtMemType { OrtMemTypeDefault = 0 };
enum ONNXTensorElementDataType {
  ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT = 1,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 = 7
};

#define ORT_SLOTS(X)                                                                                                  \
  X(2, GetErrorMessage, const char*, (const OrtStatus*))                                                              \
  X(3, CreateEnv, OrtStatus*, (OrtLoggingLevel, const char* name, OrtEnv**))                                          \
  X(7, CreateSession, OrtStatus*, (const OrtEnv*, const char* path, const OrtSessionOptions*, OrtSession**))          \
  X(9, Run, OrtStatus*,                                                                                               \
    (OrtSession*, const OrtRunOptions*, const char* const* names, const OrtValue* const* inputs, size_t count,        \
     const char* const* wanted, size_t outputs, OrtValue**))                                                          \
  X(10, CreateSessionOptions, OrtStatus*, (OrtSessionOptions**))                                                      \
  X(22, SetSessionLogSeverityLevel, OrtStatus*, (OrtSessionOptions*, int))                                            \
  X(36, SessionGetInputName, OrtStatus*, (const OrtSession*, size_t, OrtAllocator*, char**))                          \
  X(37, SessionGetOutputName, OrtStatus*, (const OrtSession*, size_t, OrtAllocator*, char**))                         \
  X(49, CreateTensorWithDataAsOrtValue, OrtStatus*,                                                                   \
    (const OrtMemoryInfo*, void* data, size_t bytes, const int64_t* shape, size_t rank, ONNXTensorElementDataType,    \
     OrtValue**))                                                                                                     \
  X(51, GetTensorMutableData, OrtStatus*, (OrtValue*, void**))                                                        \
  X(64, GetTensorShapeElementCount, OrtStatus*, (const OrtTensorTypeAndShapeInfo*, size_t*))                          \
  X(65, GetTensorTypeAndShape, OrtStatus*, (const OrtValue*, OrtTensorTypeAndShapeInfo**))                            \
  X(69, CreateCpuMemoryInfo, OrtStatus*, (OrtAllocatorType, OrtMemType, OrtMemoryInfo**))                             \
  X(76, AllocatorFree, OrtStatus*, (OrtAllocator*, void*))                                                            \
  X(78, GetAllocatorWithDefaultOptions, OrtStatus*, (OrtAllocator**))                                                 \
  X(92, ReleaseEnv, void, (OrtEnv*))                                                                                  \
  X(93, ReleaseStatus, void, (OrtStatus*))                                                                            \
  X(94, ReleaseMemoryInfo, void, (OrtMemoryInfo*))                                                                    \
  X(95, ReleaseSession, void, (OrtSession*))                                                                          \
  X(96, ReleaseValue, void, (OrtValue*))                                                                              \
  X(99, ReleaseTensorTypeAndShapeInfo, void, (OrtTensorTypeAndShapeInfo*))                                            \
  X(100, ReleaseSessionOptions, void, (OrtSessionOptions*))                                                           \
  X(228, RegisterCustomOpsLibrary_V2, OrtStatus*, (OrtSessionOptions*, const char* path))

// The functions under their names, taken out of the table once.
struct OrtApi {
#define ORT_MEMBER(slot, name, result, arguments) result(*name) arguments;
  ORT_SLOTS(ORT_MEMBER)
#undef ORT_MEMBER
};

struct OrtApiBase {
  void* const* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};

inline OrtApi api_of(void* const* table) {
  OrtApi api;
#define ORT_TAKE(slot, name, result, arguments) api.name = reinterpret_cast<result(*) arguments>(table[slot]);
  ORT_SLOTS(ORT_TAKE)
#undef ORT_TAKE
  return api;
}
