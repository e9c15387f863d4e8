// Runs a model with injected faults from C++: one session, any seed and any flip rates.
//
//   run_faulty LIBONNXRUNTIME LIBQTAML_OPS FAULTY.onnx INPUT.bin SHAPE RATE SEED...
//
// FAULTY.onnx comes from `qtaml-onnx inject`; LIBQTAML_OPS is the operator library, whose path that command prints;
// INPUT.bin holds float32 values of the model's first input, whose SHAPE is given as 1x1x8x8. For each seed a line is
// printed: the values of the first output as hexadecimal floats, which lose no bit.
//
//   g++ -std=c++17 run_faulty.cpp -ldl -o run_faulty                            slot numbers of ort_slots.h
//   g++ -std=c++17 -DUSE_ONNXRUNTIME_HEADERS -I.../onnxruntime ... -o run_faulty   the runtime's own headers
//
// LIBONNXRUNTIME is libonnxruntime.so of version 1.17 or newer, for example the one in the Python package's folder
// onnxruntime/capi. It is loaded at run time, so that no development package is needed.
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#ifdef USE_ONNXRUNTIME_HEADERS
#include <onnxruntime_c_api.h>
static const OrtApi& api_of(const OrtApi* api) { return *api; }
#else
#include "ort_slots.h"
#endif

namespace {

constexpr uint32_t kApiVersion = 17;
constexpr int64_t kPlanes = 12;  // the longest word that a plan has; more rates than planes do no harm

void check(const OrtApi& api, OrtStatus* status) {
  if (!status) return;
  std::string message = api.GetErrorMessage(status);
  api.ReleaseStatus(status);
  throw std::runtime_error(message);
}

const OrtApiBase* load_runtime(const char* path) {
  void* library = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
  if (!library) throw std::runtime_error(dlerror());
  using GetBase = const OrtApiBase* (*)();
  auto get = reinterpret_cast<GetBase>(dlsym(library, "OrtGetApiBase"));
  if (!get) throw std::runtime_error(std::string(path) + " is not onnxruntime");
  return get();
}

std::vector<int64_t> parse_shape(const std::string& text) {
  std::vector<int64_t> shape;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, 'x');) shape.push_back(std::stoll(part));
  return shape;
}

std::vector<float> read_floats(const char* path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) throw std::runtime_error(std::string("cannot read ") + path);
  std::vector<float> values(static_cast<size_t>(file.tellg()) / sizeof(float));
  file.seekg(0);
  file.read(reinterpret_cast<char*>(values.data()), static_cast<std::streamsize>(values.size() * sizeof(float)));
  return values;
}

template <typename T>
OrtValue* tensor(const OrtApi& api, const OrtMemoryInfo* memory, std::vector<T>& data,
                 const std::vector<int64_t>& shape, ONNXTensorElementDataType type) {
  OrtValue* value = nullptr;
  check(api, api.CreateTensorWithDataAsOrtValue(memory, data.data(), data.size() * sizeof(T), shape.data(),
                                                shape.size(), type, &value));
  return value;
}

void run(int argc, char** argv) {
  const OrtApiBase* base = load_runtime(argv[1]);
  auto table = base->GetApi(kApiVersion);
  if (!table) throw std::runtime_error("onnxruntime is older than 1.17");
  const OrtApi& api = api_of(table);

  OrtEnv* env = nullptr;
  OrtSessionOptions* options = nullptr;
  OrtSession* session = nullptr;
  check(api, api.CreateEnv(ORT_LOGGING_LEVEL_ERROR, "run_faulty", &env));
  check(api, api.CreateSessionOptions(&options));
  check(api, api.SetSessionLogSeverityLevel(options, ORT_LOGGING_LEVEL_ERROR));  // it warns of inputs with defaults
  check(api, api.RegisterCustomOpsLibrary_V2(options, argv[2]));                 // knows qtaml::FaultInject
  check(api, api.CreateSession(env, argv[3], options, &session));

  OrtAllocator* allocator = nullptr;
  char *input_name = nullptr, *output_name = nullptr;
  check(api, api.GetAllocatorWithDefaultOptions(&allocator));
  check(api, api.SessionGetInputName(session, 0, allocator, &input_name));
  check(api, api.SessionGetOutputName(session, 0, allocator, &output_name));

  OrtMemoryInfo* memory = nullptr;
  check(api, api.CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory));
  std::vector<float> samples = read_floats(argv[4]);
  std::vector<float> rates(2 * kPlanes, std::stof(argv[6]));  // row 0: 0 to 1, row 1: 1 to 0
  std::vector<int64_t> seed(1);
  OrtValue* inputs[] = {tensor(api, memory, samples, parse_shape(argv[5]), ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT),
                        tensor(api, memory, seed, {}, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64),
                        tensor(api, memory, rates, {2, kPlanes}, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT)};
  const char* names[] = {input_name, "qtaml_seed", "qtaml_flip_rates"};
  const char* wanted[] = {output_name};

  for (int trial = 7; trial < argc; trial++) {
    seed[0] = std::stoll(argv[trial]);  // the tensor looks at this memory
    OrtValue* output = nullptr;
    check(api, api.Run(session, nullptr, names, inputs, 3, wanted, 1, &output));
    OrtTensorTypeAndShapeInfo* info = nullptr;
    size_t count = 0;
    void* data = nullptr;
    check(api, api.GetTensorTypeAndShape(output, &info));
    check(api, api.GetTensorShapeElementCount(info, &count));
    check(api, api.GetTensorMutableData(output, &data));
    for (size_t i = 0; i < count; i++) std::printf("%a ", static_cast<double>(static_cast<float*>(data)[i]));
    std::printf("\n");
    api.ReleaseTensorTypeAndShapeInfo(info);
    api.ReleaseValue(output);
  }

  for (OrtValue* value : inputs) api.ReleaseValue(value);
  check(api, api.AllocatorFree(allocator, input_name));
  check(api, api.AllocatorFree(allocator, output_name));
  api.ReleaseMemoryInfo(memory);
  api.ReleaseSession(session);
  api.ReleaseSessionOptions(options);
  api.ReleaseEnv(env);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 8) {
    std::fprintf(stderr, "usage: run_faulty LIBONNXRUNTIME LIBQTAML_OPS FAULTY.onnx INPUT.bin SHAPE RATE SEED...\n");
    return 2;
  }
  try {
    run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "run_faulty: %s\n", error.what());
    return 1;
  }
  return 0;
}
