// qtaml::FaultInject for onnxruntime: argument checks and the parallel loop around the kernels.
#include <algorithm>
#include <cstdio>
#include <new>

#include "qtaml/fault_job.h"
#include "qtaml/ops.h"
#include "qtaml/ort_helpers.h"

namespace qtaml {
namespace {

// Storage width in bits of a word type, 0 for a type that is none.
unsigned word_bits(int type) {
  switch (type) {
    case ort::kUint2:
    case ort::kInt2:
      return 2;
    case ort::kUint4:
    case ort::kInt4:
      return 4;
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

constexpr int kWordTypes[] = {
    ort::kUint8,       ort::kInt8,         ort::kUint16,         ort::kInt16,      ort::kUint32,         ort::kInt32,
    ort::kFloat,       ort::kFloat16,      ort::kBfloat16,       ort::kUint4,      ort::kInt4,           ort::kUint2,
    ort::kInt2,        ort::kFloat8E4M3FN, ort::kFloat8E4M3FNUZ, ort::kFloat8E5M2, ort::kFloat8E5M2FNUZ,
};

struct FaultInjectOp : OrtCustomOp {
  const Api* api;
  int type;
};

struct Attributes {
  FaultKind kind;
  uint32_t stream;
  std::optional<int64_t> bits, exposed;
  bool per_sample;
  BurstGeometry geometry;
};

struct FaultKernel {
  const Api& api;
  Kernel fastest;
  Attributes attributes;

  void run(OrtKernelContext* context) const;
};

uint64_t in_range(const Api& api, const OrtKernelInfo* info, const char* name, int64_t preset, int64_t least,
                  int64_t most) {
  const int64_t value = integer(api, info, name).value_or(preset);
  if (value < least || value > most) {
    refuse(api, std::string("attribute ") + name + " is " + std::to_string(value) + "; give " + std::to_string(least) +
                    " to " + std::to_string(most));
  }
  return static_cast<uint64_t>(value);
}

Attributes read_attributes(const Api& api, const OrtKernelInfo* info) {
  Attributes a{};
  const std::string kind = string(api, info, "kind").value_or("independent");
  if (kind == "independent") {
    a.kind = FaultKind::kIndependent;
  } else if (kind == "stuck-at") {
    a.kind = FaultKind::kStuckAt;
  } else if (kind == "burst") {
    a.kind = FaultKind::kBurst;
  } else {
    refuse(api, "attribute kind is '" + kind + "'; give independent, stuck-at or burst");
  }
  a.stream = static_cast<uint32_t>(in_range(api, info, "stream", 0, 0, UINT32_MAX));
  a.bits = integer(api, info, "bits");
  a.exposed = integer(api, info, "exposed_planes");
  a.per_sample = in_range(api, info, "per_sample", 0, 0, 1) != 0;
  constexpr int64_t kMostCells = 1 << 20;
  BurstGeometry& g = a.geometry;
  if (a.kind == FaultKind::kBurst) {
    g.row_cells = in_range(api, info, "row_cells", 0, 1, kMostCells);
    g.burst_cells = in_range(api, info, "burst_cells", 0, 1, static_cast<int64_t>(g.row_cells));
    g.interleave = in_range(api, info, "interleave", 1, 1, kMostCells);
  } else {
    for (const char* name : {"row_cells", "burst_cells", "interleave"}) {
      if (integer(api, info, name).value_or(0) != 0) {
        refuse(api, std::string("attribute ") + name + " belongs to the kind burst, this is " + kind);
      }
    }
  }
  return a;
}

// Refuses rates out of range; `planes` is the number of columns of `rate`.
void check_rates(const Api& api, const float* rate, size_t planes, FaultKind kind) {
  const auto value = [](double number) {
    char text[32];
    std::snprintf(text, sizeof text, "%.9g", number);
    return std::string(text);
  };
  for (size_t i = 0; i < 2 * planes; ++i) {
    const std::string name = "input flip_rates[" + std::to_string(i / planes) + ", " + std::to_string(i % planes) + "]";
    if (!(rate[i] >= 0.0f && rate[i] < 1.0f)) {
      refuse(api, name + " is " + value(double{rate[i]}) + "; rates lie in [0, 1)");
    }
    if (kind == FaultKind::kBurst && rate[i] > 0.5f) {
      refuse(api, name + " is " + value(double{rate[i]}) + "; rates of bursts lie in [0, 0.5]");
    }
    if (kind == FaultKind::kStuckAt && i >= planes && double{rate[i]} + double{rate[i - planes]} > 1.0) {
      refuse(api, "input flip_rates of plane " + std::to_string(i - planes) + " add up to " +
                      value(double{rate[i]} + double{rate[i - planes]}) + "; a cell is stuck at 0 or at 1, not both");
    }
  }
}

// The words of one tensor, as samples of equal length, and how they are shared out to threads.
struct Work {
  FaultJob first;  // of the first sample
  Kernel kernel;
  size_t samples, sample_bytes;
  uint64_t seed;
  bool numbered;  // each sample has a seed of its own, from its inference number
  uint64_t inference;
  uint32_t chunks, group, groups;  // chunks of a sample, of a group; groups of a sample

  void run(size_t unit) const {
    const size_t sample = unit / groups;
    const uint32_t chunk = static_cast<uint32_t>(unit % groups) * group;
    FaultJob job = first;
    job.source += sample * sample_bytes;
    job.target += sample * sample_bytes;
    plan_seed(job, numbered ? seed_of_inference(seed, inference + sample) : seed);
    kernel(job, chunk, std::min(group, chunks - chunk));
  }
};

void FaultKernel::run(OrtKernelContext* context) const {
  const Tensor x = input(api, context, 0), seed = input(api, context, 1), rates = input(api, context, 2);
  FaultPlan plan{};
  plan.kind = attributes.kind;
  plan.width = word_bits(x.type);
  const int64_t width = plan.width;
  if (width == 0) {
    refuse(api, "input X has element type " + std::to_string(x.type) +
                    " (ONNX numbering); give integers of 2, 4, 8, 16 or 32 bits, float8, float16, bfloat16 or float");
  }
  const int64_t stored = attributes.bits.value_or(width);
  if (stored < 1 || stored > width) {
    refuse(api, "attribute bits is " + std::to_string(stored) + "; give 1 to " + std::to_string(width) +
                    " for the words of input X");
  }
  const int64_t all = (int64_t{1} << stored) - 1, exposed = attributes.exposed.value_or(all);
  if (exposed < 0 || exposed > all) {
    refuse(api, "attribute exposed_planes is " + std::to_string(exposed) + "; only planes 0 to " +
                    std::to_string(stored - 1) + " exist");
  }
  if (seed.count < 1 || seed.count > 2 || seed.shape.size() > 1) {
    refuse(api, "input seed has shape " + text(seed.shape) + "; give one int64, or two: seed and inference number");
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
  check_rates(api, rate, planes, plan.kind);

  Work work{};
  work.numbered = seed.count == 2;
  work.samples = 1;
  if (attributes.per_sample) {
    if (!work.numbered) refuse(api, "attribute per_sample is 1; give two numbers as input seed: seed and inference number");
    if (x.shape.empty()) refuse(api, "attribute per_sample is 1, and input X is a scalar; it needs an axis of samples");
    work.samples = static_cast<size_t>(x.shape[0]);
  }
  OrtValue* output = nullptr;
  check(api.KernelContext_GetOutput(context, 0, x.shape.data(), x.shape.size(), &output));
  if (x.count == 0) return;
  void* target = nullptr;
  check(api.GetTensorMutableData(output, &target));

  if (plan.kind == FaultKind::kBurst) {
    plan_bursts(plan, rate, planes, static_cast<uint32_t>(exposed), static_cast<unsigned>(stored), attributes.geometry);
  } else {
    plan_planes(plan, rate, planes, static_cast<uint32_t>(exposed));
  }
  work.first.plan = &plan;
  work.first.source = static_cast<const unsigned char*>(x.data);
  work.first.target = static_cast<unsigned char*>(target);
  work.first.words = x.count / work.samples;
  work.first.stream = attributes.stream;
  work.kernel = plan.kind == FaultKind::kBurst ? inject_bursts : fastest;
  work.sample_bytes = packed_bytes(work.first.words, plan.width);
  if (work.samples > 1 && work.first.words * plan.width % 8 != 0) {
    refuse(api, "attribute per_sample is 1, and a sample of input X, packed, does not fill whole bytes");
  }
  const int64_t* numbers = static_cast<const int64_t*>(seed.data);
  work.seed = static_cast<uint64_t>(numbers[0]);
  work.inference = work.numbered ? static_cast<uint64_t>(numbers[1]) : 0;
  const size_t chunks = (work.first.words + kChunk - 1) / kChunk;
  if (chunks > UINT32_MAX || burst_chunks(plan, work.first.words) > uint64_t{1} << 32) {
    refuse(api, "input X has too many words, " + std::to_string(work.first.words));
  }
  work.chunks = static_cast<uint32_t>(chunks);
  // Several chunks at a time cost less each where little is drawn; enough groups remain for many threads.
  work.group = static_cast<uint32_t>(std::clamp<size_t>(chunks / (plan.dense_count > 0 ? 64 : 16), 1, 16));
  work.groups = (work.chunks + work.group - 1) / work.group;
  const size_t units = work.samples * work.groups;
  if (units == 1) return work.run(0);
  const auto body = [](void* user, size_t unit) { static_cast<const Work*>(user)->run(unit); };
  // As many batches as units: threads take the next one when they are done, so that one that wakes late does less.
  check(api.KernelContext_ParallelFor(context, body, units, units, &work));
}

OrtStatus* create(const OrtCustomOp* op, const void*, const OrtKernelInfo* info, void** kernel) {
  const Api& api = *static_cast<const FaultInjectOp*>(op)->api;
  return guarded(api, [&] {
    const Kernel fastest = best_kernel();
    if (fastest == nullptr) {
      refuse(api, "environment variable QTAML_SIMD names no kernel of this machine; give plain, avx2 or avx512");
    }
    *kernel = new FaultKernel{api, fastest, read_attributes(api, info)};
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

FaultInjectOp op_of_type(const Api& api, int type) {
  FaultInjectOp o{};
  o.version = ort::kApiVersion;
  o.GetName = [](const OrtCustomOp*) { return "FaultInject"; };
  o.GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };
  o.GetInputType = [](const OrtCustomOp* op, size_t index) -> int {
    return index == 0 ? static_cast<const FaultInjectOp*>(op)->type : index == 1 ? ort::kInt64 : ort::kFloat;
  };
  o.GetInputTypeCount = [](const OrtCustomOp*) -> size_t { return 3; };
  o.GetOutputType = [](const OrtCustomOp* op, size_t) -> int { return static_cast<const FaultInjectOp*>(op)->type; };
  o.GetOutputTypeCount = [](const OrtCustomOp*) -> size_t { return 1; };
  o.KernelDestroy = [](void* kernel) { delete static_cast<FaultKernel*>(kernel); };
  o.GetInputCharacteristic = [](const OrtCustomOp*, size_t) -> int { return ort::kRequired; };
  o.GetOutputCharacteristic = [](const OrtCustomOp*, size_t) -> int { return ort::kRequired; };
  o.GetInputMemoryType = [](const OrtCustomOp*, size_t) -> int { return 0; };
  o.GetVariadicInputMinArity = o.GetVariadicOutputMinArity = [](const OrtCustomOp*) -> int { return 1; };
  o.GetVariadicInputHomogeneity = o.GetVariadicOutputHomogeneity = [](const OrtCustomOp*) -> int { return 1; };
  o.CreateKernelV2 = create;
  o.KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
    const FaultKernel& self = *static_cast<const FaultKernel*>(kernel);
    return guarded(self.api, [&] { self.run(context); });
  };
  o.InferOutputShapeFn = infer_shape;
  o.GetStartVersion = [](const OrtCustomOp*) -> int { return 1; };
  o.GetEndVersion = [](const OrtCustomOp*) -> int { return INT32_MAX; };
  o.api = &api;
  o.type = type;
  return o;
}

}  // namespace

std::vector<const OrtCustomOp*> fault_inject_ops(const Api& api, bool with_two_bits) {
  static const std::vector<FaultInjectOp> ops = [&api] {
    std::vector<FaultInjectOp> all;
    for (const int type : kWordTypes) all.push_back(op_of_type(api, type));
    return all;
  }();
  std::vector<const OrtCustomOp*> wanted;
  for (const FaultInjectOp& op : ops) {
    if (with_two_bits || word_bits(op.type) != 2) wanted.push_back(&op);
  }
  return wanted;
}

}  // namespace qtaml
