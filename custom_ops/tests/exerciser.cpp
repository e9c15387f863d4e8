// Runs every kernel of this machine over awkward sizes and rates, and compares each with the plain one: the program
// that the sanitizer builds run. Exits with 1 at the first difference. With --digest it prints one number for all
// results, which must be the same on every machine.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "qtaml/fault_job.h"

using namespace qtaml;

namespace {

uint64_t digest = 0xcbf29ce484222325u;

struct Case {
  FaultKind kind;
  unsigned width, bits;
  size_t words;
  uint32_t group;
  BurstGeometry geometry;
};

std::vector<unsigned char> run(Kernel kernel, const Case& c, const std::vector<unsigned char>& words,
                               const float* rates) {
  // Exactly as long as the words, so that the address sanitizer sees a byte too many.
  const std::unique_ptr<unsigned char[]> source(new unsigned char[words.size()]);
  const std::unique_ptr<unsigned char[]> target(new unsigned char[words.size()]);
  std::memcpy(source.get(), words.data(), words.size());
  FaultPlan plan{};
  plan.kind = c.kind;
  plan.width = c.width;
  const uint32_t exposed = c.bits == 32 ? 0xFFFFFFFFu : (1u << c.bits) - 1;
  if (c.kind == FaultKind::kBurst) {
    plan_bursts(plan, rates, c.width, exposed, c.bits, c.geometry);
  } else {
    plan_planes(plan, rates, c.width, exposed);
  }
  FaultJob job{};
  job.plan = &plan;
  job.source = source.get();
  job.target = target.get();
  job.words = c.words;
  job.stream = 4294967295u;
  plan_seed(job, 0xFEDCBA9876543210u);
  const uint32_t chunks = static_cast<uint32_t>((c.words + kChunk - 1) / kChunk);
  for (uint32_t chunk = 0; chunk < chunks; chunk += c.group) {
    kernel(job, chunk, c.group < chunks - chunk ? c.group : chunks - chunk);
  }
  return std::vector<unsigned char>(target.get(), target.get() + words.size());
}

struct Named {
  const char* name;
  Kernel kernel;
};

// The same words and rates by all kernels, in groups of one chunk and of several.
int compare(Case c, const std::vector<Named>& kernels, const std::vector<unsigned char>& words, const float* rates) {
  const bool burst = c.kind == FaultKind::kBurst;
  c.group = 1;
  const auto expected = run(burst ? inject_bursts : inject_plain, c, words, rates);
  for (const unsigned char byte : expected) digest = (digest ^ byte) * 0x100000001b3u;
  int cases = 0;
  for (const Named& named : burst ? std::vector<Named>{{"burst", inject_bursts}} : kernels) {
    for (const uint32_t group : {1u, 2u, 16u}) {
      c.group = group;
      ++cases;
      if (run(named.kernel, c, words, rates) != expected) {
        std::printf("%s differs: kind %u, width %u, bits %u, %zu words, groups of %u, rate %g\n", named.name,
                    static_cast<unsigned>(c.kind), c.width, c.bits, c.words, group, static_cast<double>(rates[0]));
        std::exit(1);
      }
    }
  }
  return cases;
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<Named> kernels = {{"plain", inject_plain}};
#ifdef QTAML_X86
  for (const char* name : {"avx2", "avx512"}) {
    setenv("QTAML_SIMD", name, 1);
    if (const Kernel kernel = best_kernel()) kernels.push_back({name, kernel});
  }
#endif
  int cases = 0;
  for (const unsigned width : {2u, 4u, 8u, 16u, 32u}) {
    for (const size_t count : {1u, 3u, 511u, 513u, 16384u, 16385u, 40001u}) {
      std::vector<unsigned char> words(packed_bytes(count, width));
      for (size_t i = 0; i < words.size(); ++i) words[i] = static_cast<unsigned char>(i * 2654435761u >> 13);
      for (const float p : {0.0f, 1e-45f, 1e-12f, 1e-4f, 0.0077f, 0.0078f, 0.1f, 0.5f, 0.99999994f}) {
        for (const float ratio : {1.0f, 0.25f}) {
          float rates[64];
          for (unsigned k = 0; k < width; ++k) {
            rates[k] = p;
            rates[width + k] = k % 3 == 2 ? 0.001f : p * ratio;
          }
          const unsigned bits = ratio == 1.0f ? width : width - 1;
          cases += compare({FaultKind::kIndependent, width, bits, count, 1, {}}, kernels, words, rates);
          cases += compare({FaultKind::kStuckAt, width, bits, count, 1, {}}, kernels, words, rates);
          if (p > 0.5f) continue;
          for (const BurstGeometry& geometry :
               {BurstGeometry{1, 1, 1}, BurstGeometry{64, 5, 1}, BurstGeometry{1000, 1000, 7}, BurstGeometry{9, 2, 20000}}) {
            cases += compare({FaultKind::kBurst, width, bits, count, 1, geometry}, kernels, words, rates);
          }
        }
      }
    }
  }
  if (argc > 1 && std::strcmp(argv[1], "--digest") == 0) {
    std::printf("%016llx\n", static_cast<unsigned long long>(digest));
  } else {
    std::printf("%d comparisons of %zu kernels: equal\n", cases, kernels.size());
  }
  return 0;
}
