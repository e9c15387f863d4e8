#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "qtaml/fault_job.h"

namespace qtaml {
namespace {

// -ln(1 - p) by its series.
double hazard(double p) {
  double total = 1.0 / 9.0;
  for (int divisor = 8; divisor > 0; --divisor) total = 1.0 / divisor + p * total;
  return p * total;
}

// 2^exponent, exactly.
double power_of_two(int exponent) {
  const uint64_t word = static_cast<uint64_t>(1023 + exponent) << 52;
  double value;
  std::memcpy(&value, &word, sizeof value);
  return value;
}

// floor(2^64 * P[Poisson(2^mean_log2) > q]) for all q where that is not 0.
std::vector<uint64_t> poisson_tail(int mean_log2) {
  constexpr int kTerms = 512;
  const double mean = power_of_two(mean_log2), small = std::min(mean, 1.0);
  double term[kTerms];
  term[0] = 1.0;
  for (int divisor = 20; divisor > 0; --divisor) term[0] = 1.0 - small * term[0] / divisor;
  for (int i = 0; i < mean_log2; ++i) term[0] = term[0] * term[0];
  for (int q = 1; q < kTerms; ++q) term[q] = term[q - 1] * mean / q;
  double tail = 0.0;
  std::vector<uint64_t> tails;
  for (int q = kTerms - 1; q > 0; --q) {
    tail += term[q];
    const double scaled = tail * power_of_two(64);
    const uint64_t value = scaled < power_of_two(64) ? static_cast<uint64_t>(scaled) : ~uint64_t{0};
    if (value > 0) tails.push_back(value);
  }
  std::reverse(tails.begin(), tails.end());
  tails.resize((tails.size() + 7) / 8 * 8);  // zeros, which no number is below: the kernel reads eight at a time
  return tails;
}

// One table for each octave j of sparse rates.
const std::vector<uint64_t>& hit_count_table(unsigned octave) {
  static const std::vector<std::vector<uint64_t>> tables = [] {
    std::vector<std::vector<uint64_t>> all;
    for (int j = kFirstOctave; j <= static_cast<int>(kLastOctave); ++j) {
      all.push_back(poisson_tail(static_cast<int>(kChunkBits) - j));
    }
    return all;
  }();
  return tables[octave - kFirstOctave];
}

}  // namespace

void plan_seed(FaultJob& job, uint64_t seed) {
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (auto& key : job.round_key) {
    key[0] = k0;
    key[1] = k1;
    k0 += kPhiloxWeyl0;
    k1 += kPhiloxWeyl1;
  }
}

void plan_planes(FaultJob& job, const float* rates, size_t planes, uint32_t exposed) {
  job.dense_count = job.sparse_count = 0;
  job.dense_asymmetric = false;
  for (uint32_t plane = 0; plane < job.width; ++plane) {
    if (!(exposed >> plane & 1)) continue;
    const double p[2] = {rates[plane], rates[planes + plane]};
    const double r[2] = {hazard(p[0]), hazard(p[1])};
    const double largest = std::max(r[0], r[1]);
    if (largest == 0) continue;
    if (largest > power_of_two(-static_cast<int>(kFirstOctave))) {
      DensePlane& entry = job.dense[job.dense_count++];
      entry.plane = plane;
      for (int s = 0; s < 2; ++s) entry.threshold[s] = static_cast<uint64_t>(p[s] * power_of_two(64));
      job.dense_asymmetric |= entry.threshold[0] != entry.threshold[1];
      for (unsigned i = 0; i < kLeading; ++i) {
        entry.digit[i] = -(entry.threshold[0] >> (kTrailing + i) & 1);
        entry.differs[i] = -((entry.threshold[0] ^ entry.threshold[1]) >> (kTrailing + i) & 1);
      }
    } else {
      unsigned octave = kFirstOctave;
      while (octave < kLastOctave && largest <= power_of_two(-static_cast<int>(octave) - 1)) ++octave;
      const std::vector<uint64_t>& tail = hit_count_table(octave);
      SparsePlane& entry = job.sparse[job.sparse_count++];
      entry.plane = plane;
      for (int s = 0; s < 2; ++s) {
        entry.accept_below[s] = static_cast<uint64_t>(r[s] * power_of_two(static_cast<int>(octave + kHitBits)));
      }
      entry.tail = tail.data();
      entry.tail_length = static_cast<uint32_t>(tail.size());
    }
  }
}

}  // namespace qtaml
