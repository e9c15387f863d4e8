// Compiled only with -DONNXRUNTIME_INCLUDE_DIR: every slot, field and number of ort_abi.h against the real headers.
#include <onnxruntime_c_api.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace ours {
#include "qtaml/ort_abi.h"
}
namespace ort = ours::qtaml::ort;

#define CHECK_SLOT(slot, name, ...) \
  static_assert(offsetof(OrtApi, name) == (slot) * sizeof(void*), "OrtApi::" #name " is not in slot " #slot);
QTAML_ORT_FUNCTIONS(CHECK_SLOT)

#define CHECK_FIELD(name) \
  static_assert(offsetof(ours::OrtCustomOp, name) == offsetof(::OrtCustomOp, name), "OrtCustomOp::" #name " has moved");
CHECK_FIELD(version)
CHECK_FIELD(CreateKernel)
CHECK_FIELD(GetName)
CHECK_FIELD(GetExecutionProviderType)
CHECK_FIELD(GetInputType)
CHECK_FIELD(GetInputTypeCount)
CHECK_FIELD(GetOutputType)
CHECK_FIELD(GetOutputTypeCount)
CHECK_FIELD(KernelCompute)
CHECK_FIELD(KernelDestroy)
CHECK_FIELD(GetInputCharacteristic)
CHECK_FIELD(GetOutputCharacteristic)
CHECK_FIELD(GetInputMemoryType)
CHECK_FIELD(GetVariadicInputMinArity)
CHECK_FIELD(GetVariadicInputHomogeneity)
CHECK_FIELD(GetVariadicOutputMinArity)
CHECK_FIELD(GetVariadicOutputHomogeneity)
CHECK_FIELD(CreateKernelV2)
CHECK_FIELD(KernelComputeV2)
CHECK_FIELD(InferOutputShapeFn)
CHECK_FIELD(GetStartVersion)
CHECK_FIELD(GetEndVersion)

#define CHECK_NUMBER(our, their) static_assert(static_cast<int>(our) == static_cast<int>(their), #their " has changed");
CHECK_NUMBER(ort::kFail, ORT_FAIL)
CHECK_NUMBER(ort::kInvalidArgument, ORT_INVALID_ARGUMENT)
CHECK_NUMBER(ort::kRequired, INPUT_OUTPUT_REQUIRED)
CHECK_NUMBER(ort::kUndefined, ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED)
CHECK_NUMBER(ort::kFloat, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT)
CHECK_NUMBER(ort::kUint8, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8)
CHECK_NUMBER(ort::kInt8, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8)
CHECK_NUMBER(ort::kUint16, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16)
CHECK_NUMBER(ort::kInt16, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16)
CHECK_NUMBER(ort::kInt32, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32)
CHECK_NUMBER(ort::kInt64, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64)
CHECK_NUMBER(ort::kFloat16, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16)
CHECK_NUMBER(ort::kUint32, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32)
CHECK_NUMBER(ort::kBfloat16, ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16)
CHECK_NUMBER(ort::kFloat8E4M3FN, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E4M3FN)
CHECK_NUMBER(ort::kFloat8E4M3FNUZ, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E4M3FNUZ)
CHECK_NUMBER(ort::kFloat8E5M2, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E5M2)
CHECK_NUMBER(ort::kFloat8E5M2FNUZ, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E5M2FNUZ)
CHECK_NUMBER(ort::kUint4, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT4)
CHECK_NUMBER(ort::kInt4, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT4)
#if ORT_API_VERSION >= 24
CHECK_NUMBER(ort::kUint2, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT2)
CHECK_NUMBER(ort::kInt2, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT2)
#endif
