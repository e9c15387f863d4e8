// What an operator needs around onnxruntime's C functions: failures as exceptions inside, as statuses outside; tensors.
#pragma once

#include <exception>
#include <optional>
#include <string>
#include <vector>

#include "qtaml/ort_abi.h"

namespace qtaml {

using ort::Api;

// Carries an OrtStatus up to the boundary, where guarded() hands it to onnxruntime.
struct Failure {
  OrtStatus* status;
};

inline void check(OrtStatus* status) {
  if (status != nullptr) throw Failure{status};
}

[[noreturn]] inline void refuse(const Api& api, const std::string& message) {
  throw Failure{api.CreateStatus(ort::kInvalidArgument, ("FaultInject: " + message).c_str())};
}

// Runs `body` and turns whatever it throws into a status: no exception may cross the C boundary.
template <typename Body>
OrtStatus* guarded(const Api& api, Body&& body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const Failure& failure) {
    return failure.status;
  } catch (const std::exception& error) {
    return api.CreateStatus(ort::kFail, error.what());
  } catch (...) {
    return api.CreateStatus(ort::kFail, "FaultInject: unknown failure");
  }
}

struct Tensor {
  int type;
  std::vector<int64_t> shape;
  size_t count;
  void* data;
};

struct ShapeInfo {
  const Api& api;
  OrtTensorTypeAndShapeInfo* info = nullptr;
  ~ShapeInfo() { api.ReleaseTensorTypeAndShapeInfo(info); }
};

inline Tensor input(const Api& api, const OrtKernelContext* context, size_t index) {
  const OrtValue* value = nullptr;
  check(api.KernelContext_GetInput(context, index, &value));
  Tensor tensor{};
  ShapeInfo shape{api};
  check(api.GetTensorTypeAndShape(value, &shape.info));
  check(api.GetTensorElementType(shape.info, &tensor.type));
  size_t rank = 0;
  check(api.GetDimensionsCount(shape.info, &rank));
  tensor.shape.resize(rank);
  check(api.GetDimensions(shape.info, tensor.shape.data(), rank));
  check(api.GetTensorShapeElementCount(shape.info, &tensor.count));
  // onnxruntime has one accessor for both directions; inputs are only read.
  check(api.GetTensorMutableData(const_cast<OrtValue*>(value), &tensor.data));
  return tensor;
}

inline std::string text(const std::vector<int64_t>& shape) {
  std::string out = "[";
  for (size_t i = 0; i < shape.size(); ++i) out += (i ? ", " : "") + std::to_string(shape[i]);
  return out + "]";
}

// An attribute, or nothing if the node has none of that name.
inline std::optional<int64_t> integer(const Api& api, const OrtKernelInfo* info, const char* name) {
  int64_t value = 0;
  OrtStatus* status = api.KernelInfoGetAttribute_int64(info, name, &value);
  if (status == nullptr) return value;
  api.ReleaseStatus(status);
  return std::nullopt;
}

inline std::optional<std::string> string(const Api& api, const OrtKernelInfo* info, const char* name) {
  size_t size = 0;  // with the final 0
  OrtStatus* status = api.KernelInfoGetAttribute_string(info, name, nullptr, &size);
  if (status != nullptr) {
    api.ReleaseStatus(status);
    return std::nullopt;
  }
  std::string value(size, 0);
  check(api.KernelInfoGetAttribute_string(info, name, value.data(), &size));
  value.resize(size > 0 ? size - 1 : 0);
  return value;
}

}  // namespace qtaml
