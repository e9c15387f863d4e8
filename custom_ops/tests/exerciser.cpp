// Runs every kernel of this machine over awkward sizes and rates, and compares each with the plain one: the program
// that the sanitizer builds run. Exits with 1 at the first difference.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "qtaml/fault_job.h"

using namespace qtaml;

namespace {

std::vector<unsigned char> run(ChunkKernel kernel, const std::vector<unsigned char>& words, unsigned width,
                               const float* rates) {
  // Exactly as long as the words, so that the address sanitizer sees a byte too many.
  const std::unique_ptr<unsigned char[]> source(new unsigned char[words.size()]);
  const std::unique_ptr<unsigned char[]> target(new unsigned char[words.size()]);
  std::memcpy(source.get(), words.data(), words.size());
  FaultJob job{};
  job.source = source.get();
  job.target = target.get();
  job.words = words.size() / (width / 8);
  job.width = width;
  job.stream = 4294967295u;
  plan_seed(job, 0xFEDCBA9876543210u);
  plan_planes(job, rates, width, width == 32 ? 0xFFFFFFFFu : (1u << width) - 1);
  for (uint32_t chunk = 0; size_t{chunk} * kChunk < job.words; ++chunk) kernel(job, chunk);
  return std::vector<unsigned char>(target.get(), target.get() + words.size());
}

}  // namespace

int main() {
  std::vector<ChunkKernel> kernels;
  for (const char* name : {"avx2", "avx512"}) {
    setenv("QTAML_SIMD", name, 1);
    if (const ChunkKernel kernel = chunk_kernel()) kernels.push_back(kernel);
  }
  int cases = 0;
  for (const unsigned width : {8u, 16u, 32u}) {
    for (const size_t count : {1u, 511u, 512u, 513u, 16383u, 16384u, 16385u, 40000u}) {
      std::vector<unsigned char> words(count * width / 8);
      for (size_t i = 0; i < words.size(); ++i) words[i] = static_cast<unsigned char>(i * 2654435761u >> 13);
      for (const float p : {0.0f, 1e-45f, 1e-12f, 1e-4f, 0.0077f, 0.0078f, 0.1f, 0.5f, 0.99999994f}) {
        for (const float ratio : {1.0f, 0.25f}) {
          float rates[64];
          for (unsigned k = 0; k < width; ++k) {
            rates[k] = p;
            rates[width + k] = k % 3 == 2 ? 0.001f : p * ratio;
          }
          const auto expected = run(inject_chunk_plain, words, width, rates);
          for (const ChunkKernel kernel : kernels) {
            ++cases;
            if (run(kernel, words, width, rates) != expected) {
              std::printf("kernels differ: width %u, %zu words, rate %g, ratio %g\n", width, count, double{p},
                          double{ratio});
              return 1;
            }
          }
        }
      }
    }
  }
  std::printf("%d comparisons of %zu kernels with the plain one: equal\n", cases, kernels.size());
  return 0;
}
