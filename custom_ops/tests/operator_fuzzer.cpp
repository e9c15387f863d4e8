// Drives the whole operator through a stand-in for onnxruntime: the C functions that it calls, in their slots, over
// tensors and attributes made up at random, good and bad. For the sanitizer builds; also checks what it is told: a bad
// call gives a message and no output, a good one an output of X's type and shape in which rates of 0 change nothing.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "qtaml/ort_abi.h"

struct OrtStatus {
  int code;
  std::string message;
};
struct OrtValue {
  int type;
  std::vector<int64_t> shape;
  std::unique_ptr<unsigned char[]> data;  // exactly as long as the tensor
};
struct OrtTensorTypeAndShapeInfo {
  const OrtValue* value;
};
struct OrtCustomOpDomain {
  std::vector<const OrtCustomOp*> ops;
};
struct OrtSessionOptions {
  OrtCustomOpDomain* domain = nullptr;
};
struct OrtKernelInfo {
  std::map<std::string, int64_t> integers;
  std::map<std::string, std::string> strings;
};
struct OrtKernelContext {
  std::vector<const OrtValue*> inputs;
  std::unique_ptr<OrtValue> output;
};

extern "C" OrtStatus* RegisterCustomOps(OrtSessionOptions*, const OrtApiBase*);

