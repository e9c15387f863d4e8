// qtaml::FaultInject for onnxruntime: argument checks and the parallel loop around the chunk kernels.
#include <cstdio>
#include <exception>
#include <new>
#include <optional>
#include <string>
#include <vector>

#include "qtaml/fault_job.h"
#include "qtaml/ops.h"

namespace qtaml {
namespace {

using ort::Api;

// Carries an OrtStatus up to the boundary, where guarded() hands it to onnxruntime.
struct Failure {
  OrtStatus* status;
};

void check(OrtStatus* status) {
  if (status != nullptr) throw Failure{status};
}

[[noreturn]] void refuse(const Api& api, const std::string& message) {
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

// Storage width in bits of a word type, 0 for a type that is none.
unsigned word_bits(int type) {
  switch (type) {
    case ort::kUint8:
    case ort::kInt8:
    case ort::kFloat8E4M3FN:
    case ort::kFloat8E4M3FNUZ:
    case ort::kFloat8E5M2:
    case ort::kFloat8E5M2FNUZ:
      return 8;
    case ort::kUint16:
    case ort::kInt16:
    case ort::kFloat16:
    case ort::kBfloat16:
      return 16;
    case ort::kUint32:
    case ort::kInt32:
    case ort::kFloat:
      return 32;
    default:
      return 0;
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

Tensor input(const Api& api, const OrtKernelContext* context, size_t index) {
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

std::string text(const std::vector<int64_t>& shape) {
  std::string out = "[";
  for (size_t i = 0; i < shape.size(); ++i) out += (i ? ", " : "") + std::to_string(shape[i]);
  return out + "]";
}

struct FaultInjectOp : OrtCustomOp {
  const Api* api;
};

struct Kernel {
  const Api& api;
  ChunkKernel chunk;
  int64_t stream;
  std::optional<int64_t> bits, exposed;

  void run(OrtKernelContext* context) const;
};

std::optional<int64_t> attribute(const Api& api, const OrtKernelInfo* info, const char* name) {
  int64_t value = 0;
  OrtStatus* status = api.KernelInfoGetAttribute_int64(info, name, &value);
  if (status == nullptr) return value;
  api.ReleaseStatus(status);  // absent: each attribute has a default
  return std::nullopt;
}

void Kernel::run(OrtKernelContext* context) const {
  const Tensor x = input(api, context, 0), seed = input(api, context, 1), rates = input(api, context, 2);
  FaultJob job{};
  job.width = word_bits(x.type);
  if (job.width == 0) {
    refuse(api, "input X has element type " + std::to_string(x.type) +
                    " (ONNX numbering); give 8, 16 or 32-bit integers, float8, float16, bfloat16 or float");
  }
  const int64_t stored = bits.value_or(job.width);
  if (stored < 1 || stored > job.width) {
    refuse(api, "attribute bits is " + std::to_string(stored) + "; give 1 to " + std::to_string(job.width) +
                    " for the words of input X");
  }
  const int64_t all = (int64_t{1} << stored) - 1, planes_exposed = exposed.value_or(all);
  if (planes_exposed < 0 || planes_exposed > all) {
    refuse(api, "attribute exposed_planes is " + std::to_string(planes_exposed) + "; only planes 0 to " +
                    std::to_string(stored - 1) + " exist");
  }
  if (seed.count != 1 || seed.shape.size() > 1) {
    refuse(api, "input seed has shape " + text(seed.shape) + "; give one int64");
  }
  if (rates.shape.size() != 2 || rates.shape[0] != 2) {
    refuse(api, "input flip_rates has shape " + text(rates.shape) + "; give float32 [2, planes]");
  }
  const size_t planes = static_cast<size_t>(rates.shape[1]);
  if (rates.shape[1] < stored) {
    refuse(api, "input flip_rates has " + std::to_string(planes) + " planes; give at least bits = " +
                    std::to_string(stored));
  }
  const float* rate = static_cast<const float*>(rates.data);
  for (size_t i = 0; i < 2 * planes; ++i) {
    if (!(rate[i] >= 0.0f && rate[i] < 1.0f)) {
      char value[32];
      std::snprintf(value, sizeof value, "%.9g", static_cast<double>(rate[i]));
      refuse(api, "input flip_rates[" + std::to_string(i / planes) + ", " + std::to_string(i % planes) + "] is " +
                      value + "; rates lie in [0, 1)");
    }
  }
  OrtValue* output = nullptr;
  check(api.KernelContext_GetOutput(context, 0, x.shape.data(), x.shape.size(), &output));
  if (x.count == 0) return;
  void* target = nullptr;
  check(api.GetTensorMutableData(output, &target));
  job.source = static_cast<const unsigned char*>(x.data);
  job.target = static_cast<unsigned char*>(target);
  job.words = x.count;
  plan_seed(job, static_cast<uint64_t>(*static_cast<const int64_t*>(seed.data)));
  job.stream = static_cast<uint32_t>(stream);
  plan_planes(job, rate, planes, static_cast<uint32_t>(planes_exposed));

  struct Loop {
    const FaultJob* job;
    ChunkKernel chunk;
  } loop{&job, chunk};
  const size_t chunks = (job.words + kChunk - 1) / kChunk;
  if (chunks == 1) {
    chunk(job, 0);
    return;
  }
  const auto body = [](void* user, size_t index) {
    const Loop& self = *static_cast<const Loop*>(user);
    self.chunk(*self.job, static_cast<uint32_t>(index));
  };
  check(api.KernelContext_ParallelFor(context, body, chunks, 0, &loop));
}

OrtStatus* create(const OrtCustomOp* op, const void*, const OrtKernelInfo* info, void** kernel) {
  const Api& api = *static_cast<const FaultInjectOp*>(op)->api;
  return guarded(api, [&] {
    const ChunkKernel chunk = chunk_kernel();
    if (chunk == nullptr) {
      refuse(api, "environment variable QTAML_SIMD names no kernel of this machine; give plain, avx2 or avx512");
    }
    const int64_t stream = attribute(api, info, "stream").value_or(0);
    if (stream < 0 || stream > UINT32_MAX) {
      refuse(api, "attribute stream is " + std::to_string(stream) + "; give 0 to 4294967295");
    }
    *kernel = new Kernel{api, chunk, stream, attribute(api, info, "bits"), attribute(api, info, "exposed_planes")};
  });
}

OrtStatus* infer_shape(const OrtCustomOp* op, OrtShapeInferContext* context) {
  const Api& api = *static_cast<const FaultInjectOp*>(op)->api;
  return guarded(api, [&] {
    OrtTensorTypeAndShapeInfo* shape = nullptr;  // owned by the context
    check(api.ShapeInferContext_GetInputTypeShape(context, 0, &shape));
    check(api.ShapeInferContext_SetOutputTypeShape(context, 0, shape));
  });
}

}  // namespace

const OrtCustomOp* fault_inject_op(const Api& api) {
  static const FaultInjectOp op = [&api] {
    FaultInjectOp o{};
    o.version = ort::kApiVersion;
    o.GetName = [](const OrtCustomOp*) { return "FaultInject"; };
    o.GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };
    o.GetInputType = [](const OrtCustomOp*, size_t index) -> int {
      return index == 0 ? ort::kUndefined : index == 1 ? ort::kInt64 : ort::kFloat;  // undefined: any type
    };
    o.GetInputTypeCount = [](const OrtCustomOp*) -> size_t { return 3; };
    o.GetOutputType = [](const OrtCustomOp*, size_t) -> int { return ort::kUndefined; };
    o.GetOutputTypeCount = [](const OrtCustomOp*) -> size_t { return 1; };
    o.KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
    o.GetInputCharacteristic = [](const OrtCustomOp*, size_t) -> int { return ort::kRequired; };
    o.GetOutputCharacteristic = [](const OrtCustomOp*, size_t) -> int { return ort::kRequired; };
    o.GetInputMemoryType = [](const OrtCustomOp*, size_t) -> int { return 0; };
    o.GetVariadicInputMinArity = o.GetVariadicOutputMinArity = [](const OrtCustomOp*) -> int { return 1; };
    o.GetVariadicInputHomogeneity = o.GetVariadicOutputHomogeneity = [](const OrtCustomOp*) -> int { return 1; };
    o.CreateKernelV2 = create;
    o.KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
      const Kernel& self = *static_cast<const Kernel*>(kernel);
      return guarded(self.api, [&] { self.run(context); });
    };
    o.InferOutputShapeFn = infer_shape;
    o.GetStartVersion = [](const OrtCustomOp*) -> int { return 1; };
    o.GetEndVersion = [](const OrtCustomOp*) -> int { return INT32_MAX; };
    o.api = &api;
    return o;
  }();
  return &op;
}

}  // namespace qtaml