namespace {

using namespace qtaml;

size_t element_count(const OrtValue& value) {
  size_t count = 1;
  for (const int64_t dim : value.shape) count *= static_cast<size_t>(dim);
  return count;
}

size_t bits_of(int type) {
  switch (type) {
    case ort::kUint2:
    case ort::kInt2:
      return 2;
    case ort::kUint4:
    case ort::kInt4:
      return 4;
    case ort::kInt64:
    case 11:  // double
      return 64;
    case ort::kFloat:
    case ort::kInt32:
    case ort::kUint32:
      return 32;
    case ort::kUint16:
    case ort::kInt16:
    case ort::kFloat16:
    case ort::kBfloat16:
      return 16;
    default:
      return 8;
  }
}

size_t bytes_of(const OrtValue& value) { return (element_count(value) * bits_of(value.type) + 7) / 8; }

OrtStatus* fail(const std::string& message) { return new OrtStatus{1, message}; }

int live_statuses = 0, live_shapes = 0;

const void* const* api_table(uint32_t version) {
  static std::vector<void*> table(400, nullptr);
  static const bool filled = [] {
#define SLOT(slot, ...) table[slot] = reinterpret_cast<void*>(+__VA_ARGS__)
    SLOT(0, [](int code, const char* message) -> OrtStatus* {
      ++live_statuses;
      return new OrtStatus{code, message};
    });
    SLOT(26, [](const char*, OrtCustomOpDomain** out) -> OrtStatus* {
      static OrtCustomOpDomain domain;
      *out = &domain;
      return nullptr;
    });
    SLOT(27, [](OrtCustomOpDomain* domain, const OrtCustomOp* op) -> OrtStatus* {
      domain->ops.push_back(op);
      return nullptr;
    });
    SLOT(28, [](OrtSessionOptions* options, OrtCustomOpDomain* domain) -> OrtStatus* {
      options->domain = domain;
      return nullptr;
    });
    SLOT(51, [](OrtValue* value, void** out) -> OrtStatus* {
      *out = value->data.get();
      return nullptr;
    });
    SLOT(60, [](const OrtTensorTypeAndShapeInfo* info, int* out) -> OrtStatus* {
      *out = info->value->type;
      return nullptr;
    });
    SLOT(61, [](const OrtTensorTypeAndShapeInfo* info, size_t* out) -> OrtStatus* {
      *out = info->value->shape.size();
      return nullptr;
    });
    SLOT(62, [](const OrtTensorTypeAndShapeInfo* info, int64_t* out, size_t rank) -> OrtStatus* {
      std::copy_n(info->value->shape.begin(), rank, out);
      return nullptr;
    });
    SLOT(64, [](const OrtTensorTypeAndShapeInfo* info, size_t* out) -> OrtStatus* {
      *out = element_count(*info->value);
      return nullptr;
    });
    SLOT(65, [](const OrtValue* value, OrtTensorTypeAndShapeInfo** out) -> OrtStatus* {
      ++live_shapes;
      *out = new OrtTensorTypeAndShapeInfo{value};
      return nullptr;
    });
    SLOT(86, [](const OrtKernelInfo* info, const char* name, int64_t* out) -> OrtStatus* {
      const auto found = info->integers.find(name);
      if (found == info->integers.end()) return ++live_statuses, fail("no attribute");
      *out = found->second;
      return nullptr;
    });
    SLOT(87, [](const OrtKernelInfo* info, const char* name, char* out, size_t* size) -> OrtStatus* {
      const auto found = info->strings.find(name);
      if (found == info->strings.end()) return ++live_statuses, fail("no attribute");
      if (out != nullptr) {
        if (*size < found->second.size() + 1) return ++live_statuses, fail("too short");
        std::memcpy(out, found->second.c_str(), found->second.size() + 1);
      }
      *size = found->second.size() + 1;
      return nullptr;
    });
    SLOT(90, [](const OrtKernelContext* context, size_t index, const OrtValue** out) -> OrtStatus* {
      *out = context->inputs[index];
      return nullptr;
    });
    SLOT(91, [](OrtKernelContext* context, size_t, const int64_t* dims, size_t rank, OrtValue** out) -> OrtStatus* {
      auto value = std::make_unique<OrtValue>();
      value->type = context->inputs[0]->type;
      value->shape.assign(dims, dims + rank);
      value->data.reset(new unsigned char[bytes_of(*value)]);
      *out = value.get();
      context->output = std::move(value);
      return nullptr;
    });
    SLOT(93, [](OrtStatus* status) {
      --live_statuses;
      delete status;
    });
    SLOT(99, [](OrtTensorTypeAndShapeInfo* info) {
      live_shapes -= info != nullptr;
      delete info;
    });
    SLOT(274, [](const OrtKernelContext*, void (*fn)(void*, size_t), size_t total, size_t, void* user) -> OrtStatus* {
      std::thread other([&] {
        for (size_t i = 1; i < total; i += 2) fn(user, i);
      });
      for (size_t i = 0; i < total; i += 2) fn(user, i);
      other.join();
      return nullptr;
    });
#undef SLOT
    return true;
  }();
  (void)filled;
  return version <= 31 ? const_cast<const void* const*>(table.data()) : nullptr;
}

std::mt19937 generator(20240607);

int64_t pick(std::initializer_list<int64_t> values) {
  return *(values.begin() + generator() % values.size());
}

OrtValue tensor(int type, std::vector<int64_t> shape) {
  OrtValue value{type, std::move(shape), nullptr};
  const size_t bytes = bytes_of(value);
  value.data.reset(new unsigned char[bytes]);
  for (size_t i = 0; i < bytes; ++i) value.data[i] = static_cast<unsigned char>(generator());
  return value;
}

std::vector<int64_t> random_shape() {
  std::vector<int64_t> shape(generator() % 5);
  int64_t left = 70000;
  for (int64_t& dim : shape) {
    dim = std::min(left, pick({0, 1, 1, 2, 3, 7, 64, 513, 20000}));
    left /= std::max<int64_t>(dim, 1);
  }
  return shape;
}

[[noreturn]] void complain(const char* what, const std::string& detail = "") {
  std::printf("%s %s\n", what, detail.c_str());
  std::exit(1);
}

// Attributes and inputs, mostly right; true if a good call came of them.
bool one_call(const OrtCustomOp* op) {
  const int type = op->GetInputType(op, 0);
  const size_t width = bits_of(type);
  OrtKernelInfo info;
  const auto maybe = [](unsigned in) { return generator() % in == 0; };
  if (!maybe(3)) info.integers["stream"] = pick({0, 1, 5, 4294967295, -1, 4294967296});
  if (!maybe(3)) info.integers["bits"] = maybe(9) ? pick({0, -1, 33}) : 1 + static_cast<int64_t>(generator() % width);
  if (maybe(3)) info.integers["exposed_planes"] = pick({0, 1, 2, 3, 9, 255, 256, -1, 4294967295});
  if (maybe(4)) info.integers["per_sample"] = pick({0, 1, 1, 2});
  const int kind = static_cast<int>(generator() % 8);
  if (kind > 1) info.strings["kind"] = kind == 7 ? "cosmic" : kind > 4 ? "burst" : kind > 2 ? "stuck-at" : "independent";
  if (kind == 5 || kind == 6 || maybe(20)) {
    info.integers["row_cells"] = pick({1, 7, 64, 1000, 0, 1048577});
    info.integers["burst_cells"] = pick({1, 2, 7, 64, 0, -5});
    if (maybe(2)) info.integers["interleave"] = pick({1, 3, 50, 1048576, -1});
  }
  const OrtValue x = tensor(type, random_shape());
  OrtValue seed = tensor(ort::kInt64, maybe(2) ? std::vector<int64_t>{2} : maybe(9) ? random_shape() : std::vector<int64_t>{});
  const int64_t planes = maybe(8) ? 3 : 32;
  OrtValue rates = tensor(ort::kFloat, maybe(20) ? random_shape() : std::vector<int64_t>{2, planes});
  float* rate = reinterpret_cast<float*>(rates.data.get());
  const bool zero = maybe(4);
  const float presets[] = {0.0f, 1e-30f, 1e-4f, 0.004f, 0.1f, 0.3f, 0.49f};
  for (size_t i = 0; i < element_count(rates); ++i) rate[i] = zero ? 0.0f : presets[generator() % 7];
  if (!zero && maybe(9) && element_count(rates) > 0) {
    const float bad[] = {1.0f, -0.5f, 2.0f, __builtin_nanf(""), __builtin_inff()};
    rate[generator() % element_count(rates)] = bad[generator() % 5];
  }
  const auto refused = [](OrtStatus* status) {
    if (status == nullptr) return false;
    if (status->message.find("FaultInject: ") != 0) complain("no clear message:", status->message);
    --live_statuses;
    delete status;
    return true;
  };
  void* kernel = nullptr;
  if (refused(op->CreateKernelV2(op, nullptr, &info, &kernel))) {
    if (kernel != nullptr) complain("a kernel beside a refusal");
    return false;
  }
  OrtKernelContext context;
  context.inputs = {&x, &seed, &rates};
  const bool bad = refused(op->KernelComputeV2(kernel, &context));
  op->KernelDestroy(kernel);
  if (bad) return false;
  if (!context.output || context.output->shape != x.shape) complain("an output of another shape");
  const size_t bits = element_count(x) * width;
  for (size_t i = 0; i < bytes_of(x); ++i) {
    const unsigned valid = bits - 8 * i >= 8 ? 255u : (1u << bits % 8) - 1;
    const unsigned char found = context.output->data[i];
    if (found & ~valid) complain("bits beyond the last word");
    if (zero && found != (x.data[i] & valid)) complain("rates of 0 change words");
  }
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  const int calls = argc > 1 ? std::atoi(argv[1]) : 4000;
  const OrtApiBase base = {api_table, [] { return "1.31.1"; }};
  OrtSessionOptions options;
  if (RegisterCustomOps(&options, &base) != nullptr || options.domain == nullptr) complain("not registered");
  const OrtApiBase old = {[](uint32_t version) { return version < 17 ? api_table(version) : nullptr; }, [] { return "1.16.0"; }};
  OrtStatus* too_old = RegisterCustomOps(&options, &old);
  if (too_old == nullptr || too_old->message.find("too old") == std::string::npos) complain("an old runtime is accepted");
  delete too_old;
  --live_statuses;
  int good = 0;
  for (int i = 0; i < calls; ++i) good += one_call(options.domain->ops[generator() % options.domain->ops.size()]);
  if (live_statuses != 0 || live_shapes != 0) complain("statuses or shapes are leaked");
  if (good < calls / 10 || good > calls - calls / 10) complain("the calls are not a mixture of good and bad");
  std::printf("%d calls of %zu operators, %d good: as promised\n", calls, options.domain->ops.size(), good);
  return 0;
}
